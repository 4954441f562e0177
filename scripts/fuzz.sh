#!/usr/bin/env bash
# Fuzzes the readers of untrusted files with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer.
#   scripts/fuzz.sh                     every target for 60 seconds
#   scripts/fuzz.sh --seconds 600       longer
#   scripts/fuzz.sh checkpoint config   these targets alone
# A target is tests/fuzz/NAME_fuzz.cpp; its comment says which sources and libraries it is built from. It starts from tests/fuzz/corpus/NAME and,
# where there is one, the dictionary tests/fuzz/NAME.dict. What it finds new stays in build/fuzz/NAME/corpus, an input that breaks it
# in build/fuzz/NAME. Needs clang (apt-get install clang); exit code 0 only when no target broke.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
cd "$ROOT"

SECONDS_EACH=60
TARGETS=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds)
      SECONDS_EACH=${2:-}
      [[ $SECONDS_EACH =~ ^[1-9][0-9]*$ ]] || { printf 'fuzz.sh: --seconds takes a number\n' >&2; exit 2; }
      shift
      ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) printf 'fuzz.sh: unknown option %s (there is: --seconds N)\n' "$1" >&2; exit 2 ;;
    *) TARGETS+=("$1") ;;
  esac
  shift
done

CLANG=$(command -v clang++ || true)
[ -n "$CLANG" ] || die "clang++ was not found; install it with: apt-get install clang"
if [ ${#TARGETS[@]} -eq 0 ]; then
  for file in tests/fuzz/*_fuzz.cpp; do
    name=$(basename "$file")
    TARGETS+=("${name%_fuzz.cpp}")
  done
fi

# The words after "// KEY:" in the target's opening comment.
said() { sed -n "s|^// $1: ||p" "$2" | head -1; }

CXX=("$CLANG")
if command -v ccache >/dev/null; then CXX=(ccache "$CLANG"); fi
SANITIZERS=-fsanitize=address,undefined
# shellcheck disable=SC2207
FLAGS=(-std=c++20 -O1 -gline-tables-only -march=x86-64-v3 -iquote . -Isrc -Itests -fno-omit-frame-pointer -fsanitize=fuzzer-no-link "$SANITIZERS" -fno-sanitize-recover=undefined
  $(pkg-config --cflags hdf5 2>/dev/null || true))
object_of() { printf 'build/fuzz/objects/%s.o' "$(basename "$1" .cpp)"; }
compile() { "${CXX[@]}" "${FLAGS[@]}" -c "$1" -o "$(object_of "$1")"; }

# Every source once, whichever targets need it, those of a folder as one file (their headers' templates take most of the time: cmake/Unite.cmake),
# then a program a target. Since what one target needs of a folder drags in what another needs, each is linked with the libraries of all.
build_targets() {
  local name file source folder united running=0 files=() objects=() libraries=()
  local -A of_folder=()
  mkdir -p build/fuzz/objects build/fuzz/united
  for name in "${TARGETS[@]}"; do
    file="tests/fuzz/${name}_fuzz.cpp"
    [ -f "$file" ] || die "there is no target $name ($file)"
    files+=("$file")
    # shellcheck disable=SC2207
    libraries+=($(said libraries "$file"))
    # shellcheck disable=SC2046
    for source in $(said sources "$file"); do
      folder=$(dirname "$source")
      case ${of_folder[$folder]:-} in *"\"$source\""*) ;; *) of_folder[$folder]+="#include \"$source\""$'\n' ;; esac
    done
  done
  for folder in "${!of_folder[@]}"; do
    united="build/fuzz/united/${folder//\//_}.cpp"
    printf '%s' "${of_folder[$folder]}" >"$united"
    files+=("$united")
    objects+=("$(object_of "$united")")
  done
  for file in "${files[@]}"; do
    compile "$file" &
    running=$((running + 1))
    if [ $running -ge "$(jobs_here)" ]; then
      wait -n || die "a fuzz target could not be compiled"
      running=$((running - 1))
    fi
  done
  while [ $running -gt 0 ]; do
    wait -n || die "a fuzz target could not be compiled"
    running=$((running - 1))
  done
  rm -f build/fuzz/objects/sources.a
  ar rcs build/fuzz/objects/sources.a "${objects[@]}"
  for name in "${TARGETS[@]}"; do
    mkdir -p "build/fuzz/$name/corpus"
    "$CLANG" -fsanitize=fuzzer "$SANITIZERS" "$(object_of "${name}_fuzz.cpp")" "build/fuzz/objects/sources.a" "${libraries[@]}" -o "build/fuzz/$name/fuzz"
  done
}

# Runs one target; its exit code says whether it held.
run_target() {
  local name=$1 out="build/fuzz/$1" dictionary=()
  [ -f "tests/fuzz/$name.dict" ] && dictionary=("-dict=tests/fuzz/$name.dict")
  if "$out/fuzz" -max_total_time="$SECONDS_EACH" -timeout=20 -rss_limit_mb=2048 -artifact_prefix="$out/" -print_final_stats=1 \
    "${dictionary[@]}" "$out/corpus" "tests/fuzz/corpus/$name" >"$out/log" 2>&1; then
    say "$name: clean, $(sed -n 's/^stat::number_of_executed_units: *//p' "$out/log") inputs in $SECONDS_EACH s"
  else
    tail -40 "$out/log"
    say "$name: BROKEN, see $out/log"
    return 1
  fi
}

step "Building ${#TARGETS[@]} targets"
build_targets
step "Running them, $(jobs_here) at a time"
broken=0 running=0
for name in "${TARGETS[@]}"; do
  run_target "$name" &
  running=$((running + 1))
  if [ $running -ge "$(jobs_here)" ]; then
    wait -n || broken=$((broken + 1))
    running=$((running - 1))
  fi
done
while [ $running -gt 0 ]; do
  wait -n || broken=$((broken + 1))
  running=$((running - 1))
done
[ $broken -eq 0 ] || die "$broken of ${#TARGETS[@]} targets broken"
say "${#TARGETS[@]} targets clean"
