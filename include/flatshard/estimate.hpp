// SPDX-License-Identifier: Apache-2.0
/// What a plan holds and moves: per rank, by memory space, over the steps of one training step.
#pragma once

#include <flatshard/schedule.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One number over all ranks: the least, the most, and the first rank that has the most.
struct byte_spread {
  bytes least, most;
  bytes total;  ///< UINT64_MAX where the sum over all ranks does not fit in 64 bits
  rank_id fullest{};
  std::size_t ranks = 1;
  bytes average{};  ///< rounded down; right also where `total` does not fit
  [[nodiscard]] constexpr bytes mean() const { return average; }
  [[nodiscard]] constexpr bool total_fits() const { return total.value != UINT64_MAX; }
  friend constexpr bool operator==(byte_spread const&, byte_spread const&) = default;
};

/// What ranks hold all the time for one purpose, and the part of it that is no padding.
struct memory_line {
  memory_space space = memory_space::device;
  byte_spread held, owned;
  /// Of all ranks; UINT64_MAX where it is not known because a total does not fit in 64 bits.
  [[nodiscard]] constexpr bytes padding() const { return held.total_fits() ? held.total - owned.total : held.total; }
};

/// What one rank sends, as the mean over all ranks (it receives as much): to ranks of its node, to others.
struct wire_bytes {
  bytes inside, between;
  [[nodiscard]] constexpr bytes sum() const { return inside + between; }
  constexpr wire_bytes& operator+=(wire_bytes const& b) {
    inside += b.inside;
    between += b.between;
    return *this;
  }
  friend constexpr bool operator==(wire_bytes const&, wire_bytes const&) = default;
};

/// Equal collectives of one step.
struct collective_line {
  step_kind kind{};
  std::size_t ranks = 1, stride = 1;
  bytes size;           ///< of the full buffer of one of them on a rank
  elements count;       ///< of that buffer
  std::size_t calls{};  ///< how many in a step
  wire_bytes wire;      ///< of all of them
};

/// Everything that `estimate_of` says of a plan.
struct step_estimate {
  memory_line parameters, gradients, optimizer;  ///< the optimizer's master copy and states
  live_bytes most;                               ///< on the device beside these: the most of each at any time
  plan_step peak;                                ///< the first step at which their sum is largest, with what lives then
  std::array<byte_spread, 3> spaces;             ///< at that step, by memory space
  std::vector<collective_line> collectives;
  wire_bytes wire;                            ///< of all collectives of a step
  bytes read, uploaded, downloaded, written;  ///< transfers of one rank between memory spaces
  elements padding;                           ///< of all segments of a copy of the model
  std::size_t empty_ranks{};                  ///< ranks that own no element
  elements least_owned, most_owned;           ///< elements of a rank
  std::size_t tensors{}, unaligned{};         ///< whose place in a gathered buffer is no multiple of 16 bytes
  bytes slot_alignment{4096};                 ///< what every segment on the wire is a multiple of, a power of two
  std::size_t copies{};                       ///< gathers whose segments are copied into whole tensors
  std::size_t small_gathers{};                ///< gathers below `latency_knee`
  memory_line optimizer_gradients;            ///< the copy that an optimizer off the device reads, beside its states
};

/// Gathers of fewer elements are ruled by latency rather than by bandwidth.
/// Source: Zhao et al., PyTorch FSDP, arXiv:2304.11277, section 3.2.1 and figure 2.
inline constexpr elements latency_knee{33'000'000};

/// The bytes that one collective sends along a ring: (g - 1) / g of the buffer, twice for an all-reduce. Between nodes
/// goes what crosses from a rank to the next one of its ring on another node. `node_size` 0: one node. Both are rounded
/// to the nearest byte.
/// Complexity: O(W). Source: nccl-tests, doc/PERFORMANCE.md; docs/design.md, plan and estimate.
[[nodiscard]] constexpr wire_bytes wire_of(plan_step const& step, std::size_t world_size, std::size_t node_size);

