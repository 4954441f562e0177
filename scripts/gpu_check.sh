#!/usr/bin/env bash
# Everything that needs a card, in one go and under ten minutes: CUDA against the CPU, training on the card against training on the CPU,
# then speed beside the rivals. Writes tests/gpu/record.json and ends in a short table.
#   scripts/gpu_check.sh                     builds preset cuda first
#   scripts/gpu_check.sh --build DIR         programs that are built already (DIR/sfa, DIR/tests)
#     --text FILE      text for the training check (default: the documents of this repository)
#     --data FILE.h5   GPT-2 tokens: also times GPT-2 124M training beside PyTorch (scripts/bench/train_gpu.sh)
#     --record FILE    where the record goes (default tests/gpu/record.json)
#     --no-bench       correctness alone; the record then has no figures
# In a bundle (scripts/bundle.sh) the programs lie in bin/ and nothing is built.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

BUILD='' TEXT='' DATA='' RECORD=tests/gpu/record.json BENCH=yes
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --build | --text | --data | --record) has_value "$@" ;;&
    --build) BUILD=$(realpath -m "$2"); shift 2 ;;
    --text) TEXT=$(realpath -m "$2"); shift 2 ;;
    --data) DATA=$(realpath -m "$2"); shift 2 ;;
    --record) RECORD=$(realpath -m "$2"); shift 2 ;;
    --no-bench) BENCH=no; shift ;;
    *) refuse "unknown option $1" ;;
  esac
done
[ -z "$BUILD" ] || [ -d "$BUILD" ] || die "--build: $BUILD is no folder"
[ -z "$TEXT" ] || [ -f "$TEXT" ] || die "--text: there is no file $TEXT"
[ -z "$DATA" ] || [ -f "$DATA" ] || die "--data: there is no file $DATA"
cd "$ROOT"

has_gpu || die 'no GPU answers here (nvidia-smi names none)'
if [ -z "$BUILD" ] && [ -x bin/sfa ]; then BUILD=bin; fi
if [ -z "$BUILD" ]; then
  NVCC=$(find_nvcc) || die 'there is no nvcc to build with; take a bundle made elsewhere (scripts/bundle.sh)'
  bash scripts/install_deps.sh --tests --bench
  use_local_tools
  export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$NVCC")")}
  BUILD=build/cuda
  cmake --preset cuda -DSFA_BENCH=ON >build/cuda.log 2>&1 || { tail -20 build/cuda.log; die 'configuring failed'; }
  ninja -C $BUILD >build/cuda.log 2>&1 || { grep -A12 -E '^FAILED|error:' build/cuda.log | head -40; die 'compiling failed (build/cuda.log)'; }
fi
BUILD=$(cd "$BUILD" && pwd)
export SFA_SOURCE_DIR=$ROOT SFA_BINARY=$BUILD/sfa
# The CPU's side of the comparisons: small models want few threads, and none that spin on a shared machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) < 8 ? $(nproc) : 8))} OMP_WAIT_POLICY=PASSIVE

WORK=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$WORK"' EXIT
mkdir -p "$WORK/log"
PASSED=0 FAILED=0 SKIPPED=0
TESTS=() FIGURES=() TABLE=()
json_string() { printf '"%s"' "$(sed 's/\\/\\\\/g;s/"/\\"/g;s/\t/ /g' <<<"$1" | tr -d '\000-\037')"; }
join() { local IFS=,; printf '%s' "$*"; }

# The program of that name under the build folder, or nothing.
program() {
  local folder
  for folder in "$BUILD" "$BUILD/tests" "$BUILD/tests/bench"; do
    if [ -x "$folder/$1" ]; then printf '%s' "$folder/$1"; return 0; fi
  done
  return 1
}

# check NAME PASSED FAILED SKIPPED: counts, the table, the record.
check() {
  PASSED=$((PASSED + $2)) FAILED=$((FAILED + $3)) SKIPPED=$((SKIPPED + $4))
  TABLE+=("$(printf '%-34s %4d passed %4d failed %4d skipped' "$1" "$2" "$3" "$4")")
  TESTS+=("$(printf '{"name": %s, "passed": %d, "failed": %d, "skipped": %d}' "$(json_string "$1")" "$2" "$3" "$4")")
  say "${TABLE[-1]}"
}

