#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test that this machine can run; says what it could not run.
#   scripts/test.sh            everything (what CI runs): tests, the same under ASan/UBSan, fuzzing, CUDA sources compiled, code format
#   scripts/test.sh --quick    for a developer in between: tests and code format, no sanitizers, no fuzzing, no CUDA
# Ends with one line, "N passed, N failed, N skipped", and exit code 0 only when nothing failed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
cd "$ROOT"

QUICK=no
for argument in "$@"; do
  case $argument in
    --quick) QUICK=yes ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) printf 'test.sh: unknown option %s (there is: --quick)\n' "$argument" >&2; exit 2 ;;
  esac
done

PASSED=0 FAILED=0 SKIPPED=0
NOT_RUN=()
failed_check() {
  say "FAILED: $*"
  FAILED=$((FAILED + 1))
}
passed_check() {
  say "$*"
  PASSED=$((PASSED + 1))
}

# tree_of PRESET: the folder in build/ that is compiled and tested. A developer's own tree serves where there is one. From nothing, with an
# empty ccache most likely, to compile the files of a folder together takes a third of the time of file by file; such a tree (-O1 but for what
# computes) is nothing to use or to measure, and has a folder of its own.
tree_of() {
  if [ $QUICK = yes ] || [ -f "build/$1/CMakeCache.txt" ]; then echo "$1"; else echo "test_$1"; fi
}

# configure_and_build PRESET TREE; the output is shown when it fails.
configure_and_build() {
  local preset=$1 tree=build/$2 log="build/$2.log" began=$SECONDS options=()
  mkdir -p build
  if [ "$preset" != "$2" ]; then
    options=(-DSFA_UNITE=ON)
    # Where nothing will run on a card, what is for every card is compiled once, to PTX; the kernels for sm_90a are machine code as ever.
    if [ "$preset" = cuda ] && ! has_gpu; then options+=(-DCMAKE_CUDA_ARCHITECTURES=80-virtual); fi
    # Reports of AddressSanitizer name functions without lines then; a developer's own tree (cmake --preset asan) has both.
    if [ "$preset" = asan ]; then options+=(-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1); fi
  fi
  if ! cmake --preset "$preset" -B "$tree" "${options[@]}" >"$log" 2>&1; then
    tail -30 "$log"
    return 1
  fi
  grep '^-- sfa:' "$log" || true
  if ! ninja -C "$tree" -j "$(jobs_here)" -k 0 >"$log" 2>&1; then
    grep -A12 -E '^FAILED|error:' "$log" | head -60
    say "(all of it: $log)"
    return 1
  fi
  say "built $tree in $((SECONDS - began)) s"
}

attribute() { sed -n "s/.*<testsuite[^>]* $1=\"\([0-9]*\)\".*/\1/p;s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$2" | head -1; }

# run_tests TREE [ctest argument...]: runs them and adds to the counts.
run_tests() {
  local report="$ROOT/build/$1/junit.xml" log="$ROOT/build/$1/ctest.log" total failures skipped
  local tree=$1
  shift
  rm -f "$report"
  ctest --test-dir "build/$tree" -j "$(jobs_here)" --output-on-failure --no-tests=error --output-junit "$report" "$@" >"$log" 2>&1 || true
  if [ ! -s "$report" ]; then
    tail -30 "$log"
    failed_check "ctest in build/$tree did not finish"
    return
  fi
  total=$(attribute tests "$report") failures=$(attribute failures "$report")
  skipped=$(($(attribute skipped "$report") + $(attribute disabled "$report")))
  # Everything from the first failing test on, without the tests that passed.
  if [ "$failures" -gt 0 ]; then grep -v -E ' +Passed +[0-9.]+ sec$|^ +Start +[0-9]+:|Skipped' "$log" | head -300; fi
  say "$((total - failures - skipped)) of $total tests passed, $failures failed, $skipped skipped ($(sed -n 's/^Total Test time (real) = *//p' "$log"))"
  # Tests that need a card are spoken of at the end; any other that was left out is named.
  local left_out
  left_out=$(awk -F'"' '/<testcase /{name = $2; sub(/ *# GetParam.*/, "", name)} /<skipped /{print name}' "$report" | grep -viE 'gpu|cuda' | sort -u | paste -sd ' ' || true)
  if [ -n "$left_out" ]; then NOT_RUN+=("skipped in build/$tree (its own words: ctest -R NAME -V): $left_out"); fi
  PASSED=$((PASSED + total - failures - skipped)) FAILED=$((FAILED + failures)) SKIPPED=$((SKIPPED + skipped))
}

