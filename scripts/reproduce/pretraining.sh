#!/usr/bin/env bash
# Table 1 of arXiv 2603.22300 (its GPT-2 rows): dense attention, short embeddings and SFA pretrained on the same tokens, several seeds, then one report
# with the paper's rows and the rivals that it leaves out beside them.
#   scripts/reproduce/pretraining.sh --data 'data/owt_*.h5' [--model gpt2-124m] [--tokens 30e6] [--seeds "1 2 3"] [--variants "dense ..."] [--budget 60min]
#     --data GLOB      token files made by `sfa data tokenize` with a validation part, GPT-2's tokenizer
#     --val GLOB       token files for validation, where --data has no validation part
#     --model NAME     gpt2-124m or gpt2-355m (paper: "350M")
#     --tokens N       tokens a run is trained on, 65,536 a step
#     --seeds "..."    one run a variant and seed
#     --variants "..." dense; short (Q, K and V at d/2, the paper's); fair (Q and K at d/2, V whole); sfaK; window_W; window_W_sfaK;
#                      gqa (4 query heads a key head); mqa (one key head). Default: dense short fair sfa8 sfa16 sfa8_2of4 gqa mqa
#                      and dense or sfaK with options, dense_scale4, sfa16_d128, sfa8_anneal64x0.8_scale4: dN (queries and keys N wide), scaleX (scores times X),
#                      initX (initial queries and keys times X), int8 (the cache: counted alone); of sfa: qN (queries keep N features, keys k), 2of4, pairs, mask, gate, balX (balance X),
#                      annealN or annealNxS (k from N, until the share S of the run), byA,NxB,... (k of the blocks, N times B: sfa8_by12,7x6,4x10)
#     --lr X           peak learning rate (7.5e-4, the best one in docs/reproduce.md), for every variant alike
#     --rates "..."    in place of --lr: every variant is run at each of these with the first seed, and with the other seeds at the one of least validation loss
#     --gpus N         runs side by side, one a GPU
#     --budget T       stop after so long (90s, 60min, 2h); started again the script goes on
#     --tasks DIR      folder with lambada_openai.jsonl, hellaswag.jsonl, piqa.jsonl, arc_easy.jsonl, arc_challenge.jsonl (data/README.md), scored where they are
#     --out DIR        runs/reproduce/pretraining_MODEL;   key=value: further overrides for every run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
DATA='' VAL='' MODEL=gpt2-124m TOKENS=30e6 RATE=7.5e-4 GPUS=1 BUDGET=0 TASKS='' OUT=''
SEEDS=(1 2 3) VARIANTS=(dense short fair sfa8 sfa16 sfa8_2of4 gqa mqa) RATES=() OVERRIDES=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,21s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --data | --val | --model | --tokens | --seeds | --variants | --lr | --rates | --gpus | --budget | --tasks | --out) has_value "$@" ;;&
    --data) DATA=$2; shift 2 ;;
    --val) VAL=$2; shift 2 ;;
    --model) MODEL=$2; shift 2 ;;
    --tokens) TOKENS=$2; shift 2 ;;
    --seeds) words_of "$1" "$2"; SEEDS=("${WORDS[@]}"); shift 2 ;;
    --variants) words_of "$1" "$2"; VARIANTS=("${WORDS[@]}"); shift 2 ;;
    --lr) RATE=$2; shift 2 ;;
    --rates) words_of "$1" "$2"; RATES=("${WORDS[@]}"); shift 2 ;;
    --gpus) GPUS=$2; shift 2 ;;
    --budget) BUDGET=$(seconds_of "$2"); shift 2 ;;
    --tasks) TASKS=$2; shift 2 ;;
    --out) OUT=$2; shift 2 ;;
    -*) refuse "unknown option $1" ;;
    *=*) OVERRIDES+=("$1"); shift ;;
    *) refuse "neither an option nor key=value: $1" ;;
  esac
done
[ -n "$DATA" ] || refuse '--data names the token files'
case $MODEL in
  gpt2-124m) CONFIG=configs/gpt2_124m.yaml HEADS=12 ;;
  gpt2-355m) CONFIG=configs/gpt2_355m.yaml HEADS=16 ;;
  *) refuse "--model: '$MODEL' is not known; there are gpt2-124m and gpt2-355m" ;;
