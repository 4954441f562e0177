#!/usr/bin/env bash
# Our attention beside PyTorch's cuDNN attention and FlashAttention-2 on the same shapes in one run; ratios of times.
#
#   scripts/bench/attention_vs_cudnn.sh [SFA_BINARY] [options of attention_vs_cudnn.py]
#
# SFA_BINARY: build/cuda/sfa unless named. PYTHON: an interpreter with PyTorch for CUDA (default python3).
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sfa=$here/../../build/cuda/sfa
if [[ $# -gt 0 && $1 != -* ]]; then
  sfa=$1
  shift
fi
[[ -x $sfa ]] || { echo "attention_vs_cudnn.sh: $sfa is not there; build it, or name the binary" >&2; exit 1; }
exec "${PYTHON:-python3}" "$here/attention_vs_cudnn.py" "$sfa" "$@"
