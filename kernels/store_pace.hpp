// SPDX-License-Identifier: Apache-2.0
/// Whether small blocks that ranks on other cores read are stored into the caches or past them.
#pragma once

#include <chrono>
#include <cstddef>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// A core that stores into a line which another core has read waits until that one has given it up. Between cores of
/// one cache a block takes 0.03 to 0.1 ns a byte; between others 0.4, more than it takes to store it past the caches
/// and to read it from memory. Which cores share a cache may change while a program runs (virtual machines), so blocks
/// are timed: some slow ones in a row send the next ones past the caches. docs/benchmarks.md has the figures.
class store_pace {
 public:
  static constexpr std::size_t least = 4096;       ///< bytes; smaller blocks go into the caches, untimed
  static constexpr std::size_t slow_in_a_row = 4;  ///< a single one may have lost its core meanwhile
  static constexpr std::size_t sent_past = 32;     ///< blocks; then one is tried again

  /// Whether the next block goes past the caches. One that does not is to be `timed`.
  [[nodiscard]] bool past_caches(std::size_t bytes) {
    if (bytes < least || past_ == 0) return false;
    --past_;
    return true;
  }
  /// A block went into the caches in so much time.
  void timed(std::size_t bytes, std::chrono::nanoseconds time) {
    if (bytes < least) return;
    bool const slow = static_cast<std::size_t>(time.count()) > bytes / 8;
    slow_ = slow ? slow_ + 1 : 0;
    if (slow_ < slow_in_a_row) return;
    slow_ = slow_in_a_row - 1;
    past_ = sent_past;
  }

 private:
  std::size_t slow_ = 0;  // in a row
  std::size_t past_ = 0;  // blocks that still go past the caches
};

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
