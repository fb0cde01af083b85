// SPDX-License-Identifier: Apache-2.0
/// Parameters + sharding policy + world = where every element lies, for sizes known when compiled and when run.
#pragma once

#include <flatshard/extent.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One rank's part of one run of elements.
struct shard {
  elements offset, size, padding;
  friend constexpr bool operator==(shard const&, shard const&) = default;
};

/// One run of elements cut evenly: every rank but the last ones holds ceil(n / W). 1, 8 or 16 bytes for two, one or no
/// static extents. `flat_layout{world<8>{}, numel<1001>{}}` and `flat_layout{world{8}, numel{1001}}` answer alike.
template <std::size_t W, std::size_t N>
class flat_layout {
 public:
  constexpr flat_layout(world<W> w, numel<N> n) : world_{w}, numel_{n} {}
  /// Elements of every rank's slot, padding included.
  [[nodiscard]] constexpr elements shard_size() const { return {ceil_div(numel_.value(), world_.value())}; }
  /// The part of one rank; the last ranks may be all padding. Complexity: O(1).
  [[nodiscard]] constexpr shard operator[](rank_id r) const {
    auto const i = index(r);
    auto const full = shard_size().value;
    require(i < world_.value(), "rank must be smaller than the world size");
    auto const n = numel_.value();
    auto const begin = full == 0 ? 0 : i < n / full ? i * full : std::min(n, i <= n / full ? i * full : n);
    auto const size = std::min(full, n - begin);
    return {{begin}, {size}, {full - size}};
  }

 private:
  [[no_unique_address]] world<W> world_;
  [[no_unique_address]] numel<N> numel_;
};

/// The elements [begin, end) of tensor number `tensor`, at `local` of one rank's segment. Units: elements.
struct piece {
  std::size_t tensor{};
  elements begin, end, local;
  [[nodiscard]] constexpr elements size() const { return end - begin; }
  friend constexpr bool operator==(piece const&, piece const&) = default;
};

/// One element of one tensor, or padding.
struct element_place {
  std::size_t tensor{};
  elements index;
  bool padding = false;
  friend constexpr bool operator==(element_place const&, element_place const&) = default;
};

