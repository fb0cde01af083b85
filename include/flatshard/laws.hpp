// SPDX-License-Identifier: Apache-2.0
/// The laws that every layout and every resharding keeps, for the tests of a policy of your own; no test framework.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/reshard.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The first law found broken, and where: layout, tensor, rank, positions.
struct broken_law {
  std::string_view law;
  std::string counterexample;
};
template <class Stream>
requires requires(Stream& s, std::string const& text) { s << text; }
Stream& operator<<(Stream& s, broken_law const& b) {
  s << std::string{b.law} << ": " << b.counterexample;
  return s;
}

/// How much the laws look at: all ranks up to `ranks` (5 at least), else that many, first, last and borders among them;
/// buffers are really filled and moved up to `elements` elements.
struct law_limits {
  std::size_t ranks = 64;
  std::size_t elements = std::size_t{1} << 14;
};

namespace detail {

/// Writes a layout and places in it, for a counterexample.
template <ShardingPolicy P, std::size_t W, class Table>
std::string described(layout<P, W, Table> const& l) {
  std::string text{policy_name<P>()};
  text += ' ' + to_string(l) + ", shapes";
  for (std::size_t t = 0; t < l.size() && t < 16; ++t) {
    text += " (";
    auto const p = l.parameter_at(t);
    for (std::size_t i = 0; i < p.dims.rank; ++i) text += (i == 0 ? "" : ",") + std::to_string(p.dims.dims[i]);
    text += ')';
  }
  return l.size() > 16 ? text + " ..." : text;
}
inline std::string described(piece const& p) {
  return "tensor " + std::to_string(p.tensor) + " [" + std::to_string(p.begin.value) + ", " +
         std::to_string(p.end.value) + ") at " + std::to_string(p.local.value);
}
inline std::string described(transfer const& m) {
  return "tensor " + std::to_string(m.tensor) + " [" + std::to_string(m.begin.value) + ", " +
         std::to_string(m.end.value) + ") from rank " + std::to_string(index(m.from)) + " at " +
         std::to_string(m.from_position.value) + " to rank " + std::to_string(index(m.to)) + " at " +
         std::to_string(m.to_position.value);
}

/// Whether a piece begins where its policy says that none may: inside a block, or at no multiple of its alignment.
template <class L>
constexpr bool inside_block(L const& l, piece const& p) {
  if constexpr (requires { l.policy().may_cut(l.parameter_at(0), p.begin); }) {
    return p.begin != elements{} && !l.policy().may_cut(l.parameter_at(p.tensor), p.begin);
  } else {
    return false;
  }
}
template <class L>
constexpr bool misaligned(L const& l, piece const& p) {
  if constexpr (requires { l.policy().alignment(); }) {
    auto const a = l.policy().alignment().value;
    return p.begin % a != 0 || p.local % a != 0;
  } else {
    return false;
  }
}

/// All ranks of a small world; of a large one the ends, the middle, the ranks at the ends of tensors, and a spread.
template <class L>
std::vector<std::size_t> ranks_to_try(L const& l, law_limits const& limits) {
  auto const w = l.world_size();
  std::vector<std::size_t> ranks;
  if (w <= std::max<std::size_t>(limits.ranks, 5)) {
    for (std::size_t r = 0; r < w; ++r) ranks.push_back(r);
    return ranks;
  }
  ranks = {0, 1, w / 2, w - 2, w - 1};
  for (std::size_t t = 0; t < l.size() && ranks.size() + 3 < limits.ranks; ++t) {
    auto const n = l.place_at(t).numel;
    if (n == 0) continue;
    for (auto const i : {std::size_t{0}, n / 2, n - 1}) ranks.push_back(std::min(w - 1, index(l.owner(t, {i}))));
  }
  for (std::size_t k = 1; ranks.size() < limits.ranks; ++k) ranks.push_back(k * 0x9E3779B97F4A7C15u % w);
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

/// A value of its own for every element of a unit, and one that no element has.
constexpr std::uint64_t element_value(std::size_t t, std::size_t i) { return (std::uint64_t{t} << 40) | i; }
inline constexpr std::uint64_t poison = ~std::uint64_t{0};

template <class L>
std::vector<std::vector<std::uint64_t>> scatter(L const& l) {
  std::vector<std::vector<std::uint64_t>> segments(l.world_size());
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    segments[r].assign(l.segment(rank_at(r)).value, poison);
    for (auto const& p : l.pieces(rank_at(r)))
      for (std::size_t k = 0; k < p.size().value; ++k)
        segments[r].at(p.local.value + k) = element_value(p.tensor, p.begin.value + k);
  }
  return segments;
}
template <class L>
std::vector<std::vector<std::uint64_t>> empty_segments(L const& l) {
  std::vector<std::vector<std::uint64_t>> segments(l.world_size());
  for (std::size_t r = 0; r < l.world_size(); ++r) segments[r].assign(l.segment(rank_at(r)).value, poison);
  return segments;
}
template <class From, class To>
void carry(resharding<From, To> const& plan, std::vector<std::vector<std::uint64_t>> const& from,
           std::vector<std::vector<std::uint64_t>>& to) {
  for (std::size_t r = 0; r < plan.from().world_size(); ++r)
    for (auto const& m : plan.sends(rank_at(r)))
      for (std::size_t k = 0; k < m.size().value; ++k)
        to[index(m.to)].at(m.to_position.value + k) = from[index(m.from)].at(m.from_position.value + k);
}

}  // namespace detail

