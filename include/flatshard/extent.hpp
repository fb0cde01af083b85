// SPDX-License-Identifier: Apache-2.0
/// World size and number of elements: known when compiled (no storage) or when run, in one type.
#pragma once

#include <flatshard/require.hpp>

#include <cstddef>
#include <span>

namespace flatshard {
inline namespace v0 {

/// A size that is part of the type, or a member when `N` is `std::dynamic_extent`.
template <class Tag, std::size_t N = std::dynamic_extent>
struct extent {
  [[nodiscard]] static constexpr std::size_t value() { return N; }
};
template <class Tag>
struct extent<Tag, std::dynamic_extent> {
  std::size_t n{};
  [[nodiscard]] constexpr std::size_t value() const { return n; }
};

/// The number of ranks in a group: `world<8>{}` or `world{8}`. Static turns into dynamic silently, never back.
template <std::size_t N = std::dynamic_extent>
struct world : extent<struct world_tag, N> {
  static_assert(N > 0, "world size must be positive");
};
template <>
struct world<std::dynamic_extent> : extent<struct world_tag> {
  constexpr explicit world(std::size_t size) : extent{size} { require(size > 0, "world size must be positive"); }
  template <std::size_t N>
  constexpr world(world<N>) : extent{N} {}  // NOLINT: the silent direction
};
world(std::size_t)->world<>;

/// The number of elements of a tensor or buffer: `numel<1001>{}` or `numel{1001}`.
template <std::size_t N = std::dynamic_extent>
struct numel : extent<struct numel_tag, N> {};
template <>
struct numel<std::dynamic_extent> : extent<struct numel_tag> {
  constexpr explicit numel(std::size_t size) : extent{size} {}
  template <std::size_t N>
  constexpr numel(numel<N>) : extent{N} {}  // NOLINT: the silent direction
};
numel(std::size_t)->numel<>;

/// Calls `f` with `world<1>`, `world<2>`, `world<4>` or `world<8>` if `n` is one of them, else with `world{n}`:
/// the one place where a run-time world size becomes a type. `f` returns one type.
template <class F>
constexpr decltype(auto) with_static_world(std::size_t n, F&& f) {
  switch (n) {
    case 1: return f(world<1>{});
    case 2: return f(world<2>{});
    case 4: return f(world<4>{});
    case 8: return f(world<8>{});
    default: return f(world{n});
  }
}

}  // namespace v0
}  // namespace flatshard
