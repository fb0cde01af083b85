#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: compile_time.sh COMPILER [REPEATS]: seconds of processor time that constant layouts add to a unit, the smallest of
# REPEATS (5) runs. Prints one line a case; each case is checked by a static_assert. Run at the project's root.
set -euo pipefail
compiler=$1 repeats=${2:-5}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# unit NAME TENSORS BODY: a table of that many tensors, and what is done with it.
unit() {
  {
    echo '#include <flatshard/layouts/fsdp2.hpp>'
    echo '#include <flatshard/layouts/native.hpp>'
    echo 'using namespace flatshard;'
    [[ $2 == 0 ]] || awk -v n="$2" 'BEGIN {
      printf "inline constexpr auto table = parameters({"
      for (i = 0; i < n; ++i) printf "%s{\"layers.%d.weight\", {%d, %d}}", i ? ", " : "", i, 128 + i % 7 * 64, 256 + i % 5 * 32
      print "});" }'
    echo "$3"
  } >"$folder/$1.cpp"
}
seconds() {
  local best=999
  for ((k = 0; k < repeats; ++k)); do
    local time
    time=$( { TIMEFORMAT='%U %S'; time "$compiler" -std=c++20 -I include -fsyntax-only "$folder/$1.cpp"; } 2>&1 | awk '{print $1 + $2}')
    best=$(awk -v a="$best" -v b="$time" 'BEGIN {print a < b ? a : b}')
  done
  echo "$best"
}
check='static_assert(unit.segment() * 8 >= unit.real() && unit.place_at(unit.size() - 1).numel > 0);'
unit header 0 ''
unit table300 300 ''
unit layout300 300 "constexpr layout unit{native{}, table, world<8>{}}; $check"
unit made10000 0 'constexpr auto table = [] { std::array<parameter, 10000> made{}; shape const shapes[]{{4096, 4096}, {1024, 4096}, {14336, 4096}, {4096}};
  for (std::size_t t = 0; t < made.size(); ++t) made[t] = {"weight", shapes[t % 4]}; return made; }();
constexpr layout unit{native{}, table, world<8>{}}; static_assert(unit.segment() > elements{});'
unit table10000 10000 ''
unit layout10000 10000 "constexpr layout unit{native{}, table, world<8>{}}; $check"
unit two10000 10000 "constexpr layout unit{native{}, table, world<8>{}}; $check constexpr layout rows{fsdp2{}, table, world<8>{}}; static_assert(rows.segment() > elements{});"
header=$(seconds header)
echo "$("$compiler" -dumpfullversion -dumpversion | head -1) layout headers: $header s"
for name in table300 layout300 made10000 table10000 layout10000 two10000; do
  awk -v n="$name" -v t="$(seconds $name)" -v h="$header" 'BEGIN {printf "%s: %.2f s, %.2f s over the headers\n", n, t, t - h}'
done
