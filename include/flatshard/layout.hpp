// SPDX-License-Identifier: Apache-2.0
/// Parameters + sharding policy + world = where every element lies, for sizes known when compiled and when run.
#pragma once

#include <flatshard/extent.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/parameter_table.hpp>
#include <flatshard/piece.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>
#include <flatshard/sharding_traits.hpp>
#include <flatshard/stable_order.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Where every element of a unit lies: in which rank's segment, where in it, where in the gathered buffer.
///
/// Names should differ: by name, the first of equal ones is found. Of a policy, building checks that every tensor is
/// placed whole and that the last pieces of the first and the last rank end inside their segments; a policy of your own
/// should pass all laws (laws.hpp), which also find overlaps.
///
/// The gathered buffer is the segments of all ranks in rank order: W * S elements. One template for constant and
/// run-time shapes (`std::array` or list of parameters) and for static and dynamic worlds. Memory: O(T), nothing of
/// size T * W; a listed layout takes 44 bytes a tensor, 4 more if its pieces lie out of tensor order, 2 to 4 for an
/// index of the starts, and each different kind (shape, type and traits) once. What a policy may say beyond the three
/// functions of `ShardingPolicy`: sharding_traits.hpp.
template <ShardingPolicy P, std::size_t W, class Table>
class layout {
  static_assert(detail::CallableMembers<P>, "a member that sharding_traits.hpp names cannot be called as it says");

 public:
  using policy_type = P;
  /// True if a gathered buffer holds each tensor in one piece, so that the gather needs no copy afterwards.
  static constexpr bool contiguous_gather = detail::contiguous_gather<P>();
  /// True if the segments of all ranks have the same length, so that collectives need no counts by rank.
  static constexpr bool equal_segments = !detail::has_segments<P>;

  /// What a name stands for.
  struct tensor {
    std::size_t index{};
    placement place;
    elements gathered;  ///< of its first element, in the gathered buffer
    elements numel;
  };

  template <std::size_t T>
  constexpr layout(P sharding_policy, std::array<parameter, T> const& of_unit, world<W> over)
      : policy_{std::move(sharding_policy)}, world_{over}, table_{of_unit} {
    build(of_unit);
  }
  constexpr layout(P sharding_policy, std::span<parameter const> of_unit,
                   world<W> over) requires std::same_as<Table, detail::listed_table>
      : policy_{std::move(sharding_policy)}, world_{over}, table_{of_unit} {
    build(of_unit);
  }

