#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: readme.sh PROGRAM BIN: README's first ```cpp block is examples/plan_from_json.cpp (without its licence line), its first
# ```text block what that prints; README has fewer than 200 lines; the cheap commands of README and docs (those that begin with
# build/host/bin/ in ```sh blocks) succeed; every link and every page that is named exists. Run at the project's root.
set -euo pipefail
program=$1 bin=$2
first() { awk -v fence="\`\`\`$1" '$0 == fence && !n++ {inside = 1; next} /^```$/ {inside = 0} inside' README.md; }
diff -u <(sed 1d examples/plan_from_json.cpp) <(first cpp)
diff -u <(first text) <("$program")
(($(wc -l <README.md) < 200)) || { echo "README.md is too long" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ran=0
while IFS= read -r command; do
  command=${command//\/tmp\//$scratch/}
  bash -c "${command//build\/host\/bin/$bin}" >"$scratch/out" 2>&1 || { echo "fails: $command" >&2; cat "$scratch/out" >&2; exit 1; }
  ran=$((ran + 1))
done < <(awk '/^```sh$/ {inside = 1; next} /^```$/ {inside = 0} inside && /^build\/host\/bin\//' README.md docs/*.md)

bad=0
for page in README.md CONTRIBUTING.md docs/*.md; do
  while IFS= read -r target; do
    [[ -e $(dirname "$page")/$target ]] || { echo "$page: no such file: $target" >&2; bad=1; }
  done < <(grep -oE '\]\([^)#:]+[)#]' "$page" | sed -E 's/^\]\(//; s/[)#]$//')
done
while IFS= read -r page; do
  [[ -e $page ]] || { echo "the sources name $page, which does not exist" >&2; bad=1; }
done < <(grep -rhoE 'docs/[a-z_]+\.md' include kernels tools examples | sort -u)
((bad == 0)) || exit 1
echo "README: program and output as written, $ran commands ran, links resolve"
