// SPDX-License-Identifier: Apache-2.0
/// Every parameter names a block that is never cut; the shortest segment that allows it is searched for.
#pragma once

#include <flatshard/fnv.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/blocks.hpp>
#include <flatshard/name_pattern.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The parameters stand in lines, one a block length; every rank holds an interval of each line. S is the shortest
/// segment that a search finds: for a given S the ranks are filled one after the other, the longest blocks first, by
/// even shares, with the least rest, by even numbers of blocks, or with most whole units. `lower_bound` is what no
/// layout without cut blocks, one interval of a tensor a rank, can go below: volume, the longest block, dual feasible
/// functions of the block lengths, the hull of what a segment can hold of two of them, what divides the longest, and
/// the shorter blocks that matrices end in, few of which lie in one interval (blocks.hpp).
/// Printed as `218112000/256 -> 1835008 + 251650048 pad, at least 1835008`.
///
/// Pieces begin at multiples of `tensor_align`; a block that is no multiple of it grows until it is. The layout fills
/// in the tables (`for_unit`): W + 1 cuts and W positions a line, at most 16 lines. Padding is zero.
/// Source: S. P. Fekete, J. Schepers, New classes of fast lower bounds for bin packing problems, 2001.
class planned {
 public:
  static constexpr std::string_view name = "planned";
  static constexpr piece_order order = piece_order::by_start;

  constexpr planned() = default;
  constexpr explicit planned(block of_all, std::size_t tensor_align = 8, std::size_t segment_align = 128)
      : planned({}, of_all, tensor_align, segment_align) {}
  /// The first rule whose pattern fits a parameter's name decides, else `of_others`.
  constexpr planned(std::vector<block_rule> rules, block of_others, std::size_t tensor_align = 8,
                    std::size_t segment_align = 128)
      : rules_{std::move(rules)}, others_{of_others}, tensor_align_{tensor_align}, segment_align_{segment_align} {
    require(tensor_align > 0 && segment_align > 0, "alignments must be positive");
    require(segment_align % tensor_align == 0, "the tensor alignment must divide the segment alignment");
  }
  friend constexpr bool operator==(planned const&, planned const&) = default;

  /// The segment length that no cut without broken blocks can go below; of the policy of a layout. Units: elements.
  [[nodiscard]] constexpr elements lower_bound() const { return {lower_bound_}; }
  [[nodiscard]] constexpr elements alignment() const { return {tensor_align_}; }
  [[nodiscard]] constexpr block block_of(parameter const& p) const {
    for (auto const& rule : rules_)
      if (matches(rule.pattern, p.name)) return rule.keep;
    return others_;
  }
  [[nodiscard]] constexpr bool may_cut(parameter const& p, elements i) const {
    return grid_of(p.dims, block_of(p), tensor_align_).cut_before(i.value) == i.value;
  }

