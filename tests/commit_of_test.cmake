# SPDX-License-Identifier: Apache-2.0
# cmake -DSCRATCH=folder -P: the commit that is found in a checkout, a changed one, a folder of one, and where there is none.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/../cmake/commit_of.cmake)
file(REMOVE_RECURSE ${SCRATCH})
file(WRITE ${SCRATCH}/checkout/inner/text "one\n")
function(expect folder pattern)
  commit_of(${SCRATCH}/${folder} found)
  if(NOT found MATCHES "^${pattern}$")
    message(FATAL_ERROR "${folder}: found '${found}', expected ${pattern}")
  endif()
endfunction()
function(git)
  execute_process(COMMAND ${GIT_EXECUTABLE} -c user.name=n -c user.email=e@e -c init.defaultBranch=b -c commit.gpgSign=false
    -c tag.gpgSign=false ${ARGN}
    WORKING_DIRECTORY ${SCRATCH}/checkout OUTPUT_QUIET ERROR_VARIABLE why RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "git ${ARGN}: ${why}")
  endif()
endfunction()
set(twelve "")
foreach(i RANGE 1 12)
  string(APPEND twelve "[0-9a-f]")
endforeach()
set(ENV{GIT_CEILING_DIRECTORIES} ${SCRATCH})  # what is around is no checkout of ours either way
expect(checkout unknown)
git(init)
expect(checkout unknown)  # nothing is committed
git(add .)
git(commit -m first --no-verify)
expect(checkout ${twelve})
git(tag -a v1 -m v1)
expect(checkout ${twelve})  # a tag's name is no commit
expect(checkout/inner unknown)
file(WRITE ${SCRATCH}/checkout/inner/text "two\n")
expect(checkout ${twelve}-dirty)
