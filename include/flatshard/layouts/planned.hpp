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

/// The parameters stand in lines, one a block length or finer; every rank holds an interval of each line. S is the
/// shortest segment that a search finds: for a given S the ranks are filled one after the other, the longest blocks
/// first, by even shares, with the least rest, or near even shares with what holds most when blocks count by what is
/// scarce. `lower_bound` is what no layout
/// without cut blocks, one interval of a tensor a rank, can go below: volume, the longest block, dual feasible
/// functions of the block lengths, the hull of what a segment can hold of two of them, what divides the longest, and
/// the shorter blocks that matrices end in, few of which lie in one interval (blocks.hpp). Printed as `218112000/256 ->
/// 1835008 + 251650048 pad, at least 1835008`.
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

  /// This policy with its tables for one unit and world. Complexity: O(T log T) and about 20 fillings of W segments in
  /// at most three ways, O(lines * W * log T) each, one of which tries up to 48 parts a rank, and at most twice 10 more
  /// that try up to 512.
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
  enum class filling : std::uint8_t { longest_first, even_shares, least_rest, fullest };

  [[nodiscard]] constexpr detail::block_lines lines_of(std::span<parameter const> unit) const {
    return {unit, [this](parameter const& p) { return block_of(p); }, tensor_align_};
  }
  constexpr bool fill(detail::block_lines const& lines, std::size_t w, std::size_t segment, filling how,
                      detail::block_weights const& weights = {});
  constexpr bool fill(detail::block_lines const& lines, std::size_t w, std::size_t segment) {
    return fill(lines, w, segment, filling::longest_first) || fill(lines, w, segment, filling::even_shares) ||
           fill(lines, w, segment, filling::least_rest);
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

/// How far rank `r` of `w` may take each line, given where the ranks before it stopped: of the four lines with the
/// longest blocks tries cuts within 12 blocks of the even share, the nearest first, and fills up with the other lines;
/// keeps what holds most by the weights, of equals what is nearest to the even shares of all lines.
class fullest {
 public:
  constexpr fullest(block_lines const& lines, block_weights const& weights, std::vector<std::size_t> const& from,
                    std::size_t segment, std::size_t r, std::size_t w)
      : lines_{&lines}, from_{&from}, weights_{weights}, best_{from}, now_{from} {
    for (std::size_t l = 0; l < lines.size(); ++l) shares_.push_back(lines.even_end(l, r + 1, w));
    options_.resize(std::min<std::size_t>(lines.size(), 4) - 1);  // the last of the four takes what fits
    for (std::size_t l = 0; l < options_.size(); ++l) {
      auto const near = 12 * lines.length(l);
      auto cut = std::max(from[l], lines.cut_before(l, std::min(from[l] + segment, shares_[l] + near)));
      options_[l].push_back({cut, weight(l, cut), apart(l, cut)});
      while (cut > from[l] && cut + near > shares_[l]) {
        cut = std::max(from[l], lines.cut_before(l, cut - 1));
        options_[l].push_back({cut, weight(l, cut), apart(l, cut)});
      }
      std::sort(options_[l].begin(), options_[l].end(), [](option const& a, option const& b) {
        return a.apart != b.apart ? a.apart < b.apart : a.cut < b.cut;
      });
    }
    auto const density = [](std::size_t of, std::size_t length) {
      return static_cast<double>(of) / static_cast<double>(length) * (1 + 1e-9);  // a bound, also when rounded
    };
    density_ = density(weights.of_unit, weights.unit);
    if (weights.longer > 0) density_ = std::max(density_, density(weights.of_longer, weights.longer));
    try_line(0, segment, 0, 0);
  }
  [[nodiscard]] constexpr std::vector<std::size_t> const& result() const { return best_; }

 private:
  struct option {
    std::size_t cut, weight, apart;
  };
  constexpr void try_line(std::size_t line, std::size_t space, std::size_t held, std::size_t off) {
    auto const most = held + static_cast<std::size_t>(static_cast<double>(space) * density_);
    if (tries_ == 0 || !better(most, off)) return;
    if (line < options_.size()) {
      for (auto const& o : options_[line]) {
        if (!better(most, off + o.apart)) break;
        auto const n = o.cut - (*from_)[line];
        if (n > space) continue;
        now_[line] = o.cut;
        try_line(line + 1, space - n, held + o.weight, off + o.apart);
      }
      return;
    }
    --tries_;
    for (auto l = line; l < lines_->size(); ++l) {
      auto const from = (*from_)[l];
      now_[l] = std::max(from, lines_->cut_before(l, from + space));
      space -= now_[l] - from;
      held += weight(l, now_[l]);
      off += apart(l, now_[l]);
    }
    if (!better(held, off)) return;
    held_ = held;
    off_ = off;
    best_ = now_;
  }
  [[nodiscard]] constexpr bool better(std::size_t held, std::size_t off) const {
    return held != held_ ? held > held_ : off < off_;
  }
  [[nodiscard]] constexpr std::size_t weight(std::size_t l, std::size_t cut) const {
    auto const n = cut - (*from_)[l], length = lines_->length(l);
    auto const whole = length == weights_.longer ? weights_.of_longer : length / weights_.unit * weights_.of_unit;
    return n / length * whole + n % length / weights_.unit * weights_.of_unit;
  }
  [[nodiscard]] constexpr std::size_t apart(std::size_t l, std::size_t cut) const {
    return cut < shares_[l] ? shares_[l] - cut : cut - shares_[l];
  }
  block_lines const* lines_;
  std::vector<std::size_t> const* from_;
  block_weights weights_;
  std::vector<std::vector<option>> options_;
  std::vector<std::size_t> shares_, best_, now_;
  std::size_t held_ = 0, off_ = ~std::size_t{0};
  double density_ = 0;
  int tries_ = 512;
};

}  // namespace detail

