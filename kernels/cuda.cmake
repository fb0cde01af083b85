# SPDX-License-Identifier: Apache-2.0
# flatshard::cuda: compiled by nvcc, which needs no GPU.
if(FLATSHARD_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  find_package(CUDAToolkit QUIET)
  if(NOT CMAKE_CUDA_COMPILER OR NOT CUDAToolkit_FOUND)
    message(STATUS "flatshard::cuda: skipped, no CUDA compiler was found (CUDACXX names one)")
  endif()
endif()
if(FLATSHARD_CUDA AND CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90 100)
  endif()
  enable_language(CUDA)
  add_library(flatshard_cuda STATIC cuda.cu cuda_peers.cu)
  add_library(flatshard::cuda ALIAS flatshard_cuda)
  target_sources(flatshard_cuda PUBLIC FILE_SET HEADERS BASE_DIRS include FILES include/flatshard/kernels/cuda.hpp
    include/flatshard/kernels/device.cuh include/flatshard/kernels/element.hpp include/flatshard/kernels/stochastic_rounding.hpp
    include/flatshard/kernels/tiles.hpp)
  target_compile_options(flatshard_cuda PRIVATE -std=c++20 -Xcompiler=-Wall,-Wextra)
  target_link_libraries(flatshard_cuda PUBLIC flatshard CUDA::cudart)
  set_target_properties(flatshard_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON EXPORT_NAME cuda)
endif()
