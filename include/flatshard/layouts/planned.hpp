// SPDX-License-Identifier: Apache-2.0
/// Every parameter names a block that is never cut; the shortest segment that allows it is searched for.
#pragma once

#include <flatshard/cut_finder.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/block_bounds.hpp>
#include <flatshard/layouts/block_filling.hpp>
#include <flatshard/layouts/block_lines.hpp>
#include <flatshard/layouts/blocks.hpp>
#include <flatshard/name_pattern.hpp>
#include <flatshard/numbered_unit.hpp>

#include <algorithm>
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
/// scarce (block_filling.hpp). `lower_bound` is what no layout without cut blocks, one interval of a tensor a rank, can
/// go below: volume, the longest block, dual feasible functions of the block lengths, the hull of what a segment can
/// hold of two of them, what divides the longest, and the shorter blocks that matrices end in, few of which lie in one
/// interval (block_bounds.hpp). Printed as `218112000/256 -> 1835008 + 251650048 pad, at least 1835008`.
///
/// Pieces begin at multiples of `tensor_align`; a block that is no multiple of it grows until it is. The layout fills
/// in the tables (`for_unit`): W + 1 cuts and as many positions a line, at most 16 lines, 6 KB a line to find an owner
/// by, and a byte a tensor. Padding is zero. Source: S. P. Fekete, J. Schepers, New classes of fast lower
/// bounds for bin packing problems, 2001.
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

  /// This policy with its tables for one unit and world. Complexity: O(T + K log K) for K different tensors, and about
  /// 20 fillings of W segments in at most three ways, O(lines * W * log T) each, one of which tries up to 48 parts a
  /// rank, and at most twice 10 more that try up to 512; for the bound about 30 proofs, O(L^2) each for L different
  /// lengths of blocks.
  [[nodiscard]] constexpr planned for_unit(numbered_unit unit, std::size_t w) const;

  /// placement.step is the number of the tensor's line.
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    require(world_ == w && line_of_.size() == unit.size(), "a planned policy is placed by a layout");
    std::vector<std::size_t> ends;  // of each line, so far
    for (std::size_t first = 0; first < cuts_.size(); first += w + 1) ends.push_back(cuts_[first]);
    for (std::size_t t = 0; t < unit.size(); ++t) {
      auto const n = unit.numel(t);
      auto& end = ends[line_of_[t]];
      out[t] = {n, end, line_of_[t]};
      end += round_up(n, tensor_align_);
    }
    return {segment_};
  }
  constexpr elements begin(placement const& t, std::size_t w, std::size_t r) const {
    auto const cut = cuts_[t.step * (w + 1) + r];
    return {cut <= t.start ? 0 : std::min(t.numel, cut - t.start)};
  }
  constexpr elements local(placement const& t, std::size_t w, std::size_t r) const {
    auto const k = t.step * (w + 1) + r;
    auto const cut = cuts_[k], next = cuts_[k + 1];
    return {offsets_[k] + (t.start <= cut ? 0 : std::min(t.start, next) - cut)};
  }
  /// Complexity: O(lines).
  constexpr elements position(elements, std::size_t w, std::size_t r, elements j) const {
    if (cuts_.empty()) return j;  // of a unit without parameters
    std::size_t k = r;            // in the last line whose part begins at or before j
    while (k + w + 1 < cuts_.size() && offsets_[k + w + 1] <= j.value) k += w + 1;
    return {cuts_[k] + (j.value - offsets_[k])};
  }
  /// Complexity: O(1) where the ranks' parts of the line are about alike, else O(log W).
  constexpr std::size_t owner(placement const& t, std::size_t w, elements i) const {
    return finder_.last_before(t.step, t.start + i.value, [&] { return cuts_of(t.step, w); });
  }
  [[nodiscard]] constexpr std::uint64_t hash(std::uint64_t h) const {
    for (auto const c : cuts_) h = detail::fnv(h, c);
    for (auto const o : offsets_) h = detail::fnv(h, o);
    return h;
  }

 private:
  [[nodiscard]] constexpr std::span<std::size_t const> cuts_of(std::size_t line, std::size_t w) const {
    return std::span{cuts_}.subspan(line * (w + 1), w + 1);
  }
  enum class filling : std::uint8_t { longest_first, even_shares, least_rest, fullest };

  [[nodiscard]] constexpr detail::block_lines lines_of(numbered_unit unit) const {
    return {unit, [this](parameter const& p) { return block_of(p); }, tensor_align_};
  }
  constexpr bool fill(detail::block_lines const& lines, std::size_t w, std::size_t segment, filling how,
                      detail::block_weights const& weights = {});
  constexpr bool fill(detail::block_lines const& lines, std::size_t w, std::size_t segment) {
    return fill(lines, w, segment, filling::longest_first) || fill(lines, w, segment, filling::even_shares) ||
           fill(lines, w, segment, filling::least_rest);
  }
  constexpr void search(detail::block_lines const& lines, std::size_t w);

  std::vector<block_rule> rules_;
  block others_;
  std::size_t tensor_align_ = 8, segment_align_ = 128;
  std::size_t world_ = 0, segment_ = 0, lower_bound_ = 0;
  std::vector<std::size_t> cuts_;  // [line][rank], ascending, the last of a line is its end
  std::vector<std::size_t>
      offsets_;  // [line][rank], where a rank's part of the line lies in its segment; the last of a line is 0
  detail::cut_finder finder_;          // of the cuts of all lines
  std::vector<std::uint8_t> line_of_;  // of each tensor
};

