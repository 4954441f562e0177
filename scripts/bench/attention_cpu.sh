#!/usr/bin/env bash
# CPU attention, dense and SFA, beside PyTorch's scaled_dot_product_attention, in turns, with ratios.
#   scripts/bench/attention_cpu.sh [--threads N] [--rounds N] [--filter REGEX]
#   PYTHON: a python3 that has torch (default python3);  BENCH: the program (default: built in build/bench-cpu)
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
for option in "$@"; do
  case $option in
  --threads | --rounds | --filter | --threads=* | --rounds=* | --filter=*) ;;
  -*) echo "attention_cpu.sh: $option is no option (see --help)" >&2; exit 2 ;;
  esac
done
cd "$(dirname "$0")/../.."
bench=${BENCH:-}
if [ -z "$bench" ]; then
  cmake -S . -B build/bench-cpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DSFA_CUDA=OFF -DSFA_TESTS=OFF -DSFA_BENCH=ON >/dev/null
  cmake --build build/bench-cpu --target attention_cpu_bench >/dev/null
  bench=build/bench-cpu/tests/bench/attention_cpu_bench
fi
exec "${PYTHON:-python3}" scripts/bench/attention_cpu.py "$bench" "$@"
