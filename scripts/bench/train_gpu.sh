#!/usr/bin/env bash
# Training speed on one GPU: ours, dense and SFA, against llm.c and the same model in PyTorch (torch.compile, bf16 autocast, fused AdamW), one after another in
# one run on the same tokens. Tokens a second, median over the steps, the first ones left out.
#   scripts/bench/train_gpu.sh DATA.h5 [STEPS]       DATA: tokens of `sfa data tokenize` with GPT-2's tokenizer; STEPS: 20
#   MODEL: 124m (default) or 355m;  SFA: the program (default build/cuda/sfa);  PYTHON: a python3 with torch, numpy and h5py (default python3)
#   LLMC_BINARY: llm.c's train_gpt2cu, built with cuDNN as its README says (make train_gpt2cu USE_CUDNN=1); left out when it is not set
#   RIVALS: any of "dense sfa sfa24 llmc torch" (default: all that can run);  JSON: where to write the figures
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
-*) echo "train_gpu.sh: $1 is no option; a token file is expected (see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
data=${1:?usage: scripts/bench/train_gpu.sh DATA.h5 [STEPS]}
steps=${2:-20}
model=${MODEL:-124m}
python=${PYTHON:-python3}
sfa=${SFA:-build/cuda/sfa}
rivals=${RIVALS:-dense sfa sfa24 llmc torch}
case $model in
124m) layers=12 heads=12 width=768 batch=64 depth=d12 rate=6e-4 ;;
355m) layers=24 heads=16 width=1024 batch=32 depth=d24 rate=3e-4 ;;
*) echo "MODEL: '$model' is not known; there are 124m and 355m" >&2 && exit 2 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
skipped=5
median() { sort -g | awk '{a[NR]=$1} END {print NR ? a[int((NR+1)/2)] : 0}'; }
ours() { # NAME overrides... -> tokens a second
  local name=$1
  shift
  "$sfa" train "configs/gpt2_$model.yaml" device=cuda data.train="$data" output_dir="$work/$name" train.max_steps="$steps" train.log_every=1 \
    train.eval_every=0 checkpoint.every=0 train.warmup_steps=5 "$@" >"$work/$name.log" 2>&1 || tail -1 "$work/$name.log" >&2
  { grep -o '"tokens_per_sec":[0-9.e+]*' "$work/$name/metrics.jsonl" || true; } | cut -d: -f2 | tail -n +$((skipped + 1)) | median
}
llmc() {
  "$python" scripts/bench/llmc_shard.py "$data" "$work/train.bin"
  "$python" scripts/bench/llmc_shard.py "$data" "$work/val.bin" 0 $((batch * 1024 * 2 + 1))
  # -r 0: nothing computed again; -z 0: no ZeRO; -s, -h 0: no samples, no HellaSwag. -v must not be 0: one batch of validation at the start and the end.
  timeout 600 stdbuf -oL "$LLMC_BINARY" -i "$work/train.bin" -j "$work/val.bin" -e "$depth" -b "$batch" -t 1024 -d 524288 -r 0 -z 0 -v 1000000 -s 0 -g 1 -h 0 \
    -x "$steps" -l "$rate" -q 0 -u 5 -n 0 -m 1 >"$work/llmc.log" 2>&1 || tail -3 "$work/llmc.log" >&2
  { grep -Eo '[0-9.]+ tok/s' "$work/llmc.log" || true; } | cut -d' ' -f1 | tail -n +$((skipped + 1)) | median
}
torch() {
  env -u LD_LIBRARY_PATH "$python" scripts/bench/gpt2_pytorch.py --data "$data" --vocab 50304 --layers "$layers" --heads "$heads" --width "$width" --seq-len 1024 \
    --batch 512 --micro-batch "$batch" --steps 12 --lr "$rate" --device cuda --compile --max-tokens 8000000 2>"$work/torch.log" >"$work/torch.json" ||
    tail -3 "$work/torch.log" >&2
  { grep -o '"tokens_per_sec": [0-9.]*' "$work/torch.json" || true; } | cut -d' ' -f2 | median
}
rows=()
for rival in $rivals; do
  case $rival in
  dense) rows+=("sfa dense|$(ours dense model.attention.type=dense)") ;;
  sfa) rows+=("sfa SFA k=8|$(ours sfa model.attention.type=sfa model.attention.k=8)") ;;
  sfa24) rows+=("sfa SFA k=8, 2 of 4|$(ours sfa24 model.attention.type=sfa model.attention.k=8 model.attention.selection=topk_2of4)") ;;
  llmc) [ -z "${LLMC_BINARY:-}" ] || rows+=("llm.c|$(llmc)") ;;
  torch) rows+=("PyTorch torch.compile|$(torch)") ;;
  *) echo "RIVALS: '$rival' is not known" >&2 && exit 2 ;;
  esac
done
rate_of() { for row in "${rows[@]}"; do [ "${row%|*}" != "$1" ] || echo "${row#*|}"; done; }
against() { awk -v a="$1" -v b="${2:-0}" 'BEGIN {if (b > 0) printf "%.3f", a / b; else printf "-"}'; }
nvidia-smi --query-gpu=name --format=csv,noheader
printf '%-26s %14s %10s %10s\n' "GPT-2 $model, B=$batch T=1024" 'tokens/s' 'to llm.c' 'to PyTorch'
for row in "${rows[@]}"; do
  printf '%-26s %14.0f %10s %10s\n' "${row%|*}" "${row#*|}" "$(against "${row#*|}" "$(rate_of llm.c)")" "$(against "${row#*|}" "$(rate_of 'PyTorch torch.compile')")"
done
if [ -n "${JSON:-}" ]; then
  { printf '{' && sep= && for row in "${rows[@]}"; do printf '%s"%s": %s' "$sep" "${row%|*}" "${row#*|}" && sep=', '; done && printf '}\n'; } >"$JSON"
fi
