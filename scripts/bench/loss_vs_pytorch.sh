#!/usr/bin/env bash
# Does our training reach PyTorch's loss? GPT-2 124M, 450 steps of 64 x 1024 tokens on one GPU, dense and SFA k=8, ours and PyTorch's on the same
# tokens; PyTorch with two seeds (its own run-to-run spread) and in TF32 (its spread over precision).
#   scripts/bench/loss_vs_pytorch.sh DATA.h5 [STEPS]     DATA: tokens of `sfa data tokenize` with GPT-2's tokenizer and --val-fraction 0.02
#   PYTHON: a python3 that has torch and h5py (default python3);  SFA: the program (default build/cuda/sfa);  RATE: peak learning rate (default 1.5e-3)
# AdamW, the rate cosine to a tenth, 40 warm-up steps, betas .9 and .95, weight decay .1, clip 1. Prints the mean training loss of the last 50 steps and
# the loss on the tail of the data.
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
-*) echo "loss_vs_pytorch.sh: $1 is no option; a token file is expected (see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
data=${1:?usage: scripts/bench/loss_vs_pytorch.sh DATA.h5 [STEPS]}
steps=${2:-450}
rate=${RATE:-1.5e-3}
least=$(awk -v r="$rate" 'BEGIN {print r / 10}')
python=${PYTHON:-python3}
sfa=${SFA:-build/cuda/sfa}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
row() { printf '%-34s %10s %10s %12s\n' "$@"; }
value() { grep -o "\"$1\": *[0-9.e+]*" | tail -1 | grep -o '[0-9.e+]*$'; }
ours() { # NAME overrides...
  local name=$1
  shift
  "$sfa" train configs/gpt2_124m.yaml device=cuda data.train="$data" data.batch_size=64 data.micro_batch_size=64 output_dir="$work/run" \
    train.max_steps="$steps" train.log_every=1 train.eval_every=0 checkpoint.every=0 train.lr="$rate" train.min_lr="$least" train.warmup_steps=40 "$@" \
    >"$work/log" 2>&1 || { tail -2 "$work/log" >&2; return; }
  local m="$work/run/metrics.jsonl"
  row "$name" "$(grep -o '"train/loss":[0-9.e+]*' "$m" | tail -50 | cut -d: -f2 | awk '{s += $1} END {printf "%.4f", s / NR}')" \
    "$(value val/loss <"$m" | cut -c1-6)" "$(grep -o '"tokens_per_sec":[0-9.e+]*' "$m" | cut -d: -f2 | sort -g | awk '{a[NR]=$1} END {printf "%.0f", a[int((NR+1)/2)]}')"
  rm -rf "$work/run"
}
torch() { # NAME arguments...
  local name=$1 out
  shift
  out=$(env -u LD_LIBRARY_PATH "$python" scripts/bench/gpt2_pytorch.py --data "$data" --max-tokens 1000000000 --val-fraction 0.02 --vocab 50304 --layers 12 \
    --heads 12 --width 768 --seq-len 1024 --batch 64 --order epochs --steps "$steps" --lr "$rate" --min-lr "$least" --warmup 40 --beta2 0.95 --last 50 \
    --device cuda --compile "$@" 2>"$work/log") || { tail -2 "$work/log" >&2; return; }
  row "$name" "$(value last_loss <<<"$out" | cut -c1-6)" "$(value val_loss <<<"$out" | cut -c1-6)" "$(value tokens_per_sec <<<"$out" | cut -d. -f1)"
}
nvidia-smi --query-gpu=name --format=csv,noheader
row "GPT-2 124M, $steps steps of 64 x 1024" 'last 50' 'held out' 'tokens/s'
ours 'sfa dense' seed=1
torch 'PyTorch dense, seed 1' --seed 1
ours 'sfa SFA k=8' seed=1 model.attention.type=sfa model.attention.k=8
torch 'PyTorch SFA k=8, seed 1' --seed 1 --sfa-k 8
torch 'PyTorch dense, seed 2' --seed 2
ours 'sfa dense, seed 2' seed=2
ours 'sfa SFA k=8, seed 2' seed=2 model.attention.type=sfa model.attention.k=8
torch 'PyTorch SFA k=8, seed 2' --seed 2 --sfa-k 8
torch 'PyTorch dense, seed 1, TF32' --seed 1 --precision tf32
