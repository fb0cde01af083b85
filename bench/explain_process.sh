#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole process of `flatshard explain`, from its start to its end: median of N runs in milliseconds; limit 30.
# usage: explain_process.sh BUILD [N] [CONFIG...]
set -euo pipefail
build=$1 runs=${2:-51}
shift $(($# < 2 ? $# : 2))
configs=("$@")
[[ $# -gt 0 ]] || configs=(examples/configs/ds_z3_bf16.json examples/configs/deepspeed_bf16.yaml)
for config in "${configs[@]}"; do
  for _ in $(seq "$runs"); do
    begin=${EPOCHREALTIME/./}
    "$build/bin/flatshard" explain "$config" --world 8 >/dev/null
    echo $((${EPOCHREALTIME/./} - begin))
  done | sort -n | awk -v config="$config" '{t[NR] = $1} END {printf "%s: median %.2f ms of %d runs (%.2f to %.2f)\n",
    config, t[int((NR + 1) / 2)] / 1000, NR, t[1] / 1000, t[NR] / 1000}'
done
