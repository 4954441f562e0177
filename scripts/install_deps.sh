#!/usr/bin/env bash
# Installs what building sfa needs and this machine lacks, from the distribution's own packages.
#   scripts/install_deps.sh             compiler, CMake, libraries: enough for `sfa`
#   scripts/install_deps.sh --tests     also GoogleTest and clang-format
#   scripts/install_deps.sh --list      prints what it would install and stops
# Debian 12 and 13, Ubuntu 22.04 and 24.04, as root or with sudo. Nothing is installed, and no package list fetched, when nothing
# is missing. CUDA is never installed: the script says how when it sees a card without nvcc.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

MINIMUM_CMAKE=3.25
TESTS=no LIST=no
for argument in "$@"; do
  case $argument in
    --tests) TESTS=yes ;;
    --list) LIST=yes ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) printf 'install_deps.sh: unknown option %s (there is: --tests, --list)\n' "$argument" >&2; exit 2 ;;
  esac
done

# One line a need: "what for|package|other packages that bring the same".
NEEDS='C++20 compiler|g++|
build generator|cmake|
build runner|ninja-build|
finds libraries|pkg-config|pkgconf
logging|libspdlog-dev|
formatting of text|libfmt-dev|
YAML|libyaml-cpp-dev|
command line|libcli11-dev|
JSON|nlohmann-json3-dev|
HDF5 files|libhdf5-dev|libhdf5-openmpi-dev libhdf5-mpich-dev
matrix products (BLAS)|libopenblas-openmp-dev|libopenblas-pthread-dev libopenblas-serial-dev libopenblas64-dev
checksums|libxxhash-dev|
regular expressions|libpcre2-dev|
Unicode|libutf8proc-dev|
.gz inputs|zlib1g-dev|
.xz inputs|liblzma-dev|
.zst inputs|libzstd-dev|'
TEST_NEEDS='
tests|libgtest-dev|
code format|clang-format|'
[ $TESTS = yes ] && NEEDS+=$TEST_NEEDS

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  warn "this is no Debian or Ubuntu, so nothing is installed; CMake names what is missing (third_party/README.md lists all)"
  exit 0
fi

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
while IFS='|' read -r purpose package others; do
  for name in $package $others; do
    if installed "$name"; then continue 2; fi
  done
  missing+=("$package")
  say "missing: $package ($purpose)"
done <<<"$NEEDS"

# CMake and ninja count by what runs, whoever brought them.
satisfied=()
for package in "${missing[@]}"; do
  case $package in
    cmake) command -v cmake >/dev/null && continue ;;
    ninja-build) command -v ninja >/dev/null && continue ;;
    clang-format) command -v clang-format >/dev/null && continue ;;
  esac
  satisfied+=("$package")
done
missing=("${satisfied[@]}")

if [ $LIST = yes ]; then
  [ ${#missing[@]} -eq 0 ] && say 'nothing is missing' || say "would run: apt-get install ${missing[*]}"
  exit 0
fi

as_root=()
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "root or sudo is needed to install: apt-get install ${missing[*]}"
    as_root=(sudo)
    [ -t 0 ] || as_root=(sudo -n)
  fi
  say "installing ${#missing[@]} packages (and what they need) with apt-get"
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get -qq update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
      -o Dpkg::Use-Pty=0 install "${missing[@]}"; } </dev/null >"$log" 2>&1; then
    tail -20 "$log" >&2
    die "apt-get failed; its output is in $log. By hand: apt-get update && apt-get install ${missing[*]}"
  fi
  rm -f "$log"
else
  say 'every package that the build needs is there'
fi

# Ubuntu 22.04 has CMake 3.22: a newer one comes from PyPI into build/tools, which the scripts put first on the PATH.
use_local_tools
version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n%s\n' $MINIMUM_CMAKE "$version" | sort -V | head -1)" != $MINIMUM_CMAKE ]; then
  say "CMake $version is older than $MINIMUM_CMAKE: taking a newer one from PyPI into build/tools"
  if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install python3-venv </dev/null >/dev/null
  fi
  python3 -m venv "$ROOT/build/tools"
  "$ROOT/build/tools/bin/pip" -q install 'cmake>=3.25,<4' || die "CMake $MINIMUM_CMAKE or newer is needed; pip could not bring it"
fi

if has_gpu && ! find_nvcc >/dev/null; then
  warn "there is a GPU ($(gpu_name)) but no nvcc, so the build is for the CPU. For the GPU install the CUDA toolkit, 12.4 or newer
      (https://developer.nvidia.com/cuda-downloads, package cuda-toolkit-13-0 for instance), or point CUDA_HOME at one."
fi