  /// This policy with its tables for one unit and world. Complexity: O(T log T) and about 20 fillings of W segments,
  /// each in at most five ways, O(lines * W * log T) each; two of the ways try up to 48 and 256 parts a rank.
  [[nodiscard]] constexpr planned for_unit(std::span<parameter const> unit, std::size_t w) const;

  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    require(world_ == w, "a planned policy is placed by a layout");
    auto const lines = lines_of(unit);
    for (auto const& i : lines.items()) out[i.tensor] = {i.numel, i.start, i.line};
    return {segment_};
  }
  constexpr elements begin(placement const& t, std::size_t w, std::size_t r) const {
    auto const cut = cuts_[t.step * (w + 1) + r];
    return {cut <= t.start ? 0 : std::min(t.numel, cut - t.start)};
  }
  constexpr elements local(placement const& t, std::size_t w, std::size_t r) const {
    auto const cut = cuts_[t.step * (w + 1) + r], next = cuts_[t.step * (w + 1) + r + 1];
    return {offsets_[t.step * w + r] + (t.start <= cut ? 0 : std::min(t.start, next) - cut)};
  }
  /// Complexity: O(lines).
  constexpr elements position(elements, std::size_t w, std::size_t r, elements j) const {
    auto const lines = offsets_.size() / w;
    if (lines == 0) return j;  // of a unit without parameters
    std::size_t l = 0;         // the last line whose part begins at or before j
    while (l + 1 < lines && offsets_[(l + 1) * w + r] <= j.value) ++l;
    return {cuts_[l * (w + 1) + r] + (j.value - offsets_[l * w + r])};
  }
  /// Complexity: O(log W).
  constexpr std::size_t owner(placement const& t, std::size_t w, elements i) const {
    auto const first = cuts_.begin() + static_cast<std::ptrdiff_t>(t.step * (w + 1));
    auto const after = std::upper_bound(first, first + static_cast<std::ptrdiff_t>(w + 1), t.start + i.value);
    return static_cast<std::size_t>(after - first) - 1;
  }
  [[nodiscard]] constexpr std::uint64_t hash(std::uint64_t h) const {
    for (auto const c : cuts_) h = detail::fnv(h, c);
    for (auto const o : offsets_) h = detail::fnv(h, o);
    return h;
  }

 private:
  enum class filling : std::uint8_t { longest_first, even_shares, least_rest, even_numbers, most_whole };

  [[nodiscard]] constexpr detail::block_lines lines_of(std::span<parameter const> unit) const {
    return {unit, [this](parameter const& p) { return block_of(p); }, tensor_align_};
  }
  constexpr bool fill(detail::block_lines const& lines, std::size_t w, std::size_t segment, filling how);
  constexpr bool fill(detail::block_lines const& lines, std::size_t w, std::size_t segment) {
    return fill(lines, w, segment, filling::longest_first) || fill(lines, w, segment, filling::even_shares) ||
           fill(lines, w, segment, filling::least_rest) || fill(lines, w, segment, filling::even_numbers) ||
           fill(lines, w, segment, filling::most_whole);
  }

  std::vector<block_rule> rules_;
  block others_;
  std::size_t tensor_align_ = 8, segment_align_ = 128;
  std::size_t world_ = 0, segment_ = 0, lower_bound_ = 0;
  std::vector<std::size_t> cuts_;     // [line][rank], the last of a line is its end
  std::vector<std::size_t> offsets_;  // [line][rank], where a rank's part of the line lies in its segment
};

namespace detail {

/// How far one rank may take each line, given where the ranks before it stopped: tries numbers of blocks of the lines
/// with long blocks, most first, and keeps what leaves the least of the segment empty.
class least_rest {
 public:
  constexpr least_rest(block_lines const& lines, std::vector<std::size_t> const& from, std::size_t segment)
      : lines_{&lines}, from_{&from}, best_{from}, now_{from} {
    try_line(0, segment);
  }
  [[nodiscard]] constexpr std::vector<std::size_t> const& result() const { return best_; }

 private:
  constexpr void try_line(std::size_t line, std::size_t space) {
    if (rest_ == 0 || tries_ == 0) return;
    if (line == lines_->size()) {
      --tries_;
      if (space >= rest_) return;
      rest_ = space;
      best_ = now_;
      return;
    }
    auto const from = (*from_)[line];
    auto cut = lines_->cut_before(line, from + space);
    for (int option = 0; option < 8; ++option) {
      now_[line] = cut;
      try_line(line + 1, space - (cut - from));
      if (cut == from) break;
      cut = std::max(from, lines_->cut_before(line, cut - 1));
    }
  }
  block_lines const* lines_;
  std::vector<std::size_t> const* from_;
  std::vector<std::size_t> best_, now_;
  std::size_t rest_ = ~std::size_t{0};
  int tries_ = 48;
};

/// As `least_rest`, but keeps what holds most when each block counts as so many whole `unit`, the ones that matrices
/// end in as one more: what is longer than a multiple of the unit goes beside an end, that would leave room otherwise.
class most_whole {
 public:
  constexpr most_whole(block_lines const& lines, std::vector<std::size_t> const& from, std::size_t segment,
                       std::size_t unit)
      : lines_{&lines}, from_{&from}, unit_{unit}, best_{from}, now_{from} {
    try_line(0, segment, 0, 0);
  }
  [[nodiscard]] constexpr std::vector<std::size_t> const& result() const { return best_; }

