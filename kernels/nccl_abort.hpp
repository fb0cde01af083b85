// SPDX-License-Identifier: Apache-2.0
/// The end of a rank's communicators by force, from threads that nobody waits for longer than a time.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include <nccl.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

/// Aborts a communicator, the one of sums, which may be null, and what NCCL makes of an unfinished split of the first;
/// false if that takes longer than `most`: what they may use is to be left alone then.
[[nodiscard]] inline bool aborted(ncclComm_t gathers, ncclComm_t sums, std::shared_ptr<ncclComm_t> splitting,
                                  std::chrono::milliseconds most) {
  struct progress {
    std::mutex mutex;
    std::condition_variable changed;
    int left = 2;
  };
  auto const state = std::make_shared<progress>();
  auto const end = [&](auto const& aborts) {
    std::thread{[state, aborts] {
      aborts();
      std::lock_guard const lock{state->mutex};
      --state->left;
      state->changed.notify_all();
    }}.detach();
  };
  // Side by side: what one of them waits for on a stream may be a call of the other.
  end([gathers, splitting] {
    static_cast<void>(ncclCommAbort(gathers));
    // NCCL writes what it made of the split until this abort is through.
    if (splitting != nullptr && *splitting != nullptr) static_cast<void>(ncclCommAbort(*splitting));
  });
  end([sums] {
    if (sums != nullptr) static_cast<void>(ncclCommAbort(sums));
  });
  std::unique_lock lock{state->mutex};
  return state->changed.wait_for(lock, most, [&] { return state->left == 0; });
}

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
