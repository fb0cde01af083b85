// SPDX-License-Identifier: Apache-2.0
/// A model as units, cut and trained in one way: buffers, and the bytes that every rank holds all the time.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/mesh.hpp>
#include <flatshard/name_pattern.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Where bytes lie.
enum class memory_space : std::uint8_t { device, host, nvme };
inline constexpr std::array<memory_space, 3> memory_spaces{memory_space::device, memory_space::host,
                                                           memory_space::nvme};
[[nodiscard]] constexpr std::string_view name(memory_space s) {
  constexpr std::array<std::string_view, 3> names{"device", "host", "nvme"};
  return names[static_cast<std::size_t>(s)];
}

/// Which states of a model are cut over the ranks; each includes those before it. ZeRO's stages 0 to 3.
enum class cut_states : std::uint8_t { nothing, optimizer, gradients, parameters };

/// What holds for the parameters whose names fit `pattern` (name_pattern.hpp); of several rules the first that fits.
/// The text must outlive the plan.
struct plan_rule {
  std::string_view pattern;
  std::optional<precision> types{};
  parameter_traits traits{};  ///< beside those that the parameter has already
};

/// Another sharding policy for the parameters whose names fit `pattern`; an empty pattern fits none, and the policy is
/// taken where a unit says so. The text must outlive the call.
template <ShardingPolicy P>
struct sharding_rule {
  std::string_view pattern;
  P policy;
};
template <ShardingPolicy P>
sharding_rule(std::string_view, P) -> sharding_rule<P>;
template <ShardingPolicy P>
sharding_rule(char const*, P) -> sharding_rule<P>;

/// What stays on a rank of a unit's weights between its forward and its backward.
struct after_forward {
  std::size_t ranks = 0;    ///< 0: its shard; 1: everything; k: a k-th part, gathered again among k ranks. k divides W
  bool throughout = false;  ///< used from the first unit to the last (tied embeddings): live until its backward is over
  friend constexpr bool operator==(after_forward const&, after_forward const&) = default;
};

/// The parameters that are used together, in the order in which forward reaches the units.
struct plan_unit {
  std::string_view name;
  std::span<parameter const> parameters;
  std::span<parameter_traits const> traits{};  ///< one a parameter, or none at all; beside the parameter's own
  std::optional<after_forward> keep{};         ///< instead of the settings'
  std::span<precision const> types{};          ///< one a parameter, or none at all: the plan's
  /// One a parameter, or none at all: the number of the sharding rule that cuts it, from 1; 0: what patterns say.
  std::span<std::size_t const> rules{};
};

/// How a step is run. The defaults are what `sharded_unit` does when each call follows the other.
struct plan_settings {
  std::size_t micro_batches = 1;
  cut_states cut = cut_states::parameters;
  std::size_t prefetch = 0;  ///< units that are gathered ahead of the one in use
  after_forward keep{};
  bool secondary = false;      ///< the part that `keep` names is held all the time (hpZ)
  bool reduce_once = false;    ///< full gradients are kept over the micro-batches and reduced after the last
  bool replicas_each = false;  ///< replicas add their gradients after every micro-batch, else after the last
  bool all_reduce = false;     ///< gradients are all-reduced where a reduce-scatter would do
  bool recompute = false;      ///< activation checkpointing: forward once more before a unit's backward
  std::size_t states = 2;      ///< optimizer states a parameter; Adam has 2
  memory_space parameters = memory_space::device, optimizer = memory_space::device;
  elements bucket{};  ///< where parameters are whole: elements of one reduction; 0 = all of a unit
  bytes block{1};     ///< what memory is handed out in multiples of; `memory_arena::alignment` for units over an arena
};

