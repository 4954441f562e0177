#!/usr/bin/env bash
# Table 9 (attention forward, 64 heads, by length) and the decode and forward columns of Table 10, on the card of this machine, beside what
# the paper prints for an A800. Ours are tensor-core kernels on both sides; the paper's dense rival uses none.
#   scripts/reproduce/latency.sh [--lengths 1024..65536] [--d 64] [--k 4,8,16] [--device cuda] [--out DIR]
#     attention   causal forward of B = 8, H = 8 (the paper: full attention), medians by `sfa bench attention`
#     decode      one token after a full cache of that length, B = 1, 12 heads of 64 features (GPT-2 124M)
# A length whose figures are there already is not measured again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
LENGTHS=1024..65536 D=64 K=4,8,16 DEVICE=cuda OUT=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --lengths | --d | --k | --device | --out) [ $# -ge 2 ] || die "$1 needs a value" ;;&
    --lengths) LENGTHS=$2; shift 2 ;;
    --d) D=$2; shift 2 ;;
    --k) K=$2; shift 2 ;;
    --device) DEVICE=$2; shift 2 ;;
    --out) OUT=$2; shift 2 ;;
    *) die "unknown option $1 (--help)" ;;
  esac
done
find_sfa
OUT=${OUT:-$ROOT/runs/reproduce/latency}
mkdir -p "$OUT"
measure() { # NAME bench-options...
  local name=$1
  shift
  if [ ! -f "$OUT/$name.json" ]; then
    "$SFA" bench attention --device "$DEVICE" --types dense,sfa --d "$D" --k "$K" --n "$LENGTHS" --json "$OUT/$name.part" --plot "$OUT/$name.svg" "$@" >"$OUT/$name.txt"
    mv "$OUT/$name.part" "$OUT/$name.json"
  fi
  cat "$OUT/$name.txt"
}
step "Attention forward, B = 8, H = 8, d = $D: $( [ "$DEVICE" = cuda ] && gpu_name || echo CPU)"
measure "forward_d$D" --op forward --batch 8 --heads 8
step "Decode of one token, B = 1, H = 12, d = $D"
measure "decode_d$D" --op decode --batch 1 --heads 12
step 'The paper, Table 9 (ms, A800, full attention, B = 8, H = 8, dense without tensor cores)'
cat <<'END'
               1024      4096      8192     16384     32768     65536
Dense_128     2.102    28.052   112.878   449.607  1981.917  7879.334
Sparse_16/128 1.557    17.937    70.616   279.722  1108.962  4412.015
Sparse_8/128  0.918    13.174    54.249   215.367   777.152  3323.529
Dense_64      0.773    13.507    50.618   202.556   801.497  3137.779
Sparse_16/64  0.896    12.514    39.414   195.531   779.193  2963.938
Sparse_8/64   0.589     8.137    32.004   126.992   504.226  2014.140
Sparse_4/64   0.407     5.414    21.065    83.118   328.828  1311.588
END
say "The files: $OUT/*.json (figures), *.svg (plots), *.txt (the tables above)"
