#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole process of `flatshard explain`, from its start to its end, under every profile that reads the configuration
# and side by side: median of N runs in milliseconds; limit 30.
# usage: explain_process.sh BUILD [N] [CONFIG...]
set -euo pipefail
build=$1 runs=${2:-51}
shift $(($# < 2 ? $# : 2))
configs=("$@")
[[ $# -gt 0 ]] || configs=(examples/configs/ds_z3_bf16.json examples/configs/deepspeed_bf16.yaml)

# measure CONFIG OPTION...: one line; a configuration that is refused (exit code 1) is explained too
measure() {
  local config=$1 begin status
  for _ in $(seq "$runs"); do
    begin=${EPOCHREALTIME/./} status=0
    "$build/bin/flatshard" explain "$@" --world 8 >/dev/null 2>&1 || status=$?
    echo $((${EPOCHREALTIME/./} - begin))
    ((status < 2)) || { echo "explain $*: exit code $status" >&2; return 1; }
  done | sort -n | awk -v what="$*" '{t[NR] = $1} END {printf "%s: median %.2f ms of %d runs (%.2f to %.2f)\n",
    what, t[int((NR + 1) / 2)] / 1000, NR, t[1] / 1000, t[NR] / 1000}'
}

for config in "${configs[@]}"; do
  profiles=(llamafactory llamafactory-review)
  [[ $config == *.json ]] && profiles+=(accelerate transformers-v4 transformers-v5 deepspeed)
  for profile in "${profiles[@]}"; do measure "$config" --profile "$profile"; done
  measure "$config" --compare
done
measure examples/configs/fsdp2_bf16.yaml --profile llamafactory
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
echo '{"mesh": [8], "mp_policy": {"param_dtype": "bf16", "reduce_dtype": "fp32"}}' >"$folder/call.json"
measure "$folder/call.json" --profile torch
