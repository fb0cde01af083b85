// SPDX-License-Identifier: Apache-2.0
/// What one training step of a plan does on every rank, step by step with sizes. Nothing executes it.
#pragma once

#include <flatshard/plan.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

enum class step_kind : std::uint8_t {
  read,            ///< from nvme to the host
  upload,          ///< from the host to the device
  gather,          ///< all-gather of weights
  forward,         ///< of one unit
  release,         ///< of its gathered weights, or of all but a part
  recompute,       ///< forward once more
  backward,        ///< of one unit; its full gradients live from here to their reduction
  reduce_scatter,  ///< of full gradients to shards
  all_reduce,      ///< of gradients: over replicas, or instead of a reduce-scatter
  download,        ///< from the device to the host
  norm,            ///< all-reduce of one number over a copy of the model
  update,          ///< the optimizer, of one unit
  write            ///< from the host to nvme
};
[[nodiscard]] constexpr std::string_view name(step_kind k) {
  constexpr std::array<std::string_view, 13> names{"read",      "upload",   "gather",         "forward",    "release",
                                                   "recompute", "backward", "reduce_scatter", "all_reduce", "download",
                                                   "norm",      "update",   "write"};
  return names[static_cast<std::size_t>(k)];
}
[[nodiscard]] constexpr bool is_collective(step_kind k) {
  return k == step_kind::gather || k == step_kind::reduce_scatter || k == step_kind::all_reduce || k == step_kind::norm;
}

/// What lives beside the resident bytes while a step runs, on the device of every rank.
struct live_bytes {
  bytes gathered, gradients, staging;
  [[nodiscard]] constexpr bytes sum() const { return gathered + gradients + staging; }
  friend constexpr bool operator==(live_bytes const&, live_bytes const&) = default;
};

struct plan_step {
  step_kind kind{};
  std::size_t micro_batch{}, unit{};
  bytes size;                         ///< collectives: the full buffer of one on a rank; transfers: what moves; else 0
  elements count;                     ///< collectives: elements of that buffer
  std::size_t calls = 1;              ///< equal collectives that follow each other: the full buckets of a reduction
  std::size_t ranks = 1, stride = 1;  ///< who takes part: that many, so far apart
  live_bytes live;
};

/// Calls `f(plan_step)` for every step of one training step, in order: each micro-batch forward through all units and
/// back, then the optimizer. A unit's weights are gathered before use and released after it, its gradients reduced
/// before that release, as with `sharded_unit`. Lazy: beside two bytes a buffer nothing is stored.
/// Complexity: O(micro-batches * buffers), constexpr. Source: docs/design.md, plan and estimate.
template <class F>
constexpr void for_each_step(training_plan const& plan, F f);

/// The same shortened: all micro-batches but the first and the last are alike, so one of them stands for all. Calls
/// `f(plan_step, times)`. Complexity: O(buffers), constexpr.
template <class F>
constexpr void for_each_distinct_step(training_plan const& plan, F f);

// ---- definitions

namespace detail {

/// One walk over the steps of a plan: which gathered weights and full gradients live, and what each step adds.
template <class F>
class plan_walk {
 public:
  constexpr plan_walk(training_plan const& plan, F& f, bool shortened)
      : plan_{&plan},
        f_{&f},
        shortened_{shortened},
        state_(plan.buffers().size(), state::shard),
        gradients_(plan.size(), 0) {
    for (auto const& b : plan.buffers())
      if (plan.settings().secondary && gathers(b))
        live_.gathered += plan.block({b.gathered.value / part_of(b)}, b.types.compute);
  }
  constexpr void run() {
    auto const& s = plan_->settings();
    for (micro_batch_ = 0; micro_batch_ < s.micro_batches; ++micro_batch_) {
      auto const last = micro_batch_ + 1 == s.micro_batches;
      forward();
      backward(last);
      if (shortened_ && micro_batch_ == 1 && !last) micro_batch_ = s.micro_batches - 2;  // those between are alike
    }
    micro_batch_ = s.micro_batches - 1;
    emit(step_kind::norm, 0, {8}, plan_->ranks().size(1), 1, {1});  // replicas hold the same gradients
    for (std::size_t u = 0; u < plan_->size(); ++u) update(u);
  }

