# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What tools/demo holds against the output that it shows. Each check ends the shell with 1 and a line where it fails.
wrong() { echo "tools/demo: $*" >&2; exit 1; }
# read_once OUTPUT MOST: by the output of flatshard load, all ranks together read at most MOST times the files.
read_once() {
  local times
  times=$(sed -nE 's/^read .* in all, ([0-9.e+]+) x the files.*/\1/p' "$1")
  awk -v times="$times" -v most="$2" 'BEGIN { exit !(times != "" && times + 0 <= most) }' ||
    wrong "the ranks read ${times:-an unknown number of} times the files, at most $2 was promised"
}
# trained OUTPUT DIST STORAGE LOGITS [no]: the line about the real buffers, before it mixed_precision=no or not, and a loss that
# falls.
trained() {
  local line="Precision debug: dist=$2, parameter_storage_dtype=torch.$3, forward_logits_dtype=torch.$4" before
  grep -qxF "$line" "$1" || wrong "the training did not print: $line"
  before=$(grep -xF -B1 "$line" "$1" | head -n 1)
  if [[ $before == mixed_precision=no ]]; then before=no; else before=; fi
  [[ $before == "${5:-}" ]] || wrong "mixed_precision=no must stand before the line with deepspeed_fp32, and there alone"
  awk '$1 == "step" { last = $4; if (!n++) first = $4 } END { exit !(n > 1 && last + 0 < first + 0) }' "$1" ||
    wrong "the loss does not fall"
}
