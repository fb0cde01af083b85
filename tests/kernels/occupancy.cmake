# SPDX-License-Identifier: Apache-2.0
# resident_threads(ARCH THREADS REGISTERS SHARED RESULT): threads of a kernel that are on a multiprocessor at once, from a block's
# threads, a thread's registers and a block's bytes of shared memory, static and dynamic. Source: CUDA C++ Programming Guide 13.0,
# table of technical specifications by compute capability: 2048 threads, 32 blocks, 64 Ki registers in four parts, 1 KiB of
# shared memory for the system in each block; registers come in 256 a warp, shared memory in 128 bytes.
set(most_threads 2048)
set(shared_sm_80 167936)   # bytes of a multiprocessor: 164 KiB, 228 KiB
set(shared_sm_90 233472)
set(shared_sm_100 233472)
function(resident_threads arch threads registers shared result)
  if(NOT DEFINED shared_${arch})
    message(FATAL_ERROR "the limits of ${arch} are not known")
  endif()
  math(EXPR warps "(${threads} + 31) / 32")
  math(EXPR blocks "${most_threads} / (${warps} * 32)")
  math(EXPR by_registers "16384 / ((${registers} + 7) / 8 * 8 * 32) * 4 / ${warps}")  # whole warps in each of the four parts
  math(EXPR by_shared "${shared_${arch}} / ((${shared} + 1024 + 127) / 128 * 128)")
  foreach(limit 32 ${by_registers} ${by_shared})
    if(limit LESS blocks)
      set(blocks ${limit})
    endif()
  endforeach()
  math(EXPR resident "${blocks} * ${threads}")
  set(${result} ${resident} PARENT_SCOPE)
endfunction()