 private:
  enum class state : std::uint8_t { shard, part, whole };
  [[nodiscard]] constexpr bool cut() const { return plan_->settings().cut == cut_states::parameters; }
  [[nodiscard]] constexpr bool gathers(plan_buffer const& b) const { return cut() && !b.traits.ignored; }
  [[nodiscard]] static constexpr bool trained(plan_buffer const& b) { return !b.traits.frozen && !b.traits.ignored; }
  [[nodiscard]] constexpr std::size_t part_of(plan_buffer const& b) const {
    auto const k = plan_->keep(b.unit).ranks;
    return k == 0 || b.ranks % k != 0 ? b.ranks : k;
  }
  template <class G>
  constexpr void each(std::size_t u, G g) {
    auto const mine = plan_->buffers(u);
    auto const first = static_cast<std::size_t>(mine.data() - plan_->buffers().data());
    for (std::size_t i = 0; i < mine.size(); ++i) g(mine[i], state_[first + i]);
  }
  constexpr void emit(step_kind kind, std::size_t u, bytes size, std::size_t ranks, std::size_t stride,
                      elements count = {}, bytes staging = {}, std::size_t calls = 1) {
    auto live = live_;
    live.staging = staging;
    (*f_)(plan_step{kind, micro_batch_, u, size, count, calls, ranks, stride, live});
  }
  constexpr void emit(step_kind kind, std::size_t u, bytes size = {}) { emit(kind, u, size, 1, 1); }
  constexpr void collective(step_kind kind, plan_buffer const& b, dtype type, std::size_t ranks, std::size_t stride,
                            bytes staging = {}) {
    auto const n = b.gathered;
    emit(kind, b.unit, size_of(n, type), ranks, stride, n, staging);
  }
  // Where parameters are whole: the full buckets, then the rest.
  constexpr void reduction(step_kind kind, plan_buffer const& b, bytes staging) {
    auto const n = b.gathered;
    auto const bucket = plan_->settings().bucket;
    auto const type = b.types.reduce;
    if (cut() || bucket.value == 0 || n <= bucket) return collective(kind, b, type, b.ranks, b.stride, staging);
    emit(kind, b.unit, size_of(bucket, type), b.ranks, b.stride, bucket, staging, n.value / bucket.value);
    elements const rest{n.value % bucket.value};
    if (rest.value != 0) emit(kind, b.unit, size_of(rest, type), b.ranks, b.stride, rest, staging);
  }

