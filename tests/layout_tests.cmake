# SPDX-License-Identifier: Apache-2.0
# Layouts: examples, laws, golden tables, independently written rules.
flatshard_test(layout_test GROUP layout_tests OPTIMISED LABELS fast TIMEOUT 1800)
flatshard_test(layout_golden_test GROUP layout_tests OPTIMISED LABELS fast golden LINK flatshard::json)
flatshard_test(layouts_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(layout_groups_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(megatron_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(layout_constant_golden_test LABELS fast golden LINK flatshard::json)
# The golden cases as constant expressions, in a source that a program writes; that it compiles is the test. The short tier takes 8
# cases of a file, evenly chosen, the long tier all, one test a file and compiler. Planted: one wrong case after the other.
if(TARGET flatshard_json)
  flatshard_test_wanted(constant_cases wanted)
  add_executable(constant_cases constant_cases.cpp)
  target_compile_options(constant_cases PRIVATE -O0)
  target_link_libraries(constant_cases PRIVATE flatshard::json flatshard_flags)
  if(NOT wanted)
    set_target_properties(constant_cases PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  set(of_layouts native ds_zero3 ds_hpz ds_zero12 fsdp1 fsdp2 megatron_production megatron_experimental ragged)
  set(properties SKIP_REGULAR_EXPRESSION "^skipped: all")
  function(flatshard_constant_test name compiler sample)
    flatshard_command_test(constant_cases_${name} LABELS slow golden TIMEOUT 1800 PROPERTIES ${properties} COMMAND bash
      ${CMAKE_CURRENT_SOURCE_DIR}/constant_cases.sh $<TARGET_FILE:constant_cases> ${compiler}
      ${CMAKE_CURRENT_BINARY_DIR}/constant_cases_${name}.cpp ${sample} ${ARGN})
  endfunction()
  flatshard_constant_test(sample ${CMAKE_CXX_COMPILER} 8 ${of_layouts} rules)
  if(FLATSHARD_TESTS_LONG)
    find_program(FLATSHARD_CLANG NAMES clang++ clang++-14 clang++-16 clang++-19 DOC "The second compiler of the header checks")
    foreach(file IN LISTS of_layouts ITEMS rules padding_table)
      flatshard_constant_test(${file} ${CMAKE_CXX_COMPILER} 0 ${file})
      if(FLATSHARD_CLANG)
        flatshard_constant_test(${file}_clang ${FLATSHARD_CLANG} 0 ${file})
      endif()
    endforeach()
  endif()
  set(planted_figures figure hash accepted row padding local sample_rank sample_gathered pad pad_value slots)
  # Wrong figures are found, each by its name, and the right case among them is not.
  list(TRANSFORM planted_figures REPLACE "(.+)" "error: static[^\n]*fsdp2/\\1\n" OUTPUT_VARIABLE planted)
  string(REPLACE ";" ".*" planted "${planted}")
  set(properties ENVIRONMENT FLATSHARD_GOLDEN=tests/constant_cases_planted PASS_REGULAR_EXPRESSION "${planted}"
    FAIL_REGULAR_EXPRESSION "static[^\n]*fsdp2/right")
  flatshard_constant_test(planted ${CMAKE_CXX_COMPILER} 0 fsdp2)
endif()
flatshard_test(rules_golden_test LABELS fast golden LINK flatshard::json)
if(TARGET rules_golden_test)  # golden data that are named and not there are a failure, none at all is a skipped test
  flatshard_command_test(golden_named_test LABELS fast COMMAND sh -c
    "! FLATSHARD_GOLDEN=no/such/folder $<TARGET_FILE:rules_golden_test> >named.log && grep -q 'no/such/folder, which is no directory' named.log"
    DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  flatshard_command_test(golden_absent_test LABELS fast COMMAND rules_golden_test DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}
    PROPERTIES PASS_REGULAR_EXPRESSION "\nskipped: all golden cases")
endif()
flatshard_test(reshard_test GROUP layout_tests OPTIMISED GOLDEN LABELS fast LINK flatshard::json)
flatshard_test(mesh_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(planned_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(plan_test GROUP plan_tests LABELS fast)
flatshard_test(estimate_test GROUP plan_tests LABELS fast)
flatshard_test(oracle_test OPTIMISED LABELS fast)
target_compile_options(oracle_test PRIVATE -O1)  # pays for itself here
find_package(rapidcheck QUIET)
if(TARGET rapidcheck)
  flatshard_test(laws_test OPTIMISED LABELS fast LINK rapidcheck TIMEOUT 1800)
else()
  flatshard_command_test(laws_test LABELS fast COMMAND ${CMAKE_COMMAND} -E echo "skipped: rapidcheck is absent"
    PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: ")
endif()
if(TARGET static_layout)
  flatshard_command_test(static_layout LABELS fast COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/static_layout_test.sh
    $<TARGET_OBJECTS:static_layout> $<TARGET_FILE:static_layout>)
endif()
