#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: instantiations.sh CLANG: templates that the compiler instantiates for the core and for a constant layout of 300 tensors,
# as clang's -ftime-trace counts them: the same number on every run, unlike seconds. Fails above the recorded ceilings. The layout
# is counted over its headers, and must cost as much as one of 3 tensors: shapes are values, never types. Run at the project's root.
set -euo pipefail
clang=${1:-}
command -v "$clang" >/dev/null || { echo "skipped: there is no clang++"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

count() {  # count NAME: classes and functions that the unit instantiates
  "$clang" -std=c++20 -I include -ftime-trace -ftime-trace-granularity=0 -c "$folder/$1.cpp" -o "$folder/$1.o"
  for what in InstantiateClass InstantiateFunction; do
    grep -o "\"name\":\"$what\"" "$folder/$1.json" | wc -l
  done | xargs
}
layout_of() {  # layout_of TENSORS
  echo '#include <flatshard/layouts/native.hpp>'
  awk -v n="$1" 'BEGIN {
    printf "inline constexpr auto table = flatshard::parameters({"
    for (i = 0; i < n; ++i) printf "%s{\"layers.%d.weight\", {%d, %d}}", i ? ", " : "", i, 128 + i % 7 * 64, 256 + i % 5 * 32
    print "});" }'
  echo 'constexpr flatshard::layout unit{flatshard::native{}, table, flatshard::world<8>{}};'
  echo 'static_assert(unit.segment() * 8 >= unit.real());'
}
echo '#include <flatshard/flatshard.hpp>' >"$folder/core.cpp"
echo '#include <flatshard/layouts/native.hpp>' >"$folder/headers.cpp"
layout_of 3 >"$folder/few.cpp"
layout_of 300 >"$folder/many.cpp"

failed=0
# within WHAT COUNTS CEILING_OF_CLASSES CEILING_OF_FUNCTIONS
within() {
  local what=$1 ceilings="$3 $4" classes functions
  read -r classes functions <<<"$2"
  echo "$what: $classes classes of at most $3, $functions functions of at most $4"
  ((classes <= $3 && functions <= $4)) || { echo "$what: more than the recorded ceilings ($ceilings); find out why, then record anew" >&2; failed=1; }
}
within "the core" "$(count core)" 30000 10200
headers=$(count headers) few=$(count few) many=$(count many)
over() { read -r a b <<<"$1"; read -r c d <<<"$headers"; echo "$((a - c)) $((b - d))"; }
within "a layout of 300 tensors, over its headers" "$(over "$many")" 400 60
[[ $few == "$many" ]] || { echo "a layout of 300 tensors instantiates more than one of 3: $many against $few" >&2; failed=1; }
exit $failed