  [[nodiscard]] constexpr P const& policy() const { return policy_; }
  /// Number of tensors.
  [[nodiscard]] constexpr std::size_t size() const { return table_.size(); }
  [[nodiscard]] constexpr std::size_t world_size() const { return world_.value(); }
  /// Elements of every rank's segment, padding included; of the longest where they differ. Complexity: O(1).
  [[nodiscard]] constexpr elements segment() const { return segment_; }
  /// Elements of rank `r`'s segment, padding included. Complexity: O(1).
  [[nodiscard]] constexpr elements segment(rank_id r) const { return segment_of(checked(r)); }
  /// Where rank `r`'s segment begins in the gathered buffer; r = W gives its end. Complexity: O(1), O(W) for a policy
  /// with `segment` but without `before`.
  [[nodiscard]] constexpr elements segment_start(std::size_t r) const {
    require(r <= world_.value(), "rank must be smaller than the world size");
    if constexpr (equal_segments) {
      return {segment_.value * r};
    } else if constexpr (requires { policy_.before(placed_, world_.value(), r); }) {
      return policy_.before(placed_, world_.value(), r);
    } else {
      elements sum;
      for (std::size_t i = 0; i < r; ++i) sum += policy_.segment(placed_, world_.value(), i);
      return sum;
    }
  }
  /// Elements of the gathered buffer: all segments together.
  [[nodiscard]] constexpr elements gathered() const { return segment_start(world_.value()); }
  /// Elements of all tensors together, without padding. Complexity: O(T).
  [[nodiscard]] constexpr elements real() const {
    std::size_t n = 0;
    for (auto const& place : table_.places) n += place.numel;  // build has checked the sum
    return {n};
  }
  /// The value that fills the rest of the segments; nothing if it is undefined. Complexity: O(1).
  [[nodiscard]] constexpr std::optional<int> padding_value() const {
    if constexpr (requires { policy_.padding_value(); }) {
      return policy_.padding_value();
    } else {
      return 0;
    }
  }
  /// Tensor `t` as it was given, by value. Complexity: O(1).
  [[nodiscard]] constexpr parameter parameter_at(std::size_t t) const {
    require(t < size(), "the unit has no parameter of that number");
    return {table_.name(t), shape{table_.sizes(t)}, table_.type(t), table_.traits(t).unpacked()};
  }
  /// The name of tensor `t`. Complexity: O(1).
  [[nodiscard]] constexpr std::string_view name_at(std::size_t t) const {
    require(t < size(), "the unit has no parameter of that number");
    return table_.name(t);
  }
  [[nodiscard]] constexpr placement const& place_at(std::size_t t) const {
    require(t < size(), "the unit has no parameter of that number");
    return table_.places[t];
  }
  /// Bytes of one rank's segment (the longest) in one role. Units: bytes. Complexity: O(1).
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
    require(t < size(), "the unit has no parameter of that number");
    return cut(t, checked(r));
  }
  /// The rank that owns element `i` of tensor `t`. Complexity: that of the policy's `owner`, O(log W) without one.
  [[nodiscard]] constexpr rank_id owner(std::size_t t, elements i) const {
    auto const& place = place_at(t);
    require(i.value < place.numel, "the tensor has no element of that number");
    if constexpr (requires {
                    { policy_.owner(place, world_.value(), i) } -> std::same_as<std::size_t>;
                  }) {
      return static_cast<rank_id>(policy_.owner(place, world_.value(), i));
    } else {
      std::size_t low = 0, high = world_.value();  // the last rank that begins at or before i
      while (high - low > 1) {
        auto const middle = low + (high - low) / 2;
        (policy_.begin(place, world_.value(), middle) <= i ? low : high) = middle;
      }
      return rank_at(low);
    }
  }
  /// The ranks that own `of`, in the same order; `out` is as long. What `owner` says of each one by one,
  /// and faster where the tensors are many: placements are fetched ahead. Complexity: O(of) times that of `owner`.
  constexpr void owners(std::span<tensor_element const> of, std::span<rank_id> out) const {
    require(of.size() == out.size(), "owners are written to a span as long as the elements'");
    constexpr std::size_t ahead = 64;
    for (std::size_t i = 0; i < of.size(); ++i) {
      if (!std::is_constant_evaluated() && of.size() - i > ahead) fetch(of[i + ahead].tensor);
      out[i] = owner(of[i].tensor, of[i].index);
    }
  }
  /// Where element `i` of tensor `t` lies in its owner's segment. Complexity: as `owner`.
  [[nodiscard]] constexpr elements local(std::size_t t, elements i) const {
    auto const mine = cut(t, index(owner(t, i)));
    return mine.local + (i - mine.begin);
  }
  /// Where element `i` of tensor `t` lies in the gathered buffer. Complexity: as `owner`.
  [[nodiscard]] constexpr elements gathered(std::size_t t, elements i) const {
    auto const r = index(owner(t, i));
    auto const mine = cut(t, r);
    return segment_start(r) + mine.local + (i - mine.begin);
  }
  /// What lies at position `j` of rank `r`'s segment. Complexity: O(log T), about one tensor looked at where starts
  /// spread evenly and are indexed; O(T) for policies in any order.
  [[nodiscard]] constexpr element_place at(rank_id r, elements j) const {
    auto const i = checked(r);
    require(j < segment_of(i), "the segment has no element of that number");
    if constexpr (order != piece_order::any) {
      auto const after = first_behind(i, j);
      if (after == 0) return {0, {}, true};
      return within(cut(tensor_at(after - 1), i), j);
    } else {
      for (std::size_t t = 0; t < size(); ++t) {
        auto const found = within(cut(t, i), j);
        if (!found.padding) return found;
      }
      return {0, {}, true};
    }
  }
  /// What lies at position `g` of the gathered buffer. Complexity: as `at`, and O(log W) where segments differ.
  [[nodiscard]] constexpr element_place at_gathered(elements g) const {
    require(g < gathered(), "the gathered buffer has no element of that number");
    std::size_t r = 0;
    if constexpr (equal_segments) {
      r = g.value / segment_.value;
    } else {
      std::size_t high = world_.value();  // the last rank whose segment begins at or before g is not empty
      while (high - r > 1) {
        auto const middle = r + (high - r) / 2;
        (segment_start(middle) <= g ? r : high) = middle;
      }
    }
    return at(rank_at(r), g - segment_start(r));
  }

  /// The pieces of one rank that hold at least one element, in the order in which they lie in its segment (any order:
  /// of the tensors): a lazy range.
  class piece_range {
   public:
    class iterator {
     public:
      using value_type = piece;
      using difference_type = std::ptrdiff_t;
      using iterator_category = std::input_iterator_tag;
      using reference = piece const&;
      using pointer = piece const*;
      constexpr iterator() = default;
      constexpr iterator(layout const* whole, std::size_t r, std::size_t position)
          : whole_{whole}, rank_{r}, position_{position} {
        skip();
      }
      /// Until the iterator moves on or ends. By reference: a copy would wait for its parts to be written.
      constexpr piece const& operator*() const { return here_; }
      constexpr piece const* operator->() const { return &here_; }
      constexpr iterator& operator++() {
        ++position_;
        skip();
        return *this;
      }
      constexpr void operator++(int) { ++*this; }
      friend constexpr bool operator==(iterator const& a, iterator const& b) { return a.position_ == b.position_; }

     private:
      constexpr void skip() {
        auto const count = whole_->size();
        while (position_ < count) {
          here_ = whole_->cut(whole_->tensor_at(position_), rank_);
          if (here_.begin < here_.end) return;
          if constexpr (order == piece_order::any) {
            ++position_;
          } else if (here_.local >= whole_->segment_) {  // what follows lies in later segments
            position_ = count;
          } else {
            position_ = whole_->last_not_after(position_, here_.local, rank_);
          }
        }
      }
      layout const* whole_{};
      std::size_t rank_{}, position_{};
      piece here_;
    };
    constexpr piece_range(layout const& whole, rank_id r) : whole_{&whole}, rank_{index(r)} {}
    [[nodiscard]] constexpr iterator begin() const { return {whole_, rank_, whole_->first_piece(rank_)}; }
    [[nodiscard]] constexpr iterator end() const { return {whole_, rank_, whole_->size()}; }

   private:
    layout const* whole_;
    std::size_t rank_;
  };
  /// Complexity: the first piece in O(log T), each further one in O(1); O(T) in all for per-tensor policies and those
  /// in any order. The layout must outlive the range.
  [[nodiscard]] constexpr piece_range pieces(rank_id r) const& {
    static_cast<void>(checked(r));
    return {*this, r};
  }
  piece_range pieces(rank_id) const&& = delete;  // the layout must outlive the range
  /// Elements that rank `r` owns. Complexity: O(pieces).
  [[nodiscard]] constexpr elements owned(rank_id r) const {
    std::size_t n = 0;
    for (auto const& p : pieces(r)) n += p.end.value - p.begin.value;
    return {n};
  }
  /// Elements of rank `r`'s segment that belong to no tensor. Complexity: O(pieces).
  [[nodiscard]] constexpr elements padding(rank_id r) const { return segment(r) - owned(r); }

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
    while (found < size() && table_.name(found) != name) ++found;
    require(found < size(), "the unit has no parameter of that name");
    return found;
  }

  /// `layout_hash`: FNV-1a 64 over version, policy, world, segment and, per tensor, name, shape, type, traits and
  /// placement; equal on all ranks that share the layout. Complexity: O(T). Source: docs/formats.md.
  [[nodiscard]] constexpr std::uint64_t hash() const {
    auto h = detail::fnv(detail::fnv(detail::fnv_offset, std::uint64_t{2}), detail::policy_name<P>());
    h = detail::fnv(detail::fnv(h, world_.value()), segment_.value);
    if constexpr (requires { policy_.hash(h); }) h = policy_.hash(h);
    for (std::size_t t = 0; t < size(); ++t) {
      h = fold_parameter(h, t);
      h = detail::fnv(detail::fnv(h, table_.places[t].start), table_.places[t].step);
    }
    return h;
  }
  /// The same continued over the dtypes of all roles: equal on all ranks whose buffers are alike. Complexity: O(T).
  [[nodiscard]] constexpr std::uint64_t hash(PrecisionPolicy auto const& precision) const {
    auto h = hash();
    for (auto const r : roles) h = detail::fnv(h, name(precision(r)));
    return h;
  }
  /// FNV-1a 64 over names, shapes, types and traits alone: equal for the same unit in every world and policy.
  /// Complexity: O(T).
  [[nodiscard]] constexpr std::uint64_t unit_hash() const {
    auto h = detail::fnv(detail::fnv(detail::fnv_offset, std::uint64_t{2}), size());
    for (std::size_t t = 0; t < size(); ++t) h = fold_parameter(h, t);
    return h;
  }

 private:
