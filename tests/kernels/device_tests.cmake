# SPDX-License-Identifier: Apache-2.0
# Part of CMakeLists.txt: device code through nvcc, and on a device where there is one.
# Every .cu for three architectures: warnings, registers, spills. nvcc needs no GPU.
find_program(FLATSHARD_NVCC nvcc HINTS /usr/local/cuda/bin DOC "The CUDA compiler of the header check")
foreach(name cuda cuda_peers)
  flatshard_command_test(${name}_compiles LABELS slow TIMEOUT 600 COMMAND ${CMAKE_COMMAND} -DCOMPILER=${FLATSHARD_NVCC} -DROOT=${PROJECT_SOURCE_DIR}
    -DSOURCE=${PROJECT_SOURCE_DIR}/kernels/${name}.cu -DOUT=${CMAKE_CURRENT_BINARY_DIR}/${name}.o
    -P ${CMAKE_CURRENT_SOURCE_DIR}/cuda_compile_test.cmake PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: ")
endforeach()
# The device tests on a device. Emulated, they are part of ../cuda_on_host.
if(TARGET flatshard_cuda)
  add_executable(device_test device_test.cpp device_peers_test.cpp device_main.cpp)
  target_include_directories(device_test PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(device_test PRIVATE flatshard::cuda flatshard::cpu random_layouts flatshard_flags doctest::doctest)
  flatshard_command_test(device_test LABELS gpu COMMAND device_test PROPERTIES SKIP_RETURN_CODE 77)
endif()