# begin NAME PROGRAM [argument...]: in the background, with the others; the CPU's side of them leaves the card idle. finish NAME waits for its end.
PENDING=()
begin() {
  local name=$1 binary
  binary=$(program "$2") || return 0
  shift 2
  PENDING+=("$name")
  { local rc=0; timeout -k 5 400 "$binary" "$@" >"$WORK/log/$name" 2>&1 || rc=$?; echo $rc >"$WORK/log/$name.rc"; } &
}
# What a program of GoogleTest says in its closing lines, of a checking program of our own the exit code.
finish() {
  local log="$WORK/log/$1" rc passed failed skipped
  while [ ! -s "$log.rc" ]; do sleep 0.2; done
  rc=$(cat "$log.rc")
  case $1 in
    *_check*)
      [ "$rc" -eq 0 ] || { grep -i -E 'fail|error' "$log" || true; } | head -10
      check "$1" $((rc == 0)) $((rc != 0)) 0
      return ;;
  esac
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests\{0,1\}\..*/\1/p' "$log" | tail -1)
  failed=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) tests\{0,1\}, listed.*/\1/p' "$log" | tail -1)
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) tests\{0,1\}, listed.*/\1/p' "$log" | tail -1)
  if [ -z "$passed" ] || { [ "$rc" -ne 0 ] && [ -z "$failed" ]; }; then
    say "$1 ended with code $rc in the middle: $(grep '^\[ RUN' "$log" | tail -1)"
    failed=$((${failed:-0} + 1))
    passed=${passed:-$(grep -c '^\[       OK' "$log" || true)}
  fi
  if [ "${failed:-0}" -gt 0 ]; then { grep -E '^\[  FAILED  \]|Failure|^sfa|error while loading' "$log" || true; } | sort -u | head -20; fi
  check "$1" "${passed:-0}" "${failed:-0}" "${skipped:-0}"
}

# figures NAME COMMAND...: the lines that a benchmark prints go into the record as they are.
figures() {
  local name=$1 log lines=()
  shift
  log="$WORK/log/${name// /_}"
  if ! timeout -k 5 150 "$@" >"$log" 2>&1; then
    say "$name did not run: $(tail -1 "$log")"
    return 0
  fi
  sed 's/^/  /' "$log"
  while IFS= read -r line; do
    if [ -n "$line" ]; then lines+=("$(json_string "$line")"); fi
  done <"$log"
  FIGURES+=("$(printf '    %s: [%s]' "$(json_string "$name")" "$(join "${lines[@]}")")")
}

last_metric() { grep -o "\"$2\":[-0-9.e]*" "$1/metrics.jsonl" | tail -1 | cut -d: -f2; }