esac
above_zero --tokens "$TOKENS"
above_zero --lr "$RATE"
whole --gpus "$GPUS"
for seed in "${SEEDS[@]}"; do whole --seeds "$seed" 0; done
for rate in ${RATES[@]+"${RATES[@]}"}; do above_zero --rates "$rate"; done
find_sfa
OUT=${OUT:-$ROOT/runs/reproduce/pretraining_$MODEL}
STEPS=$(awk -v t="$TOKENS" 'BEGIN {s = int(t / 65536 + 0.5); printf "%d", s < 1 ? 1 : s}')

# option_keys _OPTION_OPTION...: their overrides. Scores of heads of D features are scaled by 1/sqrt(D), initial weights have 0.02.
option_keys() {
  local parts part D=64 scale=''
  IFS=_ read -ra parts <<<"${1#_}"
  for part in ${parts[@]+"${parts[@]}"}; do
    case $part in
      2of4 | pairs) printf '%s\n' "model.attention.selection=topk_$part" ;;
      mask) printf '%s\n' model.attention.zero_overlap=mask ;;
      gate) printf '%s\n' model.attention.gate=feature ;;
      bal[0-9]*) printf '%s\n' "model.attention.balance=${part#bal}" ;;
      q[0-9]*) printf '%s\n' "model.attention.k_q=${part#q}" ;;
      int8) printf '%s\n' model.attention.kv_cache=int8 ;;
      d[0-9]*) D=${part#d} && printf '%s\n' "model.attention.qk_head_dim=$D" ;;
      anneal[0-9]*x0.*) part=${part#anneal} && printf '%s\n' "train.k_anneal.from=${part%%x*}" "train.k_anneal.until=${part#*x}" ;;
      anneal[0-9]*) printf '%s\n' "train.k_anneal.from=${part#anneal}" ;;
      scale[0-9]*) scale=${part#scale} ;;
      init[0-9]*) printf '%s\n' "model.attention.qk_initializer_range=$(awk -v x="${part#init}" 'BEGIN {print 0.02 * x}')" ;;
      by[0-9]*) printf '%s\n' "model.attention.k_by_layer=[$(layers_of "${part#by}")]" ;;
      *) refuse "--variants: the option '$part' is not known" ;;
    esac
  done
  [ -z "$scale" ] || printf '%s\n' "model.attention.score_scale=$(awk -v x="$scale" -v d="$D" 'BEGIN {print x / sqrt(d)}')"
}

# "12,7x6" -> "12,6,6,6,6,6,6,6"
layers_of() {
  awk -v list="$1" 'BEGIN {
    n = split(list, runs, ",")
    for (i = 1; i <= n; ++i) {
      split(runs[i] ~ /x/ ? runs[i] : "1x" runs[i], run, "x")
      for (j = 0; j < run[1]; ++j) { printf "%s%s", comma, run[2]; comma = "," }
    }
  }'
}

# The overrides that make a variant of the dense model, one a line; heads have 64 features.
variant_keys() {
  local k window
  case $1 in
    dense | dense_*) option_keys "${1#dense}" ;;
    short) printf '%s\n' model.head_dim=32 ;;
    fair) printf '%s\n' model.attention.qk_head_dim=32 ;;
    gqa) printf '%s\n' model.num_key_value_heads=$((HEADS / 4)) ;;
    mqa) printf '%s\n' model.num_key_value_heads=1 ;;
    sfa[0-9]*)
      k=${1#sfa} k=${k%%_*}
      printf '%s\n' model.attention.type=sfa "model.attention.k=$k"
      option_keys "${1#sfa"$k"}"
      ;;
    window_[0-9]*)
      window=${1#window_}
      printf '%s\n' "model.attention.window=${window%%_*}"
      case $1 in
        *_sfa[0-9]*) variant_keys "sfa${1##*_sfa}" ;;
        *_*_*) refuse "--variants: '$1' is not known; options follow sfaK, as in window_${window%%_*}_sfa8_gate" ;;
      esac
      ;;
    *) refuse "--variants: '$1' is not known" ;;
  esac
}

