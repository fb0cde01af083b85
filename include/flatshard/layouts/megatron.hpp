// SPDX-License-Identifier: Apache-2.0
/// Megatron-FSDP: one flat buffer a group, packed so that a rank never holds part of a row.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

namespace detail {
/// A stable sort that is also a constant expression: numbers that compare equal keep the order of the list.
template <class Before>
constexpr void stable_by(std::vector<std::size_t>& list, Before before) {
  std::vector<std::pair<std::size_t, std::size_t>> keyed;
  keyed.reserve(list.size());
  for (std::size_t k = 0; k < list.size(); ++k) keyed.emplace_back(list[k], k);
  std::sort(keyed.begin(), keyed.end(), [&](auto const& a, auto const& b) {
    return before(a.first, b.first) || (!before(b.first, a.first) && a.second < b.second);
  });
  for (std::size_t k = 0; k < list.size(); ++k) list[k] = keyed[k].first;
}
}  // namespace detail

/// Two packings upstream, with different offsets for the same tensors.
enum class megatron_packing : std::uint8_t { production, experimental };

/// Segments are multiples of q, a common multiple of row lengths R. A tensor of at least q elements is regular and
/// starts at a multiple of q, or ends its remainder at one; a shorter one is a fragment and fills gaps.
///   production    regular tensors by R descending (stable); q grows along that order; fragments anywhere, so only
///                 regular rows stay whole
///   experimental  given order; q = lcm of all R; fragments by size descending (stable), each at a multiple of its own
///   R
/// q is bounded by `longest_quantum` elements: rows of 4096 and 4097 already give 16.8 M; past it, split the group.
/// Rounding is exact, where upstream divides in floating point (wrong above 2^53). Padding is undefined.
/// `place`: O(T log T) where all sizes are multiples of q, O(T^2) at most.
/// Source: Megatron-LM@d98e8a64:megatron/core/distributed/fsdp/src/megatron_fsdp/param_and_grad_buffer.py:258-383,
/// 1731-1962 and experimental/layout.py:40-175.
struct megatron : flat_cuts {
  static constexpr std::string_view name = "megatron";
  static constexpr piece_order order = piece_order::by_start;
  megatron_packing packing = megatron_packing::production;
  std::size_t longest_quantum = std::size_t{1} << 40;
  friend constexpr bool operator==(megatron const&, megatron const&) = default;

  /// Elements of one row: the product of all dimensions but the first. Units: elements.
  [[nodiscard]] static constexpr std::size_t row(shape const& dims) {
    std::size_t n = 1;
    for (std::size_t i = 1; i < dims.rank; ++i) n = checked_mul(n, dims.dims[i]);
    return n;
  }
  /// The order in which tensors are looked at. Complexity: O(T log T).
  [[nodiscard]] constexpr std::vector<std::size_t> tensor_order(std::span<parameter const> unit) const {
    std::vector<std::size_t> order_of(unit.size(), 0);
    std::iota(order_of.begin(), order_of.end(), std::size_t{0});
    if (packing == megatron_packing::production)
      detail::stable_by(order_of, [&](std::size_t a, std::size_t b) { return row(unit[a].dims) > row(unit[b].dims); });
    return order_of;
  }
  /// q, the length that every segment is a multiple of. Complexity: O(T log T). Units: elements.
  [[nodiscard]] constexpr elements quantum(std::span<parameter const> unit) const {
    return quantum(unit, tensor_order(unit));
  }

  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    auto const sequence = tensor_order(unit);
    auto const q = quantum(unit, sequence).value;
    std::vector<std::size_t> regular, fragments;
    for (auto const i : sequence) {
      auto const n = unit[i].dims.numel();
      out[i] = {n, 0, 0};
      (n < q ? fragments : regular).push_back(i);
    }
    bool const aligned = packing == megatron_packing::experimental;
    if (aligned)
      detail::stable_by(fragments, [&](std::size_t a, std::size_t b) { return (out[a].numel) > (out[b].numel); });
    std::size_t end = 0;  // of everything placed
    std::vector<unsigned char> placed(unit.size(), 0);
    auto const put = [&](std::size_t i, std::size_t start) {
      out[i].start = start;
      placed[i] = 1;
      end = std::max(end, checked_add(start, out[i].numel));
    };
    std::size_t next = 0;
    for (std::size_t k = 0; k < regular.size(); ++k) {
      auto const i = regular[k];
      if (placed[i] != 0) continue;
      put(i, next);
      auto const rest = out[i].numel % q;
      auto gap = checked_add(next, out[i].numel);
      next = round_up(gap, q);
      if (rest == 0) continue;
      auto gap_end = next;
      for (std::size_t m = k + 1; m < regular.size(); ++m) {
        auto const j = regular[m];
        auto const other = out[j].numel % q;
        if (placed[j] != 0 || other == 0 || rest + other > q) continue;
        gap_end = next - other;
        put(j, gap_end);
        next = checked_add(next, out[j].numel / q * q);
        break;
      }
      for (auto const j : fragments) {
        auto const start = aligned ? round_up(gap, row(unit[j].dims)) : gap;
        if (placed[j] != 0 || start + out[j].numel > gap_end) continue;
        put(j, start);
        gap = start + out[j].numel;
      }
    }
    auto tail = next;
    for (auto const j : fragments) {
      if (placed[j] != 0) continue;
      put(j, aligned ? round_up(tail, row(unit[j].dims)) : tail);
      tail = out[j].start + out[j].numel;
    }
    auto const segment = round_up(std::max(end, next), checked_mul(q, w)) / w;
    for (auto& t : out) t.step = segment;
    return {segment};
  }
  /// Rows stay whole; in production only those of regular tensors, which a tensor's shape alone does not tell.
  [[nodiscard]] constexpr bool may_cut(parameter const& p, elements i) const {
    return packing == megatron_packing::production || i.value % row(p.dims) == 0;
  }
  [[nodiscard]] constexpr std::optional<int> padding_value() const { return std::nullopt; }

 private:
  [[nodiscard]] constexpr elements quantum(std::span<parameter const> unit,
                                           std::vector<std::size_t> const& sequence) const {
    std::size_t q = 1;
    for (std::size_t k = 0; k < sequence.size(); ++k) {
      auto const& dims = unit[sequence[k]].dims;
      auto const r = row(dims);
      require(r > 0, "megatron cannot pack a tensor whose rows are empty");
      if (packing == megatron_packing::experimental) {
        require(dims.rank > 0, "the experimental packing of megatron cannot shard a scalar");
      } else {
        auto const n = dims.numel();
        if (k == 0) q = r;
        if (q == r || (q % r == 0 && n % q == 0) || n < q) continue;
      }
      q = checked_mul(q / std::gcd(q, r), r);
      require(q <= longest_quantum,
              "the least common multiple of the rows is too long for one group: split it or raise longest_quantum");
    }
    return {q};
  }
};

}  // namespace v0
}  // namespace flatshard