namespace detail {

inline constexpr std::uint64_t fnv_offset = 0xcbf29ce484222325u;
/// FNV-1a over bytes, and over the little-endian bytes of a number.
constexpr std::uint64_t fnv(std::uint64_t hash, std::string_view text) {
  for (char const c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}
constexpr std::uint64_t fnv(std::uint64_t hash, std::uint64_t number) {
  for (int i = 0; i < 8; ++i, number >>= 8) hash = (hash ^ (number & 0xFFu)) * 0x100000001b3u;
  return hash;
}

template <std::size_t T>
struct fixed_table {
  std::array<parameter, T> parameters{};
  std::array<placement, T> places{};
};
struct listed_table {
  std::vector<parameter> parameters;
  std::vector<placement> places;
};

/// Policies whose `local` does not grow with the tensor's number say `static constexpr bool in_order = false`.
template <class P>
constexpr bool in_order() {
  if constexpr (requires { P::in_order; }) {
    return P::in_order;
  } else {
    return true;
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
constexpr std::string_view policy_name() {
  if constexpr (requires { P::name; }) {
    return P::name;
  } else {
    return "custom";
  }
}

}  // namespace detail

/// Where every element of a unit lies: in which rank's segment, where in it, where in the gathered buffer.
///
/// The gathered buffer is the segments of all ranks in rank order: W * S elements. One template for constant and
/// run-time shapes (`std::array` or list of parameters) and for static and dynamic worlds. Memory: O(T), nothing of
/// size T * W.
template <ShardingPolicy P, std::size_t W, class Table>
class layout {
 public:
  using policy_type = P;
  /// True if a gathered buffer holds each tensor in one piece, so that the gather needs no copy afterwards.
  static constexpr bool contiguous_gather = detail::contiguous_gather<P>();

  /// What a name stands for.
  struct tensor {
    std::size_t index{};
    placement place;
    elements gathered;  ///< of its first element, in the gathered buffer
    elements numel;
  };

  template <std::size_t T>
  constexpr layout(P sharding_policy, std::array<parameter, T> const& of_unit, world<W> over)
      : policy_{sharding_policy}, world_{over} {
    table_.parameters = of_unit;
    build();
  }
  constexpr layout(P sharding_policy, std::span<parameter const> of_unit,
                   world<W> over) requires std::same_as<Table, detail::listed_table>
      : policy_{sharding_policy}, world_{over} {
    table_.parameters.assign(of_unit.begin(), of_unit.end());
    table_.places.resize(of_unit.size());
    build();
  }

  [[nodiscard]] constexpr P const& policy() const { return policy_; }
  /// Number of tensors.
  [[nodiscard]] constexpr std::size_t size() const { return table_.places.size(); }
  [[nodiscard]] constexpr std::size_t world_size() const { return world_.value(); }
  /// Elements of every rank's segment, padding included.
  [[nodiscard]] constexpr elements segment() const { return segment_; }
  /// Elements of the gathered buffer: W * S.
  [[nodiscard]] constexpr elements gathered() const { return segment_ * world_.value(); }
  /// Elements of all tensors together, without padding.
  [[nodiscard]] constexpr elements real() const {
    elements n;
    for (auto const& place : table_.places) n += elements{place.numel};
    return n;
  }
  [[nodiscard]] constexpr parameter const& parameter_at(std::size_t t) const {
    require(t < size(), "the unit has no parameter of that number");
    return table_.parameters[t];
  }
  [[nodiscard]] constexpr placement const& place_at(std::size_t t) const {
    require(t < size(), "the unit has no parameter of that number");
    return table_.places[t];
  }
  /// Bytes of one rank's segment in one role. Units: bytes. Complexity: O(1).
  [[nodiscard]] constexpr bytes shard_bytes(PrecisionPolicy auto const& p, role r) const {
    return size_of(segment_, p(r));
  }

  /// The first element of tensor `t` that rank `r` or a later one owns; r = W gives numel. Complexity: O(1).
  [[nodiscard]] constexpr elements begin(std::size_t t, std::size_t r) const {
    require(r <= world_.value(), "rank must be smaller than the world size");
    return policy_.begin(place_at(t), world_.value(), r);
  }
  /// What rank `r` owns of tensor `t`, maybe nothing. Complexity: O(1).
  [[nodiscard]] constexpr piece piece_of(std::size_t t, rank_id r) const {
    auto const i = checked(r);
    return {t, begin(t, i), begin(t, i + 1), policy_.local(place_at(t), world_.value(), i)};
  }
  /// The rank that owns element `i` of tensor `t`. Complexity: O(1), O(log W) for a policy without its own `owner`.
  [[nodiscard]] constexpr rank_id owner(std::size_t t, elements i) const {
    auto const& place = place_at(t);
    require(i.value < place.numel, "the tensor has no element of that number");
    if constexpr (requires {
                    { policy_.owner(place, world_.value(), i) } -> std::same_as<std::size_t>;
                  }) {
      return rank_at(policy_.owner(place, world_.value(), i));
    } else {
      std::size_t low = 0, high = world_.value();  // the last rank that begins at or before i
      while (high - low > 1) {
        auto const middle = low + (high - low) / 2;
        (policy_.begin(place, world_.value(), middle) <= i ? low : high) = middle;
      }
      return rank_at(low);
    }
  }
  /// Where element `i` of tensor `t` lies in its owner's segment. Complexity: as `owner`.
  [[nodiscard]] constexpr elements local(std::size_t t, elements i) const {
    auto const mine = piece_of(t, owner(t, i));
    return mine.local + (i - mine.begin);
  }
  /// Where element `i` of tensor `t` lies in the gathered buffer. Complexity: as `owner`.
  [[nodiscard]] constexpr elements gathered(std::size_t t, elements i) const {
    return segment_ * index(owner(t, i)) + local(t, i);
  }
  /// What lies at position `j` of rank `r`'s segment. Complexity: O(log T), O(T) for policies out of order.
  [[nodiscard]] constexpr element_place at(rank_id r, elements j) const {
    auto const i = checked(r);
    require(j < segment_, "the segment has no element of that number");
    if constexpr (detail::in_order<P>()) {
      auto const after = first_with([&](std::size_t t) { return local_of(t, i) > j; });
      if (after == 0) return {0, {}, true};
      return within(piece_of(after - 1, r), j);
    } else {
      for (std::size_t t = 0; t < size(); ++t) {
        auto const found = within(piece_of(t, r), j);
        if (!found.padding) return found;
      }
      return {0, {}, true};
    }
  }

  /// The pieces of one rank that hold at least one element, in tensor order: a lazy range.
  class piece_range {
   public:
    class iterator {
     public:
      using value_type = piece;
      using difference_type = std::ptrdiff_t;
      using iterator_category = std::input_iterator_tag;
      using reference = piece;
      using pointer = void;
      constexpr iterator() = default;
      constexpr iterator(layout const* whole, rank_id r, std::size_t t) : whole_{whole}, rank_{r}, tensor_{t} {
        skip();
      }
      constexpr piece operator*() const { return whole_->piece_of(tensor_, rank_); }
      constexpr iterator& operator++() {
        ++tensor_;
        skip();
        return *this;
      }
      constexpr void operator++(int) { ++*this; }
      friend constexpr bool operator==(iterator const& a, iterator const& b) { return a.tensor_ == b.tensor_; }

     private:
      constexpr void skip() {
        while (tensor_ < whole_->size()) {
          auto const here = whole_->piece_of(tensor_, rank_);
          if (here.begin < here.end) return;
          if (detail::in_order<P>() && here.local >= whole_->segment_) {  // flat: what follows lies in later segments
            tensor_ = whole_->size();
            return;
          }
          ++tensor_;
        }
      }
      layout const* whole_{};
      rank_id rank_{};
      std::size_t tensor_{};
    };
    constexpr piece_range(layout const& whole, rank_id r) : whole_{&whole}, rank_{r} {}
    [[nodiscard]] constexpr iterator begin() const { return {whole_, rank_, whole_->first_piece(rank_)}; }
    [[nodiscard]] constexpr iterator end() const { return {whole_, rank_, whole_->size()}; }

   private:
    layout const* whole_;
    rank_id rank_;
  };
  /// Complexity: the first piece in O(log T), each further one in O(1); O(T) in all for policies out of order.
  [[nodiscard]] constexpr piece_range pieces(rank_id r) const {
    static_cast<void>(checked(r));
    return {*this, r};
  }
  /// Elements that rank `r` owns. Complexity: O(pieces).
  [[nodiscard]] constexpr elements owned(rank_id r) const {
    elements n;
    for (auto const& p : pieces(r)) n += p.size();
    return n;
  }
  /// Elements of rank `r`'s segment that belong to no tensor. Complexity: O(pieces).
  [[nodiscard]] constexpr elements padding(rank_id r) const { return segment_ - owned(r); }

  /// The tensor of that name; a misspelt name in a constant expression stops the build. Complexity: O(T).
  [[nodiscard]] constexpr tensor operator[](std::string_view name) const { return (*this)[number_of(name)]; }
  [[nodiscard]] constexpr tensor operator[](std::size_t t) const {
    auto const& place = place_at(t);
    auto const first = place.numel == 0 ? elements{} : gathered(t, elements{0});
    return {t, place, first, {place.numel}};
  }
  /// The number of the tensor of that name. Complexity: O(T).
  [[nodiscard]] constexpr std::size_t number_of(std::string_view name) const {
    std::size_t found = 0;
    while (found < size() && table_.parameters[found].name != name) ++found;
    require(found < size(), "the unit has no parameter of that name");
    return found;
  }

  /// `layout_hash`: FNV-1a 64 over version, policy, world, segment and, per tensor, name, shape and placement; equal on
  /// all ranks that share the layout. Complexity: O(T). Source: docs/formats.md.
  [[nodiscard]] constexpr std::uint64_t hash() const {
    auto h = detail::fnv(detail::fnv(detail::fnv_offset, std::uint64_t{1}), detail::policy_name<P>());
    h = detail::fnv(detail::fnv(h, world_.value()), segment_.value);
    for (std::size_t t = 0; t < size(); ++t) {
      h = detail::fnv(detail::fnv(h, table_.parameters[t].name.size()), table_.parameters[t].name);
      auto const sizes = table_.parameters[t].dims.sizes();
      h = detail::fnv(h, sizes.size());
      for (auto const d : sizes) h = detail::fnv(h, d);
      h = detail::fnv(detail::fnv(h, table_.places[t].start), table_.places[t].step);
    }
    return h;
  }

 private:
  constexpr void build() {
    segment_ = policy_.place(table_.parameters, world_.value(), table_.places);
    for (std::size_t t = 0; t < size(); ++t)
      require(table_.places[t].numel == table_.parameters[t].dims.numel(),
              "a policy must place every element of a tensor");
    require(checked_mul(gathered().value, 8) <= static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()),
            "the gathered buffer must stay below 2^63 bytes");
  }
  constexpr std::size_t checked(rank_id r) const {
    auto const i = index(r);
    require(i < world_.value(), "rank must be smaller than the world size");
    return i;
  }
  constexpr elements local_of(std::size_t t, std::size_t r) const {
    return policy_.local(table_.places[t], world_.value(), r);
  }
  template <class Predicate>
  constexpr std::size_t first_with(Predicate holds) const {  // holds is false, then true, over the tensors
    std::size_t low = 0, high = size();
    while (low < high) {
      auto const middle = low + (high - low) / 2;
      if (holds(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
  constexpr std::size_t first_piece(rank_id r) const {
    if constexpr (detail::in_order<P>()) {
      auto const i = index(r);  // pieces that lie at 0 are empty but for the last of them
      auto const after = first_with([&](std::size_t t) { return local_of(t, i) > elements{0}; });
      return after == 0 ? 0 : after - 1;
    } else {
      return 0;
    }
  }
  static constexpr element_place within(piece const& p, elements j) {
    if (j < p.local || j - p.local >= p.size()) return {p.tensor, {}, true};
    return {p.tensor, p.begin + (j - p.local), false};
  }

  [[no_unique_address]] P policy_;
  [[no_unique_address]] world<W> world_;
  elements segment_{};
  Table table_{};
};
template <class P, std::size_t T, std::size_t W>
layout(P, std::array<parameter, T> const&, world<W>) -> layout<P, W, detail::fixed_table<T>>;
template <class P, std::size_t W>
layout(P, std::vector<parameter> const&, world<W>) -> layout<P, W, detail::listed_table>;
template <class P, std::size_t W>
layout(P, std::span<parameter const>, world<W>) -> layout<P, W, detail::listed_table>;

/// A layout over a run-time list of parameters.
template <ShardingPolicy P, std::size_t W = std::dynamic_extent>
using listed_layout = layout<P, W, detail::listed_table>;

/// `1001/8 -> 126 + 7 pad`: elements / world -> elements of a segment + padding of all segments together.
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] std::string to_string(layout<P, W, Table> const& l) {
  auto const real = l.real().value;
  auto const pad = l.gathered().value - real;
  auto text = std::to_string(real) + '/' + std::to_string(l.world_size()) + " -> " + std::to_string(l.segment().value);
  return pad == 0 ? text : text + " + " + std::to_string(pad) + " pad";
}
template <class Stream, ShardingPolicy P, std::size_t W, class Table>
requires requires(Stream& s, std::string const& text) { s << text; }
Stream& operator<<(Stream& s, layout<P, W, Table> const& l) {
  s << to_string(l);
  return s;
}

}  // namespace v0
}  // namespace flatshard
