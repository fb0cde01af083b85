// SPDX-License-Identifier: Apache-2.0
/// Megatron-FSDP: one flat buffer a group, packed so that a rank never holds part of a row.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/gap_filling.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/stable_order.hpp>

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
/// `place`: O(T) where all sizes are multiples of q and rows spread evenly or are few, O(T log T) at most, in
/// the experimental packing O(R T log T) with R different rows of fragments. Memory: O(T).
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
  /// The order in which tensors are looked at. Complexity: O(T), at most O(T log T).
  [[nodiscard]] constexpr std::vector<std::uint32_t> tensor_order(std::span<parameter const> unit) const {
    return order_of(measured(unit));
  }
  /// q, the length that every segment is a multiple of. Complexity: as `tensor_order`. Units: elements.
  [[nodiscard]] constexpr elements quantum(std::span<parameter const> unit) const {
    auto const tensors = measured(unit);
    return quantum(tensors, order_of(tensors));
  }

  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    measure(unit, out);
    auto const row_of = [&](std::size_t i) { return out[i].step; };  // until the segment is known
    auto const sequence = order_of(out);
    auto const q = quantum(out, sequence).value;
    std::vector<std::uint32_t> regular, fragments;
    for (auto const i : sequence) (out[i].numel < q ? fragments : regular).push_back(i);
    bool const aligned = packing == megatron_packing::experimental;
    if (aligned) {
      std::vector<std::uint32_t> largest(fragments.size(), 0);  // every one has fewer than q elements
      detail::stable_order(largest, [&](std::size_t k) { return q - out[fragments[k]].numel; });
      for (auto& k : largest) k = fragments[k];
      fragments = std::move(largest);
    }
    std::size_t end = 0;  // of everything placed
    std::vector<unsigned char> placed(unit.size(), 0);
    auto const put = [&](std::size_t i, std::size_t start) {
      out[i].start = start;
      placed[i] = 1;
      end = std::max(end, checked_add(start, out[i].numel));
    };
    detail::first_fit remainders;  // nothing before the first remainder asks for one
    detail::gap_fillers fillers;
    bool listed = false;
    std::size_t next = 0;
    for (std::size_t k = 0; k < regular.size(); ++k) {
      auto const i = regular[k];
      if (placed[i] != 0) continue;
      put(i, next);
      auto const rest = out[i].numel % q;
      auto gap = checked_add(next, out[i].numel);
      next = rest == 0 ? gap : round_up(gap, q);  // the last `next` is a multiple of q
      if (rest == 0) continue;
      if (!listed) {
        remainders = {regular.size(), [&](std::size_t m) {
                        auto const n = out[regular[m]].numel % q;
                        return n == 0 ? detail::first_fit::none : n;
                      }};
        fillers = {out, fragments, aligned};
        listed = true;
      }
      auto gap_end = next;
      remainders.take(k);
      if (auto const m = remainders(q - rest); m != detail::first_fit::none) {  // behind k: none before it is left
        remainders.take(m);
        auto const j = regular[m];
        gap_end = next - out[j].numel % q;
        put(j, gap_end);
        next = checked_add(next, out[j].numel / q * q);
      }
      while (auto const j = fillers.take(gap, gap_end)) {
        put(*j, aligned ? round_up(gap, row_of(*j)) : gap);
        gap = out[*j].start + out[*j].numel;
      }
    }
    auto tail = next;
    for (auto const j : fragments) {
      if (placed[j] != 0) continue;
      put(j, aligned ? round_up(tail, row_of(j)) : tail);
      tail = out[j].start + out[j].numel;
    }
    auto const segment = round_up(std::max(end, next), checked_mul(q, w)) / w;
    for (auto& t : out) t.step = segment;
    return {segment};
  }
  /// Rows stay whole; in production only those of regular tensors, which a tensor's shape alone does not tell.
  [[nodiscard]] constexpr bool may_cut(parameter const& p, elements i) const {
    return packing == megatron_packing::production || p.dims.numel() == 0 || i.value % row(p.dims) == 0;
  }
  [[nodiscard]] constexpr std::optional<int> padding_value() const { return std::nullopt; }

 private:
  // What the packing looks at: elements, nothing, elements of a row.
  constexpr void measure(std::span<parameter const> unit, std::span<placement> out) const {
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const& dims = unit[i].dims;
      out[i] = {dims.numel(), 0, row(dims)};
      require(out[i].step > 0, "megatron cannot pack a tensor whose rows are empty");
      require(packing == megatron_packing::production || dims.rank > 0,
              "the experimental packing of megatron cannot shard a scalar");
    }
  }
  [[nodiscard]] constexpr std::vector<placement> measured(std::span<parameter const> unit) const {
    std::vector<placement> tensors(unit.size(), placement{});
    measure(unit, tensors);
    return tensors;
  }
  [[nodiscard]] constexpr std::vector<std::uint32_t> order_of(std::span<placement const> tensors) const {
    std::vector<std::uint32_t> sequence(tensors.size(), 0);
    std::size_t longest = 0;
    for (auto const& t : tensors) longest = std::max(longest, t.step);
    if (packing == megatron_packing::production) {
      detail::stable_order(sequence, [&](std::size_t i) { return longest - tensors[i].step; });
    } else {
      std::iota(sequence.begin(), sequence.end(), std::uint32_t{0});
    }
    return sequence;
  }
  [[nodiscard]] constexpr elements quantum(std::span<placement const> tensors,
                                           std::vector<std::uint32_t> const& sequence) const {
    std::size_t q = 1;
    for (std::size_t k = 0; k < sequence.size(); ++k) {
      auto const n = tensors[sequence[k]].numel, r = tensors[sequence[k]].step;
      if (packing == megatron_packing::production) {
        if (k == 0) q = r;
        if (q == r || n < q) continue;
      }
      if (q % r == 0) continue;
      q = checked_mul(q / std::gcd(q, r), r);
      require(q <= longest_quantum,
              "the least common multiple of the rows is too long for one group: split it or raise longest_quantum");
    }
    return {q};
  }
};

}  // namespace v0
}  // namespace flatshard
