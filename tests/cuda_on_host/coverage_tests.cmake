# SPDX-License-Identifier: Apache-2.0
# Part of CMakeLists.txt.
# How many lines of the kernels and of the NCCL backend the emulated tests run. The programs count for themselves.
flatshard_test_wanted(nccl_collectives_test wanted_too)
if(FLATSHARD_GCOV)
  target_compile_options(emulated_cuda PRIVATE --coverage)
  target_link_options(emulated_cuda PUBLIC --coverage)
endif()
if(FLATSHARD_GCOV AND wanted AND wanted_too AND TARGET nccl_collectives_test)
  set(read_lines ${CMAKE_COMMAND} -DGCOV=${FLATSHARD_GCOV} -DFOLDER=${PROJECT_BINARY_DIR}
    -DKERNELS=$<TARGET_OBJECTS:emulated_cuda> -DBACKEND=$<TARGET_OBJECTS:nccl_collectives_test>)
  set(script -P ${CMAKE_CURRENT_SOURCE_DIR}/emulated_coverage.cmake)
  flatshard_command_test(emulated_coverage_begin LABELS fast emulated COMMAND ${read_lines} -DBEGIN=ON ${script}
    PROPERTIES FIXTURES_SETUP lines_uncounted)
  set_tests_properties(${FLATSHARD_TESTS_PREFIX}emulated_test PROPERTIES FIXTURES_REQUIRED lines_uncounted FIXTURES_SETUP lines_counted)
  flatshard_command_test(emulated_coverage LABELS fast emulated COMMAND ${read_lines} ${script} PROPERTIES FIXTURES_REQUIRED lines_counted)
elseif(wanted)
  message(STATUS "emulated_coverage: skipped, it needs g++, its gcov, no sanitizer, and both emulated programs")
endif()
