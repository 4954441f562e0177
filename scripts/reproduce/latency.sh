#!/usr/bin/env bash
# Table 9 (attention forward, 64 heads, by length) and decoding by length, on the card of this machine, beside what the paper prints for an
# A800. Ours are tensor-core kernels on both sides; the paper's dense rival uses none. Where python3 has PyTorch for the card, its cuDNN
# attention and FlashAttention-2 are timed on the same shapes in the same run.
#   scripts/reproduce/latency.sh [--lengths 1024..65536] [--d 64,128] [--k 8,16] [--selection topk,topk_2of4] [--device cuda] [--out DIR]
#     forward     causal, B = 8, H = 8 (the paper: full attention)
#     decode      one token after a full cache of that length, B = 1, 12 heads (GPT-2 124M has 12 of 64)
#     PYTHON      the interpreter with PyTorch (default python3); PYTHON= for none
# Figures that are there already are not measured again. All of them go into latency.html, a plot and a table each.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
LENGTHS=1024..65536 D=64,128 K=8,16 SELECTION=topk,topk_2of4 DEVICE=cuda OUT='' PYTHON=${PYTHON-python3}
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --lengths | --d | --k | --selection | --device | --out) has_value "$@" ;;&
    --lengths) LENGTHS=$2; shift 2 ;;
    --d) D=$2; shift 2 ;;
    --k) K=$2; shift 2 ;;
    --selection) SELECTION=$2; shift 2 ;;
    --device) DEVICE=$2; shift 2 ;;
    --out) OUT=$2; shift 2 ;;
    *) refuse "unknown option $1" ;;
  esac
done
[[ ,$LENGTHS =~ ^(,[1-9][0-9]*(\.\.[1-9][0-9]*)?)+$ ]] || refuse "--lengths: lengths like 1024,4096 or 1024..65536 are expected, got '$LENGTHS'"
[[ ,$D =~ ^(,[1-9][0-9]*)+$ ]] || refuse "--d: numbers like 64,128 are expected, got '$D'"
[[ ,$K =~ ^(,[1-9][0-9]*)+$ ]] || refuse "--k: numbers like 8,16 are expected, got '$K'"
[[ ,$SELECTION =~ ^(,(topk|topk_2of4|topk_pairs))+$ ]] || refuse "--selection: topk, topk_2of4 and topk_pairs are known, got '$SELECTION'"
[[ $DEVICE =~ ^(cuda|cpu)$ ]] || refuse "--device: cuda or cpu is expected, got '$DEVICE'"
find_sfa
OUT=${OUT:-$ROOT/runs/reproduce/latency}
CARD=$([ "$DEVICE" = cuda ] && gpu_name || echo CPU)
# Figures that are there stand for this command line only where they were taken by it, on such a card.
OPTIONS=$(printf '%s\n' "lengths=$LENGTHS" "k=$K" "selection=$SELECTION" "device=$CARD")
for name in "forward_${D//,/_}" "decode_${D//,/_}"; do
  if [ ! -f "$OUT/$name.json" ] || [ ! -s "$OUT/$name.options" ]; then continue; fi
  other=$(differences "$(<"$OUT/$name.options")" "$OPTIONS")
  [ -z "$other" ] || die "$OUT/$name.json was made with $other: name another --out, or delete that file"
done
make_out
RIVALS=0
if [ "$DEVICE" = cuda ] && [ -n "$PYTHON" ] && "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then RIVALS=1; fi
FILES=()
measure() { # NAME OP BATCH HEADS
  local name=$1_${D//,/_} common=(--op "$2" --batch "$3" --heads "$4" --d "$D" --k "$K" --n "$LENGTHS" --selection "$SELECTION" --json "$OUT/$1.part")
  if [ ! -f "$OUT/$name.json" ]; then
    if [ $RIVALS = 1 ]; then
      "$PYTHON" "$ROOT/scripts/bench/attention_vs_cudnn.py" "$SFA" "${common[@]}" --reps 10 >"$OUT/$name.txt"
    else
      "$SFA" bench attention --device "$DEVICE" --types dense,sfa --repetitions 10 "${common[@]}" >"$OUT/$name.txt"
    fi
    printf '%s\n' "$OPTIONS" >"$OUT/$name.options"
    mv "$OUT/$1.part" "$OUT/$name.json"
  fi
  cat "$OUT/$name.txt"
  FILES+=(--latency "$OUT/$name.json")
}
step "Attention forward, B = 8, H = 8, heads of $D: $CARD"
measure forward forward 8 8
step "Decode of one token, B = 1, H = 12, heads of $D: $CARD"
measure decode decode 1 12
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
"$SFA" compare --html "$OUT/latency.html" "${FILES[@]}"
say "The files: $OUT/*.json (figures), *.txt (the tables above), latency.html (plots)"