 private:
  constexpr void try_line(std::size_t line, std::size_t space, std::size_t units, std::size_t held) {
    if (tries_ == 0) return;
    if (line == lines_->size() || lines_->length(line) < unit_) {
      --tries_;
      if (units < units_ || (units == units_ && held <= held_)) return;
      units_ = units;
      held_ = held;
      best_ = now_;
      return;
    }
    auto const from = (*from_)[line], length = lines_->length(line);
    auto cut = std::max(from, lines_->cut_before(line, from + space));
    for (int option = 0; option < 16; ++option) {
      auto const n = cut - from;
      auto const whole = length == unit_ ? ceil_div(n, unit_) : n / length * (length / unit_) + n % length / unit_;
      now_[line] = cut;
      try_line(line + 1, space - n, units + whole, held + (length == unit_ ? whole * unit_ : n));
      if (cut == from || length == unit_) break;  // of the last line, most
      cut = std::max(from, lines_->cut_before(line, cut - 1));
    }
    now_[line] = from;
  }
  block_lines const* lines_;
  std::vector<std::size_t> const* from_;
  std::size_t unit_, units_ = 0, held_ = 0;
  std::vector<std::size_t> best_, now_;
  int tries_ = 256;
};

/// How many blocks of one line each rank takes so that a second line fits beside it: the numbers at a corner of the
/// hull (`hull_of`) on either side of the mean of the ranks that are left. Of all pairs, the two lines that hold most.
class even_numbers {
 public:
  constexpr even_numbers() = default;
  constexpr even_numbers(block_lines const& lines, std::size_t segment) {
    auto const held = [&](std::size_t l) { return lines.end(l) - lines.begin(l); };
    std::size_t other = lines.size();
    for (std::size_t l = 1; l < lines.size(); ++l)
      if (held(l) > held(line_)) line_ = l;
    for (std::size_t l = 0; l < lines.size(); ++l)
      if (l != line_ && (other == lines.size() || held(l) > held(other))) other = l;
    if (other == lines.size()) return;
    if (other < line_) std::swap(line_, other);  // the longer blocks are counted
    edge_ = hull_of(lines.length(line_), lines.length(other), segment);
  }
  [[nodiscard]] constexpr bool helps() const { return edge_.size() > 1; }
  [[nodiscard]] constexpr std::size_t line() const { return line_; }
  /// For one of `ranks` ranks, with `left` blocks for all of them.
  [[nodiscard]] constexpr std::size_t number(std::size_t left, std::size_t ranks) const {
    std::size_t k = 1;
    while (k + 1 < edge_.size() && at(k) * ranks < left) ++k;
    return at(k - 1) * (ranks - 1) + at(k) <= left ? at(k)
           : left > at(k - 1) * (ranks - 1)        ? left - at(k - 1) * (ranks - 1)
                                                   : at(k - 1);
  }

 private:
  [[nodiscard]] constexpr std::size_t at(std::size_t k) const { return static_cast<std::size_t>(edge_[k].longer); }
  std::size_t line_ = 0;
  std::vector<block_numbers> edge_;
};

}  // namespace detail

