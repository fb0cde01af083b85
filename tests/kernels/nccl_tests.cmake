# SPDX-License-Identifier: Apache-2.0
# Part of CMakeLists.txt.
# The NCCL backend over the stand-in of nccl_on_host: emulated, it needs neither CUDA nor NCCL nor a GPU.
set(nccl_sources ${PROJECT_SOURCE_DIR}/kernels/nccl.cpp ${PROJECT_SOURCE_DIR}/tests/nccl_on_host/nccl_on_host.cpp)
if(NOT FLATSHARD_SANITIZE OR FLATSHARD_TESTS_LONG)
  flatshard_test(nccl_collectives_test LABELS fast emulated LINK flatshard::cpu SOURCES ${nccl_sources})
endif()
if(TARGET nccl_collectives_test)
  set_target_properties(nccl_collectives_test PROPERTIES UNITY_BUILD OFF)  # the backend compiled as it ships
  target_include_directories(nccl_collectives_test BEFORE PRIVATE ../nccl_on_host ../nccl_on_host/backend)
  if(FLATSHARD_GCOV)  # which lines run is read by ../cuda_on_host
    set_source_files_properties(${PROJECT_SOURCE_DIR}/kernels/nccl.cpp PROPERTIES COMPILE_OPTIONS --coverage)
    target_link_options(nccl_collectives_test PRIVATE --coverage)
    if(TEST ${FLATSHARD_TESTS_PREFIX}nccl_collectives_test)
      set_tests_properties(${FLATSHARD_TESTS_PREFIX}nccl_collectives_test PROPERTIES FIXTURES_REQUIRED lines_uncounted FIXTURES_SETUP lines_counted)
    endif()
  endif()
endif()
if(TARGET nccl_collectives_test)
  flatshard_command_test(nccl_left_behind LABELS fast emulated COMMAND sh -c
    "! \"$0\" --no-skip --test-case='leaves*' >left_behind.log && grep -q 'left behind: 0 communicators, 1 streams, 0 allocations' left_behind.log"
    $<TARGET_FILE:nccl_collectives_test> DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
endif()
# Where the real headers are, both, flatshard-perf and nccl_bench are compiled against them too, so that names and signatures stay true.
find_path(FLATSHARD_NCCL_HEADERS nccl.h HINTS /usr/local/cuda/include DOC "The folder of nccl.h")
find_path(FLATSHARD_CUDA_HEADERS cuda_runtime.h HINTS /usr/local/cuda/include DOC "The folder of cuda_runtime.h")
if(FLATSHARD_NCCL_HEADERS AND FLATSHARD_CUDA_HEADERS)
  flatshard_command_test(nccl_headers_test LABELS fast
    COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -fsyntax-only -Wall -Wextra -Wconversion -Wshadow -Werror -Iinclude -Ikernels/include
      -Itests/nccl_on_host/backend -isystem ${FLATSHARD_NCCL_HEADERS} -isystem ${FLATSHARD_CUDA_HEADERS} ${nccl_sources}
      ${PROJECT_SOURCE_DIR}/tools/perf_nccl.cpp ${PROJECT_SOURCE_DIR}/bench/nccl_bench.cpp)
else()
  message(STATUS "nccl_headers_test: skipped, nccl.h or cuda_runtime.h was not found")
endif()
# Backends of one program: a name that two of their private headers define differently is seen by nobody but the linker.
if(TARGET flatshard_mpi AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT FLATSHARD_SANITIZE)
  set(one_definition ${CMAKE_CURRENT_SOURCE_DIR}/one_definition.sh ${CMAKE_CXX_COMPILER})
  list(TRANSFORM MPI_CXX_COMPILER_INCLUDE_DIRS PREPEND -isystem OUTPUT_VARIABLE mpi_includes)
  flatshard_command_test(one_definition LABELS slow COMMAND ${one_definition} -Iinclude -Ikernels/include -Itests/nccl_on_host
    -Itests/nccl_on_host/backend ${mpi_includes} kernels/nccl.cpp kernels/mpi.cpp kernels/threads.cpp)
  flatshard_command_test(one_definition_catches LABELS slow COMMAND ${one_definition} tests/kernels/one_definition_planted/first.cpp
    tests/kernels/one_definition_planted/second.cpp PROPERTIES PASS_REGULAR_EXPRESSION "record[^ ]* violates the C[+][+] One Definition Rule")
endif()