/// Parameters of a unit that share layout, types and traits: one buffer, one collective.
struct plan_buffer {
  std::size_t unit{};
  precision types;
  parameter_traits traits;
  std::size_t ranks = 1, stride = 1;  ///< of its shard group: how many, and how far apart
  std::size_t tensors{};
  elements real;            ///< of all parameters
  elements segment;         ///< of one rank, padding included; the longest
  elements gathered;        ///< of all segments
  elements whole;           ///< of the whole tensors after a gather
  bool copied = false;      ///< the gathered segments do not hold the tensors in one piece and are copied
  std::size_t unaligned{};  ///< tensors whose place in the gathered buffer is no multiple of 16 bytes
  std::string_view policy;  ///< what the sharding policy calls itself; nothing where it is whole on every rank
  elements least_segment;   ///< the policy's lower bound of `segment`; 0 where it names none
  friend constexpr bool operator==(plan_buffer const&, plan_buffer const&) = default;
};

/// What a rank keeps all the time, by what it is for. Units: bytes.
struct rank_bytes {
  std::size_t parameters{}, gradients{}, optimizer{};
  std::size_t optimizer_gradients{};  ///< the copy of its gradients that an optimizer off the device reads
  using line = std::size_t rank_bytes::*;
  friend constexpr bool operator==(rank_bytes const&, rank_bytes const&) = default;
};

/// A model's units, cut over replicas x shards, and how they are trained: what every rank holds all the time.
///
///     training_plan plan{mesh{1, 8}, fsdp2_bf16, {.micro_batches = 4}};
///     for (auto const& layer : layers) plan.add({.name = layer.name, .parameters = layer.parameters}, native{});
///     for_each_step(plan, [](plan_step const& s) { ... });  // schedule.hpp
///
/// Memory: O(buffers + ranks); of the parameters nothing is kept, names of units must outlive the plan. All of it
/// constexpr. Source: docs/design.md, plan and estimate.
class training_plan {
 public:
  constexpr training_plan(mesh<2> ranks, precision types, plan_settings const& settings = {},
                          std::vector<plan_rule> rules = {});

  /// Adds a unit and returns its number. Complexity: O(T + W), for policies without `even_pieces` O(pieces + W).
  template <ShardingPolicy P, ShardingPolicy... Others>
  constexpr std::size_t add(plan_unit const& unit, P const& policy, sharding_rule<Others> const&... others);
  /// Adds units that are like the last one in everything but their names. Complexity: O(buffers of them + W).
  constexpr void repeat(std::span<std::string_view const> names);
  constexpr void repeat(std::string_view its_name) { repeat(std::span{&its_name, 1}); }

  [[nodiscard]] constexpr mesh<2> const& ranks() const { return mesh_; }
  [[nodiscard]] constexpr std::size_t world_size() const { return mesh_.world_size(); }
  [[nodiscard]] constexpr plan_settings const& settings() const { return settings_; }
  [[nodiscard]] constexpr std::size_t size() const { return units_.size(); }
  [[nodiscard]] constexpr std::string_view unit_name(std::size_t u) const { return unit_at(u).name; }
  [[nodiscard]] constexpr after_forward keep(std::size_t u) const { return unit_at(u).keep; }
  /// The buffers of all units; of one unit.
  [[nodiscard]] constexpr std::span<plan_buffer const> buffers() const { return buffers_; }
  [[nodiscard]] constexpr std::span<plan_buffer const> buffers(std::size_t u) const {
    return buffers().subspan(unit_at(u).first, unit_at(u).count);
  }
  /// Elements of all parameters as one rank's model has them, each once.
  [[nodiscard]] constexpr elements real() const;
  /// What each rank holds all the time, padding included; of that, elements of parameters alone. [world]
  [[nodiscard]] constexpr std::span<rank_bytes const> held() const { return held_; }
  [[nodiscard]] constexpr std::span<rank_bytes const> owned() const { return owned_; }
  /// Elements of parameters that a rank owns, but of ignored ones; all where nothing is cut. [world]
  [[nodiscard]] constexpr std::span<std::size_t const> owned_elements() const { return elements_; }
  /// The type of the copy of a buffer's gradients that lies beside an optimizer off the device: its master's, or of
  /// gradients that are whole on the device their own. `none`: it reads those that are accumulated.
  /// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:840-852, 1589-1605, stage3.py:1287-1292,
  /// 1393-1407.
  [[nodiscard]] constexpr dtype gradient_copy(plan_buffer const& b) const {
    if (settings_.optimizer == memory_space::device || b.traits.frozen || b.traits.ignored) return dtype::none;
    if (b.types.master != dtype::none) return b.types.master;
    return settings_.cut < cut_states::gradients ? b.types.grad_accum : dtype::none;
  }
  /// Whether gradients are kept from one reduction to the next: ZeRO's stage 2 reduces those of a single micro-batch
  /// into that copy. Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:1650-1667.
  [[nodiscard]] constexpr bool accumulates(plan_buffer const& b) const {
    return settings_.cut != cut_states::gradients || settings_.micro_batches > 1 || gradient_copy(b) == dtype::none;
  }
  /// A block of memory for `n` elements.
  [[nodiscard]] constexpr bytes block(elements n, dtype t) const {
    return {round_up(size_of(n, t).value, settings_.block.value)};
  }