// Fills the tables for one segment length; false if something is left over.
constexpr bool planned::fill(detail::block_lines const& lines, std::size_t w, std::size_t segment, filling how,
                             detail::block_weights const& weights) {
  auto const count = lines.size();
  std::vector<std::size_t> at(count, 0), runs(count, 0);
  std::size_t left = 0;
  for (std::size_t l = 0; l < count; ++l) {
    at[l] = lines.begin(l);
    runs[l] = lines.first_run(l);
    left += lines.end(l) - lines.begin(l);
    cuts_[l * (w + 1)] = at[l];
  }
  for (std::size_t r = 0; r < w; ++r) {
    if (left / (w - r) > segment) return false;
    std::size_t space = segment;
    auto const from = [&](std::size_t l) { return cuts_[l * (w + 1) + r]; };
    auto const take = [&](std::size_t l, std::size_t limit) {
      if (limit <= at[l]) return;
      auto const cut = std::max(at[l], lines.cut_before(l, std::min(limit, at[l] + space), runs[l]));
      space -= cut - at[l];
      at[l] = cut;
    };
    if (how == filling::even_shares) {
      for (std::size_t l = 0; l < count; ++l) {
        take(l, lines.even_end(l, r + 1, w) + lines.length(l) - 1);
      }
    } else if (how == filling::least_rest || how == filling::fullest) {
      at = how == filling::fullest ? detail::fullest{lines, weights, at, segment, r, w}.result()
                                   : detail::least_rest{lines, at, segment}.result();
      for (std::size_t l = 0; l < count; ++l) space -= at[l] - from(l);
    }
    for (std::size_t l = 0; l < count; ++l) take(l, at[l] + space);
    left -= segment - space;
    std::size_t end = 0;
    for (std::size_t l = 0; l < count; ++l) {
      cuts_[l * (w + 1) + r + 1] = at[l];
      offsets_[l * (w + 1) + r] = end;
      end += at[l] - from(l);
    }
  }
  return left == 0;
}

constexpr planned planned::for_unit(numbered_unit unit, std::size_t w) const {
  auto const lines = lines_of(unit);
  planned p = *this;
  p.world_ = w;
  p.line_of_ = lines.line_of();
  p.cuts_.assign(lines.size() * (w + 1), 0);
  p.offsets_.assign(p.cuts_.size(), 0);
  p.search(lines, w);
  p.finder_ = {};  // that of the layout that this policy was taken from knows other lines
  for (std::size_t l = 0; l < lines.size(); ++l) p.finder_.add(p.cuts_of(l, w), std::min<std::size_t>(w + 1, 256));
  return p;
}

// Finds the segment and its bound, and fills the tables for it.
constexpr void planned::search(detail::block_lines const& lines, std::size_t w) {
  auto const blocks = lines.blocks();
  lower_bound_ = segment_ = 0;
  std::size_t volume = 0, longest = 0;
  for (auto const& [length, count] : blocks) {
    volume = checked_add(volume, checked_mul(length, count));
    longest = std::max(longest, length);
  }
  if (volume == 0) {
    static_cast<void>(fill(lines, w, 0, filling::longest_first));
    return;
  }
  // In units of the segment alignment: nothing below `bound` can work, `high` works.
  auto const unit_of = [&](std::size_t n) { return ceil_div(n, segment_align_); };
  auto const least = unit_of(std::max(ceil_div(volume, w), longest));
  auto const all =
      lines.end(lines.size() - 1);  // with the padding between tensors, which one rank must be able to hold
  require(checked_mul(checked_mul(checked_mul(least, segment_align_), w), 8) <=
                  static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()) &&
              checked_mul(checked_add(all, segment_align_), 8) <=
                  static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()),
          "the gathered buffer must stay below 2^63 bytes");  // longer ones would wrap below and never fit
  std::size_t held = 0;  // what the tables hold, 0 after a length that did not work
  auto const works = [&](std::size_t n) {
    bool const filled = fill(lines, w, n * segment_align_);
    held = filled ? n : 0;
    return filled;
  };
  auto high = least;
  for (std::size_t step = std::max<std::size_t>(least / 512, 1); !works(high); step *= 2) high += step;
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
    if (works(middle)) {
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
  for (std::size_t over = high - bound > step ? 0 : high; bound + over < high;) {
    auto const segment = (bound + over) * segment_align_;
    held = 0;
    if (fill(lines, w, segment, filling::fullest, ends) ||
        fill(lines, w, segment, filling::fullest, detail::tightest(blocks, w, segment)))
      held = high = bound + over;
    over = over == 0 ? step : 2 * over;
  }
  if (held != high) static_cast<void>(works(high));
  lower_bound_ = bound * segment_align_;
  segment_ = high * segment_align_;
}

}  // namespace v0
}  // namespace flatshard
