#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Reads machine code (or, without a disassembler, PTX) of the kernels: no local memory; a load and a store of 16 bytes are there;
# casts, packs and unpacks issue the loads of two packs of eight elements before they store, pushes of four; every conversion to
# bf16 or fp16 takes two values; sums, whose output may be one of the inputs, read by coherent loads.
# usage: load_widths.sh LISTING
#        load_widths.sh OBJECT PTX NVCC CUOBJDUMP OUT    (empty NVCC or CUOBJDUMP: not found; OUT: the listing of the machine code)
set -euo pipefail
if (($# == 1)); then
  listing=$1
else
  object=$1 ptx=$2 nvcc=$3 cuobjdump=$4 listing=$5
  if [[ -z $nvcc ]]; then
    echo "skipped: no CUDA compiler (nvcc) here"
    exit 0
  fi
  # cuobjdump calls nvdisasm, which lies beside it or is found by name
  if [[ -n $cuobjdump ]] && PATH=$PATH:$(dirname "$cuobjdump") "$cuobjdump" -sass "$object" >"$listing"; then
    echo "machine code, by $cuobjdump"
  else
    echo "PTX, as no disassembler (cuobjdump with nvdisasm) was found"
    listing=$ptx
  fi
fi
awk '
function done() {
  if (kernel == "" || kernel ~ /^total_kernel/) return
  ++kernels
  why = ""
  if (local) why = why " uses local memory;"
  if (!loads) why = why " has no 16-byte load;"
  if (!stores) why = why " has no 16-byte store;"
  if (cached && kernel ~ /^(sum|pull)_kernel/) why = why " reads what it may write by non-coherent loads;"
  if (scalar) why = why " converts one value at a time;"
  if (kernel ~ /push_kernel/) needed *= 2
  if (kernel ~ /^(counting_cast|cast|pack|unpack|push|stochastic_push)_kernel/) {
    if (most < needed) why = why " loads " most * 16 " bytes before a store, not " needed * 16 ";"
    else print arch, kernel ":", most * 16, "bytes loaded before a store at most"
  }
  if (why != "") { print "WRONG:", arch, kernel ":" why; ++bad }
}
function begin(name) {
  done()
  kernel = ""; local = loads = stores = scalar = cached = run = most = 0
  if (!match(name, /[a-z_]+_kernel/)) return
  kernel = substr(name, RSTART, RLENGTH)
  rest = substr(name, RSTART + RLENGTH); last = "f32"
  while (match(rest, /as_(bf16|f16|f32)|stochastic_operation|Lb[01]E/)) {
    word = substr(rest, RSTART, RLENGTH); rest = substr(rest, RSTART + RLENGTH)
    kernel = kernel " " word
    if (word ~ /^as_/) last = substr(word, 4)
  }
  needed = last == "f32" ? 4 : 2
}
function load() { ++loads; if (++run > most) most = run }
function store() { ++stores; run = 0 }
/^arch = / { done(); kernel = ""; arch = $3 }
/^\.target / { arch = "PTX" }
/Function : / { begin($3) }
/\.entry / { begin($0) }
/[ \t]LDG\.[A-Z0-9.]*128/ || /[ \t]ld\.global\.[a-zA-Z0-9_:.]*v4\./ { load() }
/[ \t]LDG\.[A-Z0-9.]*128\.CONSTANT/ || /[ \t]ld\.global\.nc\.[a-zA-Z0-9_:.]*v4\./ { cached = 1 }
/[ \t]STG\.[A-Z0-9.]*128/ || /[ \t]st\.global\.[a-zA-Z0-9_:.]*v4\./ { store() }
/[ \t](LDL|STL)[. ]/ || /[ \t](ld|st)\.local/ || /[ \t]\.local / { local = 1 }
/[ \t]F2F\.(BF16|F16)\.F32/ || /[ \t]F2FP\.[A-Z0-9_.]*PACK_AB R[0-9]+, RZ, R[0-9]/ || /[ \t]cvt\.rn\.(bf16|f16)\.f32/ { scalar = 1 }
END {
  done()
  printf "%d kernels, %d of them wrong\n", kernels, bad
  exit kernels == 0 || bad > 0
}' "$listing"