 private:
  struct unit_row {
    std::string_view name;
    std::size_t first{}, count{};
    after_forward keep;
  };
  struct part {  // parameters that share a buffer
    precision types;
    parameter_traits traits;
    std::size_t policy = 0;
    std::vector<parameter> parameters{};
  };
  struct rank_row {
    rank_bytes held, owned;
    std::size_t elements{};
  };
  [[nodiscard]] constexpr unit_row const& unit_at(std::size_t u) const {
    require(u < units_.size(), "the plan has no unit of that number");
    return units_[u];
  }
  [[nodiscard]] constexpr part rules_for(parameter const& p, part found) const;
  // The unit's parameters by buffer; `patterns` are those of the sharding rules.
  [[nodiscard]] constexpr std::vector<part> parts_of(plan_unit const& unit,
                                                     std::span<std::string_view const> patterns) const;
  template <ShardingPolicy P>
  constexpr void add_part(part const& together, P const& policy);
  constexpr void hold(plan_buffer const& b, rank_row& row, elements segment, elements owned);
  constexpr void add_rows(std::size_t times);

  mesh<2> mesh_;
  precision types_;
  plan_settings settings_;
  std::vector<plan_rule> rules_;
  std::vector<unit_row> units_;
  std::vector<plan_buffer> buffers_;
  std::vector<rank_bytes> held_, owned_;
  std::vector<std::size_t> elements_;
  std::vector<rank_row> last_;  // what the last unit added to each rank
};

// ---- definitions

namespace detail {

/// Traits that hold if either says so; the second's ranks of different experts where it names some.
[[nodiscard]] constexpr parameter_traits both(parameter_traits a, parameter_traits const& b) {
  a.frozen |= b.frozen;
  a.tied |= b.tied;
  a.persistent |= b.persistent;
  a.ignored |= b.ignored;
  if (b.expert_ranks != 1) a.expert_ranks = b.expert_ranks;
  return a;
}

/// Elements that each rank owns. Complexity: O(T + W) with `even_pieces`, else O(pieces + W).
template <class Layout>
[[nodiscard]] constexpr std::vector<std::size_t> owned_by_rank(Layout const& l) {
  auto const w = l.world_size();
  std::vector<std::size_t> owned(w + 1, 0);  // differences from rank to rank, modulo 2^64
  auto const add = [&](std::size_t from, std::size_t to, elements n) {
    owned[from] += n.value;
    owned[to] -= n.value;
  };
  for (std::size_t t = 0; t < l.size(); ++t) {
    auto const n = l.place_at(t).numel;
    if (n == 0) continue;
    auto const first = index(l.owner(t, {0})), last = index(l.owner(t, {n - 1}));
    if (even_pieces<typename Layout::policy_type>() && last > first + 1) {
      add(first, first + 1, l.piece_of(t, rank_at(first)).size());
      add(first + 1, last, l.piece_of(t, rank_at(first + 1)).size());
      add(last, last + 1, l.piece_of(t, rank_at(last)).size());
    } else {
      for (auto r = first; r <= last; ++r) add(r, r + 1, l.piece_of(t, rank_at(r)).size());
    }
  }
  for (std::size_t r = 1; r < w; ++r) owned[r] += owned[r - 1];
  owned.pop_back();
  return owned;
}

}  // namespace detail

