# SPDX-License-Identifier: Apache-2.0
# Part of CMakeLists.txt: device code through nvcc, and on a device where there is one.
# Every .cu for three architectures: warnings, spills, threads and bytes in flight on a multiprocessor. nvcc needs no GPU.
find_program(FLATSHARD_CUOBJDUMP cuobjdump HINTS /usr/local/cuda/bin DOC "The disassembler of the check of load and store widths")
find_program(FLATSHARD_NVCC nvcc HINTS /usr/local/cuda/bin DOC "The CUDA compiler of the header check")
foreach(name cuda cuda_peers)
  flatshard_command_test(${name}_compiles LABELS slow TIMEOUT 600 COMMAND ${CMAKE_COMMAND} -DCOMPILER=${FLATSHARD_NVCC} -DROOT=${PROJECT_SOURCE_DIR}
    -DSOURCE=${PROJECT_SOURCE_DIR}/kernels/${name}.cu -DOUT=${CMAKE_CURRENT_BINARY_DIR}/${name}.o
    -P ${CMAKE_CURRENT_SOURCE_DIR}/cuda_compile_test.cmake PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: " FIXTURES_SETUP ${name}_object)
  # The widths of loads and stores: in the machine code where a disassembler is found, else in PTX.
  flatshard_command_test(${name}_widths LABELS slow TIMEOUT 600 COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/load_widths.sh
    ${CMAKE_CURRENT_BINARY_DIR}/${name}.o ${CMAKE_CURRENT_BINARY_DIR}/${name}.o.parts/${name}.ptx
    "$<$<BOOL:${FLATSHARD_NVCC}>:${FLATSHARD_NVCC}>" "$<$<BOOL:${FLATSHARD_CUOBJDUMP}>:${FLATSHARD_CUOBJDUMP}>"
    ${CMAKE_CURRENT_BINARY_DIR}/${name}.listing
    PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: " FIXTURES_REQUIRED ${name}_object)
endforeach()
flatshard_command_test(occupancy_test LABELS fast COMMAND ${CMAKE_COMMAND} -P ${CMAKE_CURRENT_SOURCE_DIR}/occupancy_test.cmake)
flatshard_command_test(cuda_compile_planted LABELS fast COMMAND sh -c
  "! \"$0\" -DREPORT=\"$1\" -P \"$2\" >planted.log 2>&1 && grep -q '5 of 8 kernels of ' planted.log && grep -q 'pack_kernel.*ES1_.*: less than 50 % of the threads, less than 32768 bytes in flight, with 72 registers' planted.log && ! grep -q '^sm_80 .*push_kernel' planted.log"
  ${CMAKE_COMMAND} ${CMAKE_CURRENT_SOURCE_DIR}/cuda_compile_planted.txt ${CMAKE_CURRENT_SOURCE_DIR}/cuda_compile_test.cmake DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
flatshard_command_test(load_widths_planted LABELS fast COMMAND sh -c
  "! \"$0\" \"$1\" >load_widths.log && grep -q '8 kernels, 7 of them wrong' load_widths.log && grep -q 'sum_kernel as_bf16 Lb0E: has no 16-byte load;' load_widths.log"
  ${CMAKE_CURRENT_SOURCE_DIR}/load_widths.sh ${CMAKE_CURRENT_SOURCE_DIR}/load_widths_planted.txt DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
# The benchmark beside the driver's copy and CUB, in the long tier: CUB takes half a minute. Registers of its kernels are its own.
if(FLATSHARD_NVCC AND FLATSHARD_TESTS_LONG)
  flatshard_command_test(device_bench_compiles LABELS slow TIMEOUT 600 COMMAND ${FLATSHARD_NVCC} -std=c++20 -c --threads 2 --Werror all-warnings
    -Xcompiler=-Wall,-Wextra,-Werror -I ${PROJECT_SOURCE_DIR}/include -I ${PROJECT_SOURCE_DIR}/kernels/include
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_100,code=sm_100
    ${PROJECT_SOURCE_DIR}/bench/device_bench.cu -o ${CMAKE_CURRENT_BINARY_DIR}/device_bench.o)
endif()
# The device tests on a device. Emulated, they are part of ../cuda_on_host.
if(TARGET flatshard_cuda)
  add_executable(device_test device_test.cpp device_peers_test.cpp device_main.cpp)
  target_include_directories(device_test PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(device_test PRIVATE flatshard::cuda flatshard::cpu random_layouts flatshard_flags doctest::doctest)
  flatshard_command_test(device_test LABELS gpu COMMAND device_test PROPERTIES SKIP_RETURN_CODE 77)
  # The same, small, under compute-sanitizer, which not every toolkit has; never run yet, for want of a GPU.
  find_program(FLATSHARD_COMPUTE_SANITIZER compute-sanitizer HINTS ${CUDAToolkit_BIN_DIR} DOC "The checker of device code")
  if(FLATSHARD_COMPUTE_SANITIZER)
    foreach(tool memcheck racecheck initcheck synccheck)
      flatshard_command_test(device_${tool} LABELS gpu slow TIMEOUT 3600 COMMAND ${FLATSHARD_COMPUTE_SANITIZER} --tool ${tool} --error-exitcode 1
        $<TARGET_FILE:device_test> "--test-case-exclude=all 2^32*,2^20*" PROPERTIES SKIP_RETURN_CODE 77)
    endforeach()
  else()
    message(STATUS "device_memcheck, _racecheck, _initcheck, _synccheck: skipped, no compute-sanitizer was found")
  endif()
endif()