// Fills the tables for one segment length; false if something is left over.
constexpr bool planned::fill(detail::block_lines const& lines, std::size_t w, std::size_t segment, filling how,
                             detail::block_weights const& weights) {
  auto const count = lines.size();
  std::vector<std::size_t> at(count, 0);
  std::size_t left = 0;
  for (std::size_t l = 0; l < count; ++l) {
    at[l] = lines.begin(l);
    left += lines.end(l) - lines.begin(l);
    cuts_[l * (w + 1)] = at[l];
  }
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
        take(l, lines.even_end(l, r + 1, w) + lines.length(l) - 1);
      }
    } else if (how == filling::least_rest) {
      at = detail::least_rest{lines, from, segment}.result();
      for (std::size_t l = 0; l < count; ++l) space -= at[l] - from[l];
    } else if (how == filling::fullest) {
      at = detail::fullest{lines, weights, from, segment, r, w}.result();
      for (std::size_t l = 0; l < count; ++l) space -= at[l] - from[l];
    }
    for (std::size_t l = 0; l < count; ++l) take(l, at[l] + space);
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
  // Where that leaves more than 1/1024, ranks are searched for how to hold most, in few lengths from the bound on.
  auto const step = std::max<std::size_t>(bound / 1024, 1);
  auto const ends = detail::block_weights{tails.empty() ? 1 : tails.front().length};
  bool filled = false;
  for (std::size_t over = high - bound > step ? 0 : high; !filled && bound + over < high;) {
    auto const segment = (bound + over) * segment_align_;
    filled = p.fill(lines, w, segment, filling::fullest, ends) ||
             p.fill(lines, w, segment, filling::fullest, detail::tightest(blocks, w, segment));
    if (filled) high = bound + over;
    over = over == 0 ? step : 2 * over;
  }
  if (!filled) static_cast<void>(p.fill(lines, w, high * segment_align_));
  p.lower_bound_ = bound * segment_align_;
  p.segment_ = high * segment_align_;
  return p;
}

}  // namespace v0
}  // namespace flatshard
