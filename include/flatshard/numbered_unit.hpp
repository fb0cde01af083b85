// SPDX-License-Identifier: Apache-2.0
/// The parameters of a unit, of which equal ones have one number: a model has many tensors and few kinds of them.
#pragma once

#include <flatshard/interner.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The kinds of a list of parameters (shape, type and traits), numbered as they appear; each is kept once: [rank, type,
/// traits, elements, dimensions...] runs in one pool. Memory: 4 bytes a parameter, about 50 a kind; up to 120 a kind
/// more while it is made.
class kind_table {
 public:
  constexpr kind_table() = default;
  /// `visit` is called with each parameter, in order: one walk over many serves both. Complexity: O(T), expected.
  template <class Visit>
  constexpr kind_table(std::span<parameter const> of_unit, Visit visit) {
    require(of_unit.size() < detail::interner::none, "a layout holds fewer than 2^32 - 1 tensors");
    of_.resize(of_unit.size());
    detail::interner numbers;
    std::vector<std::size_t> seen;  // where each kind stood last
    std::size_t period = 1;         // models repeat their layers: a tensor is likely of the kind of that one before it
    for (std::size_t t = 0; t < of_unit.size(); ++t) {
      auto const& p = of_unit[t];
      if (t >= period && equal(of_[t - period], p)) {
        of_[t] = of_[t - period];
      } else {
        of_[t] = numbers.intern(
            detail::hash_of(p.dims.sizes()), [&](std::uint32_t k) { return equal(k, p); }, [&] { return add(p); });
        if (of_[t] == seen.size()) {
          seen.push_back(t);
        } else {
          period = t - seen[of_[t]];
        }
      }
      seen[of_[t]] = t;
      visit(p);
    }
    starts_.shrink_to_fit();
    pool_.shrink_to_fit();
  }
  /// Number of kinds.
  [[nodiscard]] constexpr std::size_t size() const { return starts_.size(); }
  /// The kind of parameter `t`.
  [[nodiscard]] constexpr std::uint32_t of(std::size_t t) const { return of_[t]; }
  /// Of each parameter.
  [[nodiscard]] constexpr std::span<std::uint32_t const> of() const { return of_; }
  /// Of a kind.
  [[nodiscard]] constexpr std::size_t numel(std::size_t kind) const { return pool_[starts_[kind] + 3]; }
  [[nodiscard]] constexpr std::span<std::size_t const> sizes(std::size_t kind) const {
    return {pool_.data() + starts_[kind] + before_sizes, pool_[starts_[kind]]};
  }
  [[nodiscard]] constexpr dtype type(std::size_t kind) const { return static_cast<dtype>(pool_[starts_[kind] + 1]); }
  [[nodiscard]] constexpr packed_traits traits(std::size_t kind) const {
    packed_traits held;
    held.number = pool_[starts_[kind] + 2];
    return held;
  }

 private:
  static constexpr std::size_t before_sizes = 4;
  constexpr std::uint32_t add(parameter const& p) {
    require(pool_.size() < std::numeric_limits<std::uint32_t>::max(),
            "a layout holds fewer than 2^32 different dimensions");
    starts_.push_back(static_cast<std::uint32_t>(pool_.size()));
    pool_.push_back(p.dims.rank);
    pool_.push_back(static_cast<std::size_t>(p.type));
    pool_.push_back(p.traits.number);
    pool_.push_back(p.dims.numel());
    for (auto const d : p.dims.sizes()) pool_.push_back(d);
    return static_cast<std::uint32_t>(starts_.size() - 1);
  }
  [[nodiscard]] constexpr bool equal(std::uint32_t kind, parameter const& p) const {
    auto const* held = pool_.data() + starts_[kind];
    if (held[0] != p.dims.rank || held[1] != static_cast<std::size_t>(p.type) || held[2] != p.traits.number)
      return false;
    for (std::size_t i = 0; i < p.dims.rank; ++i)  // few: a call of memcmp would cost more
      if (held[before_sizes + i] != p.dims.dims[i]) return false;
    return true;
  }
  std::vector<std::uint32_t> of_, starts_;
  std::vector<std::size_t> pool_;
};

namespace detail {
/// The numbers of all parameters, the least `key(kind)` first, of equal keys in order. Complexity: O(T + K log K) for K
/// kinds.
template <class Key>
[[nodiscard]] constexpr std::vector<std::uint32_t> order_by_kind(kind_table const& kinds, Key key) {
  std::vector<std::pair<decltype(key(std::size_t{0})), std::size_t>> sorted;
  sorted.reserve(kinds.size());
  for (std::size_t k = 0; k < kinds.size(); ++k) sorted.emplace_back(key(k), k);
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::uint32_t> group(kinds.size(), 0), next;  // kinds of one key; where each group begins
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    if (i == 0 || sorted[i - 1].first != sorted[i].first) next.push_back(0);
    group[sorted[i].second] = static_cast<std::uint32_t>(next.size() - 1);
  }
  for (auto const kind : kinds.of()) ++next[group[kind]];
  std::uint32_t end = 0;
  for (auto& n : next) end += std::exchange(n, end);
  std::vector<std::uint32_t> order(kinds.of().size(), 0);
  for (std::size_t t = 0; t < order.size(); ++t) order[next[group[kinds.of(t)]]++] = static_cast<std::uint32_t>(t);
  return order;
}

}  // namespace detail

/// The parameters of a unit as `place` and `for_unit` of a policy get them from a layout: a span of them, and what
/// that has found out about them. A policy may take the span alone. Whoever calls a policy with a span passes the same
/// without the numbers.
class numbered_unit : public std::span<parameter const> {
 public:
  using span::span;
  constexpr numbered_unit(std::span<parameter const> all) : span{all} {}
  constexpr numbered_unit(std::span<parameter const> all, kind_table const& kinds) : span{all}, kinds_{&kinds} {}
  /// Elements of parameter `t`: O(1), without a look at the parameter where kinds are known.
  [[nodiscard]] constexpr std::size_t numel(std::size_t t) const {
    return kinds_ != nullptr ? kinds_->numel(kinds_->of(t)) : (*this)[t].dims.numel();
  }
  /// The kinds of the parameters, or nothing if nobody has numbered them.
  [[nodiscard]] constexpr kind_table const* kinds() const { return kinds_; }

 private:
  kind_table const* kinds_{};
};

/// The kinds of a unit, numbered here unless they are known: for a policy that goes by kinds. Valid as long as the unit
/// that it is made of.
class known_kinds {
 public:
  constexpr explicit known_kinds(numbered_unit of_unit) {
    if (of_unit.kinds() != nullptr) {
      known_ = of_unit.kinds();
    } else {
      own_ = {of_unit, [](parameter const&) {}};
    }
  }
  [[nodiscard]] constexpr kind_table const& operator*() const { return known_ != nullptr ? *known_ : own_; }

 private:
  kind_table own_;
  kind_table const* known_{};
};

}  // namespace v0
}  // namespace flatshard
