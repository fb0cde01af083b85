// SPDX-License-Identifier: Apache-2.0
/// From one layout to another, of any policy and world size: which elements go from whose segment to whose.
#pragma once

#include <flatshard/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>

namespace flatshard {
inline namespace v0 {

/// The elements [begin, end) of one tensor: where they lie in the old segment of rank `from`, where in the new segment
/// of rank `to`. Units: elements.
struct transfer {
  std::size_t tensor{};
  elements begin, end;
  rank_id from{};
  elements from_position;
  rank_id to{};
  elements to_position;
  [[nodiscard]] constexpr elements size() const { return end - begin; }
  friend constexpr bool operator==(transfer const&, transfer const&) = default;
};

/// The plan that turns segments of one layout into segments of another: the intersection of two interval partitions per
/// tensor. Every rank computes its own part, and both sides of a transfer compute the same, without communication.
///
/// It holds for every buffer with an element a parameter element: weights, master copy, gradients, each moment of the
/// optimizer. Each moves by the same transfers, in whatever dtype both sides hold it. Padding never moves. Both layouts
/// are of the same unit, tensors in the same order, and must outlive the plan; a flat group over a whole model (ZeRO-1,
/// ZeRO-2) is resharded to the same list of tensors, not unit by unit. Nothing is stored. Source: docs/design.md, the
/// model.
template <class From, class To>
class resharding {
 public:
  /// Complexity: O(T), comparing names and sizes.
  constexpr resharding(From const& from, To const& to) : from_{&from}, to_{&to} {
    bool same = from.size() == to.size();
    for (std::size_t t = 0; same && t < from.size(); ++t)
      same = from.place_at(t).numel == to.place_at(t).numel && from.name_at(t) == to.name_at(t);
    require(same, "both layouts of a resharding must be of the same unit");
  }
  constexpr resharding(From const&&, To const&) = delete;   // a plan refers to its layouts: they must outlive it
  constexpr resharding(From const&, To const&&) = delete;   // a plan refers to its layouts: they must outlive it
  constexpr resharding(From const&&, To const&&) = delete;  // a plan refers to its layouts: they must outlive it

  [[nodiscard]] constexpr From const& from() const { return *from_; }
  [[nodiscard]] constexpr To const& to() const { return *to_; }

 private:
  // Walks the pieces of one rank in the outer layout, cut at the bounds of the inner one. `sending`: outer = from.
  template <class Outer, class Inner, bool sending>
  class walk {
   public:
    class iterator {
     public:
      using value_type = transfer;
      using difference_type = std::ptrdiff_t;
      using iterator_category = std::input_iterator_tag;
      using reference = transfer const&;
      using pointer = transfer const*;
      constexpr iterator() = default;
      constexpr iterator(walk const& all, typename Outer::piece_range::iterator at)
          : outer_{all.outer_},
            inner_{all.inner_},
            rank_{all.rank_},
            at_{at},
            end_{all.outer_->pieces(all.rank_).end()} {
        open();
      }
      constexpr transfer const& operator*() const { return here_; }
      constexpr transfer const* operator->() const { return &here_; }
      constexpr iterator& operator++() {
        if (here_.end < at_->end) {
          cut(here_.end);
        } else {
          ++at_;
          open();
        }
        return *this;
      }
      constexpr void operator++(int) { ++*this; }
      friend constexpr bool operator==(iterator const& a, iterator const& b) {
        return a.at_ == b.at_ && (a.at_ == a.end_ || a.here_.begin == b.here_.begin);
      }

     private:
      constexpr void open() {
        if (at_ != end_) cut(at_->begin);
      }
      constexpr void cut(elements begin) {
        auto const& whole = *at_;
        auto const peer = inner_->owner(whole.tensor, begin);
        auto const other = inner_->piece_of(whole.tensor, peer);
        elements const mine{whole.local.value + (begin.value - whole.begin.value)};
        elements const theirs{other.local.value + (begin.value - other.begin.value)};
        here_ = {whole.tensor,
                 begin,
                 std::min(whole.end, other.end),
                 sending ? rank_ : peer,
                 sending ? mine : theirs,
                 sending ? peer : rank_,
                 sending ? theirs : mine};
      }
      Outer const* outer_{};
      Inner const* inner_{};
      rank_id rank_{};
      typename Outer::piece_range::iterator at_, end_;
      transfer here_;
    };
    constexpr walk(Outer const& outer, Inner const& inner, rank_id r) : outer_{&outer}, inner_{&inner}, rank_{r} {}
    [[nodiscard]] constexpr iterator begin() const { return {*this, outer_->pieces(rank_).begin()}; }
    [[nodiscard]] constexpr iterator end() const { return {*this, outer_->pieces(rank_).end()}; }

   private:
    Outer const* outer_;
    Inner const* inner_;
    rank_id rank_;
  };

  class pair_walk {
   public:
    class iterator {
     public:
      using value_type = transfer;
      using difference_type = std::ptrdiff_t;
      using iterator_category = std::input_iterator_tag;
      using reference = transfer const&;
      using pointer = transfer const*;
      constexpr iterator() = default;
      constexpr iterator(pair_walk const& all, typename From::piece_range::iterator at)
          : all_{all}, at_{at}, end_{all.from_->pieces(all.source_).end()} {
        skip();
      }
      constexpr transfer const& operator*() const { return here_; }
      constexpr transfer const* operator->() const { return &here_; }
      constexpr iterator& operator++() {
        ++at_;
        skip();
        return *this;
      }
      constexpr void operator++(int) { ++*this; }
      friend constexpr bool operator==(iterator const& a, iterator const& b) { return a.at_ == b.at_; }

     private:
      constexpr void skip() {
        for (; !(at_ == end_); ++at_) {
          auto const& mine = *at_;
          auto const theirs = all_.to_->piece_of(mine.tensor, all_.target_);
          auto const begin = std::max(mine.begin, theirs.begin);
          auto const end = std::min(mine.end, theirs.end);
          if (begin >= end) continue;
          here_ = {mine.tensor,
                   begin,
                   end,
                   all_.source_,
                   mine.local + (begin - mine.begin),
                   all_.target_,
                   theirs.local + (begin - theirs.begin)};
          return;
        }
      }
      pair_walk all_{};
      typename From::piece_range::iterator at_, end_;
      transfer here_;
    };
    constexpr pair_walk() = default;
    constexpr pair_walk(From const* from, To const* to, rank_id source, rank_id target)
        : from_{from}, to_{to}, source_{source}, target_{target} {}
    [[nodiscard]] constexpr iterator begin() const { return {*this, from_->pieces(source_).begin()}; }
    [[nodiscard]] constexpr iterator end() const { return {*this, from_->pieces(source_).end()}; }

   private:
    From const* from_{};
    To const* to_{};
    rank_id source_{}, target_{};
  };

 public:
  /// Everything that rank `r` of the old layout gives, itself included, in the order of its segment: a lazy range.
  /// Complexity: O(1) each (one `owner` of the new layout); at most pieces + W' in all.
  [[nodiscard]] constexpr walk<From, To, true> sends(rank_id r) const { return {*from_, *to_, r}; }
  /// Everything that rank `r` of the new layout gets, in the order of its segment: a lazy range. Complexity: as
  /// `sends`.
  [[nodiscard]] constexpr walk<To, From, false> receives(rank_id r) const { return {*to_, *from_, r}; }
  /// What goes from one rank to another, in the order of the old segment on both sides: a lazy range, at most one
  /// transfer a tensor. Complexity: O(pieces of `source`) in all.
  [[nodiscard]] constexpr pair_walk between(rank_id source, rank_id target) const {
    return {from_, to_, source, target};
  }

 private:
  From const* from_;
  To const* to_;
};

}  // namespace v0
}  // namespace flatshard
