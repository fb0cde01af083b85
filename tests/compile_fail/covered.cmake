# SPDX-License-Identifier: Apache-2.0
# usage: cmake -D ROOT=DIR [-D FOLDER=DIR] -P covered.cmake: every concept and every static_assert with a sentence in the installed
# headers has a case here that breaks it. A static_assert without a sentence checks a constant of the library itself and cannot
# fail in the program of a user.
cmake_minimum_required(VERSION 3.25)
if(NOT FOLDER)
  set(FOLDER ${ROOT}/tests/compile_fail)
endif()
# Broken by none but an edit of the library: the one self-check with a sentence, and what `if constexpr` alone asks for.
set(exempt "the table stands in enumerator order" has_segments tells_position sees_unit
  # parts of CallableMembers
  callable_owner callable_position callable_segment callable_before callable_padding_value callable_for_unit callable_hash
  callable_may_cut callable_alignment)
# What a compiler says of these names the missing operation and not the concept.
set(says_Communicator "c.barrier(s)")
set(says_JsonHandler "h.null(at)")

set(sentences "")
file(GLOB cases ${FOLDER}/*.cpp)
foreach(case IN LISTS cases)
  file(STRINGS ${case} first LIMIT_COUNT 1)
  string(REGEX REPLACE "^// must not compile: " "" sentence "${first}")
  list(APPEND sentences "${sentence}")
endforeach()

file(GLOB_RECURSE headers ${ROOT}/include/*.hpp ${ROOT}/kernels/include/*.hpp ${ROOT}/kernels/include/*.cuh)
set(found 0)
set(missing 0)
foreach(header IN LISTS headers)
  file(READ ${header} text)
  string(REPLACE ";" "," text "${text}")  # no list of CMake
  string(REGEX MATCHALL "concept [A-Za-z_]+ =" concepts "${text}")
  string(REGEX MATCHALL "static_assert\\([^\n]*[^\n]*, \"[^\"\n]*\"\\)," asserts "${text}")
  string(REGEX MATCHALL "\n    \"[^\"\n]*\"\\)," wrapped "${text}")  # a static_assert of several lines ends so
  foreach(one IN LISTS concepts asserts wrapped)
    if(one MATCHES "^concept ([A-Za-z_]+) =")
      set(wanted ${CMAKE_MATCH_1})
    elseif(one MATCHES "\"([^\"]*)\"\\),$")
      set(wanted "${CMAKE_MATCH_1}")
    endif()
    if(one IN_LIST wrapped AND NOT text MATCHES "static_assert\\(\n")
      continue()
    endif()
    math(EXPR found "${found} + 1")
    if(wanted IN_LIST exempt)
      continue()
    endif()
    if(DEFINED says_${wanted})
      set(wanted "${says_${wanted}}")
    endif()
    if(NOT wanted IN_LIST sentences)
      message("${header}: no case in tests/compile_fail breaks '${wanted}'")
      math(EXPR missing "${missing} + 1")
    endif()
  endforeach()
endforeach()
if(found LESS 10)
  message(FATAL_ERROR "only ${found} concepts and static_asserts with a sentence were found")
endif()
if(missing GREATER 0)
  message(FATAL_ERROR "cases are missing: ${missing}")
endif()
message(STATUS "${found} concepts and static_asserts with a sentence")
