#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: demo_checks.sh: what tools/demo checks passes for output as it should be, and fails for every other. Run at the
# project's root.
set -euo pipefail
# shellcheck source=tools/demo_checks.sh
source tools/demo_checks.sh
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# expect pass|fail OUTPUT CHECK...: the check of a file with this output.
expect() {
  local wanted=$1 got=pass
  printf '%s\n' "$2" >"$scratch/output"
  ("$3" "$scratch/output" "${@:4}") 2>"$scratch/said" || got=fail
  [[ $got == "$wanted" ]] || { echo "${*:3}: $got instead of $wanted for: $2" >&2; exit 1; }
  [[ $got == pass || -s $scratch/said ]] || { echo "${*:3}: fails without a word" >&2; exit 1; }
}
expect pass 'read 96.6 MiB in all, 1.001 x the files; largest peak 28 MiB' read_once 1.02
expect fail 'read 96.6 MiB in all, 1.021 x the files; largest peak 28 MiB' read_once 1.02
expect fail 'nothing was read' read_once 1.02

line='Precision debug: dist=deepspeed, parameter_storage_dtype=torch.float32, forward_logits_dtype=torch.float32'
steps=$'step    1  loss 5.001\nstep    2  loss 4.999'
expect pass $'mixed_precision=no\n'"$line"$'\n'"$steps" trained deepspeed float32 float32 no
expect fail $'mixed_precision=no\n'"$line"$'\n'"$steps" trained deepspeed float32 float32
expect fail $'mixed_precision=no\n'"$line"$'\n'"$steps" trained deepspeed bfloat16 float32 no
expect pass "$line"$'\n'"$steps" trained deepspeed float32 float32
expect fail "$line"$'\n'"$steps" trained deepspeed float32 float32 no
expect fail "$line"$'\nstep    1  loss 4.999\nstep    2  loss 5.001' trained deepspeed float32 float32
expect fail "$line" trained deepspeed float32 float32
echo "the checks of tools/demo: 10 outputs"
