// SPDX-License-Identifier: Apache-2.0
/// What a rank says of a call before it works on it, and how ranks compare.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/kernels/flight_recorder.hpp>
#include <flatshard/quantity.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {

enum class collective : std::uint8_t {
  all_gather,
  reduce_scatter,
  broadcast,
  all_to_all_v,
  all_reduce,
  barrier,
  agree
};
[[nodiscard]] std::string_view name(collective);

/// The call of one rank. Plain bytes, so that it may travel.
struct call_notice {
  collective operation{};
  dtype out = dtype::none, in = dtype::none;
  std::size_t count{};  ///< a rank; what an exchange sends and takes is compared apart
  reduce_options options{};
  reduction how{};
  std::int32_t root = -1;
  unit_label unit{};
  std::size_t sent = 0;  ///< what this rank sends in an exchange; for its records only
};
static_assert(std::is_trivially_copyable_v<call_notice>);
/// In which order the call adds, if it does.
[[nodiscard]] std::optional<sum_order> order_of(call_notice const&);

struct disagreement {
  std::string field, a, b;
};
/// In the order in which ranks are told of them.
[[nodiscard]] std::optional<disagreement> first_difference(call_notice const& a, call_notice const& b);
/// Holds the notices of all ranks against that of rank 0; `notice(r)` gives one. `context()` ends the error's text.
/// Throws `mismatch`, with the same field, ranks and values on every rank.
template <class Notice, class Context>
void compare_notices(std::size_t ranks, Notice const& notice, Context const& context) {
  for (std::size_t r = 1; r < ranks; ++r)
    if (auto const d = first_difference(notice(0), notice(r)))
      flatshard::detail::raise(mismatch{d->field, {rank_at(0), rank_at(r)}, {d->a, d->b}, context()});
}
/// What an exchange says whose sides do not agree.
[[nodiscard]] mismatch unequal_counts(std::size_t from, std::size_t to, std::size_t sent, std::size_t taken,
                                      std::string const& context);

/// `rank 2`, `ranks 1, 4`.
[[nodiscard]] std::string list(std::vector<rank_id> const& ranks);
/// `300 ms`, `60 s`.
[[nodiscard]] std::string spelled(deadline limit);

using steady_time = std::chrono::steady_clock::time_point;
/// When a wait that begins now ends.
[[nodiscard]] steady_time end_of(deadline limit);

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
