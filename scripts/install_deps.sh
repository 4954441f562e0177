#!/usr/bin/env bash
# Installs what building sfa needs and this machine lacks, from the distribution's own packages.
#   scripts/install_deps.sh             compiler, CMake, libraries: enough for `sfa`
#   scripts/install_deps.sh --tests     also GoogleTest, clang, clang-format and Open MPI
#   scripts/install_deps.sh --bench     also Google Benchmark
#   scripts/install_deps.sh --list      prints what it would install and stops
# Debian 12 and 13, Ubuntu 22.04 and 24.04, as root or with sudo. Nothing is installed, and no package list fetched, when nothing
# is missing. CUDA is never installed: the script says how when it sees a card without nvcc.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

MINIMUM_CMAKE=3.25
TESTS=no BENCH=no LIST=no
for argument in "$@"; do
  case $argument in
    --tests) TESTS=yes ;;
    --bench) BENCH=yes ;;
    --list) LIST=yes ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) printf 'install_deps.sh: unknown option %s (there is: --tests, --bench, --list)\n' "$argument" >&2; exit 2 ;;
  esac
done

# One line a need: "what for|package|other packages that bring the same". The libraries are those that cmake/Dependencies.cmake asks for.
NEEDS='C++20 compiler|g++|
build generator|cmake|
build runner|ninja-build|
finds libraries|pkg-config|pkgconf'
others_of() {
  case $1 in
    libhdf5-dev) echo libhdf5-openmpi-dev libhdf5-mpich-dev ;;
    libopenblas-openmp-dev) echo libopenblas-pthread-dev libopenblas-serial-dev ;;
  esac
}
while IFS='|' read -r what package; do
  case $package in
    g++ | cuda* | *openmpi*) ;; # the compiler stands above; CUDA and MPI are by option
    *) NEEDS+=$'\n'"$what|$package|$(others_of "$package")" ;;
  esac
done < <(sed -n 's/^ *sfa_need([^ ]* "\([^"]*\)" "\([^"]*\)").*/\1|\2/p' "$ROOT/cmake/Dependencies.cmake")
TEST_NEEDS='
tests|libgtest-dev|
several ranks|libopenmpi-dev|
several ranks: mpirun|openmpi-bin|
code format|clang-format|
fuzzing|clang|'
# The runtime of sanitizers and libFuzzer is a package of its own from Debian 12 and Ubuntu 24.04 on.
if ! grep -q 'jammy' /etc/os-release 2>/dev/null; then TEST_NEEDS+=$'\n''fuzzing: runtime|libclang-rt-dev|'; fi
[ $TESTS = no ] || NEEDS+=$TEST_NEEDS
[ $BENCH = no ] || NEEDS+=$'\n''benchmarks|libbenchmark-dev|'

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  warn "this is no Debian or Ubuntu, so nothing is installed; CMake names what is missing (third_party/README.md lists all)"
  exit 0
fi

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# CMake, ninja and clang's tools count by what runs, whoever brought them.
present() {
  case $1 in
    cmake) command -v cmake >/dev/null ;;
    ninja-build) command -v ninja >/dev/null ;;
    clang-format) command -v clang-format >/dev/null ;;
    clang) command -v clang++ >/dev/null ;;
    libclang-rt-dev) command -v clang++ >/dev/null && [ -e "$(clang++ -print-file-name=libclang_rt.fuzzer-x86_64.a)" ] ;;
    *) installed "$1" ;;
  esac
}

missing=()
while IFS='|' read -r purpose package others; do
  for name in $package $others; do
    if present "$name"; then continue 2; fi
  done
  missing+=("$package")
  say "missing: $package ($purpose)"
done <<<"$NEEDS"

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