# Trains the same runs on the CPU and on the card: how far apart do they end? Which features are kept is a matter of rank, so rounding alone
# sets a run of sfa on a course of its own (0.07 from fp32 has been seen on a card, 0.06 on the CPU in bf16): each dtype has the CPU's run of the same
# dtype beside it, which rounds where the card does, and of three seeds the median counts.
train_check() {
  local sfa data="$WORK/text.h5" name dtype seed gap inputs=() ok
  sfa=$(program sfa) || die "$BUILD: there is no sfa"
  if [ -n "$TEXT" ]; then inputs=("$TEXT"); else mapfile -t inputs < <(find README.md docs src -type f \( -name '*.md' -o -name '*.h' -o -name '*.cpp' \) 2>/dev/null | LC_ALL=C sort); fi
  "$sfa" data tokenize --val-fraction 0.1 --output "$data" "${inputs[@]}" >"$WORK/log/tokenize" 2>&1 || { cat "$WORK/log/tokenize"; return 1; }
  run_one() { # NAME DEVICE DTYPE overrides...
    local name=$1 device=$2 dtype=$3
    shift 3
    timeout -k 5 120 "$sfa" train configs/quickstart.yaml "data.train=$data" "output_dir=$WORK/$name" "device=$device" "train.dtype=$dtype" \
      train.max_steps=200 train.warmup_steps=20 "$@" >"$WORK/log/train_$name" 2>&1 || { tail -2 "$WORK/log/train_$name"; return 1; }
  }
  for name in dense sfa; do
    local attention=(model.attention.type=dense)
    if [ $name = sfa ]; then attention=(model.attention.type=sfa model.attention.k=8); fi
    for dtype in bf16 fp32; do
      local began=() cpu=() gpu=() gaps=() run="${name}_$dtype"
      ok=1
      for seed in 1 2 3; do
        OMP_NUM_THREADS=$((($(nproc) + 2) / 3)) run_one "${run}_cpu$seed" cpu $dtype seed=$seed "${attention[@]}" &
        began+=($!)
      done
      for seed in 1 2 3; do run_one "$run$seed" cuda $dtype seed=$seed "${attention[@]}" || ok=0; done
      for seed in 1 2 3; do wait "${began[$((seed - 1))]}" || ok=0; done
      if [ $ok = 0 ]; then check "train $name $dtype on the CPU and on the GPU" 0 1 0; continue; fi
      for seed in 1 2 3; do
        cpu+=("$(last_metric "$WORK/${run}_cpu$seed" val/loss)") gpu+=("$(last_metric "$WORK/$run$seed" val/loss)")
        gaps+=("$(awk -v a="${gpu[-1]}" -v b="${cpu[-1]}" 'BEGIN {printf "%+.4f", a - b}')")
      done
      gap=$(printf '%s\n' "${gaps[@]}" | sort -g | sed -n 2p)
      ok=$(awk -v g="$gap" 'BEGIN {print (g < 0.02 && g > -0.02) ? 1 : 0}')
      FIGURES+=("$(printf '    %s: {"cpu_val_loss": [%s], "gpu_val_loss": [%s], "median_gap": %s}' "$(json_string "200 steps, $name, $dtype")" "$(join "${cpu[@]}")" "$(join "${gpu[@]}")" "${gap#+}")")
      check "train $name $dtype: loss $gap of CPU" "$ok" $((1 - ok)) 0
    done
  done
  # From the checkpoint in the middle on, a run must end with the same bits.
  run_one whole cuda bf16 model.attention.type=sfa model.attention.k=8 train.max_steps=60 checkpoint.every=30 checkpoint.keep_last=0 || { check 'resume on the GPU' 0 1 0; return; }
  cp -r "$WORK/whole" "$WORK/half" && rm -rf "$WORK/half/step_00000060"
  run_one half cuda bf16 model.attention.type=sfa model.attention.k=8 train.max_steps=60 checkpoint.every=30 checkpoint.keep_last=0 resume=auto || { check 'resume on the GPU' 0 1 0; return; }
  if [ "$(tensor_hashes "$WORK/whole")" = "$(tensor_hashes "$WORK/half")" ]; then check 'resumed run ends bit for bit' 1 0 0; else check 'resumed run ends bit for bit' 0 1 0; fi
}
# The checksums of all tensors in the last checkpoint, without what names the run.
tensor_hashes() { tr -d ' \n' <"$1/step_00000060/manifest.json" | grep -o '"xxh3":\[[^]]*\]' | sha256sum; }

# The record as it stands; written before the speeds are taken too, so that a run that is cut short leaves its tests.
write_record() {
  mkdir -p "$(dirname "$RECORD")"
  {
    printf '{\n  "cuda_source_hash": "%s",\n  "date": "%s",\n' "$HASH" "$(date -u +%Y-%m-%d)"
    printf '  "card": %s,\n  "driver": %s,\n' "$(json_string "$(gpu_name)")" "$(json_string "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)")"
    printf '  "passed": %d, "failed": %d, "skipped": %d,\n' $PASSED $FAILED $SKIPPED
    printf '  "tests": [\n'
    for i in "${!TESTS[@]}"; do printf '    %s%s\n' "${TESTS[$i]}" "$([ "$i" -lt $((${#TESTS[@]} - 1)) ] && echo ,)"; done
    printf '  ],\n  "figures": {\n'
    for i in "${!FIGURES[@]}"; do printf '%s%s\n' "${FIGURES[$i]}" "$([ "$i" -lt $((${#FIGURES[@]} - 1)) ] && echo ,)"; done
    printf '  }\n}\n'
  } >"$RECORD.tmp"
  mv "$RECORD.tmp" "$RECORD"
}

HASH=$([ -d src ] && [ ! -f CUDA_SOURCE_HASH ] && cuda_source_hash || cat CUDA_SOURCE_HASH)
say "card: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -1)"
step 'CUDA against the CPU'
for name in test_gpu test_models test_core test_ops test_optim test_attention test_eval test_hf; do begin $name $name --gtest_color=no; done
for name in flash_forward_check flash_backward_check flash_decode_check project_select_check peer_sums_check; do begin $name $name check; done
begin 'flash_forward_check, sm_80' flash_forward_check sm80
for name in "${PENDING[@]}"; do finish "$name"; done
step 'Training on the card against training on the CPU'
train_check

write_record
if [ $BENCH = yes ]; then
  step 'Speed'
  PYTHON=${PYTHON:-python3}
  TORCH=no
  if "$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then TORCH=yes; else say "$PYTHON has no torch with CUDA: the rivals are left out"; fi
  for direction in forward backward; do
    if binary=$(program flash_${direction}_check); then
      if [ $TORCH = yes ]; then figures "attention $direction beside cuDNN" "$PYTHON" scripts/bench/attention_${direction}_vs_cudnn.py "$binary"; else figures "attention $direction" "$binary" time; fi
    fi
  done
  if binary=$(program flash_decode_check); then
    if [ $TORCH = yes ]; then figures 'decoding beside cuDNN' "$PYTHON" scripts/bench/decode_vs_cudnn.py "$binary"; else figures 'decoding' "$binary" time; fi
  fi
  if binary=$(program project_select_check); then figures 'projection with selection' "$binary" time; fi
  if binary=$(program bench_gpu_ops); then figures 'ops of GPT-2 124M' "$binary"; fi
  if [ -n "$DATA" ]; then SFA=$(program sfa) figures 'GPT-2 124M training' bash scripts/bench/train_gpu.sh "$DATA"; fi
fi

write_record

step "GPU check: $(gpu_name), $(elapsed)"
printf '%s\n' "${TABLE[@]}"
say "record: $RECORD"
say "$PASSED passed, $FAILED failed, $SKIPPED skipped"
[ $FAILED -eq 0 ]
