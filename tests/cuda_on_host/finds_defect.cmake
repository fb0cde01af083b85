# SPDX-License-Identifier: Apache-2.0
# Runs PROGRAM, the emulated tests over kernels with a seeded defect: they must find it.
execute_process(COMMAND ${PROGRAM} TIMEOUT 240 RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} found nothing wrong")
endif()
if(NOT text MATCHES "TEST CASE:")  # it did not fail for another reason, such as a missing file
  message(FATAL_ERROR "${PROGRAM} ended with ${status} before a test could fail:\n${text}")
endif()
string(REGEX MATCHALL "TEST CASE:[^\n]*" found "${text}")
list(REMOVE_DUPLICATES found)
list(JOIN found "\n  " found)
message(STATUS "found, status ${status}, by:\n  ${found}")
