# SPDX-License-Identifier: Apache-2.0
# The program flatshard, through its command line.
if(TARGET flatshard_tool)
  flatshard_test(tool_test LABELS fast LINK flatshard::json SOURCES tool_make_model_test.cpp tool_load_test.cpp tool_compare_test.cpp
    tool_explain_test.cpp tool_hostile_test.cpp tool_plan_test.cpp)
  target_compile_definitions(tool_test PRIVATE FLATSHARD_TOOL="$<TARGET_FILE:flatshard_tool>")
  add_dependencies(tool_test flatshard_tool)
  # An error that nobody can be told ends with its code all the same: standard error is full, or closed.
  flatshard_command_test(tool_without_stderr LABELS fast COMMAND sh -c
    "for words in 'explain no/such' 'load no/such --world 2' 'make-model . --arch llama'; do
       \"$0\" $words 2>/dev/full; test $? -eq 1 || exit 1; \"$0\" $words 2>&-; test $? -eq 1 || exit 1; done
     \"$0\" no-such-command 2>/dev/full; test $? -eq 2" $<TARGET_FILE:flatshard_tool>)
endif()
# The commit that figures name.
find_package(Git QUIET)
if(GIT_FOUND)
  flatshard_command_test(commit_of_test LABELS fast COMMAND ${CMAKE_COMMAND} -DSCRATCH=${CMAKE_CURRENT_BINARY_DIR}/commit_of
    -P ${CMAKE_CURRENT_SOURCE_DIR}/commit_of_test.cmake)
endif()
# The program flatshard-perf, alone and started by mpirun.
if(TARGET flatshard_perf)
  flatshard_test(perf_test LABELS fast LINK flatshard::json flatshard::cpu)
  if(TARGET perf_test)
    target_compile_definitions(perf_test PRIVATE FLATSHARD_TOOL="$<TARGET_FILE:flatshard_perf>"
      FLATSHARD_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" FLATSHARD_FLAGS="${FLATSHARD_CXX_FLAGS}")
    add_dependencies(perf_test flatshard_perf)
    if(TARGET flatshard_mpi)
      target_compile_definitions(perf_test PRIVATE FLATSHARD_MPI_BACKEND)
    endif()
  endif()
endif()
# Its backend nccl over the stand-in library: emulated, it needs neither CUDA nor NCCL nor a GPU.
if(TARGET flatshard_perf AND NOT FLATSHARD_SANITIZE)
  flatshard_test(perf_nccl_test LABELS fast emulated LINK flatshard::json)
endif()
if(TARGET perf_nccl_test)
  add_library(emulated_nccl OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/kernels/nccl.cpp nccl_on_host/nccl_on_host.cpp)
  target_include_directories(emulated_nccl BEFORE PUBLIC nccl_on_host nccl_on_host/backend)
  target_link_libraries(emulated_nccl PUBLIC flatshard::cpu flatshard_flags)
  add_executable(emulated_perf EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/perf_nccl.cpp)
  target_link_libraries(emulated_perf PRIVATE emulated_nccl flatshard_perf_main)
  if(TARGET flatshard_mpi)
    target_compile_definitions(perf_nccl_test PRIVATE FLATSHARD_MPI_BACKEND)
  endif()
  target_compile_definitions(perf_nccl_test PRIVATE FLATSHARD_TOOL="$<TARGET_FILE:emulated_perf>")
  # The benchmark beside NCCL's own collectives: right results, not times.
  add_executable(emulated_nccl_bench EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/bench/nccl_bench.cpp)
  target_link_libraries(emulated_nccl_bench PRIVATE emulated_nccl)
  add_dependencies(perf_nccl_test emulated_perf emulated_nccl_bench)
  flatshard_command_test(nccl_bench_test LABELS fast emulated COMMAND emulated_nccl_bench 4096 3 3 PROPERTIES PASS_REGULAR_EXPRESSION
    "^ranks 3\nncclAllGather 0[.][0-9]+ 7680\nall_gather 0[.][0-9]+ 7680\nncclReduceScatter_bf16 0[.][0-9]+ 7680\nncclReduceScatter_fp32 0[.][0-9]+ 15360\nreduce_scatter 0[.][0-9]+ 7680\n$")
  flatshard_command_test(nccl_bench_ranks_test LABELS fast emulated COMMAND emulated_nccl_bench 4096 3 5
    PROPERTIES PASS_REGULAR_EXPRESSION "^nccl_bench: 1 to 16 ranks with a GPU and 256 elements each, and there are 4 GPUs\n$")
endif()