  constexpr void gather(std::size_t u, bool back) {
    auto const& s = plan_->settings();
    each(u, [&](plan_buffer const& b, state& now) {
      if (!gathers(b) || now == state::whole) return;
      auto const part = back && (s.secondary ? part_of(b) < b.ranks : now == state::part) ? part_of(b) : b.ranks;
      if (part == b.ranks) fetch(b);
      auto const whole = plan_->block(b.whole, b.types.compute);
      // The segments arrive in a buffer of their own where they are copied behind it.
      auto const segments = b.copied ? plan_->block(b.gathered, b.types.compute) : bytes{};
      live_.gathered += whole;
      collective(step_kind::gather, b, b.types.compute, part, b.stride, segments);
      drop_part(b, now);
      now = state::whole;
    });
  }
  constexpr void drop_part(plan_buffer const& b, state now) {
    if (now == state::part && !plan_->settings().secondary)
      live_.gathered = live_.gathered - plan_->block({b.gathered.value / part_of(b)}, b.types.compute);
  }
  // The shard on its way to the device.
  constexpr void fetch(plan_buffer const& b) {
    auto const space = plan_->settings().parameters;
    auto const size = size_of(b.segment, b.types.parameter_storage);
    if (space == memory_space::nvme) emit(step_kind::read, b.unit, size);
    if (space != memory_space::device) emit(step_kind::upload, b.unit, size);
  }
  constexpr void release(std::size_t u, std::size_t keep) {
    bool any = false;
    each(u, [&](plan_buffer const& b, state& now) {
      if (now != state::whole || b.traits.persistent || keep == 1) return;
      any = true;
      live_.gathered = live_.gathered - plan_->block(b.whole, b.types.compute);
      now = state::shard;
      if (keep > 1 && keep < b.ranks && b.ranks % keep == 0) {
        now = state::part;
        if (!plan_->settings().secondary) live_.gathered += plan_->block({b.gathered.value / keep}, b.types.compute);
      }
    });
    if (any) emit(step_kind::release, u);
  }
  constexpr void forward() {
    auto const count = plan_->size();
    for (std::size_t u = 0; u < count; ++u) {
      for (auto ahead = u; ahead < count && ahead - u <= plan_->settings().prefetch; ++ahead) gather(ahead, false);
      emit(step_kind::forward, u);
      auto const keep = plan_->keep(u);
      release(u, keep.throughout ? 1 : keep.ranks);
    }
  }
  constexpr void backward(bool last) {
    auto const& s = plan_->settings();
    auto const count = plan_->size();
    for (std::size_t u = 0; u < count; ++u) {
      if (!plan_->keep(u).throughout) continue;
      gather(u, true);
      take_gradients(u);
    }
    for (auto u = count; u-- > 0;) {
      for (std::size_t back = 0; back <= s.prefetch && back <= u; ++back) gather(u - back, true);
      if (s.recompute) emit(step_kind::recompute, u);
      take_gradients(u);
      emit(step_kind::backward, u);
      reduce(u, last);
      release(u, 0);
    }
  }
  // In the wire's type, whole; where the whole gradients are held on the device they take nothing more.
  [[nodiscard]] constexpr bytes full_gradients(plan_buffer const& b) const {
    auto const& s = plan_->settings();
    if (!trained(b) || s.cut < cut_states::gradients) return {};
    auto const n = s.bucket.value != 0 && !cut() ? std::min(b.whole, s.bucket) : b.whole;
    return plan_->block(n, b.types.reduce);
  }
  constexpr void take_gradients(std::size_t u) {
    if (gradients_[u] != 0) return;
    gradients_[u] = 1;
    each(u, [&](plan_buffer const& b, state) { live_.gradients += full_gradients(b); });
  }
  constexpr void reduce(std::size_t u, bool last) {
    auto const& s = plan_->settings();
    if (!last && (s.reduce_once || s.cut < cut_states::gradients)) return;
    auto const replicas = plan_->ranks().size(0);
    each(u, [&](plan_buffer const& b, state) {
      if (!trained(b)) return;
      auto const& t = b.types;
      bytes staging = b.copied && cut() ? plan_->block(b.gathered, t.reduce) : bytes{};
      if (t.grad_accum != dtype::f32 && t.grad_accum != t.reduce) staging += plan_->block(b.segment, dtype::f32);
      auto const kind =
          s.all_reduce || s.cut == cut_states::nothing ? step_kind::all_reduce : step_kind::reduce_scatter;
      reduction(kind, b, staging);
      if (replicas > 1 && (last || s.replicas_each))
        emit(step_kind::all_reduce, u, size_of(b.segment, t.reduce), replicas, plan_->ranks().size(1), b.segment);
      if (s.optimizer != memory_space::device && s.cut >= cut_states::gradients && plan_->accumulates(b))
        emit(step_kind::download, u, size_of(b.segment, t.grad_accum));
      if (auto const copy = plan_->gradient_copy(b); last && copy != dtype::none) {
        emit(step_kind::download, u, size_of(b.segment, copy));
        if (s.optimizer == memory_space::nvme) emit(step_kind::write, u, size_of(b.segment, copy));
      }
      live_.gradients = live_.gradients - full_gradients(b);
    });
    gradients_[u] = 0;
  }
  constexpr void update(std::size_t u) {
    auto const& s = plan_->settings();
    each(u, [&](plan_buffer const& b, state) {
      if (trained(b) && s.optimizer == memory_space::nvme)
        emit(step_kind::read, u, optimizer_bytes(b) + size_of(b.segment, plan_->gradient_copy(b)));
    });
    emit(step_kind::update, u);
    each(u, [&](plan_buffer const& b, state) {
      if (!trained(b)) return;
      auto const stored = size_of(b.segment, b.types.parameter_storage);
      if (s.optimizer == memory_space::nvme) emit(step_kind::write, u, optimizer_bytes(b));
      if (s.optimizer != memory_space::device && s.parameters == memory_space::device)
        emit(step_kind::upload, u, stored);
      if (s.optimizer == memory_space::device && s.parameters != memory_space::device)
        emit(step_kind::download, u, stored);
      if (s.parameters == memory_space::nvme) emit(step_kind::write, u, stored);
      if (s.cut == cut_states::optimizer || s.cut == cut_states::gradients)
        collective(step_kind::gather, b, b.types.parameter_storage, b.ranks, b.stride);
    });
  }
  [[nodiscard]] constexpr bytes optimizer_bytes(plan_buffer const& b) const {
    return size_of(b.segment, b.types.master) + size_of(b.segment, b.types.optimizer_state) * plan_->settings().states;
  }

  training_plan const* plan_;
  F* f_;
  bool shortened_;
  std::vector<state> state_;
  std::vector<std::uint8_t> gradients_;
  live_bytes live_;
  std::size_t micro_batch_ = 0;
};

}  // namespace detail

template <class F>
constexpr void for_each_step(training_plan const& plan, F f) {
  detail::plan_walk<F>{plan, f, false}.run();
}

template <class F>
constexpr void for_each_distinct_step(training_plan const& plan, F f) {
  auto const k = plan.settings().micro_batches;
  auto const weighted = [&](plan_step const& s) { f(s, s.micro_batch == 1 && k > 3 ? k - 2 : 1); };
  detail::plan_walk<decltype(weighted) const>{plan, weighted, true}.run();
}

}  // namespace v0
}  // namespace flatshard
