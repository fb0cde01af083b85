#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: static_layout_test.sh OBJECT PROGRAM: the offsets in the object file, read without running it, are those that the
# program computes from run-time shapes.
set -euo pipefail
object=$1 program=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
objcopy -O binary --only-section=.rodata.static_layout --set-section-flags .rodata.static_layout=alloc "$object" "$folder/constants"
od -An -v -t u8 -w8 "$folder/constants" | tr -d ' ' >"$folder/compiled"
"$program" >"$folder/computed"
[[ $(wc -l <"$folder/compiled") == 10 ]] || { echo "no 10 constants in the object file" >&2; exit 1; }
diff -u "$folder/compiled" "$folder/computed"
echo "10 constants of the object file are those of run time"
