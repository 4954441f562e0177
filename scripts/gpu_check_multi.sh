#!/usr/bin/env bash
# Everything that needs several cards of one machine: NCCL's operations, the same losses on one card and on many, ZeRO stages, faults,
# and how speed scales. Ends in a table and one line, "N passed, N failed".
#   scripts/gpu_check_multi.sh                    builds preset cuda first
#   scripts/gpu_check_multi.sh --build DIR        programs that are built already (DIR/sfa, DIR/tests/ranks_program or DIR/ranks_program)
#     --data FILE.h5   GPT-2 tokens for the speed of GPT-2 124M (default: tokens made here)
#     --gpus N         (default: all that nvidia-smi names)
#     --no-speed       correctness alone
#   LLMC_BINARY: llm.c's train_gpt2cu with NCCL, MPI and cuDNN (make train_gpt2cu USE_CUDNN=1): with --data also times it on the same shapes
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

BUILD='' DATA='' GPUS='' SPEED=yes
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --build | --data | --gpus) has_value "$@" ;;&
    --build) BUILD=$2; shift 2 ;;
    --data) DATA=$2; shift 2 ;;
    --gpus) GPUS=$2; shift 2 ;;
    --no-speed) SPEED=no; shift ;;
    *) refuse "unknown option $1" ;;
  esac
done
[ -z "$GPUS" ] || whole --gpus "$GPUS" 2
[ -z "$BUILD" ] || [ -d "$BUILD" ] || die "--build: $BUILD is no folder"
# Paths from here, before the script leaves for a folder of its own.
if [ -n "$DATA" ]; then
  [ -f "$DATA" ] || die "--data: there is no file $DATA"
  DATA=$(realpath "$DATA")
