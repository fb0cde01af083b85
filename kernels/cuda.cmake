# SPDX-License-Identifier: Apache-2.0
# flatshard::cuda: compiled by nvcc, which needs no GPU.
if(FLATSHARD_CUDA AND CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
  add_library(flatshard_cuda STATIC cuda.cu cuda_peers.cu)
  add_library(flatshard::cuda ALIAS flatshard_cuda)
  target_sources(flatshard_cuda PUBLIC FILE_SET HEADERS BASE_DIRS include FILES include/flatshard/kernels/cuda.hpp include/flatshard/kernels/cuda_types.hpp
    include/flatshard/kernels/device.cuh include/flatshard/kernels/element.hpp include/flatshard/kernels/stochastic_rounding.hpp
    include/flatshard/kernels/tiles.hpp)
  target_compile_options(flatshard_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-Xcompiler=-Wall,-Wextra>")
  target_link_libraries(flatshard_cuda PUBLIC flatshard CUDA::cudart)
  set_target_properties(flatshard_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON EXPORT_NAME cuda)
  # The NCCL backend, where NCCL has the calls that it makes.
  list(APPEND CMAKE_MODULE_PATH ${PROJECT_SOURCE_DIR}/cmake)
  find_package(NCCL 2.28 QUIET)
  if(NCCL_FOUND)
    target_sources(flatshard_cuda PRIVATE nccl.cpp)
    target_sources(flatshard_cuda PUBLIC FILE_SET HEADERS BASE_DIRS include FILES include/flatshard/kernels/nccl.hpp)
    set_source_files_properties(nccl.cpp PROPERTIES COMPILE_OPTIONS "-Wall;-Wextra;-Wconversion;-Wshadow;$<$<BOOL:${FLATSHARD_WERROR}>:-Werror>")
    target_link_libraries(flatshard_cuda PUBLIC flatshard_cpu NCCL::NCCL)
    set(FLATSHARD_HAS_NCCL ON PARENT_SCOPE)
  else()
    message(STATUS "flatshard::cuda: without the NCCL backend, no NCCL >= 2.28 was found (NCCL_ROOT names one)")
  endif()
endif()
