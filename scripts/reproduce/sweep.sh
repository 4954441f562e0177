# shellcheck shell=bash
# Sourced by the scripts beside it: named runs of `sfa train` that can be killed and started again, within a budget of time.
#   SFA      the program, a path or a name on the PATH (default: build/cuda/sfa, build/cpu/sfa, or what quickstart.sh has built)
#   OUT      folder of the sweep's runs, set by the script
#   BUDGET   seconds for the sweep in all; 0 = no limit
#   GPUS     runs side by side, one a GPU; 1 where it is not set
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

find_sfa() {
  local folder found
  for folder in cuda cpu quickstart_cuda quickstart_cpu; do
    if [ -z "${SFA:-}" ] && [ -x "$ROOT/build/$folder/sfa" ]; then SFA=$ROOT/build/$folder/sfa; fi
  done
  [ -n "${SFA:-}" ] || die "there is no sfa under $ROOT/build: build it (README.md), or name it with SFA=..."
  if [[ $SFA != */* ]]; then
    found=$(type -P "$SFA") || die "SFA: there is no $SFA on the PATH"
    SFA=$found
  fi
  if ! [ -f "$SFA" ] || ! [ -x "$SFA" ]; then die "$SFA is no program: build it (README.md), or name it with SFA=..."; fi
}

# "90", "90s", "60min", "2h" -> seconds, rounded up: 0 would be no limit.
seconds_of() {
  local seconds=''
  if [[ $1 =~ ^([0-9]+(\.[0-9]+)?)(s|m|min|h)?$ ]]; then
    seconds=$(awk -v n="${BASH_REMATCH[1]}" -v unit="${BASH_REMATCH[3]:-s}" 'BEGIN {
      n *= unit == "h" ? 3600 : unit == "s" ? 1 : 60
      if (n > 0 && n <= 1e9) printf "%d", (n > int(n)) ? n + 1 : n
    }')
  fi
  [ -n "$seconds" ] || refuse "--budget: a time above 0 like 90s, 60min or 2h is expected, got '$1'"
  printf '%s' "$seconds"
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
  [[ " ${NAMES[*]-} " != *" $name "* ]] || return 0
  NAMES+=("$name")
  COMMANDS[$name]=$(printf '%q ' "$SFA" train "$@" "output_dir=$OUT/$name" resume=auto)
}

# words_in COMMAND: COMMAND_WORDS, the words that `plan` has quoted; nothing in them is run.
words_in() {
  # shellcheck disable=SC2162  # backslashes are what the quoting consists of
  read -a COMMAND_WORDS <<<"$1"
}

# settings_of COMMAND: what decides the run's results, KEY=VALUE a line. Left out is what a resumed run may change (run_folder.cpp,
# deciding_results); a file in the sweep's folder is named from there, wherever the folder lies.
settings_of() {
  local word out=''
  words_in "$1"
  for word in "${COMMAND_WORDS[@]}"; do
    if [[ $word == output_dir=* ]]; then out=${word#output_dir=} out=${out%/*}; fi
  done
  for word in "${COMMAND_WORDS[@]:2}"; do
    case $word in
      output_dir=* | resume=* | device=* | checkpoint.* | train.eval_every=* | train.log_every=* | train.tensorboard=*) ;;
      data.*="$out"/*) printf '%s=%s\n' "${word%%=*}" "${word#*="$out"/}" ;;
      *=*) printf '%s\n' "$word" ;;
      *) printf 'configuration=%s\n' "${word##*/}" ;;
    esac
  done
}

# differences BEFORE NOW: in words, what differs between two lists of KEY=VALUE lines; of a key that comes twice the last one counts.
differences() {
  local line key words=''
  local -A before=() now=()
  while IFS= read -r line; do if [ -n "$line" ]; then before[${line%%=*}]=${line#*=}; fi; done <<<"$1"
  while IFS= read -r line; do if [ -n "$line" ]; then now[${line%%=*}]=${line#*=}; fi; done <<<"$2"
  while IFS= read -r key; do
    if [ "${before[$key]-not set}" != "${now[$key]-not set}" ]; then words+="${words:+, }$key ${before[$key]-not set} (now ${now[$key]-not set})"; fi
  done < <(printf '%s\n' "${!before[@]}" "${!now[@]}" | sort -u)
  printf '%s' "$words"
}

# A run that is there must be what this command line would make: its name alone says neither rate nor tokens nor data.
check_made() {
  local name other
  for name in "${NAMES[@]}"; do
    if [ ! -f "$OUT/$name/config.yaml" ] || [ ! -s "$OUT/$name.command" ]; then continue; fi
    other=$(differences "$(settings_of "$(<"$OUT/$name.command")")" "$(settings_of "${COMMANDS[$name]}")")
    [ -z "$other" ] || die "$OUT/$name was made with $other: name another --out, or delete that folder"
  done
}

# Keys and values that the program would refuse when a run's turn comes are found before the first.
check_configurations() {
  local name said
  for name in "${NAMES[@]}"; do
    words_in "${COMMANDS[$name]}"
    said=$("$SFA" config "${COMMAND_WORDS[@]:2}" 2>&1 >/dev/null) || die "$name: ${said#sfa: }"
  done
}

make_out() {
  local said
  said=$(mkdir -p "$OUT" 2>&1) || die "--out: ${said#mkdir: }"
  [ -w "$OUT" ] || die "--out: $OUT can't be written"
}

STOPPED=''       # the signal that has come
FAILED=0         # runs that ended with an error
PIDS=() RUNS=()  # by slot: the process and the name of a run under way

# stop SIGNAL: no further run begins. Those under way save themselves and end; one that is told twice ends at once.
stop() {
  local pid
  STOPPED=$1
  for pid in ${PIDS[@]+"${PIDS[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
}

# begin_run NAME SLOT DEVICES: in the background. DEVICES are the GPUs that it sees; empty: all.
begin_run() {
  local name=$1 left=0
  if [ "${BUDGET:-0}" -gt 0 ]; then left=$(left_of_budget); fi # to timeout, 0 is no limit
  step "$name"
  printf '%s\n' "${COMMANDS[$name]}" >"$OUT/$name.command"
  # In a group of its own (-m) a run does not hear Ctrl-C itself, and with --foreground timeout tells the run alone and not its group too:
  # either would be a second signal.
  set -m
  eval "${3:+CUDA_VISIBLE_DEVICES=\$3} timeout --foreground --signal=TERM --kill-after=120 $left ${COMMANDS[$name]} &"
  set +m
  PIDS[$2]=$! RUNS[$2]=$name
  if [ -n "$STOPPED" ]; then kill -TERM "${PIDS[$2]}" 2>/dev/null || true; fi
}

# end_run SLOT: waits for the end of its run, and says so when it is a bad one.
end_run() {
  local pid=${PIDS[$1]} name=${RUNS[$1]} code=0
  wait "$pid" || code=$?
  # A signal that comes here ends the waiting, not the run.
  while [ $code -gt 128 ] && kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  unset "PIDS[$1]"
  case $code in
    0 | 124) return ;; # 124: the budget stopped it, and it has saved itself
    129 | 130 | 143) [ -z "$STOPPED" ] || return 0 ;;
  esac
  FAILED=$((FAILED + 1))
  if [ -s "$OUT/$name/train.log" ]; then warn "$name ended with $code; see $OUT/$name/train.log"; else warn "$name ended with $code; it has said why above"; fi
}

# Runs what is planned and not finished, side by side where there are several GPUS: each goes to the one that is free next, of those that
# CUDA_VISIBLE_DEVICES names where it is set. A run that the budget or a signal stops saves itself and goes on the next time; a signal ends
# the script.
run_planned() {
  local name slot slots=${GPUS:-1} devices=()
  IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-}"
  trap 'stop INT' INT
  trap 'stop TERM' TERM
  trap 'stop HUP' HUP
  for name in "${NAMES[@]}"; do
    [ -z "$STOPPED" ] || break
    if finished "$OUT/$name"; then
      say "$name: finished already"
      continue
    fi
    while :; do
      for ((slot = 0; slot < slots; ++slot)); do
        if [ -z "${PIDS[slot]:-}" ] || ! kill -0 "${PIDS[slot]}" 2>/dev/null; then break 2; fi
      done
      wait -n || true
    done
    if [ -n "${PIDS[slot]:-}" ]; then end_run "$slot"; fi
    if [ -n "$STOPPED" ] || [ "$(left_of_budget)" -le 5 ]; then break; fi
    if [ "$slots" -gt 1 ]; then
      begin_run "$name" "$slot" "${devices[slot]:-$slot}"
    else
      begin_run "$name" 0 ''
      end_run 0
    fi
  done
  for slot in "${!PIDS[@]}"; do end_run "$slot"; done
  trap - INT TERM HUP
  [ -n "$STOPPED" ] || return 0
  what_is_left
  exit $((128 + $(kill -l "$STOPPED")))
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

# The end of the script, once everything about the finished runs has been said.
end_sweep() {
  [ $FAILED -eq 0 ] || die "runs that ended with an error: $FAILED"
  exit 0
}