fi
if [ -n "${LLMC_BINARY:-}" ]; then
  found=$LLMC_BINARY
  if [[ $found != */* ]]; then found=$(type -P "$found" || realpath "$found"); fi
  if ! [ -f "$found" ] || ! [ -x "$found" ]; then die "LLMC_BINARY: $LLMC_BINARY is no program"; fi
  LLMC_BINARY=$(realpath "$found")
fi
has_gpu || die 'no GPU answers here (nvidia-smi names none)'
command -v mpirun >/dev/null || die 'there is no mpirun (openmpi-bin)'
GPUS=${GPUS:-$(nvidia-smi -L | grep -c '^GPU ')}
[ "$GPUS" -ge 2 ] || die "several GPUs are needed, $GPUS is there"
if [ -z "$BUILD" ]; then
  cd "$ROOT" && BUILD=build/cuda
  cmake --preset cuda >build/cuda.log 2>&1 && ninja -C $BUILD sfa ranks_program >build/cuda.log 2>&1 || { tail -20 build/cuda.log; die 'building failed'; }
fi
BUILD=$(cd "$BUILD" && pwd)
SFA=$BUILD/sfa PROGRAM=$BUILD/tests/ranks_program
[ -x "$PROGRAM" ] || PROGRAM=$BUILD/ranks_program
[ -x "$SFA" ] && [ -x "$PROGRAM" ] || die "$BUILD: sfa or ranks_program is not there"

# NCCL: where the loader finds it, or beside a PyTorch.
if ! ldconfig -p | grep -q 'libnccl\.so\.2' && [ -z "${NCCL_HOME:-}" ]; then
  NCCL_HOME=$(env -u LD_LIBRARY_PATH python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null) && export NCCL_HOME
fi
# Where ranks meet when this build has no MPI.
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 20000))
export NCCL_NVLS_ENABLE=0 OMP_NUM_THREADS=4 OMP_WAIT_POLICY=PASSIVE
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 1
PASSED=0 FAILED=0 TABLE=()
passed() { say "ok      $*"; PASSED=$((PASSED + 1)); }
failed() { say "FAILED  $*"; FAILED=$((FAILED + 1)); }

# ranks N COMMAND...: as N ranks, or by itself.
ranks() {
  local n=$1; shift
  if [ "$n" = 1 ]; then "$@"; else mpirun --allow-run-as-root --oversubscribe --bind-to none -np "$n" "$@"; fi
}
# losses RUN: all training losses, one a line. apart A B: the largest difference, of losses beyond 1 in shares of them.
losses() { sed -n 's/.*"train\/loss":\([-0-9.e+]*\).*/\1/p' "$1/metrics.jsonl"; }
apart() {
  paste <(losses "$1") <(losses "$2") |
    awk 'NF != 2 {bad = 1} {d = $1 - $2; if (d < 0) d = -d; if ($2 > 1) d /= $2; if (d > m) m = d; n++} END {print (bad || n == 0) ? 99 : m + 0}'
}
# within NAME A B LIMIT
within() {
  local d; d=$(apart "$2" "$3")
  if awk -v d="$d" -v l="$4" 'BEGIN {exit !(d <= l)}'; then passed "$1: losses $d apart (limit $4)"; else failed "$1: losses $d apart (limit $4)"; fi
}
# run NAME N [key=value...]: trains the small model; says when it fails.
run() {
  local name=$1 n=$2; shift 2
  ranks "$n" timeout 90 "$SFA" train small.yaml output_dir="$name" "$@" >"$name.log" 2>&1 ||
    { failed "$name on $n"; tail -5 "$name.log"; return 1; }
}

step "NCCL on $GPUS x $(gpu_name)"
if ranks "$GPUS" timeout 120 "$PROGRAM" collectives cuda >collectives.log 2>&1; then passed "$(tail -1 collectives.log)"
else failed 'operations of the communicator'; tail -5 collectives.log; fi
if NCCL_P2P_DISABLE=1 ranks "$GPUS" timeout 120 "$PROGRAM" collectives cuda >collectives.log 2>&1 && ! grep -q 'copy engines' collectives.log
then passed "$(tail -1 collectives.log), without each other's memory"; else failed 'operations of the communicator with NCCL_P2P_DISABLE=1'; tail -5 collectives.log; fi

step 'The same training on one card and on many'
cat "$ROOT"/docs/*.md "$ROOT"/README.md >text.txt 2>/dev/null
[ -s text.txt ] || seq 1 60000 >text.txt
"$SFA" data tokenize --tokenizer bytes --val-fraction 0.1 --output small.h5 text.txt >tokenize.log 2>&1 || die "tokenizing failed: $(tail -1 tokenize.log)"
# With a warm-up: the first steps of AdamW are the signs of gradients, and without one the rounding of those near zero becomes whole steps.
cat >small.yaml <<'Y'
output_dir: small
device: cuda
seed: 3
model: {num_hidden_layers: 5, num_attention_heads: 4, hidden_size: 256, max_position_embeddings: 128, attention: {type: dense}}
data: {train: small.h5, batch_size: 32, micro_batch_size: 4}
train: {max_steps: 20, lr: 1.0e-3, warmup_steps: 10, dtype: fp32, eval_every: 10, log_every: 1}
checkpoint: {every: 10, keep_last: 1}
dist: {bucket_mb: 1}
Y
run one 1 && run many "$GPUS" && {
  within "1 and $GPUS cards, fp32" one many 1e-5
  for zero in 1 2; do run "zero$zero" "$GPUS" dist.zero=$zero && within "dist.zero=$zero beside 0, fp32" "zero$zero" many 1e-6; done
  run again "$GPUS" && {
    if diff <(losses again) <(losses many) >/dev/null && (cd again && sha256sum step_*/rank_*.h5) | diff - <(cd many && sha256sum step_*/rank_*.h5) >/dev/null
    then passed 'two runs, the same losses and weights to the bit'; else failed 'two runs differ'; fi
  }
  run nographs "$GPUS" train.cuda_graphs=false && within 'with and without CUDA graphs, fp32' nographs many 0
}
for zero in 0 1 2; do
  run "bf$zero" "$GPUS" train.dtype=bf16 dist.zero=$zero && [ $zero -gt 0 ] && within "dist.zero=$zero beside 0, bf16" "bf$zero" bf0 1e-2
done
run half "$GPUS" train.max_steps=10 train.schedule=constant dist.zero=1 && run full 1 train.schedule=constant &&
  cp -r half resumed && run resumed 1 train.schedule=constant resume=auto && within "saved on $GPUS cards, resumed on 1" resumed full 1e-5

step "Context parallel: $GPUS cards share every sequence"
for arch in gpt2 qwen3; do
  for attention in dense sfa; do
    name=${arch}_$attention options=(model.arch=$arch model.attention.type=$attention)
    [ $attention = dense ] || options+=(model.attention.k=8)
    [ $arch = gpt2 ] || options+=(model.num_key_value_heads=2 data.document_mask=true)
    # Where rounding decides which of two features as large as each other is kept, sfa's losses leave each other whatever the reason for
    # the rounding: what another micro-batch on one card does to them is no more than context parallelism may.
    limit=1e-5 limit_bf=2e-2
    # times4 DTYPE LEAST RUN: four times what smaller micro-batches do to a run, or LEAST
    times4() {
      run "${name}_micro_$1" 1 "${options[@]}" train.dtype="$1" data.micro_batch_size=2 >&2 &&
        awk -v d="$(apart "${name}_micro_$1" "$3")" -v least="$2" 'BEGIN {print (4 * d > least) ? 4 * d : least}'
    }
    run "$name" 1 "${options[@]}"
    [ $attention = dense ] || limit=$(times4 fp32 $limit "$name")
    run "${name}_cp" "$GPUS" "${options[@]}" dist.context_parallel="$GPUS" &&
      within "$arch, $attention, 1 card and one sequence on $GPUS, fp32" "${name}_cp" "$name" "$limit"
    run "${name}_bf" 1 "${options[@]}" train.dtype=bf16
    [ $attention = dense ] || limit_bf=$(times4 bf16 $limit_bf "${name}_bf")
    run "${name}_bfcp" "$GPUS" "${options[@]}" train.dtype=bf16 dist.context_parallel="$GPUS" &&
      within "$arch, $attention, 1 card and one sequence on $GPUS, bf16" "${name}_bfcp" "${name}_bf" "$limit_bf"
  done