/// Walks the different steps of a plan once. Complexity: O(buffers + W), constexpr.
/// Source of every line: docs/design.md, plan and estimate.
[[nodiscard]] constexpr step_estimate estimate_of(training_plan const& plan, std::size_t node_size = 0);

// ---- definitions

namespace detail {

/// Ranks of the world whose next rank in a ring of `ranks` ranks, `stride` apart, is on another node.
[[nodiscard]] constexpr std::size_t crossings(std::size_t world_size, std::size_t node_size, std::size_t ranks,
                                              std::size_t stride) {
  std::size_t crossing = 0;
  for (std::size_t r = 0; r < world_size; ++r) {
    auto const next = r / stride % ranks + 1 < ranks ? r + stride : r - (ranks - 1) * stride;
    if (r / node_size != next / node_size) ++crossing;
  }
  return crossing;
}
[[nodiscard]] constexpr wire_bytes ring(plan_step const& step, std::size_t world_size, std::size_t crossing) {
  if (step.ranks < 2) return {};
  auto const g = step.ranks;
  auto const full =
      checked_mul(step.size.value, step.kind == step_kind::all_reduce || step.kind == step_kind::norm ? 2 : 1);
  // A rank sends whole + rest / g bytes, of which crossing / world_size go between nodes. Each is rounded once.
  auto const rest = full % g * (g - 1) % g;
  auto const whole = full / g * (g - 1) + full % g * (g - 1) / g;
  auto const common = std::gcd(crossing, world_size);
  auto const part = crossing / common, of = world_size / common;
  auto const sent = whole + (rest * 2 >= g ? 1 : 0);
  auto const small = checked_mul(whole % of * g + rest, part), divisor = of * g;
  auto const between = whole / of * part + small / divisor + (small % divisor * 2 >= divisor ? 1 : 0);
  return {{sent - between}, {between}};
}
template <class Of>
[[nodiscard]] constexpr byte_spread spread_of(std::size_t ranks, Of of) {
  byte_spread s{of(std::size_t{0}), of(std::size_t{0}), {}, {}, ranks};
  std::size_t rests = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    auto const n = of(r);
    s.least = std::min(s.least, n);
    if (s.most < n) {
      s.most = n;
      s.fullest = rank_at(r);
    }
    s.total.value = n.value > UINT64_MAX - s.total.value ? UINT64_MAX : s.total.value + n.value;
    s.average += bytes{n.value / ranks};
    rests += n.value % ranks;
  }
  s.average += bytes{rests / ranks};
  return s;
}
[[nodiscard]] constexpr memory_line line_of(training_plan const& plan, rank_bytes::line line, memory_space space) {
  auto const n = plan.world_size();
  return {space, spread_of(n, [&](std::size_t r) { return bytes{plan.held()[r].*line}; }),
          spread_of(n, [&](std::size_t r) { return bytes{plan.owned()[r].*line}; })};
}

/// Adds up what the steps of a plan move and finds the one at which most lives.
class step_sums {
 public:
  constexpr step_sums(training_plan const& plan, std::size_t node_size, step_estimate& out)
      : world_{plan.world_size()}, node_{node_size == 0 ? plan.world_size() : node_size}, out_{&out} {}
  constexpr void operator()(plan_step const& step, std::size_t times) {
    auto& most = out_->most;
    most.gathered = std::max(most.gathered, step.live.gathered);
    most.gradients = std::max(most.gradients, step.live.gradients);
    most.staging = std::max(most.staging, step.live.staging);
    if (first_ || out_->peak.live.sum() < step.live.sum()) out_->peak = step;
    first_ = false;
    switch (step.kind) {
      case step_kind::read: out_->read += step.size * times; break;
      case step_kind::upload: out_->uploaded += step.size * times; break;
      case step_kind::download: out_->downloaded += step.size * times; break;
      case step_kind::write: out_->written += step.size * times; break;
      default: break;
    }
    if (is_collective(step.kind)) add(step, times);
  }

