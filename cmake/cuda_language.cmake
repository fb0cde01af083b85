# SPDX-License-Identifier: Apache-2.0
# CUDA for the kernels and for what is measured beside them; nvcc needs no GPU.
include(CheckLanguage)
check_language(CUDA)
find_package(CUDAToolkit QUIET)
if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90 100)
  endif()
  enable_language(CUDA)
else()
  message(STATUS "flatshard::cuda: skipped, no CUDA compiler was found (CUDACXX names one)")
endif()