done
run cpagain "$GPUS" model.attention.type=sfa model.attention.k=8 train.dtype=bf16 dist.context_parallel="$GPUS" && {
  if diff <(losses cpagain) <(losses gpt2_sfa_bfcp) >/dev/null && (cd cpagain && sha256sum step_*/rank_*.h5) | diff - <(cd gpt2_sfa_bfcp && sha256sum step_*/rank_*.h5) >/dev/null
  then passed 'two runs of shared sequences, the same losses and weights to the bit'; else failed 'two runs of shared sequences differ'; fi
}

step 'Started without MPI; faults'
unset MASTER_ADDR MASTER_PORT
export SFA_RENDEZVOUS=$WORK/meet
for r in $(seq 0 $((GPUS - 1))); do
  RANK=$r LOCAL_RANK=$r WORLD_SIZE=$GPUS timeout 90 "$SFA" train small.yaml output_dir=nompi >"nompi.$r.log" 2>&1 &
done
wait
unset SFA_RENDEZVOUS
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 20000))
within 'without MPI, met by a file' nompi many 0
for fault in die:1:6 hang:1:6 throw:1:6; do
  began=$SECONDS
  if ranks "$GPUS" timeout 100 "$PROGRAM" train $fault small.yaml output_dir="fault_${fault%%:*}" dist.timeout_s=5 >fault.log 2>&1; then failed "$fault: exit code 0"
  else
    line=$(grep -E 'the job ends|signal 9' fault.log | head -1)
    if [ -n "$line" ] && [ $((SECONDS - began)) -lt 60 ]; then passed "$fault after $((SECONDS - began)) s: $line"; else failed "$fault after $((SECONDS - began)) s"; tail -5 fault.log; fi
  fi
done

if [ $SPEED = yes ]; then
  step 'Weak scaling: GPT-2 124M, bf16, 8 micro-steps of 64 x 1024 tokens a card and step'
  if [ -z "$DATA" ]; then
    python3 - <<'P' || die 'tokens can be made by python3 alone'
import array, random, struct
random.seed(1)
n = 4_000_000
tokens = array.array('H', (min(50256, int(random.paretovariate(0.9)) - 1) for _ in range(n)))
with open('tokens.bin', 'wb') as f:
    f.write(struct.pack('<256i', 20240520, 1, n, *([0] * 253)))
    tokens.tofile(f)
P
    DATA=$WORK/tokens.bin
  fi
  cat >speed.yaml <<Y