// Fills the tables for one segment length; false if something is left over.
constexpr bool planned::fill(detail::block_lines const& lines, std::size_t w, std::size_t segment, filling how) {
  auto const count = lines.size();
  std::vector<std::size_t> at(count, 0);
  std::size_t left = 0;
  for (std::size_t l = 0; l < count; ++l) {
    at[l] = lines.begin(l);
    left += lines.end(l) - lines.begin(l);
    cuts_[l * (w + 1)] = at[l];
  }
  auto const numbers = how == filling::even_numbers ? detail::even_numbers{lines, segment} : detail::even_numbers{};
  if (how == filling::even_numbers && !numbers.helps()) return false;
  auto const tails = how == filling::most_whole ? lines.tails() : std::vector<detail::block_tails>{};
  if (how == filling::most_whole && tails.empty()) return false;
  for (std::size_t r = 0; r < w; ++r) {
    if (left / (w - r) > segment) return false;
    auto const from = at;
    std::size_t space = segment;
    auto const take = [&](std::size_t l, std::size_t limit) {
      auto const cut = std::max(at[l], lines.cut_before(l, std::min(limit, at[l] + space)));
      space -= cut - at[l];
      at[l] = cut;
    };
    if (how == filling::even_shares) {
      for (std::size_t l = 0; l < count; ++l) {
        auto const all = lines.end(l) - lines.begin(l);
        auto const even_part = all / w * (r + 1) + all % w * (r + 1) / w;
        take(l, lines.begin(l) + even_part + lines.length(l) - 1);
      }
    } else if (how == filling::least_rest) {
      at = detail::least_rest{lines, from, segment}.result();
      for (std::size_t l = 0; l < count; ++l) space -= at[l] - from[l];
    }
    if (how == filling::most_whole) {
      at = detail::most_whole{lines, from, segment, tails.front().whole}.result();
      for (std::size_t l = 0; l < count; ++l) space -= at[l] - from[l];
    }
    if (how == filling::even_numbers) {  // longer blocks take the place of the counted ones
      auto const counted = numbers.line();
      std::size_t waiting = 0;
      for (std::size_t l = 0; l <= counted; ++l) waiting += lines.end(l) - at[l];
      auto place = numbers.number(ceil_div(waiting, lines.length(counted)), w - r) * lines.length(counted);
      for (std::size_t l = 0; l <= counted; ++l) {
        auto const before = at[l];
        take(l, before + place);
        place -= std::min(place, at[l] - before);
      }
      for (std::size_t l = 0; l < count; ++l)
        if (l > counted) take(l, at[l] + space);
    } else {
      for (std::size_t l = 0; l < count; ++l) take(l, at[l] + space);
    }
    left -= segment - space;
    std::size_t end = 0;
    for (std::size_t l = 0; l < count; ++l) {
      cuts_[l * (w + 1) + r + 1] = at[l];
      offsets_[l * w + r] = end;
      end += at[l] - from[l];
    }
  }
  return left == 0;
}

constexpr planned planned::for_unit(std::span<parameter const> unit, std::size_t w) const {
  auto const lines = lines_of(unit);
  auto const blocks = lines.blocks();
  planned p = *this;
  p.world_ = w;
  p.cuts_.assign(lines.size() * (w + 1), 0);
  p.offsets_.assign(lines.size() * w, 0);
  p.lower_bound_ = p.segment_ = 0;
  std::size_t volume = 0, longest = 0;
  for (auto const& [length, count] : blocks) {
    volume = checked_add(volume, checked_mul(length, count));
    longest = std::max(longest, length);
  }
  if (volume == 0) {
    static_cast<void>(p.fill(lines, w, 0, filling::longest_first));
    return p;
  }
  // In units of the segment alignment: nothing below `bound` can work, `high` works.
  auto const unit_of = [&](std::size_t n) { return ceil_div(n, segment_align_); };
  auto const least = unit_of(std::max(ceil_div(volume, w), longest));
  require(checked_mul(checked_mul(checked_mul(least, segment_align_), w), 8) <=
              static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()),
          "the gathered buffer must stay below 2^63 bytes");  // longer ones would wrap below and never fit
  auto high = least;
  for (std::size_t step = std::max<std::size_t>(least / 512, 1); !p.fill(lines, w, high * segment_align_); step *= 2)
    high += step;
  auto bound = least;
  auto const tails = lines.tails();
  auto const refuted = [&](std::size_t n) {
    return detail::cannot_fit(blocks, w, n * segment_align_) ||
           detail::tails_cannot_fit(blocks, tails, w, n * segment_align_);
  };
  for (auto top = high; bound < top;) {
    auto const middle = bound + (top - bound) / 2;
    if (refuted(middle)) {
      bound = middle + 1;
    } else {
      top = middle;
    }
  }
  auto const fine = std::max<std::size_t>(bound / 4096, 1);
  for (auto low = bound; low < high;) {
    auto const middle = low + (high - low) / 2;
    if (p.fill(lines, w, middle * segment_align_)) {
      high = middle;
    } else {
      low = middle + fine;
    }
  }
  for (std::size_t part = 16; part > 0 && bound < high; --part) {  // a proof for one length holds for all below it
    auto const n = bound + (high - bound) * part / 16 - 1;
    if (n >= bound && refuted(n)) bound = n + 1;
  }
  static_cast<void>(p.fill(lines, w, high * segment_align_));
  p.lower_bound_ = bound * segment_align_;
  p.segment_ = high * segment_align_;
  return p;
}

}  // namespace v0
}  // namespace flatshard
