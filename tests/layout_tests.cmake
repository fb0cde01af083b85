# SPDX-License-Identifier: Apache-2.0
# Layouts: examples, laws, golden tables, independently written rules.
flatshard_test(layout_test GROUP layout_tests OPTIMISED LABELS fast TIMEOUT 1800)
flatshard_test(layout_golden_test GROUP layout_tests OPTIMISED LABELS fast golden LINK flatshard::json)
flatshard_test(layouts_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(layout_groups_test GROUP layout_tests OPTIMISED LABELS fast)
flatshard_test(layout_constant_golden_test LABELS fast golden LINK flatshard::json)
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