# plan_run VARIANT SEED RATE: the rate is part of the name where several are compared.
plan_run() {
  local text keys=() name=$1_s$2
  if [ ${#RATES[@]} -gt 0 ]; then name=$1_lr$3_s$2; fi
  text=$(variant_keys "$1") || exit $? # it has said why
  [ -z "$text" ] || mapfile -t keys <<<"$text"
  plan "$name" "$ROOT/$CONFIG" "data.train=$DATA" ${VAL:+"data.val=$VAL"} data.seq_len=1024 data.batch_size=64 data.micro_batch_size=64 \
    "seed=$2" "train.max_steps=$STEPS" "train.lr=$3" "train.min_lr=$(awk -v r="$3" 'BEGIN {print r / 10}')" train.schedule=cosine \
    "train.warmup_steps=$((STEPS < 400 ? (STEPS + 9) / 10 : 40))" "train.eval_every=$(((STEPS + 9) / 10))" "train.log_every=$(((STEPS + 99) / 100))" \
    "checkpoint.every=$(((STEPS + 3) / 4))" checkpoint.keep_last=1 ${keys[@]+"${keys[@]}"} ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}

# best_rate VARIANT SEED: the rate of least validation loss, once every rate has been run; otherwise nothing.
best_rate() {
  local rate run loss
  for rate in "${RATES[@]}"; do
    run=$OUT/$1_lr${rate}_s$2
    finished "$run" || return 0
    loss=$("$SFA" compare --json "$run" | awk -F'[:,]' '/"val_loss"/ {print $2 + 0}')
    printf '%s %s\n' "$loss" "$rate"
  done | sort -g | awk -v all=${#RATES[@]} '{n++; if (n == 1) best = $2} END {if (n == all) print best}'
}

# check_files OPTION GLOB: FILES, the files that it names as `sfa train` takes it.
check_files() {
  FILES=()
  if [ -f "$2" ]; then FILES=("$2"); else mapfile -t FILES < <(compgen -G "$2"); fi
  [ ${#FILES[@]} -gt 0 ] || die "$1: no file is named by $2"
}
# Runs without a validation loss would say nothing. The first file with a validation part will do, as it does to `sfa train`.
check_data() {
  local file info
  if [ -n "$VAL" ]; then check_files --val "$VAL"; fi
  check_files --data "$DATA"
  for file in "${FILES[@]}"; do
    info=$("$SFA" data info --json "$file" 2>&1) || die "--data: ${info#sfa: }"
    if [ -n "$VAL" ] || ! grep -q '"val_tokens": 0,' <<<"$info"; then return; fi
  done
  die "--data: $DATA has no validation part (sfa data tokenize --val-fraction); --val can name other token files"
}

# What would be refused when its turn comes is found before the first run. Seeds and rates make no difference to what a configuration is.
rates=(${RATES[@]+"${RATES[@]}"})
[ ${#RATES[@]} -gt 0 ] || rates=("$RATE")
for variant in "${VARIANTS[@]}"; do plan_run "$variant" "${SEEDS[0]}" "${rates[0]}"; done
check_data
[ -z "$TASKS" ] || [ -d "$TASKS" ] || die "--tasks: $TASKS is no folder"
check_configurations
for seed in "${SEEDS[@]}"; do
  for variant in "${VARIANTS[@]}"; do
    for rate in "${rates[@]}"; do plan_run "$variant" "$seed" "$rate"; done
  done
done
check_made
make_out

if [ ${#RATES[@]} -gt 0 ]; then
  NAMES=()
  for variant in "${VARIANTS[@]}"; do
    for rate in "${RATES[@]}"; do plan_run "$variant" "${SEEDS[0]}" "$rate"; done
  done
  run_planned
  what_is_left
  NAMES=()
  step 'Rates'
  for seed in "${SEEDS[@]}"; do
    for variant in "${VARIANTS[@]}"; do
      rate=$(best_rate "$variant" "${SEEDS[0]}")
      [ -n "$rate" ] || continue
      [ "$seed" != "${SEEDS[0]}" ] || say "$variant: $rate"
      plan_run "$variant" "$seed" "$rate"
    done
  done
  [ ${#NAMES[@]} -gt 0 ] || end_sweep
fi
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
    *_int8_*)
      [ -f "$run/eval/perplexity_int8.json" ] || "$SFA" eval perplexity --checkpoint "$run" --kv-cache int8 --data "${where[@]}" --save ${device[@]+"${device[@]}"} >/dev/null ||
        warn "$run could not be evaluated with 8 bits" ;;
  esac
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
[ ${#DONE[@]} -gt 0 ] || end_sweep
step 'Report'
"$SFA" compare "${DONE[@]}" --html "$OUT/report.html"
end_sweep
