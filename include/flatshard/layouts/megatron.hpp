// SPDX-License-Identifier: Apache-2.0
/// Megatron-FSDP: one flat buffer a group, packed so that a rank never holds part of a row.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/gap_filling.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/numbered_unit.hpp>

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
/// `place`: O(T log K) with K different tensors, in the experimental packing O(R T log K) with R different rows of
/// fragments. Memory: O(T).
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
  /// The order in which tensors are looked at. Complexity: O(T + K log K) for K different tensors.
  [[nodiscard]] constexpr std::vector<std::uint32_t> tensor_order(numbered_unit unit) const {
    known_kinds const kinds{unit};
    auto const rows = rows_of(*kinds);
    return detail::order_by_kind(*kinds, [&](std::size_t kind) { return turn_of(rows[kind]); });
  }
  /// q, the length that every segment is a multiple of. Complexity: as `tensor_order`. Units: elements.
  [[nodiscard]] constexpr elements quantum(numbered_unit unit) const {
    known_kinds const kinds{unit};
    return {quantum(*kinds, rows_of(*kinds))};
  }

  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    known_kinds const known{unit};
    auto const& kinds = *known;
    auto const rows = rows_of(kinds);
    auto const q = quantum(kinds, rows);
    std::vector<std::size_t> rests;  // of each kind: what is left of it behind a multiple of q
    for (std::size_t k = 0; k < kinds.size(); ++k) rests.push_back(kinds.numel(k) % q);
    bool const aligned = packing == megatron_packing::experimental;
    auto const row_of = [&](std::size_t kind) { return aligned ? rows[kind] : 1; };  // what a fragment starts at
    auto const sequence = detail::order_by_kind(kinds, [&](std::size_t kind) {
      bool const fragment = kinds.numel(kind) < q;
      return std::pair{fragment, fragment && aligned ? ~kinds.numel(kind) : turn_of(rows[kind])};
    });
    auto const first_fragment = static_cast<std::size_t>(
        std::partition_point(sequence.begin(), sequence.end(), [&](auto i) { return kinds.numel(kinds.of(i)) >= q; }) -
        sequence.begin());
    auto const regular = std::span{sequence}.first(first_fragment),
               fragments = std::span{sequence}.subspan(first_fragment);
    std::size_t end = 0;  // of everything placed
    std::vector<unsigned char> placed(unit.size(), 0);
    auto const put = [&](std::size_t i, std::size_t start) {
      out[i] = {kinds.numel(kinds.of(i)), start, 0};
      placed[i] = 1;
      end = std::max(end, checked_add(start, out[i].numel));
    };
    detail::gap_fillers remainders, fillers;  // nothing before the first remainder asks for one
    bool listed = false;
    std::size_t next = 0;
    for (std::size_t k = 0; k < regular.size(); ++k) {
      auto const i = regular[k];
      if (placed[i] != 0) continue;
      put(i, next);
      auto const rest = rests[kinds.of(i)];
      auto gap = checked_add(next, out[i].numel);
      next = rest == 0 ? gap : round_up(gap, q);  // the last `next` is a multiple of q
      if (rest == 0) continue;
      if (!listed) {
        remainders = {kinds, regular, [](std::size_t) { return std::size_t{1}; },
                      [&](std::size_t kind) { return rests[kind] == 0 ? detail::gap_fillers::never : rests[kind]; }};
        fillers = {kinds, fragments, row_of, [&](std::size_t kind) { return kinds.numel(kind); }};
        listed = true;
      }
      auto gap_end = next;
      remainders.take(k);
      if (auto const m = remainders.first(0, q - rest)) {  // behind k: none before it is left
        remainders.take(*m);
        auto const j = regular[*m];
        gap_end = next - rests[kinds.of(j)];
        put(j, gap_end);
        next = checked_add(next, out[j].numel / q * q);
      }
      while (auto const f = fillers.first(gap, gap_end)) {
        fillers.take(*f);
        auto const j = fragments[*f];
        put(j, round_up(gap, row_of(kinds.of(j))));
        gap = out[j].start + out[j].numel;
      }
    }
    auto tail = next;
    for (auto const j : fragments) {
      if (placed[j] != 0) continue;
      put(j, round_up(tail, row_of(kinds.of(j))));
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
  // Of each kind.
  [[nodiscard]] constexpr std::vector<std::size_t> rows_of(kind_table const& kinds) const {
    std::vector<std::size_t> rows;
    for (std::size_t k = 0; k < kinds.size(); ++k) {
      rows.push_back(row(shape{kinds.sizes(k)}));
      require(rows.back() > 0, "megatron cannot pack a tensor whose rows are empty");
      require(packing == megatron_packing::production || !kinds.sizes(k).empty(),
              "the experimental packing of megatron cannot shard a scalar");
    }
    return rows;
  }
  // Tensors are looked at by the length of their rows, the longest first, or as they stand.
  [[nodiscard]] constexpr std::size_t turn_of(std::size_t row) const {
    return packing == megatron_packing::production ? ~row : 0;
  }
  // One tensor of each kind says as much as all: the first one of a length of rows that changes q makes it a multiple.
  [[nodiscard]] constexpr std::size_t quantum(kind_table const& kinds, std::vector<std::size_t> const& rows) const {
    std::vector<std::pair<std::size_t, std::size_t>> sequence;  // turn, kind
    for (std::size_t k = 0; k < kinds.size(); ++k) sequence.emplace_back(turn_of(rows[k]), k);
    std::sort(sequence.begin(), sequence.end());
    std::size_t q = 1;
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      auto const kind = sequence[i].second, n = kinds.numel(kind), r = rows[kind];
      if (packing == megatron_packing::production) {
        if (i == 0) q = r;
        if (q == r || n < q) continue;
      }
      if (q % r == 0) continue;
      q = checked_mul(q / std::gcd(q, r), r);
      require(q <= longest_quantum,
              "the least common multiple of the rows is too long for one group: split it or raise longest_quantum");
    }
    return q;
  }
};

}  // namespace v0
}  // namespace flatshard
