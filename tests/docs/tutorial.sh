#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: tutorial.sh COMPILER FOLDER: compiles the blocks of docs/tutorial.md as one program (```cpp at namespace scope, ```c++ in
# main), runs it, and compares its output with the ```text blocks. Run at the project's root.
set -euo pipefail
compiler=$1 folder=$2 page=docs/tutorial.md
mkdir -p "$folder"
block() { awk -v fence="\`\`\`$1" '$0 == fence {inside = 1; next} /^```$/ {inside = 0} inside' "$page"; }
{
  block cpp
  echo 'int main() {'
  block c++
  echo '}'
} >"$folder/tutorial.cpp"
block text >"$folder/expected"
[[ -s $folder/expected ]] || { echo "no output blocks in $page" >&2; exit 1; }
"$compiler" -std=c++20 -Wall -Wextra -Werror -I include "$folder/tutorial.cpp" -o "$folder/tutorial"
"$folder/tutorial" >"$folder/printed"
diff -u "$folder/expected" "$folder/printed"
echo "$page: $(grep -c '' "$folder/expected") lines printed as written"
