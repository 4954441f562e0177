#!/usr/bin/env bash
# Table 1 of arXiv 2603.22300 (its GPT-2 rows): dense attention, short embeddings and SFA pretrained on the same tokens, several seeds, then one report
# with the paper's rows and the rivals that it leaves out beside them.
#   scripts/reproduce/pretraining.sh --data 'data/owt_*.h5' [--model gpt2-124m] [--tokens 30e6] [--seeds "1 2 3"] [--variants "dense ..."] [--budget 60min]
#     --data GLOB      token files made by `sfa data tokenize` with a validation part, GPT-2's tokenizer
#     --val GLOB       token files for validation, where --data has no validation part
#     --model NAME     gpt2-124m or gpt2-355m (paper: "350M")
#     --tokens N       tokens a run is trained on, 65,536 a step
#     --seeds "..."    one run a variant and seed
#     --variants "..." dense; short (Q, K and V at d/2, the paper's); fair (Q and K at d/2, V whole); sfaK; sfaK_2of4; sfaK_mask; window_W; window_W_sfaK;
#                      gqa (4 query heads a key head); mqa (one key head). Default: dense short fair sfa8 sfa16 sfa8_2of4 gqa mqa
#     --lr X           peak learning rate (1.5e-3), for every variant alike
#     --budget T       stop after so long (90s, 60min, 2h); started again the script goes on
#     --tasks DIR      folder with lambada_openai.jsonl, hellaswag.jsonl, piqa.jsonl, arc_easy.jsonl, arc_challenge.jsonl (data/README.md), scored where they are
#     --out DIR        runs/reproduce/pretraining_MODEL;   key=value: further overrides for every run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
DATA='' VAL='' MODEL=gpt2-124m TOKENS=30e6 SEEDS='1 2 3' VARIANTS='dense short fair sfa8 sfa16 sfa8_2of4 gqa mqa' RATE=1.5e-3 BUDGET=0 TASKS='' OUT='' OVERRIDES=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --data | --val | --model | --tokens | --seeds | --variants | --lr | --budget | --tasks | --out) [ $# -ge 2 ] || die "$1 needs a value" ;;&
    --data) DATA=$2; shift 2 ;;
    --val) VAL=$2; shift 2 ;;
    --model) MODEL=$2; shift 2 ;;
    --tokens) TOKENS=$2; shift 2 ;;
    --seeds) SEEDS=$2; shift 2 ;;
    --variants) VARIANTS=$2; shift 2 ;;
    --lr) RATE=$2; shift 2 ;;
    --budget) BUDGET=$(seconds_of "$2"); shift 2 ;;
    --tasks) TASKS=$2; shift 2 ;;
    --out) OUT=$2; shift 2 ;;
    *=*) OVERRIDES+=("$1"); shift ;;
    *) die "unknown option $1 (--help)" ;;
  esac
done
[ -n "$DATA" ] || die '--data names the token files (--help)'
case $MODEL in
  gpt2-124m) CONFIG=configs/gpt2_124m.yaml HEADS=12 ;;
  gpt2-355m) CONFIG=configs/gpt2_355m.yaml HEADS=16 ;;
  *) die "--model: '$MODEL' is not known; there are gpt2-124m and gpt2-355m" ;;
esac
find_sfa
OUT=${OUT:-$ROOT/runs/reproduce/pretraining_$MODEL}
STEPS=$(awk -v t="$TOKENS" 'BEGIN {s = int(t / 65536 + 0.5); print s < 1 ? 1 : s}')

# The overrides that make a variant of the dense model, one a line; heads have 64 features.
variant_keys() {
  local k window
  case $1 in
    dense) ;;
    short) printf '%s\n' model.head_dim=32 ;;
    fair) printf '%s\n' model.attention.qk_head_dim=32 ;;
    gqa) printf '%s\n' model.num_key_value_heads=$((HEADS / 4)) ;;
    mqa) printf '%s\n' model.num_key_value_heads=1 ;;
    sfa[0-9]*)
      k=${1#sfa}
      printf '%s\n' model.attention.type=sfa "model.attention.k=${k%%_*}"
      case $1 in
        *_2of4) printf '%s\n' model.attention.selection=topk_2of4 ;;
        *_mask) printf '%s\n' model.attention.zero_overlap=mask ;;
        *_*) die "--variants: '$1' is not known (--help)" ;;
      esac
      ;;
    window_[0-9]*)
      window=${1#window_}
      printf '%s\n' "model.attention.window=${window%%_*}"
      case $1 in *_sfa[0-9]*) variant_keys "sfa${1##*_sfa}" ;; esac
      ;;
    *) die "--variants: '$1' is not known (--help)" ;;
  esac
}

for seed in $SEEDS; do
  for variant in $VARIANTS; do
    mapfile -t keys < <(variant_keys "$variant")
    if [ ${#keys[@]} -eq 0 ] && [ "$variant" != dense ]; then exit 1; fi # variant_keys has said why
    plan "${variant}_s$seed" "$ROOT/$CONFIG" "data.train=$DATA" ${VAL:+"data.val=$VAL"} data.seq_len=1024 data.batch_size=64 data.micro_batch_size=64 \
      "seed=$seed" "train.max_steps=$STEPS" "train.lr=$RATE" "train.min_lr=$(awk -v r="$RATE" 'BEGIN {print r / 10}')" train.schedule=cosine \
      "train.warmup_steps=$((STEPS < 400 ? (STEPS + 9) / 10 : 40))" "train.eval_every=$(((STEPS + 9) / 10))" "train.log_every=$(((STEPS + 99) / 100))" \
      "checkpoint.every=$(((STEPS + 3) / 4))" checkpoint.keep_last=1 ${keys[@]+"${keys[@]}"} ${OVERRIDES[@]+"${OVERRIDES[@]}"}
  done
done
run_planned
what_is_left

device=()
for o in ${OVERRIDES[@]+"${OVERRIDES[@]}"}; do case $o in device=*) device=(--device "${o#device=}") ;; esac; done
if [ -n "$VAL" ]; then where=("$VAL" --split all); else where=("$DATA" --split val); fi
for run in ${DONE[@]+"${DONE[@]}"}; do
  if [ ! -f "$run/eval/perplexity.json" ]; then
    "$SFA" eval perplexity --checkpoint "$run" --data "${where[@]}" --save ${device[@]+"${device[@]}"} >/dev/null || warn "$run could not be evaluated"
  fi
  case $(basename "$run") in
    sfa*) [ -f "$run/eval/support.json" ] || "$SFA" analyze support --checkpoint "$run" --data "${where[@]}" --save ${device[@]+"${device[@]}"} >/dev/null || true ;;
  esac
  [ -n "$TASKS" ] || continue
  for task in lambada_openai hellaswag piqa arc_easy arc_challenge; do
    if [ -f "$TASKS/$task.jsonl" ] && [ ! -f "$run/eval/$task.json" ]; then
      "$SFA" eval "$task" --checkpoint "$run" --file "$TASKS/$task.jsonl" --save ${device[@]+"${device[@]}"} >/dev/null || warn "$task of $run could not be scored"
    fi
  done
done
[ ${#DONE[@]} -gt 0 ] || exit 0
step 'Report'
"$SFA" compare "${DONE[@]}" --html "$OUT/report.html"
