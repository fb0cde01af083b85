# SPDX-License-Identifier: Apache-2.0
# COMPILER -std=c++20 -I INCLUDE SOURCE and nothing else (but -I of a second INCLUDE, -D DEFINE); runs what it made, unless that
# is an object file.
if(NOT COMPILER)
  message(STATUS "skipped: no compiler here for ${SOURCE}")
  return()
endif()
list(TRANSFORM INCLUDE PREPEND -I)
list(TRANSFORM DEFINE PREPEND -D)
if(PROGRAM MATCHES "\\.o$")
  execute_process(COMMAND ${COMPILER} -std=c++20 ${INCLUDE} ${DEFINE} -c ${SOURCE} -o ${PROGRAM} COMMAND_ERROR_IS_FATAL ANY)
else()
  execute_process(COMMAND ${COMPILER} -std=c++20 ${INCLUDE} ${DEFINE} ${SOURCE} -o ${PROGRAM} COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${PROGRAM} COMMAND_ERROR_IS_FATAL ANY)
endif()