constexpr training_plan::training_plan(mesh<2> ranks, precision types, plan_settings const& settings,
                                       std::vector<plan_rule> rules)
    : mesh_{ranks}, types_{types}, settings_{settings}, rules_{std::move(rules)} {
  require(settings.micro_batches > 0, "a step has at least one micro-batch");
  require(settings.block.value > 0, "memory is handed out in blocks of at least one byte");
  require(settings.cut == cut_states::parameters || settings.parameters == memory_space::device,
          "parameters that are whole on every rank stay on the device");
  held_.resize(world_size(), rank_bytes{});
  owned_.resize(world_size(), rank_bytes{});
  elements_.resize(world_size(), 0);
}

constexpr training_plan::part training_plan::rules_for(parameter const& p, part found) const {
  for (auto const& rule : rules_) {
    if (!matches(rule.pattern, p.name)) continue;
    if (rule.types) found.types = *rule.types;
    found.traits = detail::both(found.traits, rule.traits);
    break;
  }
  return found;
}

constexpr std::vector<training_plan::part> training_plan::parts_of(plan_unit const& unit,
                                                                   std::span<std::string_view const> patterns) const {
  require(unit.traits.empty() || unit.traits.size() == unit.parameters.size(), "traits are one a parameter, or none");
  require(unit.types.empty() || unit.types.size() == unit.parameters.size(), "types are one a parameter, or none");
  require(unit.rules.empty() || unit.rules.size() == unit.parameters.size(), "rules are one a parameter, or none");
  std::vector<part> parts;
  for (std::size_t i = 0; i < unit.parameters.size(); ++i) {
    auto const& p = unit.parameters[i];
    auto const own = p.traits.unpacked();
    auto here = rules_for(p, {unit.types.empty() ? types_ : unit.types[i],
                              unit.traits.empty() ? own : detail::both(own, unit.traits[i])});
    if (here.traits.tied) continue;
    here.policy = unit.rules.empty() ? 0 : unit.rules[i];
    require(here.policy <= patterns.size(), "a unit names sharding rules that it is added with");
    for (std::size_t k = 0; k < patterns.size() && here.policy == 0; ++k)
      if (!patterns[k].empty() && matches(patterns[k], p.name)) here.policy = k + 1;
    auto const same = std::find_if(parts.begin(), parts.end(), [&](part const& q) {
      return q.types == here.types && q.traits == here.traits && q.policy == here.policy;
    });
    if (same == parts.end()) {
      here.parameters.push_back(p);
      parts.push_back(std::move(here));
    } else {
      same->parameters.push_back(p);
    }
  }
  return parts;
}

template <ShardingPolicy P, ShardingPolicy... Others>
constexpr std::size_t training_plan::add(plan_unit const& unit, P const& policy,
                                         sharding_rule<Others> const&... others) {
  auto const keep = unit.keep.value_or(settings_.keep);
  require(keep.ranks == 0 || mesh_.size(1) % keep.ranks == 0, "the group after forward must divide the world size");
  std::array<std::string_view, sizeof...(Others)> const patterns{others.pattern...};
  auto const parts = parts_of(unit, patterns);
  units_.push_back({unit.name, buffers_.size(), 0, keep});
  last_.assign(world_size(), rank_row{});
  for (auto const& together : parts) {
    if (together.policy == 0) add_part(together, policy);
    std::size_t number = 0;
    (static_cast<void>(++number == together.policy ? (add_part(together, others.policy), 0) : 0), ...);
  }
  units_.back().count = buffers_.size() - units_.back().first;
  add_rows(1);
  return units_.size() - 1;
}

constexpr void training_plan::repeat(std::span<std::string_view const> names) {
  require(!units_.empty(), "the plan has no unit of that number");
  auto row = units_.back();
  auto const from = row.first;
  for (auto const its_name : names) {
    row.name = its_name;
    row.first = buffers_.size();
    for (std::size_t i = 0; i < row.count; ++i) {
      auto b = buffers_[from + i];
      b.unit = units_.size();
      buffers_.push_back(b);
    }
    units_.push_back(row);
  }
  add_rows(names.size());
}