/// Looks for a law of layouts that `l` breaks:
///   intervals  begin(t, 0) = 0, begin(t, W) = numel, never decreasing in the rank: every element has one owner
///   segments   pieces lie inside their rank's segment, disjoint, listed once, in the promised order
///   places     owner, local, gathered, at and at_gathered agree with the pieces; what no piece covers is padding
///   cuts       pieces begin where the policy's `may_cut` and `alignment` say that they may
///   even       of a policy with `even_pieces`: the ranks between a tensor's first and last hold equally much of it
///   identity   scatter, then gather, gives every element back, with poison in all padding
/// Complexity: O((T + pieces) * ranks tried + elements).
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] std::optional<broken_law> first_broken_law(layout<P, W, Table> const& l, law_limits limits = {}) {
  auto const w = l.world_size();
  auto const ranks = detail::ranks_to_try(l, limits);
  auto const broken = [&](std::string_view law, std::size_t r, std::string const& what) {
    return broken_law{law, detail::described(l) + ", rank " + std::to_string(r) + ": " + what};
  };
  auto const number = [](auto n) { return std::to_string(n.value); };

  elements owned;
  for (auto const r : ranks) {
    auto const rank = rank_at(r);
    auto const segment = l.segment(rank);
    if (segment > l.segment() || (l.equal_segments && segment != l.segment()))
      return broken("segments", r, "its segment of " + number(segment) + " is not that of the layout");
    if (l.segment_start(r) + segment != l.segment_start(r + 1))
      return broken("segments", r, "the segments do not follow each other in the gathered buffer");

    std::vector<piece> held;
    for (std::size_t t = 0; t < l.size(); ++t) {
      auto const n = elements{l.place_at(t).numel};
      auto const p = l.piece_of(t, rank);
      if ((r == 0 && p.begin != elements{}) || (r + 1 == w && p.end != n) || p.begin > p.end || p.end > n ||
          p.begin != l.begin(t, r) || p.end != l.begin(t, r + 1))
        return broken("intervals", r, detail::described(p) + " of " + number(n));
      if (p.begin < p.end) held.push_back(p);
    }
    std::sort(held.begin(), held.end(), [](piece const& a, piece const& b) { return a.local < b.local; });
    elements end;
    for (auto const& p : held) {
      owned += p.size();
      if (p.local < end) return broken("segments", r, detail::described(p) + " overlaps the piece before it");
      if (p.local + p.size() > segment)
        return broken("segments", r, detail::described(p) + " leaves the segment of " + number(segment));
      if (p.local > end)
        for (auto const gap : {end, p.local - elements{1}})
          if (!l.at(rank, gap).padding) return broken("places", r, "position " + number(gap) + " is not padding");
      end = p.local + p.size();
    }
    if (end < segment)
      for (auto const gap : {end, segment - elements{1}})
        if (!l.at(rank, gap).padding) return broken("places", r, "position " + number(gap) + " is not padding");

    std::size_t listed = 0;
    std::vector<piece> range;
    for (auto const& p : l.pieces(rank)) range.push_back(p);
    if constexpr (detail::order_of<P>() == piece_order::any)
      std::sort(range.begin(), range.end(), [](piece const& a, piece const& b) { return a.local < b.local; });
    for (; listed < range.size() && listed < held.size(); ++listed)
      if (range[listed] != held[listed])
        return broken("segments", r,
                      "listed " + detail::described(range[listed]) + ", held " + detail::described(held[listed]));
    if (range.size() != held.size())
      return broken("segments", r,
                    std::to_string(range.size()) + " pieces listed, " + std::to_string(held.size()) + " held");

    for (auto const& p : held) {
      for (auto const i : {p.begin, p.begin + elements{p.size().value / 2}, p.end - elements{1}}) {
        auto const local = p.local + (i - p.begin);
        element_place const here{p.tensor, i, false};
        if (l.owner(p.tensor, i) != rank || l.local(p.tensor, i) != local ||
            l.gathered(p.tensor, i) != l.segment_start(r) + local)
          return broken("places", r, "element " + number(i) + " of " + detail::described(p) + " is elsewhere");
        if (l.at(rank, local) != here || l.at_gathered(l.gathered(p.tensor, i)) != here)
          return broken("places", r, "element " + number(i) + " of " + detail::described(p) + " is not found there");
        if (l.contiguous_gather && l.gathered(p.tensor, i) != l.gathered(p.tensor, {}) + i)
          return broken("places", r, detail::described(p) + " does not continue its tensor in the gathered buffer");
      }
      if (detail::inside_block(l, p)) return broken("cuts", r, detail::described(p) + " begins inside a block");
      if (detail::misaligned(l, p)) return broken("cuts", r, detail::described(p) + " is not aligned as promised");
    }
  }
  if (detail::even_pieces<P>())
    for (std::size_t t = 0; t < l.size(); ++t) {
      auto const n = l.place_at(t).numel;
      if (n == 0) continue;
      auto const first = index(l.owner(t, {0})), last = index(l.owner(t, {n - 1}));
      for (auto const r : ranks)
        if (first < r && r < last && l.piece_of(t, rank_at(r)).size() != l.piece_of(t, rank_at(first + 1)).size())
          return broken("even", r, detail::described(l.piece_of(t, rank_at(r))) + " is no even piece, as was promised");
    }
  if (ranks.size() == w && owned != l.real())
    return broken("intervals", w, number(owned) + " elements owned, " + number(l.real()) + " in the unit");

  if (l.gathered().value <= limits.elements) {
    auto const segments = detail::scatter(l);
    std::vector<std::uint64_t> whole;
    for (auto const& s : segments) whole.insert(whole.end(), s.begin(), s.end());
    std::size_t found = 0;
    for (auto const v : whole) found += v != detail::poison;
    if (found != l.real().value) return broken("identity", w, "elements share a place in the gathered buffer");
    for (std::size_t t = 0; t < l.size(); ++t)
      for (std::size_t i = 0; i < l.place_at(t).numel; ++i)
        if (whole[l.gathered(t, {i}).value] != detail::element_value(t, i))
          return broken("identity", index(l.owner(t, {i})),
                        "element " + std::to_string(i) + " of tensor " + std::to_string(t) + " is lost");
  }
  return std::nullopt;
}

