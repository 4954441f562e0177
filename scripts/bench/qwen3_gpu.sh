#!/usr/bin/env bash
# Qwen3 training on one GPU: ours, dense and SFA k=16, against transformers' Qwen3ForCausalLM under torch.compile, one after another in one run: tokens a second
# (median step, the first ones left out) and peak memory of the card.
#   scripts/bench/qwen3_gpu.sh DATA.h5 [STEPS]       DATA: tokens of `sfa data tokenize` with Qwen's tokenizer; STEPS: 10
#   MODEL: 0.6b (default), 1.7b, 4b or 8b;  BATCH, LENGTH: sequences and tokens (default 8 and 4096);  SFA: the program (default build/cuda/sfa)
#   PYTHON: a python3 with torch and transformers (default python3);  RIVALS: any of "dense sfa sfa24 torch" (default: dense sfa torch)
#   MORE: overrides for ours, for example "train.recompute=none";  JSON: where to write the figures
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
-*) echo "qwen3_gpu.sh: $1 is no option; a token file is expected (see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
data=${1:?usage: scripts/bench/qwen3_gpu.sh DATA.h5 [STEPS]}
steps=${2:-10}
model=${MODEL:-0.6b} batch=${BATCH:-8} length=${LENGTH:-4096} python=${PYTHON:-python3} sfa=${SFA:-build/cuda/sfa} rivals=${RIVALS:-dense sfa torch}
vocabulary=151936 # as published; the data's ids are below it
read -ra more <<<"${MORE:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number() { { grep -o "\"$2\": *[0-9.e+]*" "$1" || echo ': 0'; } | head -1 | sed 's/.*: *//'; }
rows=()
ours() { # LABEL NAME overrides...
  local label=$1 out=$work/$2.json
  shift 2
  "$sfa" bench step "configs/qwen3_$model.yaml" --steps "$steps" --warmup 3 --json device=cuda data.train="$data" data.seq_len="$length" \
    data.batch_size="$batch" data.micro_batch_size="$batch" model.vocab_size="$vocabulary" "$@" "${more[@]}" >"$out" 2>"$work/err" || tail -1 "$work/err" >&2
  rows+=("$label|$(number "$out" tokens_per_sec)|$(awk -v b="$(number "$out" card_used_bytes)" 'BEGIN {print b / 2^30}')")
}
torch() {
  env -u LD_LIBRARY_PATH "$python" scripts/bench/qwen3_pytorch.py --model "$model" --batch "$batch" --seq-len "$length" --steps "$steps" \
    --vocab "$vocabulary" --seconds "${SECONDS_OF_TORCH:-110}" >"$work/torch.json" 2>"$work/err" || tail -3 "$work/err" >&2
  rows+=("transformers, torch.compile|$(number "$work/torch.json" tokens_per_sec)|$(number "$work/torch.json" peak_gib)")
}
for rival in $rivals; do
  case $rival in
  dense) ours "sfa dense" dense model.attention.type=dense ;;
  sfa) ours "sfa SFA k=16" sfa model.attention.type=sfa model.attention.k=16 ;;
  sfa24) ours "sfa SFA k=16, 2 of 4" sfa24 model.attention.type=sfa model.attention.k=16 model.attention.selection=topk_2of4 ;;
  torch) torch ;;
  *) echo "RIVALS: '$rival' is not known" >&2 && exit 2 ;;
  esac
done
column() { for row in "${rows[@]}"; do [ "${row%%|*}" != "$1" ] || cut -d'|' -f"$2" <<<"$row"; done; }
against() { awk -v a="$1" -v b="${2:-0}" 'BEGIN {if (b > 0) printf "%.3f", a / b; else printf "-"}'; }
nvidia-smi --query-gpu=name --format=csv,noheader | head -1
printf '%-28s %12s %11s %12s %11s %10s\n' "Qwen3-$model, B=$batch T=$length" 'tokens/s' 'peak GiB' 'speed to PT' 'mem. to PT' 'to dense'
for row in "${rows[@]}"; do
  IFS='|' read -r name speed memory <<<"$row"
  printf '%-28s %12.0f %11.1f %12s %11s %10s\n' "$name" "$speed" "$memory" "$(against "$speed" "$(column 'transformers, torch.compile' 2)")" \
    "$(against "$memory" "$(column 'transformers, torch.compile' 3)")" "$(against "$speed" "$(column 'sfa dense' 2)")"
done
if [ -n "${JSON:-}" ]; then
  { printf '{' && sep= && for row in "${rows[@]}"; do IFS='|' read -r name speed memory <<<"$row" && printf '%s"%s": {"tokens_per_sec": %s, "peak_gib": %s}' "$sep" "$name" "$speed" "$memory" && sep=', '; done && printf '}\n'; } >"$JSON"
fi
