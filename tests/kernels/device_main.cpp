// SPDX-License-Identifier: Apache-2.0
/// Runs the device tests where there is a device; else says so, once, and ends with the status of a skipped test.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <cuda_runtime.h>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

int main(int count, char** arguments) {
  int devices = 0;
  auto status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess && devices == 0) status = cudaErrorNoDevice;
  if (status != cudaSuccess) {
    char const* const wanted = std::getenv("FLATSHARD_REQUIRE_GPU");
    bool const required = wanted != nullptr && std::strcmp(wanted, "1") == 0;
    std::printf("%s: no CUDA device (%s)\n", required ? "FAILED" : "SKIPPED", cudaGetErrorName(status));
    return required ? 1 : 77;
  }
  return doctest::Context{count, arguments}.run();
}