/// Whether the pieces of all ranks keep the laws `intervals`, `cuts` and of `segments` that pieces lie inside, disjoint
/// (every element in one piece, no overlap, no block cut; not the order of `pieces`), also in a constant expression:
/// `static_assert(keeps_laws(unit))`. Complexity: O(W T log T).
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] constexpr bool keeps_laws(layout<P, W, Table> const& l) {
  std::vector<elements> ends(l.size());  // of what the ranks before hold of each tensor
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    std::vector<piece> held;
    for (std::size_t t = 0; t < l.size(); ++t) {
      auto const p = l.piece_of(t, rank_at(r));
      if (p.begin != ends[t] || p.end < p.begin) return false;
      ends[t] = p.end;
      if (p.begin == p.end) continue;
      if (detail::inside_block(l, p) || detail::misaligned(l, p)) return false;
      held.push_back(p);
    }
    std::sort(held.begin(), held.end(), [](piece const& a, piece const& b) { return a.local < b.local; });
    elements end;
    for (auto const& p : held) {
      if (p.local < end) return false;
      end = p.local + p.size();
    }
    if (end > l.segment(rank_at(r))) return false;
  }
  for (std::size_t t = 0; t < l.size(); ++t)
    if (ends[t].value != l.place_at(t).numel) return false;
  return true;
}

