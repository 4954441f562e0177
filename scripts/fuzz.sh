#!/usr/bin/env bash
# Fuzzes the readers of untrusted bytes with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer.
#   scripts/fuzz.sh                  60 seconds a target
#   scripts/fuzz.sh 600              so many seconds a target
#   scripts/fuzz.sh 60 text_fuzz     these targets only (tests/fuzz/*_fuzz.cpp)
# Starts from tests/fuzz/corpus/TARGET; what it finds new goes to build/fuzz/corpus/TARGET. An input that fails is kept under
# build/fuzz/found and named; run the target on it to see the failure again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || { printf 'fuzz.sh: the seconds a target must be a number, not %s\n' "$seconds" >&2; exit 2; }
shift || true
command -v clang++ >/dev/null || { printf 'fuzz.sh: clang++ was not found: apt-get install clang\n' >&2; exit 1; }

# Clang comes without an OpenMP library of its own; GCC's does, since nothing here runs in parallel.
gomp=$(g++ -print-file-name=libgomp.so)
cmake -S . -B build/fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DSFA_FUZZ=ON -DSFA_TESTS=OFF -DSFA_CUDA=OFF -DSFA_MPI=OFF -DSFA_WERROR=OFF \
  -DOpenMP_CXX_FLAGS=-fopenmp=libgomp -DOpenMP_CXX_LIB_NAMES=gomp -DOpenMP_gomp_LIBRARY="$gomp" >build/fuzz-configure.log 2>&1 ||
  { cat build/fuzz-configure.log >&2; exit 1; }
ninja -C build/fuzz fuzz_all

targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  for source in tests/fuzz/*_fuzz.cpp; do targets+=("$(basename "$source" .cpp)"); done
fi
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:allocator_may_return_null=1}
failed=()
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz/corpus/$target" build/fuzz/found "tests/fuzz/corpus/$target"
  printf '%s: %s s\n' "$target" "$seconds"
  if "build/fuzz/fuzz/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/found/$target-" "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"build/fuzz/$target.log" 2>&1; then
    grep -E 'stat::number_of_executed_units|^Done' "build/fuzz/$target.log" || true
  else
    tail -40 "build/fuzz/$target.log"
    failed+=("$target")
  fi
done
[ ${#failed[@]} = 0 ] || { printf 'fuzz.sh: failed: %s\n' "${failed[*]}" >&2; exit 1; }
