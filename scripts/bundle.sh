#!/usr/bin/env bash
# Packs programs, the libraries that they need, configurations and scripts into one archive that runs where nothing can be compiled or
# installed: x86-64 Linux with a glibc at least as new as this machine's and, for the GPU, a driver and the CUDA toolkit's cuBLASLt.
#   scripts/bundle.sh [--output FILE.tar.xz] [--device auto|cpu|cuda] [--build DIR]
#     --output   default build/sfa_bundle.tar.xz
#     --device   what to build for; auto: CUDA when there is nvcc
#     --build    take the programs of this build folder as they are
# On the other machine: tar xf sfa_bundle.tar.xz && cd sfa_bundle && bin/sfa --help; with a card: scripts/gpu_check.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
OUTPUT=$ROOT/build/sfa_bundle.tar.xz DEVICE=auto BUILD=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --output) OUTPUT=$(realpath -m "$2"); shift 2 ;;
    --device) DEVICE=$2; shift 2 ;;
    --build) BUILD=$(realpath "$2"); shift 2 ;;
    *) printf 'bundle.sh: unknown option %s (see --help)\n' "$1" >&2; exit 2 ;;
  esac
done
cd "$ROOT"
NVCC=$(find_nvcc || true)
[ "$DEVICE" != auto ] || DEVICE=$([ -n "$NVCC" ] && echo cuda || echo cpu)
[ "$DEVICE" = cpu ] || [ -n "$NVCC" ] || die '--device cuda: there is no nvcc'

if [ -z "$BUILD" ]; then
  bash scripts/install_deps.sh --tests --bench
  use_local_tools
  if [ "$DEVICE" = cuda ]; then export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$NVCC")")}; fi
  BUILD=$ROOT/build/$DEVICE
  cmake --preset "$DEVICE" -DSFA_BENCH=ON -DSFA_MPI=OFF >"$BUILD.log" 2>&1 || { tail -20 "$BUILD.log"; die 'configuring failed'; }
  ninja -C "$BUILD" >"$BUILD.log" 2>&1 || { grep -A12 -E '^FAILED|error:' "$BUILD.log" | head -40; die "compiling failed ($BUILD.log)"; }
fi
[ -x "$BUILD/sfa" ] || die "$BUILD: there is no sfa"

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
TOP=$WORK/sfa_bundle
mkdir -p "$TOP/bin" "$TOP/lib"
for program in "$BUILD/sfa" "$BUILD"/tests/test_{core,ops,optim,attention,models,eval,hf,gpu} "$BUILD"/tests/*_check "$BUILD"/tests/bench/bench_*; do
  if [ -f "$program" ] && [ -x "$program" ]; then strip -s -o "$TOP/bin/$(basename "$program")" "$program"; fi
done

# Every library that the programs load, but the C and C++ runtimes, the driver's and the CUDA toolkit's own.
missing=$(ldd "$TOP"/bin/* | grep 'not found' | sort -u || true)
[ -z "$missing" ] || die "a library was not found: $missing"
ldd "$TOP"/bin/* | sed -n 's|.* => \(/[^ ]*\) .*|\1|p' | sort -u |
  grep -v -E '/(libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libcuda|libcudart|libcublas|libcublasLt|libnccl)\.so' |
  while read -r library; do
    cp -L "$library" "$TOP/lib/"
    strip --strip-unneeded "$TOP/lib/$(basename "$library")" 2>/dev/null || true
  done

cp -r configs docs README.md "$TOP/" 2>/dev/null || true
mkdir -p "$TOP/scripts" "$TOP/tests/golden" "$TOP/tests/gpu"
cp -r scripts/lib scripts/bench scripts/gpu_check.sh "$TOP/scripts/"
cp tests/golden/*.bin "$TOP/tests/golden/"
cuda_source_hash >"$TOP/CUDA_SOURCE_HASH"

mkdir -p "$(dirname "$OUTPUT")"
tar -C "$WORK" -c sfa_bundle | xz -T0 -6 >"$OUTPUT.tmp"
mv "$OUTPUT.tmp" "$OUTPUT"
say "$OUTPUT: $(du -h "$OUTPUT" | cut -f1), $(ls "$TOP/bin" | wc -l) programs, $(ls "$TOP/lib" | wc -l) libraries, $(du -sh "$TOP" | cut -f1) unpacked"
