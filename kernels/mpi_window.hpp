// SPDX-License-Identifier: Apache-2.0
/// What the ranks of a node see of each other: the head of each one's part of the window.
#pragma once

#include "call_notice.hpp"

#include <flatshard/quantity.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

/// Why a rank failed, in a form that travels.
struct failure_note {
  static constexpr std::size_t most_ranks = 16;
  std::array<std::int32_t, most_ranks> lost{};
  std::uint32_t lost_count = 0;
  std::uint64_t asking = 0;  // not 0: no failure, rank `from` waits in that meeting
  std::uint64_t from = 0;
  std::array<char, 416> text{};

  failure_note() = default;
  failure_note(std::vector<rank_id> const& who, std::string const& why) {
    for (auto const r : who)
      if (lost_count < most_ranks) lost[lost_count++] = static_cast<std::int32_t>(r);
    why.copy(text.data(), text.size() - 1);
  }
  [[nodiscard]] std::vector<rank_id> ranks() const {
    std::vector<rank_id> who;
    for (std::size_t i = 0; i < lost_count && i < most_ranks; ++i) who.push_back(static_cast<rank_id>(lost[i]));
    return who;
  }
};

/// What a rank shows the others of its node, ahead of its two halves of data.
struct alignas(64) window_head {
  std::atomic<std::uint64_t> step{0};  // how many meetings this rank has come to
  alignas(64) std::atomic<std::uint32_t> failed{0};
  std::atomic<std::uint64_t> asking{0};  // the last meeting in which it lost patience
  failure_note note;
  std::array<call_notice, 2> notices;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
