#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Stops or kills one rank at a random moment. A stopped one is named by every other rank within the deadline + 1 s; a
# killed one ends the job. Either way the job's status is not zero, and no process is left.
# usage: mpi_faults.sh PROGRAM RUNS LAUNCHER...    (FLATSHARD_KILL_RUNS overrides RUNS)
set -euo pipefail
program=$1 runs=${FLATSHARD_KILL_RUNS:-$2}
shift 2
failed=0
left() { grep -lsz -- "[${1:0:1}]${1:1}" /proc/[0-9]*/cmdline 2>/dev/null | wc -l; }
for ((seed = 1; seed <= runs; ++seed)); do
  ranks=$((2 + seed % 3)) kind=stop token=flatshard_fault_$$_$seed status=0
  ((seed % 2 == 0)) && kind=kill
  began=$SECONDS
  output=$(timeout -k 1 30 "$@" "$ranks" "$program" "$seed" "$kind" "$token" 2>&1 </dev/null) || status=$?
  why=
  ((status != 0)) || why+=" the job ended with 0;"
  ((SECONDS - began < 29)) || why+=" the job hung;"
  if [[ $kind == stop ]]; then
    named=$(grep -c 'rank [0-9]*: named, in time$' <<<"$output" || true)
    ((named == ranks - 1)) || why+=" $named of $((ranks - 1)) ranks named the stopped one in time;"
  fi
  for _ in {1..14}; do (($(left "$token") == 0)) && break; sleep 0.1; done # the deadline + 1 s
  (($(left "$token") == 0)) || why+=" processes are left;"
  if [[ -n $why ]]; then
    printf 'seed %s, %s of %s ranks:%s\n%s\n' "$seed" "$kind" "$ranks" "$why" "$output"
    failed=$((failed + 1))
  fi
done
echo "$runs runs, $failed failed"
((failed == 0))
