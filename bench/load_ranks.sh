#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Loading a checkpoint of about 2 GB into 4 process ranks through a stage-3 configuration, against one process that reads
# the same file once with 8 MiB positioned reads into fresh memory. Warm page cache; each measurement repeated in a row,
# the first run not counted; medians. In a row, because a virtual machine may give free memory back to its host within
# seconds, and then first touch costs more than everything else.
#
#     bench/load_ranks.sh [BUILD=build/host] [RUNS=5] [SIZE=2G] [RANKS=4]
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/host} runs=${2:-5} size=${3:-2G} ranks=${4:-4}
tool=$build/bin/flatshard once=$build/bin/read_once
work=$(mktemp -d "${TMPDIR:-/tmp}/flatshard-bench-XXXXXX")
trap 'rm -rf "$work"' EXIT

for enabled in true false; do
  cat >"$work/bf16_$enabled.json" <<JSON
{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": $enabled}}
JSON
done
"$tool" make-model "$work/model" --arch llama --size "$size"
cat "$work/model/model.safetensors" >/dev/null # into the page cache
measure() { # name command...
  local name=$1
  shift
  for ((i = -1; i < runs; ++i)); do "$@" >"$work/$name.$i"; done
}
measure once "$once" "$work/model/model.safetensors"
measure once_large "$once" --large-pages "$work/model/model.safetensors"
for enabled in true false; do
  measure "$enabled" "$tool" load "$work/model" --world "$ranks" --config "$work/bf16_$enabled.json" --json
done

python3 - "$work" "$runs" <<'PY'
import json, statistics, sys
work, runs = sys.argv[1], int(sys.argv[2])
MIB = 1 << 20

def median_of(name):
    return statistics.median(float(open(f"{work}/{name}.{i}").read().split()[0]) for i in range(runs))

once, large = median_of("once"), median_of("once_large")
print(f"one process, 8 MiB reads into fresh memory: {once:.3f} s (4 KiB pages), {large:.3f} s (2 MiB pages)")
good = True
for enabled, what, limit in (("true", "bf16, as in the file", 1.5), ("false", "widened to fp32", 3.0)):
    all_runs = [json.load(open(f"{work}/{enabled}.{i}")) for i in range(runs)]
    seconds = statistics.median(run["seconds"] for run in all_runs)
    last = all_runs[-1]
    read = sum(r["bytes_read"] for r in last["ranks"])
    over = max(r["peak_rss"] - r["shard_bytes"] - r["baseline_rss"] for run in all_runs for r in run["ranks"])
    ratio = seconds / once
    good = good and ratio <= limit and read <= 1.02 * last["file_bytes"] and over <= 64 * MIB
    print(f"{len(last['ranks'])} ranks, {what}: {seconds:.3f} s = {ratio:.2f} x (limit {limit}), "
          f"{seconds / large:.2f} x 2 MiB pages; read {read / last['file_bytes']:.4f} of the file; "
          f"peak <= shard + baseline + {over / MIB:.1f} MiB (limit 64)")
print("every limit holds" if good else "a limit is broken")
sys.exit(0 if good else 1)
PY
