// SPDX-License-Identifier: Apache-2.0
/// What a sharding policy may say beyond the three functions of `ShardingPolicy`:
///
///   `name`               what it is called in hashes and messages
///   `order`              a `piece_order`
///   `contiguous_gather`  true if the gathered buffer holds each tensor in one piece
///   `owner(t, w, i)`     the rank of element i as a `std::size_t`, O(1) or so; without it a search over the ranks
///   `position(S, w, r, j)`
///                        where element j of rank r's segment (S: the longest one) lies, counted as
///                        `placement::start`: it belongs to the last tensor that starts there or before, or to none;
///                        with it a listed layout keeps an index of the starts; asked for j = 0 of empty segments, too
///   `even_pieces`        true if all ranks between the first and the last that hold a part of a tensor hold equally
///                        much
///   `segment(placed, w, r)`, `before(placed, w, r)`
///                        rank r's segment and the sum of those before it, where they differ by rank; `placed` is what
///                        `place` returned
///   `padding_value()`    what fills the rest: a value, or nothing if undefined; zero without it
///   `for_unit(unit, w)`  itself with the tables that it needs for this unit
///   `hash(h)`            h continued over what its placements do not show
///   `cuts_scalars`       false if `place` refuses tensors without a dimension
///   `may_cut(parameter, i)`  whether a rank may begin at element i, 0 < i < numel; `alignment()`: what every piece
///                        begins at a multiple of, in its tensor and in the segment. Both for the laws (laws.hpp)
///
/// t is a `placement const&`; i, j, S and `placed` are `elements`, as are lengths, places and `alignment()`; w, r and h
/// are numbers; members are const. One of these names that cannot be called so stops the build (`CallableMembers`), but
/// of a `final` class.
#pragma once

#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

namespace flatshard {
inline namespace v0 {

/// In which order a rank's pieces lie in its segment; a policy that says nothing is `by_tensor`.
enum class piece_order : std::uint8_t {
  by_tensor,  ///< `local(t, w, r)` never decreases in t
  by_start,   ///< it never decreases in `placement::start`: the layout keeps a permutation, 4 bytes a tensor
  any         ///< neither: `at` and `pieces` walk over all tensors
};

namespace detail {

struct no_order {};
struct no_index {
  friend constexpr bool operator==(no_index, no_index) = default;
};

template <class P>
constexpr piece_order order_of() {
  if constexpr (requires { P::order; }) {
    return P::order;
  } else {
    return piece_order::by_tensor;
  }
}
/// Policies whose gathered buffer holds every tensor in one piece say `static constexpr bool contiguous_gather = true`.
template <class P>
constexpr bool contiguous_gather() {
  if constexpr (requires { P::contiguous_gather; }) {
    return P::contiguous_gather;
  } else {
    return false;
  }
}
template <class P>
constexpr bool even_pieces() {
  if constexpr (requires { P::even_pieces; }) {
    return P::even_pieces;
  } else {
    return false;
  }
}
template <class P>
constexpr std::string_view policy_name() {
  if constexpr (requires { P::name; }) {
    return P::name;
  } else {
    return "custom";
  }
}
template <class P>
concept has_segments = requires(P const& p, elements placed, std::size_t w, std::size_t r) {
  { p.segment(placed, w, r) } -> std::same_as<elements>;
};
template <class P>
concept tells_position = requires(P const& p, elements segment, std::size_t w, std::size_t r, elements j) {
  { p.position(segment, w, r, j) } -> std::same_as<elements>;
};
template <class P>
concept sees_unit = requires(P const& p, std::span<parameter const> unit, std::size_t w) {
  { p.for_unit(unit, w) } -> std::same_as<P>;
};

// Who has a name too makes it ambiguous in a class derived from both.
struct optional_names {
  int owner, position, segment, before, padding_value, for_unit, hash, may_cut, alignment;
};
template <class P, bool = std::is_final_v<P>>
struct beside_names : P, optional_names {};
template <class P>
struct beside_names<P, true> : optional_names {};
template <class P>
concept callable_owner = requires {
  &beside_names<P>::owner;
}
|| requires(P const& p, placement const& t, std::size_t w, elements i) {
  { p.owner(t, w, i) } -> std::same_as<std::size_t>;
};
template <class P>
concept callable_position = requires {
  &beside_names<P>::position;
}
|| tells_position<P>;
template <class P>
concept callable_segment = requires {
  &beside_names<P>::segment;
}
|| has_segments<P>;
template <class P>
concept callable_before = requires {
  &beside_names<P>::before;
}
|| requires(P const& p, elements n, std::size_t w, std::size_t r) {
  { p.before(n, w, r) } -> std::same_as<elements>;
};
template <class P>
concept callable_padding_value = requires {
  &beside_names<P>::padding_value;
}
|| requires(P const& p) {
  { p.padding_value() } -> std::convertible_to<std::optional<int>>;
};
template <class P>
concept callable_for_unit = requires {
  &beside_names<P>::for_unit;
}
|| sees_unit<P>;
template <class P>
concept callable_hash = requires {
  &beside_names<P>::hash;
}
|| requires(P const& p, std::uint64_t h) {
  { p.hash(h) } -> std::same_as<std::uint64_t>;
};
template <class P>
concept callable_may_cut = requires {
  &beside_names<P>::may_cut;
}
|| requires(P const& p, parameter const& of, elements i) {
  { p.may_cut(of, i) } -> std::same_as<bool>;
};
template <class P>
concept callable_alignment = requires {
  &beside_names<P>::alignment;
}
|| requires(P const& p) {
  { p.alignment() } -> std::same_as<elements>;
};
/// What a policy says beyond `ShardingPolicy` has the parameters and the result that are listed above.
template <class P>
concept CallableMembers = callable_owner<P> && callable_position<P> && callable_segment<P> && callable_before<P> &&
    callable_padding_value<P> && callable_for_unit<P> && callable_hash<P> && callable_may_cut<P> &&
    callable_alignment<P>;

}  // namespace detail

}  // namespace v0
}  // namespace flatshard
