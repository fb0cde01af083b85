# SPDX-License-Identifier: Apache-2.0
# What the tool, the trainer, the tests and the benchmark share, compiled once for all of them: the resolver, and the readers
# of front-end files.
add_library(flatshard_resolver OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/resolver.cpp)
target_link_libraries(flatshard_resolver PUBLIC flatshard::flatshard PRIVATE flatshard_flags)
if(NOT FLATSHARD_SANITIZE)
  target_compile_options(flatshard_resolver PRIVATE -O1)  # a configuration is read once: two thirds of the compile time
endif()

if(TARGET flatshard_json)
  add_library(flatshard_frontend OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/frontend.cpp)
  target_link_libraries(flatshard_frontend PUBLIC flatshard::json PRIVATE flatshard_flags)
  if(NOT FLATSHARD_SANITIZE)
    target_compile_options(flatshard_frontend PRIVATE -Og)
  endif()
  find_package(yaml-cpp QUIET)  # without it a YAML file is an error that says so
  if(TARGET yaml-cpp)
    target_link_libraries(flatshard_frontend PUBLIC yaml-cpp)
    target_compile_definitions(flatshard_frontend PUBLIC FLATSHARD_YAML)
  endif()
endif()
