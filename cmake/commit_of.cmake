# SPDX-License-Identifier: Apache-2.0
# commit_of(FOLDER RESULT): the commit that a checkout in FOLDER is at, -dirty behind it where files were changed; `unknown` where
# FOLDER is no checkout, or lies inside one of something else.
find_package(Git QUIET)
function(commit_of folder result)
  set(${result} unknown PARENT_SCOPE)
  if(NOT GIT_FOUND)
    return()
  endif()
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse --show-prefix WORKING_DIRECTORY ${folder}
    RESULT_VARIABLE status OUTPUT_VARIABLE prefix ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0 OR prefix)
    return()
  endif()
  execute_process(COMMAND ${GIT_EXECUTABLE} --no-optional-locks describe --always --dirty --abbrev=12 --exclude=*
    WORKING_DIRECTORY ${folder} RESULT_VARIABLE status OUTPUT_VARIABLE commit ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0 AND commit)
    set(${result} ${commit} PARENT_SCOPE)
  endif()
endfunction()
