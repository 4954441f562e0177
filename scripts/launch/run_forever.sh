#!/usr/bin/env bash
# Runs a training job and starts it again from its last good checkpoint when it fails, a limited number of times.
#   scripts/launch/run_forever.sh [--times N] [--wait SECONDS] COMMAND...
#     --times   failures after which it gives up, counted anew whenever a run has lasted an hour (default 20)
#     --wait    seconds between a failure and the next start (default 10)
# for example   scripts/launch/run_forever.sh mpirun -np 8 sfa train configs/gpt2_124m.yaml
# `resume=auto` is added to the command. Ends with 0 when the command does (the run is complete, or a signal stopped it after a
# checkpoint), with 2 when the command line is wrong, and with the command's code when it gives up or there is nothing that could be started
# (126, 127). A signal to this script goes to the command.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
TIMES=20 WAIT=10
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --times | --wait) has_value "$@" ;;&
    --times) TIMES=$2; shift 2 ;;
    --wait) WAIT=$2; shift 2 ;;
    -*) refuse "unknown option $1" ;;
    *) break ;;
  esac
done
whole --times "$TIMES"
whole --wait "$WAIT" 0
[ $# -gt 0 ] || refuse 'no command was given'

child='' stopped=no
forward() {
  stopped=yes
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null
}
trap 'forward TERM' TERM
trap 'forward INT' INT

failures=0
while true; do
  began=$SECONDS
  "$@" resume=auto &
  child=$!
  # wait returns early when a signal arrives; the command's own end counts.
  wait "$child"; code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  child=''
  [ "$code" -ne 0 ] || exit 0
  [ "$code" -ne 2 ] || exit 2
  if [ "$code" -eq 126 ] || [ "$code" -eq 127 ]; then
    printf 'run_forever.sh: the command could not be started (code %d)\n' "$code" >&2
    exit "$code"
  fi
  [ "$stopped" = no ] || exit "$code"
  [ $((SECONDS - began)) -lt 3600 ] || failures=0
  failures=$((failures + 1))
  if [ "$failures" -ge "$TIMES" ]; then
    printf 'run_forever.sh: the command has failed %d times (code %d); giving up\n' "$failures" "$code" >&2
    exit "$code"
  fi
  printf 'run_forever.sh: the command has failed (code %d, failure %d of %d); starting it again in %d s\n' \
    "$code" "$failures" "$TIMES" "$WAIT" >&2
  sleep "$WAIT" &
  wait $!
  [ "$stopped" = no ] || exit "$code"
done
