// SPDX-License-Identifier: Apache-2.0
/// How MPI is called: every status checked, every wait polled and bounded.
#pragma once

#include "call_notice.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/mpi.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <string>
#include <thread>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

using flatshard::detail::raise;

inline void check(int code, char const* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  raise(mpi_error{code, std::string{call} + ": " + std::string{text.data(), static_cast<std::size_t>(length)}});
}
#define FLATSHARD_MPI(call, ...) check(call(__VA_ARGS__), #call)

/// A wait that polls: hot at first, then it gives the core away, then it sleeps.
class patience {
 public:
  explicit patience(deadline limit) : until_{end_of(limit)} {}
  /// False when the deadline has passed.
  [[nodiscard]] bool more() {
    ++turns_;
    if (turns_ < 200) return true;
    if (turns_ < 2000) {
      std::this_thread::yield();
      return turns_ % 64 != 0 || std::chrono::steady_clock::now() < until_;
    }
    std::this_thread::sleep_for(std::chrono::microseconds{50});
    return std::chrono::steady_clock::now() < until_;
  }

 private:
  steady_time until_;
  std::size_t turns_ = 0;
};

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
