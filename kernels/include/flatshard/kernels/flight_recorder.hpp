// SPDX-License-Identifier: Apache-2.0
/// What a rank did last: the record that a deadline or a mismatch prints.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// The name of a unit in records and comparisons; of a longer one the end is kept, which tells layers apart.
class unit_label {
 public:
  unit_label() = default;
  explicit unit_label(std::string_view name);
  [[nodiscard]] std::string_view text() const { return {text_.data(), size_}; }
  friend bool operator==(unit_label const&, unit_label const&) = default;

 private:
  std::array<char, 55> text_{};
  std::uint8_t size_ = 0;
};

/// One entry of the flight recorder.
struct call_record {
  enum class state : std::uint8_t { waiting, working, done, failed };
  std::uint64_t sequence{};    ///< number of the call on this rank, from 1
  std::string_view operation;  ///< `all_gather`, ...
  elements count{};            ///< a rank
  dtype out = dtype::none, in = dtype::none;
  state progress = state::waiting;
  unit_label unit;                 ///< what `label` named; empty outside units
  std::optional<sum_order> order;  ///< of a reduce_scatter
};

/// The last 64 calls of one rank. Used by the rank's own thread; allocates only for its answers.
class flight_recorder {
 public:
  static constexpr std::size_t kept = 64;

  /// A new call, which waits for its peers.
  void begin(std::string_view operation, elements count, dtype out, dtype in, std::optional<sum_order> order = {});
  /// How far the last call is.
  void progress(call_record::state) noexcept;
  /// Everything that was enqueued is done.
  void settle() noexcept;
  /// What the calls from now on work on.
  void label(std::string_view unit) { unit_ = unit_label{unit}; }
  [[nodiscard]] unit_label const& unit() const { return unit_; }
  [[nodiscard]] std::uint64_t made() const { return made_; }

  /// Oldest first.
  [[nodiscard]] std::vector<call_record> calls() const;
  /// `all_gather (call 7)`, for sentences.
  [[nodiscard]] std::string current() const;
  /// The calls as text, one a line, begun by a line that names the rank.
  [[nodiscard]] std::string history(rank_id) const;

 private:
  std::uint64_t made_ = 0;
  std::array<call_record, kept> recent_{};
  unit_label unit_;
};

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
