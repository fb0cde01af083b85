# SPDX-License-Identifier: Apache-2.0
# built_from.hpp for the programs that print figures. It is written when CMake runs and only if it changes, so a commit alone
# compiles nothing anew; the programs then name the commit before it until CMake runs again.
include(${CMAKE_CURRENT_LIST_DIR}/commit_of.cmake)
commit_of(${PROJECT_SOURCE_DIR} FLATSHARD_COMMIT)
string(TOUPPER "CMAKE_CXX_FLAGS_${CMAKE_BUILD_TYPE}" of_build_type)
string(STRIP "${CMAKE_CXX_FLAGS} ${${of_build_type}}" FLATSHARD_CXX_FLAGS)
set(FLATSHARD_KERNEL_FLAGS "")
if(TARGET flatshard_cpu)
  get_source_file_property(FLATSHARD_KERNEL_FLAGS ${PROJECT_SOURCE_DIR}/kernels/cpu_generic.cpp TARGET_DIRECTORY flatshard_cpu COMPILE_OPTIONS)
  string(REPLACE ";" " " FLATSHARD_KERNEL_FLAGS "${FLATSHARD_KERNEL_FLAGS}")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/built_from.hpp.in ${PROJECT_BINARY_DIR}/built_from/built_from.hpp @ONLY)
add_library(flatshard_built_from INTERFACE)
target_include_directories(flatshard_built_from INTERFACE ${PROJECT_BINARY_DIR}/built_from)
