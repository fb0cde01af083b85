// SPDX-License-Identifier: Apache-2.0
/// How far one rank takes each line of blocks: two searches for what fills its segment best.
#pragma once

#include <flatshard/layouts/block_bounds.hpp>
#include <flatshard/layouts/block_lines.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace flatshard {
inline namespace v0 {
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

}  // namespace v0
}  // namespace flatshard
