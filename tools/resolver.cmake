# SPDX-License-Identifier: Apache-2.0
# The resolver of the tool, the trainer, the tests and the benchmark, compiled once for all of them.
add_library(flatshard_resolver OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/resolver.cpp)
target_include_directories(flatshard_resolver INTERFACE ${PROJECT_SOURCE_DIR})
target_link_libraries(flatshard_resolver PUBLIC flatshard::flatshard PRIVATE flatshard_flags)
if(NOT FLATSHARD_SANITIZE)
  target_compile_options(flatshard_resolver PRIVATE -O1)  # a configuration is read once: two thirds of the compile time
endif()
