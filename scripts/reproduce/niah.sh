#!/usr/bin/env bash
# Table 2 of arXiv 2603.22300: the synthetic needle in a haystack, dense attention against SFA, from data to accuracy by length and depth.
#   scripts/reproduce/niah.sh [--seq-len 8192] [--steps 4000] [--variants "dense sfa2 sfa8"] [--samples 10] [--budget 30min] [--out DIR] [key=value...]
#     --seq-len N     tokens of a training window; accuracy is taken at N/8, N/4, N/2 and N
#     --steps N       optimizer steps of a run, 8 windows each
#     --variants ...  dense, or sfaK: SFA with K active features
#     --samples N     prompts a length and depth (11 depths)
#     --budget T      stop after this long; started again the script goes on
#     key=value       further overrides of configs/niah_8k.yaml for every run (device=cpu, model.hidden_size=64, ...)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
LENGTH=8192 STEPS=4000 VARIANTS=(dense sfa2 sfa8) SAMPLES=10 BUDGET=0 OUT='' OVERRIDES=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --seq-len | --steps | --variants | --samples | --budget | --out) has_value "$@" ;;&
    --seq-len) LENGTH=$2; shift 2 ;;
    --steps) STEPS=$2; shift 2 ;;
    --variants) words_of "$1" "$2"; VARIANTS=("${WORDS[@]}"); shift 2 ;;
    --samples) SAMPLES=$2; shift 2 ;;
    --budget) BUDGET=$(seconds_of "$2"); shift 2 ;;
    --out) OUT=$2; shift 2 ;;
    -*) refuse "unknown option $1" ;;
    *=*) OVERRIDES+=("$1"); shift ;;
    *) refuse "neither an option nor key=value: $1" ;;
  esac
done
whole --seq-len "$LENGTH" 48 # an eighth of it still holds a needle
[ $((LENGTH % 8)) -eq 0 ] || refuse "--seq-len: a multiple of 8 is expected, got $LENGTH"
whole --steps "$STEPS"
whole --samples "$SAMPLES"
find_sfa
OUT=${OUT:-$ROOT/runs/reproduce/niah_$LENGTH}
LENGTHS=$((LENGTH / 8)),$((LENGTH / 4)),$((LENGTH / 2)),$LENGTH
DATA=$OUT/needle.h5
windows=$(((STEPS < 1024 ? STEPS : 1024) * 8 + 64)) # longer runs see them again; places and values are too many to be learnt by heart

for variant in "${VARIANTS[@]}"; do
  keys=("data.train=$DATA" "data.seq_len=$LENGTH" "model.max_position_embeddings=$LENGTH" "train.max_steps=$STEPS" ${OVERRIDES[@]+"${OVERRIDES[@]}"})
  if [[ $variant =~ ^sfa[1-9][0-9]*$ ]]; then
    keys+=(model.attention.type=sfa "model.attention.k=${variant#sfa}")
  elif [ "$variant" != dense ]; then
    refuse "--variants: '$variant' is not known; there are dense and sfaK"
  fi
  plan "$variant" "$ROOT/configs/niah_8k.yaml" "${keys[@]}"
done
check_configurations
check_made
made=$DATA.options options="seq_len=$LENGTH"$'\n'"windows=$windows"
if [ -f "$DATA" ] && [ -s "$made" ]; then
  other=$(differences "$(<"$made")" "$options")
  [ -z "$other" ] || die "$DATA was made with $other: name another --out, or delete that file"
fi
make_out

step 'Data'
if [ -f "$DATA" ]; then
  say "$DATA is there already"
else
  printf '%s\n' "$options" >"$made"
  "$SFA" data needle --seq-len "$LENGTH" --windows $windows --val-fraction "$(awk -v w=$windows 'BEGIN {print 32 / w}')" --output "$DATA"
fi
run_planned
what_is_left
[ ${#DONE[@]} -gt 0 ] || end_sweep

device=()
for o in ${OVERRIDES[@]+"${OVERRIDES[@]}"}; do case $o in device=*) device=(--device "${o#device=}") ;; esac; done
# "SAMPLES,LENGTH,..." of an evaluation that is there
asked() { awk -F'[:,]' '/"cells"/ {exit} /"samples"/ {s = $2 + 0} /"length"/ {l = l "," $2 + 0} END {print s l}' "$1"; }
for run in "${DONE[@]}"; do
  step "$(basename "$run"): accuracy by length and depth"
  common=(--checkpoint "$run" --lengths "$LENGTHS" --samples "$SAMPLES" --seed 7 ${device[@]+"${device[@]}"})
  found=$run/eval/niah_synthetic.json
  if [ ! -f "$found" ] || [ "$(asked "$found")" != "$SAMPLES,$LENGTHS" ]; then "$SFA" eval niah "${common[@]}" --save >/dev/null; fi
  # The map, from the file: rows are depths.
  awk -F'[:,]' '/"length"/ {l = $2 + 0} /"depth"/ {d = sprintf("%3d %%", $2 * 100)} /"samples"/ {s = $2}
    /"accuracy"/ && d != "" {if (!(d in seen)) {order[++n] = d; seen[d] = 1}; if (!(l in known)) {lengths[++m] = l; known[l] = 1}; a[d, l] = $2; d = ""}
    END {printf "%8s", "depth"; for (j = 1; j <= m; ++j) printf "%8d", lengths[j]; print "";
         for (i = 1; i <= n; ++i) {printf "%8s", order[i]; for (j = 1; j <= m; ++j) printf "%8.0f", 100 * a[order[i], lengths[j]]; print ""}}' "$found"
done

step "Table 2: accuracy in %, trained on $LENGTH tokens (${SAMPLES} prompts a length and depth, 11 depths)"
printf '%-10s' ''
for n in ${LENGTHS//,/ }; do printf '%9s' "$n"; done
printf '\n'
for run in "${DONE[@]}"; do
  printf '%-10s' "$(basename "$run")"
  awk -F'[:,]' '/"cells"/ {exit} /"accuracy"/ {printf "%9.1f", 100 * $2}' "$run/eval/niah_synthetic.json"
  printf '\n'
done
cat <<'END'

The paper (GPT-2 124M, trained on 8k; at 1k, 2k, 4k, 8k):
dense           94       93       90       95
sfa2            95       95       97       98
sfa8            98      100       99       98
END
end_sweep
