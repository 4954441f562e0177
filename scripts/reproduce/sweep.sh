# shellcheck shell=bash
# Sourced by the scripts beside it: named runs of `sfa train` that can be killed and started again, within a budget of time.
#   SFA      the program (default: build/cuda/sfa, or build/cpu/sfa where that is not there)
#   OUT      folder of the sweep's runs, set by the script
#   BUDGET   seconds for the sweep in all; 0 = no limit
#   GPUS     runs side by side, one a GPU; 1 where it is not set
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

find_sfa() {
  if [ -z "${SFA:-}" ]; then
    if [ -x "$ROOT/build/cuda/sfa" ]; then SFA=$ROOT/build/cuda/sfa; else SFA=$ROOT/build/cpu/sfa; fi
  fi
  [ -x "$SFA" ] || die "$SFA is not there: build it (README.md), or name it with SFA=..."
}

# "90", "90s", "60min", "2h" -> seconds
seconds_of() {
  local number=${1%%[!0-9.]*} unit=${1##*[0-9.]}
  case $unit in
    '' | s) ;;
    min | m) number=$(awk -v n="$number" 'BEGIN {print n * 60}') ;;
    h) number=$(awk -v n="$number" 'BEGIN {print n * 3600}') ;;
    *) die "a time like 90s, 60min or 2h is expected, got $1" ;;
  esac
  awk -v n="$number" 'BEGIN {if (n !~ /^[0-9.]+$/) exit 1; printf "%d", n}' || die "a time like 90s, 60min or 2h is expected, got $1"
}

left_of_budget() { if [ "${BUDGET:-0}" -eq 0 ]; then echo 1000000000; else echo $((BUDGET - SECONDS)); fi; }

# "STEP MAX_STEPS" of a run folder; "0 0" when there is none that can be read.
progress_of() {
  local json
  json=$("$SFA" compare --json "$1" 2>/dev/null) || { echo 0 0; return; }
  printf '%s' "$json" | awk -F'[:,]' '/"step"/ {s = $2} /"max_steps"/ {m = $2} END {print s + 0, m + 0}'
}
finished() {
  local step most
  read -r step most <<<"$(progress_of "$1")"
  [ "$most" -gt 0 ] && [ "$step" -ge "$most" ]
}

# The runs of the sweep, in the order of their first mention, and the command that each is made with.
NAMES=()
declare -A COMMANDS
# plan NAME CONFIG [key=value...]
plan() {
  local name=$1
  shift
  NAMES+=("$name")
  COMMANDS[$name]=$(printf '%q ' "$SFA" train "$@" "output_dir=$OUT/$name" resume=auto)
}

# run_one NAME: the exit code is the run's, 0 where it was finished already or the budget is spent.
run_one() {
  local name=$1 left code=0
  if finished "$OUT/$name"; then
    say "$name: finished already"
    return 0
  fi
  left=$(left_of_budget)
  if [ "$left" -le 5 ]; then return 0; fi
  step "$name"
  mkdir -p "$OUT"
  printf '%s\n' "${COMMANDS[$name]}" >"$OUT/$name.command"
  if [ "${BUDGET:-0}" -eq 0 ]; then
    eval "${COMMANDS[$name]}" || code=$?
  else
    eval "timeout --signal=TERM --kill-after=120 $left ${COMMANDS[$name]}" || code=$?
  fi
  # 124: the budget stopped it, and it has saved itself.
  if [ $code -ne 0 ] && [ $code -ne 124 ]; then warn "$name ended with $code; see $OUT/$name/train.log"; fi
  return $code
}

# Runs what is planned and not finished. A run that the budget or Ctrl-C stops saves itself and goes on the next time.
run_planned() {
  local name code
  if [ "${GPUS:-1}" -gt 1 ]; then run_planned_side_by_side; return; fi
  for name in "${NAMES[@]}"; do
    code=0
    run_one "$name" || code=$?
    if [ $code -eq 130 ]; then die 'interrupted; started again it goes on here'; fi
  done
}

# The same, a run a GPU: each goes to the GPU that is free next, of those that CUDA_VISIBLE_DEVICES names where it is set.
run_planned_side_by_side() {
  local name slot devices=() runs=()
  IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-}"
  trap 'wait; die "interrupted; started again it goes on here"' INT TERM # every run has got the signal too
  for name in "${NAMES[@]}"; do
    while :; do
      for ((slot = 0; slot < GPUS; ++slot)); do
        if [ -z "${runs[slot]:-}" ] || ! kill -0 "${runs[slot]}" 2>/dev/null; then break 2; fi
      done
      wait -n || true
    done
    (export CUDA_VISIBLE_DEVICES="${devices[slot]:-$slot}"; run_one "$name") &
    runs[slot]=$!
  done
  wait || true
  trap - INT TERM
}

# Says what is left, and sets DONE to the folders of finished runs.
what_is_left() {
  local name step most open=0
  DONE=()
  step 'Runs'
  for name in "${NAMES[@]}"; do
    read -r step most <<<"$(progress_of "$OUT/$name")"
    if [ "$most" -gt 0 ] && [ "$step" -ge "$most" ]; then
      DONE+=("$OUT/$name")
    else
      open=$((open + 1))
      if [ "$most" -gt 0 ]; then say "left: $name, $step of $most steps done"; else say "left: $name, not begun"; fi
    fi
  done
  say "$((${#NAMES[@]} - open)) of ${#NAMES[@]} finished in $OUT$([ $open -eq 0 ] || echo '; the same command goes on with the rest')"
}