template <ShardingPolicy P>
constexpr void training_plan::add_part(part const& together, P const& policy) {
  auto const experts = together.traits.expert_ranks;
  require(experts > 0 && mesh_.size(1) % experts == 0, "the ranks of different experts must divide the shard group");
  plan_buffer b;
  b.unit = units_.size() - 1;
  b.types = together.types;
  b.traits = together.traits;
  b.tensors = together.parameters.size();
  b.stride = experts;
  b.ranks = b.traits.ignored ? 1 : mesh_.size(1) / experts;
  bool const kept_whole = b.traits.frozen && settings_.cut < cut_states::parameters;  // it has nothing else to cut
  if (b.traits.ignored || kept_whole || settings_.cut == cut_states::nothing) {
    for (auto const& p : together.parameters) b.real += elements{p.dims.numel()};
    b.segment = b.gathered = b.whole = b.real;
    for (auto& row : last_) {
      hold(b, row, b.real, b.real);
      if (!b.traits.ignored) row.elements += b.real.value;
    }
    buffers_.push_back(b);
    return;
  }
  listed_layout<P> const l{policy, std::span<parameter const>{together.parameters}, world{b.ranks}};
  b.policy = detail::policy_name<P>();
  b.real = l.real();
  b.segment = l.segment();
  b.gathered = l.gathered();
  b.whole = detail::whole_size(l);
  b.copied = !decltype(l)::contiguous_gather;
  if constexpr (requires { l.policy().lower_bound(); }) b.least_segment = l.policy().lower_bound();
  for (std::size_t t = 0; t < l.size(); ++t)
    if (l.place_at(t).numel != 0 && l.gathered(t, {0}).value * bits(b.types.compute) % 128 != 0) ++b.unaligned;
  auto const owned = detail::owned_by_rank(l);
  for (std::size_t r = 0; r < last_.size(); ++r) {
    auto const position = r / b.stride % b.ranks;
    hold(b, last_[r], l.segment(rank_at(position)), {owned[position]});
    last_[r].elements += owned[position];
  }
  buffers_.push_back(b);
}

constexpr void training_plan::hold(plan_buffer const& b, rank_row& row, elements segment, elements owned) {
  auto const& s = settings_;
  auto const& t = b.types;
  auto const add = [&](rank_bytes::line line, dtype type, bool whole, std::size_t copies) {
    auto const held = block(whole ? b.whole : segment, type).value;
    auto const real = size_of(whole ? b.real : owned, type).value;
    row.held.*line = checked_add(row.held.*line, checked_mul(held, copies));
    row.owned.*line = checked_add(row.owned.*line, checked_mul(real, copies));
  };
  auto const ignored = b.traits.ignored;
  add(&rank_bytes::parameters, t.parameter_storage, ignored || s.cut < cut_states::parameters, 1);
  if (b.traits.frozen) return;
  if (accumulates(b)) add(&rank_bytes::gradients, t.grad_accum, ignored || s.cut < cut_states::gradients, 1);
  add(&rank_bytes::optimizer_gradients, gradient_copy(b), s.cut < cut_states::optimizer, 1);
  add(&rank_bytes::optimizer, t.master, ignored || s.cut < cut_states::optimizer, 1);
  add(&rank_bytes::optimizer, t.optimizer_state, ignored || s.cut < cut_states::optimizer, s.states);
}

constexpr void training_plan::add_rows(std::size_t times) {
  auto const add = [times](std::size_t& sum, std::size_t n) { sum = checked_add(sum, checked_mul(n, times)); };
  auto const add_all = [&](rank_bytes& sum, rank_bytes const& n) {
    add(sum.parameters, n.parameters);
    add(sum.gradients, n.gradients);
    add(sum.optimizer, n.optimizer);
    add(sum.optimizer_gradients, n.optimizer_gradients);
  };
  for (std::size_t r = 0; r < last_.size(); ++r) {
    add_all(held_[r], last_[r].held);
    add_all(owned_[r], last_[r].owned);
    add(elements_[r], last_[r].elements);
  }
}

constexpr elements training_plan::real() const {
  elements n;
  for (auto const& b : buffers_) n += b.real;
  return n;
}

}  // namespace v0
}  // namespace flatshard
