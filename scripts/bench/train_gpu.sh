#!/usr/bin/env bash
# GPT-2 124M training speed on one GPU, dense and SFA, against the same model in PyTorch (torch.compile, bf16 autocast, fused AdamW), one after another.
#   scripts/bench/train_gpu.sh DATA.h5 [STEPS]       DATA: tokens of `sfa data tokenize` with GPT-2's tokenizer
#   PYTHON: a python3 that has torch and h5py (default python3);  SFA: the program (default build/cuda/sfa);  JSON: where to write the figures
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:?usage: scripts/bench/train_gpu.sh DATA.h5 [STEPS]}
steps=${2:-20}
python=${PYTHON:-python3}
sfa=${SFA:-build/cuda/sfa}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
median() { sort -g | awk '{a[NR]=$1} END {print NR ? a[int((NR+1)/2)] : "nan"}'; }
ours() { # NAME overrides... -> tokens a second, the first five steps left out
  local name=$1
  shift
  if ! "$sfa" train configs/gpt2_124m.yaml device=cuda data.train="$data" output_dir="$work/$name" train.max_steps="$steps" train.log_every=1 \
    train.eval_every=0 checkpoint.every=0 train.warmup_steps=5 "$@" >"$work/$name.log" 2>&1; then
    tail -1 "$work/$name.log" >&2
  fi
  grep -o '"tokens_per_sec":[0-9.e+]*' "$work/$name/metrics.jsonl" | cut -d: -f2 | tail -n +6 | median
}
rows=()
add() { rows+=("$1|$2"); }
add 'sfa dense' "$(ours dense model.attention.type=dense)"
add 'sfa SFA k=8' "$(ours sfa model.attention.type=sfa model.attention.k=8)"
add 'sfa SFA k=8, 2 of 4' "$(ours sfa24 model.attention.type=sfa model.attention.k=8 model.attention.selection=topk_2of4)"
torch=$(env -u LD_LIBRARY_PATH "$python" scripts/bench/gpt2_pytorch.py --data "$data" --vocab 50304 --layers 12 --heads 12 --width 768 --seq-len 1024 \
  --batch 512 --micro-batch 64 --steps 12 --lr 6e-4 --device cuda --compile --max-tokens 8000000 2>"$work/torch.log" || tail -3 "$work/torch.log" >&2)
add 'PyTorch torch.compile' "$(echo "$torch" | grep -o '"tokens_per_sec": [0-9.]*' | cut -d' ' -f2)"
base=${rows[3]#*|}
nvidia-smi --query-gpu=name --format=csv,noheader
printf '%-26s %14s %10s\n' 'GPT-2 124M, B=64 T=1024' 'tokens/s' 'ratio'
for row in "${rows[@]}"; do
  printf '%-26s %14.0f %10.3f\n' "${row%|*}" "${row#*|}" "$(awk -v a="${row#*|}" -v b="${base:-0}" 'BEGIN {print (b > 0 ? a / b : 0)}')"
done
if [ -n "${JSON:-}" ]; then
  { printf '{'; sep=; for row in "${rows[@]}"; do printf '%s"%s": %s' "$sep" "${row%|*}" "${row#*|}"; sep=', '; done; printf '}\n'; } >"$JSON"
fi
