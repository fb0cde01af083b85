# SPDX-License-Identifier: Apache-2.0
# OBJECTS, compiled with every inline function kept, must hold no flatshard object in a writable section, and no header of FOLDER
# may declare an inline variable, a static or a thread_local that is not constant (unused inline variables leave no symbol).
cmake_minimum_required(VERSION 3.25)
string(REPLACE "," ";" OBJECTS "${OBJECTS}")
execute_process(COMMAND objdump --demangle --syms ${OBJECTS} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE ";" ":" symbols "${symbols}")
string(REPLACE "\n" ";" symbols "${symbols}")
set(in_object 0)
foreach(symbol IN LISTS symbols)
  if(symbol MATCHES "[ \t]\\.(data|bss|tdata|tbss)[^ \t]*[ \t].*flatshard" AND NOT symbol MATCHES "[ \t]\\.data\\.rel\\.ro"
     AND NOT symbol MATCHES "DW\\.ref\\."  # where a handler finds the type that it catches
     AND NOT symbol MATCHES "absent_value\\(\\)::absent")  # constant, but made at first use: it holds strings
    math(EXPR in_object "${in_object} + 1")
    message(NOTICE "writable: ${symbol}")
  endif()
endforeach()
set(in_text 0)
file(GLOB_RECURSE headers ${FOLDER}/*.hpp)
foreach(header IN LISTS headers)
  # a variable: the word, a type without "const", a name, then = { or ; and no parenthesis before them
  file(STRINGS ${header} lines REGEX "^[ \t]*(inline|static|thread_local|extern)[ \t]+[^(]*[A-Za-z0-9_>&*][ \t]*(=|{|;)")
  list(FILTER lines EXCLUDE REGEX "(inline|static|thread_local|extern)[ \t]+(constexpr|const|constinit const|namespace)[ \t]|[ \t]const[ \t&]|\\(")
  foreach(line IN LISTS lines)
    if(line STREQUAL "")  # what followed the semicolon
      continue()
    endif()
    math(EXPR in_text "${in_text} + 1")
    message(NOTICE "${header}: ${line}")
  endforeach()
endforeach()
if(in_object OR in_text)
  message(FATAL_ERROR "${in_object} objects of mutable state in the object file, ${in_text} in the text")
endif()
list(LENGTH symbols count)
message(STATUS "no mutable state among ${count} symbols")
