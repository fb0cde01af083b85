// SPDX-License-Identifier: Apache-2.0
/// What a layout keeps of its parameters: their names, shapes, types, traits and places, in few bytes a tensor.
#pragma once

#include <flatshard/fnv.hpp>
#include <flatshard/interner.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// The kinds of a list of parameters (shape, type and traits), each different one kept once: [rank, type, traits,
/// elements, dimensions...] runs in one pool.
class kind_pool {
 public:
  constexpr std::uint32_t intern(parameter const& p) {
    if (last_ != interner::none && equal(last_, p)) return last_;
    return last_ = numbers_.intern(
               hash_of(p.dims.sizes()), [&](std::uint32_t at) { return equal(at, p); },
               [&](std::uint32_t at) { return hash_of(sizes(at)); }, [&] { return add(p); });
  }
  /// Frees what only `intern` needs.
  constexpr void close() {
    numbers_ = {};
    pool_.shrink_to_fit();
  }
  [[nodiscard]] constexpr std::span<std::size_t const> sizes(std::uint32_t at) const {
    return {pool_.data() + at + before_sizes, pool_[at]};
  }
  [[nodiscard]] constexpr dtype type(std::uint32_t at) const { return static_cast<dtype>(pool_[at + 1]); }
  [[nodiscard]] constexpr packed_traits traits(std::uint32_t at) const {
    packed_traits held;
    held.number = pool_[at + 2];
    return held;
  }
  [[nodiscard]] constexpr std::size_t numel(std::uint32_t at) const { return pool_[at + 3]; }

 private:
  static constexpr std::size_t before_sizes = 4;
  constexpr std::uint32_t add(parameter const& p) {
    require(pool_.size() < interner::none - shape::max_rank - before_sizes,
            "a layout holds fewer than 2^32 different dimensions");
    auto const at = static_cast<std::uint32_t>(pool_.size());
    pool_.push_back(p.dims.rank);
    pool_.push_back(static_cast<std::size_t>(p.type));
    pool_.push_back(p.traits.number);
    pool_.push_back(p.dims.numel());
    for (auto const d : p.dims.sizes()) pool_.push_back(d);
    return at;
  }
  [[nodiscard]] constexpr bool equal(std::uint32_t at, parameter const& p) const {
    auto const* held = pool_.data() + at;
    if (held[0] != p.dims.rank || held[1] != static_cast<std::size_t>(p.type) || held[2] != p.traits.number)
      return false;
    for (std::size_t i = 0; i < p.dims.rank; ++i)  // few: a call of memcmp would cost more
      if (held[before_sizes + i] != p.dims.dims[i]) return false;
    return true;
  }
  std::vector<std::size_t> pool_;
  interner numbers_;
  std::uint32_t last_ = interner::none;
};

/// What a layout keeps of its parameters: all of it when their number is part of the type, else 20 bytes a tensor and
/// each different kind once.
template <std::size_t T>
struct fixed_table {
  using order_type = std::array<std::uint32_t, T>;
  static constexpr bool indexed = false;  ///< few tensors: a search over all of them is short
  std::array<parameter, T> parameters;
  std::array<placement, T> places{};
  constexpr explicit fixed_table(std::array<parameter, T> const& of_unit) : parameters{of_unit} {}
  [[nodiscard]] static constexpr std::size_t size() { return T; }
  [[nodiscard]] constexpr std::string_view name(std::size_t t) const { return parameters[t].name; }
  [[nodiscard]] constexpr std::span<std::size_t const> sizes(std::size_t t) const { return parameters[t].dims.sizes(); }
  [[nodiscard]] constexpr std::size_t numel(std::size_t t) const { return parameters[t].dims.numel(); }
  [[nodiscard]] constexpr dtype type(std::size_t t) const { return parameters[t].type; }
  [[nodiscard]] constexpr packed_traits traits(std::size_t t) const { return parameters[t].traits; }
};
struct listed_table {
  using order_type = std::vector<std::uint32_t>;
  static constexpr bool indexed = true;
  std::vector<std::string_view> names;
  std::vector<std::uint32_t> kinds;
  kind_pool pool;
  std::vector<placement> places;
  std::size_t count;  ///< that of the vectors, which would take a multiplication to tell it
  constexpr explicit listed_table(std::span<parameter const> of_unit) : count{of_unit.size()} {
    names.reserve(of_unit.size());
    kinds.reserve(of_unit.size());
    for (auto const& p : of_unit) {
      names.push_back(p.name);
      kinds.push_back(pool.intern(p));
    }
    pool.close();
    places.resize(of_unit.size(), placement{});
  }
  [[nodiscard]] constexpr std::size_t size() const { return count; }
  [[nodiscard]] constexpr std::string_view name(std::size_t t) const { return names[t]; }
  [[nodiscard]] constexpr std::span<std::size_t const> sizes(std::size_t t) const { return pool.sizes(kinds[t]); }
  [[nodiscard]] constexpr std::size_t numel(std::size_t t) const { return pool.numel(kinds[t]); }
  [[nodiscard]] constexpr dtype type(std::size_t t) const { return pool.type(kinds[t]); }
  [[nodiscard]] constexpr packed_traits traits(std::size_t t) const { return pool.traits(kinds[t]); }
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