/// Looks for a law of reshardings that `plan` breaks: what a rank sends are its pieces, each element once, to the place
/// that the new layout gives it; receivers and pairs name the same transfers; and buffers that are really moved there
/// and back are as before. Complexity: O(transfers of the ranks tried + elements).
template <class From, class To>
[[nodiscard]] std::optional<broken_law> first_broken_law(resharding<From, To> const& plan, law_limits limits = {}) {
  auto const& a = plan.from();
  auto const& b = plan.to();
  auto const broken = [&](std::string_view law, std::string const& what) {
    return broken_law{law, detail::described(a) + " to " + detail::described(b) + ": " + what};
  };
  auto const right = [&](transfer const& m) {
    auto const p = a.piece_of(m.tensor, m.from);
    auto const q = b.piece_of(m.tensor, m.to);
    return m.begin < m.end && m.begin >= p.begin && m.begin >= q.begin && m.end <= p.end && m.end <= q.end &&
           m.from_position == p.local + (m.begin - p.begin) && m.to_position == q.local + (m.begin - q.begin);
  };
  for (auto const r : detail::ranks_to_try(a, limits)) {
    elements sent;
    std::optional<transfer> before;
    for (auto const& m : plan.sends(rank_at(r))) {
      if (index(m.from) != r || !right(m)) return broken("transfers", detail::described(m));
      if (before && before->from_position + before->size() > m.from_position &&
          detail::order_of<typename From::policy_type>() != piece_order::any)
        return broken("transfers", detail::described(m) + " is out of order");
      std::size_t found = 0;
      for (auto const& same : plan.between(m.from, m.to)) found += same == m;
      if (found != 1) return broken("transfers", detail::described(m) + " is not the pair's");
      before = m;
      sent += m.size();
    }
    if (sent != a.owned(rank_at(r)))
      return broken("transfers", "rank " + std::to_string(r) + " does not send each element once");
  }
  for (auto const r : detail::ranks_to_try(b, limits)) {
    elements got;
    for (auto const& m : plan.receives(rank_at(r))) {
      if (index(m.to) != r || !right(m)) return broken("transfers", detail::described(m));
      got += m.size();
    }
    if (got != b.owned(rank_at(r)))
      return broken("transfers", "rank " + std::to_string(r) + " does not get each element once");
  }
  if (a.gathered().value <= limits.elements && b.gathered().value <= limits.elements) {
    auto const before = detail::scatter(a);
    auto there = detail::empty_segments(b), back = detail::empty_segments(a);
    detail::carry(plan, before, there);
    if (there != detail::scatter(b)) return broken("identity", "the new segments are not those of the new layout");
    detail::carry(resharding{b, a}, there, back);
    if (back != before) return broken("identity", "there and back is not as before");
  }
  return std::nullopt;
}

/// Looks for a difference between going from `a` to `c` and going through `b`; all of the same unit. Complexity:
/// O(elements); nothing is looked at above the limit.
template <class A, class B, class C>
[[nodiscard]] std::optional<broken_law> first_broken_route(A const& a, B const& b, C const& c, law_limits limits = {}) {
  if (std::max({a.gathered(), b.gathered(), c.gathered()}).value > limits.elements) return std::nullopt;
  auto const start = detail::scatter(a);
  auto direct = detail::empty_segments(c), between = detail::empty_segments(b), through = detail::empty_segments(c);
  detail::carry(resharding{a, c}, start, direct);
  detail::carry(resharding{a, b}, start, between);
  detail::carry(resharding{b, c}, between, through);
  if (direct == through) return std::nullopt;
  return broken_law{"routes",
                    detail::described(a) + " to " + detail::described(c) + " through " + detail::described(b)};
}

namespace detail {

/// The layout of a unit over `w` ranks; where the policy refuses that, nothing, and `refused` says so.
template <ShardingPolicy P>
std::optional<listed_layout<P>> layout_over(P const& policy, std::span<parameter const> of_unit, std::size_t w,
                                            std::optional<broken_law>& refused) {
#if defined(__cpp_exceptions)
  try {
    return listed_layout<P>{policy, of_unit, world{w}};
  } catch (broken_rule const& e) {
    refused = {"worlds",
               std::string{policy_name<P>()} + " has no layout of this unit over " + std::to_string(w) +
                   (w == 1 ? " rank: " : " ranks: ") + e.what() +
                   "; if that is meant, test layouts alone: first_broken_law(layout{policy, unit, world{n}})"};
    return std::nullopt;
  }
#else
  static_cast<void>(refused);
  return listed_layout<P>{policy, of_unit, world{w}};
#endif
}

}  // namespace detail

/// All laws of one policy on one unit: the layout's own, equal layouts from equal policies, and reshardings to
/// `other_world` ranks, there and back, and to one rank through it. The test of a user's own policy:
/// `CHECK_FALSE(first_broken_law(my_policy{}, unit, 8, 3))`. A policy that refuses the unit over `other_world` ranks or
/// over one, as `ragged` and often `llmc` do, breaks the law `worlds`: ask for the laws of its layout and of
/// reshardings between layouts instead. Throws `broken_rule` where it refuses `world_size` ranks.
template <ShardingPolicy P>
[[nodiscard]] std::optional<broken_law> first_broken_law(P const& policy, std::span<parameter const> of_unit,
                                                         std::size_t world_size, std::size_t other_world,
                                                         law_limits limits = {}) {
  listed_layout<P> const a{policy, of_unit, world{world_size}}, again{P{policy}, of_unit, world{world_size}};
  if (auto b = first_broken_law(a, limits)) return b;
  if (a.hash() != again.hash() || !(a.policy() == again.policy()))
    return broken_law{"values", detail::described(a) + ": equal policies give different layouts"};
  std::optional<broken_law> refused;
  auto const other = detail::layout_over(policy, of_unit, other_world, refused);
  if (!other) return refused;
  auto const one = detail::layout_over(policy, of_unit, 1, refused);
  if (!one) return refused;
  if (auto b = first_broken_law(resharding{a, *other}, limits)) return b;
  return first_broken_route(a, *other, *one, limits);
}

}  // namespace v0
}  // namespace flatshard
