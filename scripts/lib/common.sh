# Sourced by the scripts beside it: where the tree is, words for the terminal, and what a build needs to know of this machine.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'note: %s\n' "$*" >&2; }
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# The command line is wrong.
refuse() {
  printf '%s: %s (see --help)\n' "$(basename "$0")" "$*" >&2
  exit 2
}

# has_value "$@": refuses the option in front when the command line ends behind it, or goes on with another option.
has_value() { if [ $# -lt 2 ] || [[ $2 == --* ]]; then refuse "$1 needs a value"; fi; }

# whole OPTION VALUE [LEAST]: refuses what is no whole number from LEAST (1) on. Zeros in front would make it octal to the shell.
whole() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || [ "$2" -lt "${3:-1}" ]; then refuse "$1: a whole number from ${3:-1} on is expected, got '$2'"; fi
}

# above_zero OPTION VALUE: refuses what is no number above 0, like 3, 0.5 or 7.5e-4.
above_zero() {
  if ! [[ $2 =~ ^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$ ]] || ! awk -v n="$2" 'BEGIN {exit !(n > 0 && n <= 1e15)}'; then
    refuse "$1: a number above 0 like 3, 0.5 or 7.5e-4 is expected, got '$2'"
  fi
}

# words_of OPTION VALUE: WORDS, the words of the value; refuses one without any.
words_of() {
  read -rd '' -a WORDS <<<"$2" || true
  [ ${#WORDS[@]} -gt 0 ] || refuse "$1 needs a value"
}

# Seconds since the script began, as "3 min 5 s".
elapsed() { printf '%d min %d s' $((SECONDS / 60)) $((SECONDS % 60)); }

# As many compilers as there are cores, and as memory serves: one takes up to 1.5 GB (the files of a folder together, or a kernel).
jobs_here() {
  local cores gib
  cores=$(nproc 2>/dev/null || echo 2)
  gib=$(awk '/^MemAvailable:/ {printf "%d", $2 / 1048576 / 1.5}' /proc/meminfo 2>/dev/null || true)
  if [ -n "$gib" ] && [ "$gib" -lt "$cores" ]; then cores=$((gib > 0 ? gib : 1)); fi
  echo "$cores"
}

# The nvcc that a build would take, or nothing.
find_nvcc() {
  local candidate
  for candidate in "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then
      printf '%s' "$candidate"
      return 0
    fi
  done
  return 1
}

# True when a driver answers and names at least one card.
has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

gpu_name() { nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1; }

# What install_deps.sh put into the tree because the system's own is too old (CMake on Ubuntu 22.04).
use_local_tools() {
  if [ -d "$ROOT/build/tools/bin" ]; then PATH="$ROOT/build/tools/bin:$PATH"; fi
}

# Every file that decides what runs on a GPU: CUDA sources and all headers that they include, one through another.
gpu_sources() {
  local files found
  found=$(find src \( -name '*.cu' -o -name '*.cuh' -o -path 'src/cuda/*' \) -type f | LC_ALL=C sort -u)
  while [ "${files:-}" != "$found" ]; do
    files=$found
    # shellcheck disable=SC2086
    found=$({ printf '%s\n' $files; sed -n 's|^#include "\(.*\)"|src/\1|p' $files | sort -u | xargs ls 2>/dev/null || true; } | LC_ALL=C sort -u)
  done
  printf '%s\n' "$files"
}

# The SHA-256 of all of them.
cuda_source_hash() { (cd "$ROOT" && gpu_sources | xargs sha256sum | sha256sum | cut -d' ' -f1); }
