// SPDX-License-Identifier: Apache-2.0
/// What a layout keeps of its parameters: their names, shapes, types, traits and places, in few bytes a tensor.
#pragma once

#include <flatshard/numbered_unit.hpp>
#include <flatshard/policy.hpp>

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

/// What a layout keeps of its parameters: all of it when their number is part of the type, else 20 bytes a tensor and
/// each different kind once.
template <std::size_t T>
struct fixed_table {
  using order_type = std::array<std::uint32_t, T>;
  static constexpr bool indexed = false;  ///< few tensors: a search over all of them is short
  std::array<parameter, T> parameters;
  std::array<placement, T> places{};
  constexpr explicit fixed_table(std::array<parameter, T> const& of_unit) : parameters{of_unit} {}
  [[nodiscard]] static constexpr numbered_unit numbered(std::span<parameter const> of_unit) { return {of_unit}; }
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
  kind_table kinds;
  std::vector<placement> places;
  std::size_t count;  ///< that of the vectors, which would take a multiplication to tell it
  constexpr explicit listed_table(std::span<parameter const> of_unit) : count{of_unit.size()} {
    names.reserve(of_unit.size());
    kinds = {of_unit, [&](parameter const& p) { names.push_back(p.name); }};
    places.resize(of_unit.size(), placement{});
  }
  [[nodiscard]] constexpr numbered_unit numbered(std::span<parameter const> of_unit) const { return {of_unit, kinds}; }
  [[nodiscard]] constexpr std::size_t size() const { return count; }
  [[nodiscard]] constexpr std::string_view name(std::size_t t) const { return names[t]; }
  [[nodiscard]] constexpr std::span<std::size_t const> sizes(std::size_t t) const { return kinds.sizes(kinds.of(t)); }
  [[nodiscard]] constexpr std::size_t numel(std::size_t t) const { return kinds.numel(kinds.of(t)); }
  [[nodiscard]] constexpr dtype type(std::size_t t) const { return kinds.type(kinds.of(t)); }
  [[nodiscard]] constexpr packed_traits traits(std::size_t t) const { return kinds.traits(kinds.of(t)); }
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