#if defined(__GNUC__)
  // Asks for both ends of a placement, which may lie in two lines of the cache. Inline always: g++ takes a call that
  // only fetches for one without effect.
  [[gnu::always_inline]] inline void fetch(std::size_t t) const {
    if (t >= size()) return;  // `owner` refuses it
    auto const* const place = table_.places.data() + t;
    __builtin_prefetch(place);
    __builtin_prefetch(&place->step);
  }
#else
  void fetch(std::size_t) const {}
#endif

  static constexpr piece_order order = detail::order_of<P>();
  using order_type = std::conditional_t<order == piece_order::by_start, typename Table::order_type, detail::no_order>;
  static constexpr bool tells_position = order != piece_order::any && detail::tells_position<P>;
  static constexpr bool indexed = tells_position && Table::indexed;
  using index_type = std::conditional_t<indexed, detail::key_buckets, detail::no_index>;

  constexpr void build(std::span<parameter const> of_unit) {
    static_cast<void>(rank_at(world_.value() - 1));  // every rank fits in a rank_id, so that owners need no check
    if constexpr (detail::sees_unit<P>) policy_ = policy_.for_unit(table_.numbered(of_unit), world_.value());
    segment_ = policy_.place(table_.numbered(of_unit), world_.value(), table_.places);
    std::size_t real = 0;
    bool whole = true, wraps = false;
    detail::key_range starts;
    auto const* place = table_.places.data();  // a plain pointer: compilers run this loop, too, and count its steps
    for (std::size_t t = 0; t < of_unit.size(); ++t, ++place) {
      if (place->numel != table_.numel(t)) whole = false;
      wraps |= detail::add_wraps(real, place->numel, real);
      if constexpr (order == piece_order::by_start)
        if (t > 0 && stands_before(*place, place[-1])) sorted_ = false;
      if constexpr (order == piece_order::by_start || indexed) starts.add(place->start);
    }
    require(whole, "a policy must place every element of a tensor");
    require(!wraps, "a sum of sizes must fit in 64 bits");
    std::size_t all = 0;
    if constexpr (equal_segments) {
      all = checked_mul(segment_.value, world_.value());
    } else {
      placed_ = segment_;
      segment_ = {};
      for (std::size_t r = 0; r < world_.value(); ++r) {
        auto const own = policy_.segment(placed_, world_.value(), r);
        segment_ = std::max(segment_, own);
        all = checked_add(all, own.value);
      }
    }
    require(checked_mul(all, 8) <= static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()),
            "the gathered buffer must stay below 2^63 bytes");
    if constexpr (order == piece_order::by_start)
      if (!sorted_) sort_by_start(starts);
    if constexpr (indexed)
      if (sorted_) index_ = {size(), starts, [&](std::size_t t) { return table_.places[t].start; }};
    check_end(0);
    if (world_.value() > 1) check_end(world_.value() - 1);
  }
  // The last piece of rank r ends within its segment. Complexity: O(log T) and the empty pieces behind it, O(T) for
  // policies in any order.
  constexpr void check_end(std::size_t r) const {
    auto const segment = segment_of(r);
    auto const inside = [&](std::size_t t) {
      auto const p = cut(t, r);
      return p.begin >= p.end || (p.local <= segment && p.size() <= segment - p.local);
    };
    bool right = true;
    if constexpr (order == piece_order::any) {
      for (std::size_t t = 0; t < size() && right; ++t) right = inside(t);
    } else {
      auto behind = first_with(0, size(), [&](std::size_t t) { return local_of(t, r) >= segment; });
      if (behind < size()) right = inside(tensor_at(behind));
      auto const first = first_piece(r);
      while (behind > first && begin(tensor_at(behind - 1), r) >= begin(tensor_at(behind - 1), r + 1)) --behind;
      if (behind > first) right &= inside(tensor_at(behind - 1));
    }
    require(right, "a policy must place every piece inside its rank's segment");
  }
  // Empty tensors stand before the one that shares their start.
  static constexpr bool stands_before(placement const& a, placement const& b) {
    return a.start != b.start ? a.start < b.start : a.numel < b.numel;
  }
  constexpr void sort_by_start(detail::key_range starts) {
    auto const& places = table_.places;
    if constexpr (requires { order_.resize(size()); }) order_.resize(size(), 0);
    auto buckets = detail::stable_order(
        order_, starts, [&](std::size_t t) { return places[t].start; }, [&](std::size_t t) { return places[t].numel; });
    if constexpr (indexed) index_ = std::move(buckets);
  }
  [[nodiscard]] constexpr std::size_t tensor_at(std::size_t position) const {
    if constexpr (order == piece_order::by_start) {
      return sorted_ ? position : order_[position];
    } else {
      return position;
    }
  }
  [[nodiscard]] constexpr elements segment_of(std::size_t r) const {
    if constexpr (equal_segments) {
      return segment_;
    } else {
      return policy_.segment(placed_, world_.value(), r);
    }
  }
  [[nodiscard]] constexpr piece cut(std::size_t t, std::size_t r) const {
    auto const& place = table_.places[t];
    auto const w = world_.value();
    return {t, policy_.begin(place, w, r), policy_.begin(place, w, r + 1), policy_.local(place, w, r)};
  }
  [[nodiscard]] constexpr std::uint64_t fold_parameter(std::uint64_t h, std::size_t t) const {
    h = detail::fnv(detail::fnv(h, table_.name(t).size()), table_.name(t));
    auto const sizes = table_.sizes(t);
    h = detail::fnv(h, sizes.size());
    for (auto const d : sizes) h = detail::fnv(h, d);
    return detail::fnv(detail::fnv(h, name(table_.type(t))), table_.traits(t).number);
  }
  constexpr std::size_t checked(rank_id r) const {
    auto const i = index(r);
    require(i < world_.value(), "rank must be smaller than the world size");
    return i;
  }
  constexpr elements local_of(std::size_t t, std::size_t r) const {
    return policy_.local(table_.places[t], world_.value(), r);
  }
  // The first position of [low, high) where `holds`, which is false, then true, over the tensors in order; else high.
  template <class Predicate>
  constexpr std::size_t first_with(std::size_t low, std::size_t high, Predicate holds) const {
    while (low < high) {
      auto const middle = low + (high - low) / 2;
      if (holds(tensor_at(middle))) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
  // The first place in the order whose tensor lies behind element j of rank r's segment. Complexity: O(log T), O(1)
  // where starts spread evenly and are indexed.
  constexpr std::size_t first_behind(std::size_t r, elements j) const {
    if constexpr (tells_position) {
      auto const position = policy_.position(segment_, world_.value(), r, j).value;
      std::pair<std::size_t, std::size_t> among{0, size()};
      if constexpr (indexed) among = index_.above(position);
      return first_with(among.first, among.second, [&](std::size_t t) { return table_.places[t].start > position; });
    } else {
      return first_with(0, size(), [&](std::size_t t) { return local_of(t, r) > j; });
    }
  }
  // Of the tensors behind position k, the last one that lies at or before `local`, for the others there hold nothing;
  // k + 1 if there is none. Complexity: O(log of the distance).
  constexpr std::size_t last_not_after(std::size_t k, elements local, std::size_t r) const {
    std::size_t step = 1, low = k;
    while (low + step < size() && local_of(tensor_at(low + step), r) <= local) {
      low += step;
      step *= 2;
    }
    for (; step > 0; step /= 2)
      if (low + step < size() && local_of(tensor_at(low + step), r) <= local) low += step;
    return std::max(low, k + 1);
  }
  constexpr std::size_t first_piece(std::size_t r) const {
    if constexpr (order != piece_order::any) {
      // pieces that lie at 0 are empty but for the last of them
      auto const after = first_behind(r, elements{});
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
  [[no_unique_address]] std::conditional_t<equal_segments, detail::no_order, elements> placed_{};
  bool sorted_ = true;
  Table table_;
  [[no_unique_address]] order_type order_{};
  [[no_unique_address]] index_type index_{};
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

/// `1001/8 -> 126 + 7 pad`: elements / world -> elements of a segment (the longest) + padding of all segments together;
/// a policy that searched for its segment adds the length that no segment can go below.
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] std::string to_string(layout<P, W, Table> const& l) {
  auto const real = l.real().value;
  auto const pad = l.gathered().value - real;
  auto text = std::to_string(real) + '/' + std::to_string(l.world_size()) + " -> " + std::to_string(l.segment().value);
  if (pad != 0) text += " + " + std::to_string(pad) + " pad";
  if constexpr (requires { l.policy().lower_bound(); })
    text += ", at least " + std::to_string(l.policy().lower_bound().value);
  return text;
}
template <class Stream, ShardingPolicy P, std::size_t W, class Table>
requires requires(Stream& s, std::string const& text) { s << text; }
Stream& operator<<(Stream& s, layout<P, W, Table> const& l) {
  s << to_string(l);
  return s;
}

namespace detail {
// Where the gathered segments do not hold the whole tensors in one piece, these stand one after the other, each at a
// multiple of 128 elements (256 bytes at least).
template <class Layout>
[[nodiscard]] constexpr std::size_t whole_slot(Layout const& l, std::size_t t) {
  return round_up(l.place_at(t).numel, 128);
}
template <class Layout>
[[nodiscard]] constexpr elements whole_size(Layout const& l) {
  if (Layout::contiguous_gather) return l.gathered();
  elements n;
  for (std::size_t t = 0; t < l.size(); ++t) n += elements{whole_slot(l, t)};
  return n;
}
}  // namespace detail

}  // namespace v0
}  // namespace flatshard
