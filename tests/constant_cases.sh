#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: constant_cases.sh GENERATOR COMPILER OUTPUT SAMPLE LAYOUT...: compiles the golden cases of these layouts as
# constant expressions, SAMPLE of a file or, for 0, all. Run at the project's root.
set -euo pipefail
generator=$1 compiler=$2 output=$3 sample=$4
shift 4
folder=${FLATSHARD_GOLDEN:-tests/golden}/layouts
if [[ -z ${FLATSHARD_GOLDEN:-} && ! -d $folder ]]; then
  echo "skipped: all golden cases, $folder is absent"
  exit 0
fi
files=()
for layout; do files+=("$folder/$layout.json"); done
"$generator" "$sample" "${files[@]}" >"$output"
limit=-fconstexpr-ops-limit=4000000000  # whole cases in one expression: past the compilers' own limits
"$compiler" --version | grep -q clang && limit=-fconstexpr-steps=4000000000
"$compiler" -std=c++20 -fsyntax-only -Wall -Wextra -Wconversion -Wshadow -Werror "$limit" -Iinclude -Itests "$output"
