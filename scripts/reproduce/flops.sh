#!/usr/bin/env bash
# Table 6 and Figure 1(b) of arXiv 2603.22300 from formulas: TFLOPs and 10^6 integer operations of 64 heads by length, and the bytes of a
# KV cache beside dense attention's; and the same attention as the mathematics needs it (causal) and as the kernels here execute it.
#   scripts/reproduce/flops.sh          SFA names the program; no card and no data are needed
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
case ${1:-} in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
[ $# -eq 0 ] || refuse "unknown option $1"
find_sfa
LENGTHS=8192,16384,32768,65536

# d, k (0 = dense), and what the paper prints: TFLOPs | INOPs at the four lengths.
PRINTED='128 0 2.23 8.92 35.67 142.67 - - - -
128 32 1.20 4.79 19.17 76.70 28.31 58.72 121.63 251.67
128 16 1.15 4.59 18.35 73.40 18.87 39.85 83.89 176.17
128 8 1.13 4.54 18.14 72.57 13.63 29.36 62.91 134.22
64 0 1.12 4.48 17.94 71.75 - - - -
64 16 0.61 2.42 9.69 38.76 15.16 29.36 60.82 125.83
64 8 0.58 2.32 9.27 37.11 9.44 19.92 41.94 88.08
64 4 0.57 2.30 9.17 36.70 6.82 14.68 31.46 67.11'

row() { # d k convention -> the JSON of the four lengths
  if [ "$2" -eq 0 ]; then
    "$SFA" flops --type dense --d "$1" --batch-heads 64 --context $LENGTHS --convention "$3" --json
  else
    "$SFA" flops --type sfa --d "$1" --k "$2" --batch-heads 64 --context $LENGTHS --convention "$3" --json
  fi
}
values() { awk -F'[:,]' -v key="\"$1\"" -v scale="$2" '$1 ~ key {printf "%.2f ", $2 * scale}'; }

step 'Table 6: TFLOPs | 10^6 integer operations; ours beside what is printed'
printf '%-14s' config
for n in ${LENGTHS//,/ }; do printf '%38s' "N = $n"; done
printf '\n%-14s' ''
for n in ${LENGTHS//,/ }; do printf '%38s' 'ours (printed) | ours (printed)'; done
printf '\n'
off=0 cells=0
while read -r d k p1 p2 p3 p4 q1 q2 q3 q4; do
  json=$(row "$d" "$k" paper)
  read -r -a t <<<"$(values attention_flops 1e-12 <<<"$json")"
  read -r -a i <<<"$(values integer_ops 1e-6 <<<"$json")"
  p=("$p1" "$p2" "$p3" "$p4") q=("$q1" "$q2" "$q3" "$q4")
  if [ "$k" -eq 0 ]; then printf '%-14s' "Dense_$d"; else printf '%-14s' "Sparse_$k/$d"; fi
  for c in 0 1 2 3; do
    cells=$((cells + 1))
    awk -v a="${t[$c]}" -v b="${p[$c]}" 'BEGIN {exit !(a - b > 0.0101 || b - a > 0.0101)}' && off=$((off + 1))
    if [ "$k" -eq 0 ]; then text="${t[$c]} (${p[$c]})"; else text="${t[$c]} (${p[$c]}) | ${i[$c]} (${q[$c]})"; fi
    printf '%38s' "$text"
  done
  printf '\n'
done <<<"$PRINTED"
say "$((cells - off)) of $cells TFLOP cells within 0.01 of the printed figure"

step 'Figure 1(b): bytes of the KV cache beside dense attention (16-bit values; the panel prints 0.875, 0.688, 0.59 for k = 32, 16, 8)'
printf '%-8s %14s %24s %14s %14s\n' 'd, k' '8-bit indices' '8-bit, 32-bit pointers' '16-bit' '32-bit'
for shape in '64 32' '64 16' '64 8' '64 4' '128 32' '128 16' '128 8' '128 4'; do
  read -r d k <<<"$shape"
  json=$("$SFA" flops --type sfa --d "$d" --k "$k" --context 65536 --convention paper --json)
  ratio() { awk -F'[:,]' -v key="\"$1\"" '$1 ~ key {printf "%.3f", $2}' <<<"$json"; }
  printf '%-8s %14s %24s %14s %14s\n' "$d, $k" "$(ratio index_8bit)" "$(ratio index_8bit_pointer_32bit)" "$(ratio index_16bit)" "$(ratio index_32bit)"
done

step 'The same attention, 64 heads, TFLOPs under the three conventions'
printf '%-14s %-10s' config counted
for n in ${LENGTHS//,/ }; do printf '%12s' "$n"; done
printf '\n'
while read -r d k _; do
  for convention in paper causal executed; do
    if [ "$k" -eq 0 ]; then name="Dense_$d"; else name="Sparse_$k/$d"; fi
    printf '%-14s %-10s' "$name" $convention
    for v in $(row "$d" "$k" $convention | values attention_flops 1e-12); do printf '%12s' "$v"; done
    printf '\n'
  done
done <<<"$PRINTED"
say 'paper: all pairs, softmax included. causal: products over visible pairs. executed: what the GPU kernels multiply, zeros of zero-filled rows included.'
