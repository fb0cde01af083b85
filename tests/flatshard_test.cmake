# SPDX-License-Identifier: Apache-2.0
# The functions that register tests. In a tree of FLATSHARD_TESTS_ONLY only the tests that match exist.

# Sets `result` if this tree holds the test.
function(flatshard_test_wanted name result)
  set(wanted TRUE)
  if(FLATSHARD_TESTS_ONLY AND NOT name MATCHES "${FLATSHARD_TESTS_ONLY}")
    set(wanted FALSE)
  elseif(FLATSHARD_TESTS_EXCEPT AND name MATCHES "${FLATSHARD_TESTS_EXCEPT}")
    set(wanted FALSE)
  endif()
  set(${result} ${wanted} PARENT_SCOPE)
endfunction()

# flatshard_command_test(NAME [LABELS ...] [TIMEOUT s] [DIRECTORY d] [PROPERTIES ...] COMMAND ...): one command, run at the
# project's root, or in DIRECTORY.
function(flatshard_command_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT;DIRECTORY" "LABELS;COMMAND;PROPERTIES")
  flatshard_test_wanted(${name} wanted)
  if(NOT wanted)
    return()
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  if(NOT arg_DIRECTORY)
    set(arg_DIRECTORY ${PROJECT_SOURCE_DIR})
  endif()
  set(full ${FLATSHARD_TESTS_PREFIX}${name})
  add_test(NAME ${full} COMMAND ${arg_COMMAND} WORKING_DIRECTORY ${arg_DIRECTORY})
  set_tests_properties(${full} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} ${arg_PROPERTIES})
endfunction()

# flatshard_test(NAME [GROUP program] [GOLDEN] [OPTIMISED] [LABELS ...] [LINK ...] [SOURCES ...] [DEFINITIONS ...] [TIMEOUT s]):
# one test from NAME.cpp and SOURCES, all of it in a namespace NAME: a doctest program of its own, or part of the program of a
# GROUP, whose sources read their headers once (FLATSHARD_UNITY). Most compile for longer than they run; OPTIMISED marks those that
# compute, and a group is of one kind.
function(flatshard_test name)
  cmake_parse_arguments(arg "GOLDEN;OPTIMISED" "TIMEOUT;GROUP" "LABELS;LINK;SOURCES;DEFINITIONS" ${ARGN})
  foreach(library IN LISTS arg_LINK)
    if(library MATCHES "^flatshard::" AND NOT TARGET ${library})
      message(STATUS "${name}: skipped, it needs ${library}")
      return()
    endif()
  endforeach()
  flatshard_test_wanted(${name} wanted)
  set(program ${name})
  set(only "")
  if(arg_GROUP)
    if(NOT wanted)
      return()
    endif()
    set(program ${arg_GROUP})
    set(only --source-file=*/${name}.cpp)
  elseif(TARGET ${name})
    message(AUTHOR_WARNING "${name} is registered twice")
    return()
  endif()
  if(NOT TARGET ${program})
    add_executable(${program})
    set_target_properties(${program} PROPERTIES UNITY_BUILD ${FLATSHARD_UNITY} UNITY_BUILD_BATCH_SIZE 0)
    target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    target_link_libraries(${program} PRIVATE flatshard_test_main flatshard::flatshard flatshard_flags doctest::doctest)
    if(CMAKE_CXX_COMPILER_ID MATCHES Clang AND NOT arg_OPTIMISED)
      target_compile_options(${program} PRIVATE -O0)
    elseif(NOT slow IN_LIST arg_LABELS)
      target_compile_options(${program} PRIVATE -Og)  # g++ takes no longer than for -O0, clang four times as long
    endif()
  endif()
  target_sources(${program} PRIVATE ${name}.cpp ${arg_SOURCES})
  target_link_libraries(${program} PRIVATE ${arg_LINK})
  target_compile_definitions(${program} PRIVATE ${arg_DEFINITIONS})
  if(NOT wanted)
    set_target_properties(${program} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  set(skipped SKIP_REGULAR_EXPRESSION "^skipped: all|\nskipped: all")  # what a golden program says that found no file of cases
  set(some FAIL_REGULAR_EXPRESSION "test cases: +0 ")
  set(properties ${some})
  if("golden" IN_LIST arg_LABELS)
    list(APPEND properties ${skipped})
  endif()
  set(others "")
  if(arg_GOLDEN)
    set(others --test-case-exclude=golden*)
  endif()
  flatshard_command_test(${name} LABELS ${arg_LABELS} TIMEOUT ${arg_TIMEOUT} COMMAND ${program} ${only} ${others}
    PROPERTIES ${properties})
  if(arg_GOLDEN)
    string(REGEX REPLACE "_test$" "" stem ${name})
    flatshard_command_test(${stem}_golden_test LABELS ${arg_LABELS} golden TIMEOUT ${arg_TIMEOUT}
      COMMAND ${program} ${only} --test-case=golden* PROPERTIES ${some} ${skipped})
    flatshard_command_test(${stem}_golden_named_test LABELS ${arg_LABELS} COMMAND sh -c  # data that are named and not there
      "! FLATSHARD_GOLDEN=no/such/folder $<TARGET_FILE:${program}> ${only} --test-case=golden* >${stem}_named.log &&
       grep -q 'no/such/folder, which is no directory' ${stem}_named.log" DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  endif()
endfunction()

# Whether this compiler counts which lines run, in a form that gcov reads.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT FLATSHARD_SANITIZE)
  string(REGEX MATCH "^[0-9]+" major ${CMAKE_CXX_COMPILER_VERSION})
  find_program(FLATSHARD_GCOV NAMES gcov-${major} gcov DOC "gcov of the compiler, for tests that count lines")
endif()