 private:
  struct ring_row {
    std::size_t ranks, stride, crossing;
  };
  constexpr void add(plan_step const& step, std::size_t times) {
    if (step.ranks < 2) return;  // nothing moves
    auto& lines = out_->collectives;
    auto const same = std::find_if(lines.begin(), lines.end(), [&](collective_line const& l) {
      return l.kind == step.kind && l.ranks == step.ranks && l.stride == step.stride && l.size == step.size;
    });
    auto const once = ring(step, world_, crossing(step));
    auto const calls = step.calls * times;
    wire_bytes const wire{once.inside * calls, once.between * calls};
    out_->wire += wire;
    if (step.kind == step_kind::gather) {
      if (step.live.staging.value != 0) out_->copies += calls;
      if (step.count < latency_knee) out_->small_gathers += calls;
    }
    if (same == lines.end()) {
      lines.push_back({step.kind, step.ranks, step.stride, step.size, step.count, calls, wire});
    } else {
      same->calls += calls;
      same->wire += wire;
    }
  }
  constexpr std::size_t crossing(plan_step const& step) {
    for (auto const& known : rings_)
      if (known.ranks == step.ranks && known.stride == step.stride) return known.crossing;
    rings_.push_back({step.ranks, step.stride, crossings(world_, node_, step.ranks, step.stride)});
    return rings_.back().crossing;
  }
  std::size_t world_, node_;
  step_estimate* out_;
  bool first_ = true;
  std::vector<ring_row> rings_;
};

}  // namespace detail

constexpr wire_bytes wire_of(plan_step const& step, std::size_t world_size, std::size_t node_size) {
  require(step.ranks > 0 && step.stride > 0 && world_size % (step.ranks * step.stride) == 0,
          "the group of a collective must divide the world size");
  auto const node = node_size == 0 ? world_size : node_size;
  return detail::ring(step, world_size, detail::crossings(world_size, node, step.ranks, step.stride));
}

constexpr step_estimate estimate_of(training_plan const& plan, std::size_t node_size) {
  step_estimate out;
  auto const& s = plan.settings();
  bool const on_device =
      s.optimizer == memory_space::device || s.cut < cut_states::gradients;  // whole ones never leave
  auto const kept = on_device ? memory_space::device : memory_space::host;
  out.parameters = detail::line_of(plan, &rank_bytes::parameters, s.parameters);
  out.gradients = detail::line_of(plan, &rank_bytes::gradients, kept);
  out.optimizer = detail::line_of(plan, &rank_bytes::optimizer, s.optimizer);
  out.optimizer_gradients = detail::line_of(plan, &rank_bytes::optimizer_gradients, s.optimizer);
  detail::step_sums sums{plan, node_size, out};
  for_each_distinct_step(plan, [&](plan_step const& step, std::size_t times) { sums(step, times); });
  for (auto const space : memory_spaces)
    out.spaces[static_cast<std::size_t>(space)] = detail::spread_of(plan.world_size(), [&](std::size_t r) {
      auto const& held = plan.held()[r];
      bytes n = space == memory_space::device ? out.peak.live.sum() : bytes{};
      if (out.parameters.space == space) n += bytes{held.parameters};
      if (out.gradients.space == space) n += bytes{held.gradients};
      if (out.optimizer.space == space) n += bytes{held.optimizer} + bytes{held.optimizer_gradients};
      return n;
    });
  for (auto const& b : plan.buffers()) {
    out.tensors += b.tensors;
    if (b.policy.empty()) continue;                                // not cut
    out.padding += (b.gathered - b.real) * b.traits.expert_ranks;  // as many groups, each with experts of its own
    out.unaligned += b.unaligned;
    if (b.segment.value == 0) continue;
    out.slot_alignment = std::min(out.slot_alignment, alignment_of(b.segment, b.types.compute));
    if (!b.traits.frozen) out.slot_alignment = std::min(out.slot_alignment, alignment_of(b.segment, b.types.reduce));
  }
  auto const owned = plan.owned_elements();
  out.least_owned = {*std::min_element(owned.begin(), owned.end())};
  out.most_owned = {*std::max_element(owned.begin(), owned.end())};
  for (auto const n : owned)
    if (n == 0) ++out.empty_ranks;
  return out;
}

}  // namespace v0
}  // namespace flatshard
