# SPDX-License-Identifier: Apache-2.0
# cmake -P: resident threads of kernels whose limits are known: threads, registers, shared memory, blocks.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/occupancy.cmake)
set(bad 0)
function(expect arch threads registers shared wanted)
  resident_threads(${arch} ${threads} ${registers} ${shared} found)
  if(NOT found EQUAL wanted)
    message(NOTICE "${arch}, ${threads} threads, ${registers} registers, ${shared} bytes: ${found} threads, not ${wanted}")
    set(bad 1 PARENT_SCOPE)
  endif()
endfunction()
foreach(arch sm_80 sm_90 sm_100)
  expect(${arch} 256 20 0 2048)   # never more than a multiprocessor holds
  expect(${arch} 256 32 0 2048)
  expect(${arch} 256 33 0 1536)   # counted as 40
  expect(${arch} 256 40 0 1536)
  expect(${arch} 256 64 0 1024)
  expect(${arch} 256 80 0 768)
  expect(${arch} 256 128 4096 512)
  expect(${arch} 256 255 0 256)
  expect(${arch} 1024 64 0 1024)
  expect(${arch} 1024 72 0 0)     # 28 warps fit, a block has 32
  expect(${arch} 32 16 0 1024)    # 32 blocks
  expect(${arch} 224 72 0 896)    # 7 warps in each part: 28 of 7
endforeach()
expect(sm_80 256 32 40960 1024)   # 164 KiB: four times 40 KiB and the KiB that each block gives up
expect(sm_80 256 32 40961 768)    # counted as 40 KiB and 128 bytes
expect(sm_90 256 32 40961 1280)
expect(sm_80 256 32 166912 256)   # 163 KiB, the most a block may have
expect(sm_80 256 32 167040 0)
expect(sm_100 256 32 232448 256)
if(bad)
  message(FATAL_ERROR "wrong")
endif()