check_format() {
  local version files
  if ! command -v clang-format >/dev/null; then
    NOT_RUN+=('code format: there is no clang-format')
    return
  fi
  version=$(clang-format --version | sed 's/.*version \([0-9]*\).*/\1/')
  if [ "$version" != 14 ]; then
    NOT_RUN+=("code format: .clang-format is kept for version 14, this machine has $version")
    return
  fi
  files=$(find src tests -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) | sort)
  if clang-format --dry-run -Werror $files >build/format.log 2>&1; then
    passed_check "$(wc -w <<<"$files") files are formatted"
  else
    grep -o '^[^:]*' build/format.log | sort -u | grep -E '^(src|tests)/' | head -20
    failed_check 'code format: run clang-format -i on the files above'
  fi
}

check_gpu_record() {
  local recorded
  if [ ! -f tests/gpu/record.json ]; then
    NOT_RUN+=('no GPU check is on record (tests/gpu/record.json): run scripts/gpu_check.sh where there is a card')
    return
  fi
  recorded=$(sed -n 's/.*"cuda_source_hash": *"\([0-9a-f]*\)".*/\1/p' tests/gpu/record.json)
  if [ "$recorded" = "$(cuda_source_hash)" ]; then
    say "GPU check on record for these CUDA sources: $(sed -n 's/.*"card": *"\([^"]*\)".*/\1/p' tests/gpu/record.json), $(sed -n 's/.*"date": *"\([^"]*\)".*/\1/p' tests/gpu/record.json)"
    recorded=$(sed -n 's/.*"failed": \([0-9]*\), "skipped": [0-9]*,$/\1/p' tests/gpu/record.json | head -1)
    if [ "${recorded:-0}" -gt 0 ]; then NOT_RUN+=("the GPU check on record has $recorded failed: $(sed -n 's/.*"name": "\([^"]*\)".*"failed": [1-9].*/\1/p' tests/gpu/record.json | paste -sd ' ')"); fi
    if command -v python3 >/dev/null && ! python3 scripts/bench/record_tables.py --check; then failed_check 'docs: figures of another GPU record (above)'; fi
  else
    NOT_RUN+=('the CUDA sources have changed since the GPU check on record (tests/gpu/record.json): run scripts/gpu_check.sh where there is a card')
  fi
}

step 'What this machine lacks'
bash scripts/install_deps.sh --tests
use_local_tools

# Where nvcc is, one tree serves both: the CUDA sources are compiled, and the tests of the CPU run from the same programs. A build without
# CUDA is covered by the one with sanitizers.
BUILD=cpu
if NVCC=$(find_nvcc) && [ $QUICK = no ]; then
  BUILD=cuda
  export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$NVCC")")}
fi

step "Build ($BUILD)"
TREE=$(tree_of $BUILD)
if configure_and_build $BUILD "$TREE"; then
  [ $BUILD = cuda ] && passed_check 'the CUDA sources compile and link'
  step 'Tests'
  run_tests "$TREE"
else
  failed_check "the build (preset $BUILD)"
fi

if [ $QUICK = no ]; then
  step 'Build (asan)'
  TREE=$(tree_of asan)
  if configure_and_build asan "$TREE"; then
    step 'Tests under AddressSanitizer and UndefinedBehaviorSanitizer'
    # Left out are minutes of code that other tests go through: training over many starts and blocks computed again, which say how much
    # rounding loses; runs killed at twenty moments; a report of nine runs; the scripts.
    run_tests "$TREE" -E 'ModelBf16\.Loses|RecomputeTest\.Outputs|KilledTwentyTimes|KilledAtTwentyMoments|Report\.Rivals|AppScripts'
    NOT_RUN+=('under sanitizers: ModelBf16.Loses..., RecomputeTest.Outputs..., runs killed at twenty moments, Report.Rivals..., AppScripts')
  else
    failed_check 'the build (preset asan)'
  fi
fi

FUZZ_SECONDS=12
if [ $QUICK = no ]; then
  step "Fuzzing, $FUZZ_SECONDS s a target"
  if ! command -v clang++ >/dev/null; then
    NOT_RUN+=('fuzzing: there is no clang++')
  elif bash scripts/fuzz.sh --seconds $FUZZ_SECONDS; then
    passed_check 'the readers of files held'
  else
    failed_check 'fuzzing: an input breaks a reader, or a target does not build (scripts/fuzz.sh)'
  fi
fi

step 'Code format and GPU record'
check_format
check_gpu_record
if ! has_gpu; then NOT_RUN+=('tests that need a GPU: this machine has none'); fi
if [ $BUILD = cpu ] && ! find_nvcc >/dev/null; then NOT_RUN+=('compiling the CUDA sources: this machine has no nvcc'); fi
if [ $QUICK = yes ]; then NOT_RUN+=('sanitizers, fuzzing and CUDA (--quick)'); fi

if [ ${#NOT_RUN[@]} -gt 0 ]; then
  step 'What this run does not show'
  printf '  %s\n' "${NOT_RUN[@]}"
fi
printf '\ntook %s\n' "$(elapsed)"
say "$PASSED passed, $FAILED failed, $SKIPPED skipped"
[ $FAILED -eq 0 ]
