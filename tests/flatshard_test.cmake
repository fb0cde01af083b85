# SPDX-License-Identifier: Apache-2.0
# The functions that register tests. In a tree of FLATSHARD_TESTS_ONLY only the tests that match exist.

# Sets `result` if this tree holds the test.
function(flatshard_test_wanted name result)
  set(wanted TRUE)
  if(FLATSHARD_TESTS_ONLY AND NOT name MATCHES "${FLATSHARD_TESTS_ONLY}")
    set(wanted FALSE)
  endif()
  set(${result} ${wanted} PARENT_SCOPE)
endfunction()

# flatshard_command_test(NAME [LABELS ...] [TIMEOUT s] [PROPERTIES ...] COMMAND ...): one command, run at the project's root.
function(flatshard_command_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "LABELS;COMMAND;PROPERTIES")
  flatshard_test_wanted(${name} wanted)
  if(NOT wanted)
    return()
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set(full ${FLATSHARD_TESTS_PREFIX}${name})
  add_test(NAME ${full} COMMAND ${arg_COMMAND} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${full} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} ${arg_PROPERTIES})
endfunction()

# flatshard_test(NAME [LABELS ...] [LINK ...] [SOURCES ...] [TIMEOUT s]): one doctest program from NAME.cpp and SOURCES.
function(flatshard_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "LABELS;LINK;SOURCES" ${ARGN})
  add_executable(${name} ${name}.cpp ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE flatshard_test_main flatshard::flatshard flatshard_flags doctest::doctest ${arg_LINK})
  flatshard_test_wanted(${name} wanted)
  if(NOT wanted)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  flatshard_command_test(${name} LABELS ${arg_LABELS} TIMEOUT ${arg_TIMEOUT} COMMAND ${name})
endfunction()
