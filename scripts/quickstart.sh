#!/usr/bin/env bash
# From a bare machine to dense attention and SFA compared: installs what is missing, builds, prepares text, trains two small models, holds
# them against each other.
#   scripts/quickstart.sh [--text FILE] [--steps N] [--device auto|cpu|cuda]
#     --text FILE    what to learn (plain text or .jsonl); without it, the documents and sources of this repository
#     --steps N      optimizer steps of each run (400 on the CPU, 4000 on a GPU)
#     --device ...   auto: the GPU when card, driver and nvcc are there, else the CPU
# Everything it makes lies in .quickstart/ and build/. Run again it builds and prepares only what has changed and trains a new pair of runs
# beside the older ones.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
  printf 'quickstart.sh: %s\nusage: scripts/quickstart.sh [--text FILE] [--steps N] [--device auto|cpu|cuda]\n' "$1" >&2
  exit 2
}
TEXT='' STEPS='' DEVICE=auto
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --text | --steps | --device) [ $# -ge 2 ] || usage "$1 needs a value" ;;&
    --text) TEXT=$2; shift 2 ;;
    --steps) STEPS=$2; shift 2 ;;
    --device) DEVICE=$2; shift 2 ;;
    *) usage "unknown option $1" ;;
  esac
done
[[ -z $STEPS || $STEPS =~ ^[1-9][0-9]*$ ]] || usage "--steps: a positive whole number is expected, got $STEPS"
[[ $DEVICE =~ ^(auto|cpu|cuda)$ ]] || usage "--device: auto, cpu or cuda is expected, got $DEVICE"
if [ -n "$TEXT" ]; then
  [ -r "$TEXT" ] || die "--text: $TEXT can't be read"
  [ -s "$TEXT" ] || die "--text: $TEXT is empty"
  TEXT=$(realpath "$TEXT")
fi
cd "$ROOT"
# Threads that wait do not burn the cores of others for long.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
trap 'printf "\nstopped\n" >&2; exit 130' INT TERM

# The GPU needs three things; the first that is missing is the reason for the CPU.
choose_device() {
  WHY=''
  if ! has_gpu; then
    WHY='no GPU answers here (nvidia-smi names none)'
  elif ! find_nvcc >/dev/null; then
    WHY="there is a GPU ($(gpu_name)) but no nvcc to compile for it"
  fi
  case $DEVICE in
    cpu) WHY='as asked' ;;
    cuda) [ -z "$WHY" ] || die "--device cuda: $WHY" ;;
    auto) [ -z "$WHY" ] && DEVICE=cuda || DEVICE=cpu ;;
  esac
  if [ $DEVICE = cuda ]; then WHY="$(gpu_name), $(find_nvcc)"; fi
  if [ -z "$STEPS" ]; then [ $DEVICE = cuda ] && STEPS=4000 || STEPS=400; fi
  say "device: $DEVICE ($WHY)"
}

build_sfa() {
  local log="build/quickstart_$DEVICE.log" began=$SECONDS
  mkdir -p build
  if [ $DEVICE = cuda ]; then export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(find_nvcc)")")}; fi
  # The files of a folder together: a third of the time or less (cmake/Unite.cmake); what computes is optimised as ever.
  if ! cmake --preset $DEVICE -B "build/quickstart_$DEVICE" -DSFA_UNITE=ON -DSFA_TESTS=OFF -DSFA_WERROR=OFF >"$log" 2>&1; then
    tail -20 "$log" >&2
    die "configuring failed (all of it: $log)"
  fi
  # On a terminal ninja shows one line that moves; elsewhere a few words do.
  if [ -t 1 ]; then
    ninja -C "build/quickstart_$DEVICE" sfa || die 'compiling failed'
  else
    say "compiling with $(jobs_here) jobs"
    if ! ninja -C "build/quickstart_$DEVICE" sfa >"$log" 2>&1; then
      grep -A12 -E '^FAILED|error:' "$log" | head -40 >&2
      die "compiling failed (all of it: $log)"
    fi
  fi
  SFA="build/quickstart_$DEVICE/sfa"
  say "built $SFA in $((SECONDS - began)) s"
}

# The repository's own text, a path a line, in an order that is the same everywhere; works in a tarball too.
own_text() {
  if git ls-files >/dev/null 2>&1; then git ls-files; else find . -type f -not -path './.*/*' -not -path './build/*' -not -path './runs/*' | sed 's|^\./||'; fi |
    grep -E '\.(md|cpp|h|cu|cuh|sh|yaml|py|cmake)$|CMakeLists\.txt$' | LC_ALL=C sort
}

prepare_data() {
  local inputs=() hash
  if [ -n "$TEXT" ]; then inputs=("$TEXT"); else mapfile -t inputs < <(own_text); fi
  hash=$(for f in "${inputs[@]}"; do if [ -f "$f" ]; then sha256sum "$f"; fi; done | sha256sum | cut -c1-16)
  DATA=".quickstart/data/$hash.h5"
  if [ -f "$DATA" ]; then
    say "$DATA is there already: the text has not changed"
    return
  fi
  mkdir -p .quickstart/data
  "$SFA" data tokenize --tokenizer bytes --val-fraction 0.1 --output "$DATA" "${inputs[@]}"
}

# train NAME [key=value...]
train() {
  local name=$1
  shift
  step "Train: $name"
  "$SFA" train configs/quickstart.yaml "output_dir=$RUNS/$name" "data.train=$DATA" device=$DEVICE "train.max_steps=$STEPS" \
    "train.warmup_steps=$((STEPS / 10))" "$@"
}

step 'What this machine lacks'
bash scripts/install_deps.sh
use_local_tools
step 'Build'
choose_device
build_sfa
step 'Text'
if [ -n "$TEXT" ]; then say "text: $TEXT"; else say "text: the documents and sources of this repository (--text FILE takes any other)"; fi
prepare_data

number=1
while [ -e ".quickstart/runs/$number" ]; do number=$((number + 1)); done
RUNS=.quickstart/runs/$number
train dense
train sfa_k8 model.attention.type=sfa model.attention.k=8

step 'Perplexity of the saved models on the part of the text that they have not seen'
for name in dense sfa_k8; do "$SFA" eval perplexity --checkpoint "$RUNS/$name" --data "$DATA" --device $DEVICE; done

step 'Dense attention against SFA'
"$SFA" compare "$RUNS/dense" "$RUNS/sfa_k8"
cat <<END

Everything took $(elapsed) on: $DEVICE ($WHY).
Run folders (config.yaml, metrics.jsonl, train.log, checkpoints): $RUNS/dense  $RUNS/sfa_k8

What to try next:
  $SFA generate --checkpoint $RUNS/sfa_k8 --prompt "The " --max-tokens 200 --temperature 0.8 --top-k 40
  scripts/quickstart.sh --text YOUR_TEXT --steps $((5 * STEPS))        # your own text, a longer run
  $SFA train configs/quickstart.yaml data.train=$DATA output_dir=runs/k4 model.attention.type=sfa model.attention.k=4
  $SFA compare $RUNS/dense runs/k4
  less README.md docs/configuration.md                       # the commands, every key
END
