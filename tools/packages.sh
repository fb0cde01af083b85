# SPDX-License-Identifier: Apache-2.0
# Sourced by tools/test and tools/demo: what they need from Debian, and how it is installed. Needs bash and coreutils.

say() { printf '== %s\n' "$*"; }
stop() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Processes at once: one a processor, and 1.5 GB of memory for each.
processes() {
  local processors memory
  processors=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 1500000)}' /proc/meminfo 2>/dev/null || echo 1)
  ((memory < 1)) && memory=1
  echo $((memory < processors ? memory : processors))
}

here() { [[ $(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) == "install ok installed" ]]; }

# missing_packages PACKAGE...: those that are not installed.
missing_packages() {
  local package
  for package in "$@"; do here "$package" || printf '%s ' "$package"; done
}

# apt REASON PACKAGE...: installs what is missing of them, and takes nothing away. Fails with a line that says why.
apt() {
  local reason=$1 missing run=()
  shift
  missing=$(missing_packages "$@")
  [[ -n $missing ]] || return 0
  say "installing with apt-get: $missing($reason)"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || { echo "not root, and there is no sudo; run as root: apt-get install --no-install-recommends $missing" >&2; return 1; }
    say "sudo is asked for, to run apt-get as root"
    run=(sudo)
  fi
  run+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)
  if [[ -z ${lists_are_new:-} ]]; then
    "${run[@]}" update </dev/null || echo "apt-get update failed; trying with the lists that are here" >&2
    lists_are_new=yes
  fi
  # shellcheck disable=SC2086
  if ! "${run[@]}" install --no-install-recommends --no-remove $missing </dev/null; then
    local removed
    # shellcheck disable=SC2086
    removed=$(apt-get -s -y install --no-install-recommends $missing 2>/dev/null </dev/null | awk '/^Remv/ {printf "%s ", $2}') || true
    if [[ -n $removed ]]; then
      echo "apt-get would have to remove ${removed}to install $missing; nothing was changed" >&2
    else
      echo "apt-get could not install $missing; its message is above" >&2
    fi
    return 1
  fi
}

# at_least WANTED FOUND: versions.
at_least() { [[ -n $2 && $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

# The version of the Boost that CMake finds (the way the project looks for it), or nothing.
boost_found() {
  local folder
  folder=$(mktemp -d)
  printf '%s\n' 'cmake_minimum_required(VERSION 3.25)' 'project(probe LANGUAGES CXX)' 'find_package(Boost 1.81 CONFIG QUIET)' \
    'if(Boost_FOUND)' '  message(NOTICE "boost=${Boost_VERSION} ${Boost_DIR}")' 'endif()' >"$folder/CMakeLists.txt"
  cmake -G Ninja -S "$folder" -B "$folder/build" 2>&1 </dev/null | sed -n 's/^boost=//p'
  rm -rf "$folder"
}

# Everything that the preset `host` needs, and what it uses where it is there.
install_packages() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    say "no apt-get here: g++ >= 12, cmake >= 3.25, ninja, Boost >= 1.81, doctest, CLI11, fmt and yaml-cpp must be there already"
    return 0
  fi
  local needed=(doctest-dev libcli11-dev libfmt-dev libyaml-cpp-dev) version
  version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p') || true
  at_least 3.25 "$version" || needed+=(cmake)
  command -v ninja >/dev/null || needed+=(ninja-build)
  command -v "${CXX:-g++}" >/dev/null || needed+=(g++)
  apt "compiler, build tools, and the libraries of the tests and of the command-line tool" "${needed[@]}" ||
    stop "these packages are needed: ${needed[*]}"
  version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p') || true
  at_least 3.25 "$version" || stop "cmake $(command -v cmake) is $version, 3.25 or newer is needed; another one stands earlier in PATH"
  version=$("${CXX:-g++}" -dumpfullversion -dumpversion 2>/dev/null) || true
  at_least 12 "$version" || stop "${CXX:-g++} is version ${version:-unknown}, g++ 12 or clang++ 14 is the floor; name another with CXX="
  local boost
  boost=$(boost_found)
  if [[ -n $boost ]]; then
    say "Boost ${boost% *} is there (${boost#* })"
  else
    apt "Boost.JSON; no Boost >= 1.81 was found" libboost1.81-dev libboost-json1.81-dev ||
      stop "Boost >= 1.81 is needed: remove what is in the way of libboost1.81-dev, or name one of your own with Boost_ROOT=/its/prefix"
  fi
  apt "matrix products of the example trainer, optional" libdnnl-dev ocl-icd-opencl-dev ||
    say "goes on without oneDNN: the trainer multiplies with loops of its own"
  apt "ranks as processes, optional" libopenmpi-dev openmpi-bin || say "goes on without MPI: flatshard::mpi is not built"
  apt "random cases of the layout laws, optional" librapidcheck-dev || say "goes on without rapidcheck: its tests are skipped"
  apt "benchmarks, optional" libbenchmark-dev || say "goes on without Google Benchmark: no benchmarks"
}