output_dir: speed
device: cuda
model: {num_hidden_layers: 12, num_attention_heads: 12, hidden_size: 768, max_position_embeddings: 1024, attention: {type: dense}}
data: {train: $DATA, seq_len: 1024, batch_size: 512, micro_batch_size: 64}
train: {max_steps: 12, lr: 6.0e-4, warmup_steps: 700, eval_every: 0, log_every: 4}
checkpoint: {every: 0, background: false}
Y
  # speed NAME N ZERO: the last interval's tokens a second and the slowest rank's waiting, in the table.
  one=0
  speed() {
    local name=$1 n=$2 zero=$3 line rate wait
    ranks "$n" timeout 120 "$SFA" train speed.yaml output_dir="$name" data.batch_size=$((512 * n)) dist.zero="$zero" >"$name.log" 2>&1 ||
      { failed "$name"; tail -5 "$name.log"; return; }
    line=$(grep tokens_per_sec "$name/metrics.jsonl" | tail -1)
    rate=$(sed -n 's/.*"tokens_per_sec":\([0-9.e+]*\).*/\1/p' <<<"$line")
    wait=$(sed -n 's/.*"ranks\/slowest_exchange_ms":\([0-9.e+]*\).*/\1/p' <<<"$line")
    [ "$n" -gt 1 ] || one=$rate
    TABLE+=("$(awk -v n="$n" -v z="$zero" -v r="$rate" -v o="$one" -v w="${wait:-0}" -v s="$(sed -n 's/.*"step_ms":\([0-9.e+]*\).*/\1/p' <<<"$line")" \
      'BEGIN {printf "%d cards  dist.zero %d  %10.0f tok/s  %8.2f ms/step  %6.2f %% of %d x one card  exposed sums %.2f ms", n, z, r, s, 100 * r / (n * o), n, w}')  $(grep -o 'memory: .*' "$name.log" | head -1)")
    rm -rf "$name"
    say "${TABLE[-1]}"
  }
  speed speed1 1 0
  for zero in 0 1 2; do speed "speed_zero$zero" "$GPUS" $zero; done
  # llmc N ZERO: llm.c at the same work, the median of its steps after the first five. It wants a batch of validation and has no ZeRO-2.
  llmc() {
    local n=$1 zero=$2 rate
    ranks "$n" timeout 120 stdbuf -oL "$LLMC_BINARY" -i llmc_train.bin -j llmc_val.bin -e d12 -b 64 -t 1024 -d $((524288 * n)) -r 0 -z "$zero" -v 1000000 -s 0 -g 1 -h 0 \
      -x 12 -l 6e-4 -q 0 -u 5 -n 0 -m 1 >llmc.log 2>&1 || { failed "llm.c on $n"; tail -3 llmc.log; return; }
    grep -q ' ms' llmc.log || { failed "llm.c on $n: $(tail -1 llmc.log)"; return; }
    rate=$(grep -Eo '[0-9.]+ ms' llmc.log | cut -d' ' -f1 | tail -n +6 | sort -g | awk '{a[NR] = $1} END {print NR ? a[int((NR + 1) / 2)] : 0}')
    rate=$(awk -v ms="$rate" -v n="$n" 'BEGIN {printf "%.0f", (ms > 0) ? 524288 * n * 1000 / ms : 0}')
    [ "$n" -gt 1 ] || one=$rate
    TABLE+=("$(awk -v n="$n" -v z="$zero" -v r="$rate" -v o="$one" 'BEGIN {printf "%d cards  llm.c, ZeRO %d  %8.0f tok/s  %6.2f %% of %d x one card", n, z, r, (o > 0) ? 100 * r / (n * o) : 0, n}')")
    say "${TABLE[-1]}"
  }
  if [ -n "${LLMC_BINARY:-}" ] && [[ $DATA == *.h5 ]]; then
    if python3 "$ROOT/scripts/bench/llmc_shard.py" "$DATA" llmc_train.bin && python3 "$ROOT/scripts/bench/llmc_shard.py" "$DATA" llmc_val.bin 0 1000000; then
      llmc 1 0
      for zero in 0 1; do llmc "$GPUS" $zero; done
    else failed "llm.c's tokens"; fi
  fi

  step 'Long context: GPT-2 124M, bf16, sequences of 32,768 tokens, 4 a step, on one card and shared by all'
  # long NAME N ATTENTION: tokens a second; the same step whatever N is.
  long() {
    local name=$1 n=$2 attention=$3 options=() line rate
    [ "$attention" = dense ] || options=(model.attention.k=8)
    ranks "$n" timeout 120 "$SFA" train speed.yaml output_dir="$name" model.max_position_embeddings=32768 data.seq_len=32768 data.batch_size=4 data.micro_batch_size=1 \
      train.max_steps=8 model.attention.type="$attention" "${options[@]}" dist.context_parallel="$n" >"$name.log" 2>&1 || { failed "$name"; tail -5 "$name.log"; return; }
    line=$(grep tokens_per_sec "$name/metrics.jsonl" | tail -1)
    rate=$(sed -n 's/.*"tokens_per_sec":\([0-9.e+]*\).*/\1/p' <<<"$line")
    [ "$n" -gt 1 ] || one=$rate
    TABLE+=("$(awk -v n="$n" -v a="$attention" -v r="$rate" -v o="$one" -v s="$(sed -n 's/.*"step_ms":\([0-9.e+]*\).*/\1/p' <<<"$line")" \
      'BEGIN {printf "%d cards a sequence of 32,768  %-5s  %10.0f tok/s  %8.2f ms/step  %6.2f %% of %d x one card", n, a, r, s, 100 * r / (n * o), n}')  $(grep -o 'memory: .*' "$name.log" | head -1)")
    rm -rf "$name"
    say "${TABLE[-1]}"
  }
  for attention in dense sfa; do
    for n in 1 "$GPUS"; do long "long_${attention}_$n" "$n" $attention; done
  done
fi

step 'Result'
printf '%s\n' ${TABLE[@]+"${TABLE[@]}"}
say "$PASSED passed, $FAILED failed"
[ $FAILED -eq 0 ]
