#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Loading a checkpoint of about 2 GB into 4 process ranks through a stage-3 configuration, against one process that reads
# the same file once with 8 MiB positioned reads into fresh memory. Warm page cache; each measurement repeated in a row,
# the first run not counted; medians. In a row, because a virtual machine may give free memory back to its host within
# seconds, and then first touch costs more than everything else.
#
#     bench/load_ranks.sh [BUILD=build/host] [RUNS=5] [SIZE=2G] [RANKS=4]
set -euo pipefail
export LC_ALL=C # decimal points
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

# The median of the first words of files.
median_of() {
  awk 'FNR == 1 { print $1 }' "$@" | sort -g |
    awk '{ v[NR] = $1 } END { m = int((NR + 1) / 2); print NR % 2 ? v[m] : (v[m] + v[m + 1]) / 2 }'
}
# Seconds, bytes of the files, bytes read, ranks and the largest excess of memory, from what `load --json` wrote: one key
# a line, those of a rank 6 deep.
summary_of() {
  awk -F '[:,]' '
    /^  "seconds"/ { seconds = $2 }
    /^  "file_bytes"/ { file = $2 }
    /^      "bytes_read"/ { read += $2; ++ranks }
    /^      "shard_bytes"/ { shard = $2 }
    /^      "baseline_rss"/ { baseline = $2 }
    /^      "peak_rss"/ { if ($2 - shard - baseline > over || ranks == 1) over = $2 - shard - baseline }
    END { printf "%.6f %.0f %.0f %d %.0f\n", seconds, file, read, ranks, over }' "$1"
}
first=() large=()
for ((i = 0; i < runs; ++i)); do first+=("$work/once.$i") large+=("$work/once_large.$i"); done
once_s=$(median_of "${first[@]}") large_s=$(median_of "${large[@]}")
printf 'one process, 8 MiB reads into fresh memory: %.3f s (4 KiB pages), %.3f s (2 MiB pages)\n' "$once_s" "$large_s"
broken=0
judge() { # configuration words limit
  local all=()
  for ((i = 0; i < runs; ++i)); do
    summary_of "$work/$1.$i" >"$work/$1.$i.sum"
    all+=("$work/$1.$i.sum")
  done
  cat "${all[@]}" |
    awk -v seconds="$(median_of "${all[@]}")" -v once="$once_s" -v large="$large_s" -v what="$2" -v limit="$3" '
      { file = $2; read = $3; ranks = $4; if (NR == 1 || $5 > over) over = $5 }
      END {
        printf "%d ranks, %s: %.3f s = %.2f x (limit %s), ", ranks, what, seconds, seconds / once, limit
        printf "%.2f x 2 MiB pages; read %.4f of the file; ", seconds / large, read / file
        printf "peak <= shard + baseline + %.1f MiB (limit 64)\n", over / 1048576
        exit !(ranks > 0 && seconds / once <= limit && read <= 1.02 * file && over <= 64 * 1048576)
      }' || broken=1
}
judge true "bf16, as in the file" 1.5
judge false "widened to fp32" 3.0
if ((broken == 0)); then echo "every limit holds"; else echo "a limit is broken"; fi
exit "$broken"
