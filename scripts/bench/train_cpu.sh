#!/usr/bin/env bash
# Training speed of configs/shakespeare_cpu.yaml against the same model in PyTorch, on the same cores, in turns.
#   scripts/bench/train_cpu.sh TEXT [STEPS]          PYTHON: a python3 that has torch (default python3);  SFA: the program (default build/cpu/sfa)
set -euo pipefail
case ${1:-} in
-h | --help) sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
-*) echo "train_cpu.sh: $1 is no option; a text is expected (see --help)" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
text=${1:?usage: scripts/bench/train_cpu.sh TEXT [STEPS]}
steps=${2:-200}
python=${PYTHON:-python3}
sfa=${SFA:-build/cpu/sfa}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$sfa" data tokenize --tokenizer bytes --output "$work/text.h5" --val-fraction 0.1 "$text" >/dev/null
ours() { # NAME overrides...
  local name=$1
  shift
  "$sfa" train configs/shakespeare_cpu.yaml data.train="$work/text.h5" output_dir="$work/$name" train.max_steps="$steps" \
    train.log_every=10 train.eval_every=0 checkpoint.every=0 "$@" >"$work/$name.log" 2>&1
  grep -o '"step_ms":[0-9.]*' "$work/$name/metrics.jsonl" | cut -d: -f2 | tail -n +3
}
for round in 1 2 3; do
  ours "dense$round" model.attention.type=dense >>"$work/dense"
  ours "sfa$round" model.attention.type=sfa model.attention.k=8 >>"$work/sfa"
  "$python" scripts/bench/gpt2_pytorch.py --text "$text" --steps "$steps" | tee -a "$work/torch.json" | grep -o '"step_ms": [0-9.]*' | cut -d' ' -f2 >>"$work/torch"
done
median() { sort -g "$1" | awk '{a[NR]=$1} END {print a[int((NR+1)/2)]}'; }
d=$(median "$work/dense") s=$(median "$work/sfa") t=$(median "$work/torch")
grep -m1 'model name' /proc/cpuinfo | cut -d: -f2
printf '%-28s %10s %10s\n' '' 'ms a step' 'ratio'
printf '%-28s %10.2f %10.2f\n' "PyTorch $(grep -om1 '"torch": "[^"]*' "$work/torch.json" | cut -d'"' -f4)" "$t" 1
printf '%-28s %10.2f %10.2f\n' 'sfa dense' "$d" "$(echo "$t $d" | awk '{print $1/$2}')"
printf '%-28s %10.2f %10.2f\n' 'sfa, SFA k=8' "$s" "$(echo "$t $s" | awk '{print $1/$2}')"
