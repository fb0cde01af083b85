// SPDX-License-Identifier: Apache-2.0
// The packing of Megatron-FSDP against its plain rule, which walks over every tensor for every gap; and how long a
// million tensors take.
#include <flatshard/layout.hpp>
#include <flatshard/layouts/megatron.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace megatron_test {

using namespace flatshard;

namespace {

constexpr std::size_t up(std::size_t a, std::size_t b) { return (a + b - 1) / b * b; }
constexpr megatron packed(megatron_packing packing) {
  megatron policy;
  policy.packing = packing;
  return policy;
}

struct packed_unit {
  std::vector<std::size_t> starts;
  std::size_t segment{};
  bool operator==(packed_unit const&) const = default;
};
template <class W>
constexpr packed_unit packing_of(megatron const& policy, std::vector<parameter> const& unit, W const& w) {
  listed_layout<megatron> const l{policy, std::span<parameter const>{unit}, w};
  packed_unit p{{}, l.segment().value};
  for (std::size_t t = 0; t < unit.size(); ++t) p.starts.push_back(l.place_at(t).start);
  return p;
}
// As upstream: the first regular tensor behind this one whose remainder fits beside its remainder, then every fragment
// in turn, that fits between the two.
packed_unit plain_packing_of(megatron const& policy, std::vector<parameter> const& unit, std::size_t w) {
  bool const aligned = policy.packing == megatron_packing::experimental;
  auto const q = policy.quantum(unit).value;
  auto const size = [&](std::size_t i) { return unit[i].dims.numel(); };
  std::vector<std::size_t> regular, fragments;
  for (auto const i : policy.tensor_order(unit)) (size(i) < q ? fragments : regular).push_back(i);
  if (aligned) std::stable_sort(fragments.begin(), fragments.end(), [&](auto a, auto b) { return size(a) > size(b); });
  packed_unit p{std::vector<std::size_t>(unit.size(), 0), 0};
  std::vector<bool> placed(unit.size(), false);
  std::size_t end = 0, next = 0;
  auto const put = [&](std::size_t i, std::size_t start) {
    p.starts[i] = start;
    placed[i] = true;
    end = std::max(end, start + size(i));
  };
  for (std::size_t k = 0; k < regular.size(); ++k) {
    auto const i = regular[k];
    if (placed[i]) continue;
    put(i, next);
    auto const rest = size(i) % q;
    auto gap = next + size(i);
    next = up(gap, q);
    if (rest == 0) continue;
    auto gap_end = next;
    for (std::size_t m = k + 1; m < regular.size(); ++m) {
      auto const j = regular[m];
      auto const other = size(j) % q;
      if (placed[j] || other == 0 || rest + other > q) continue;
      gap_end = next - other;
      put(j, gap_end);
      next += size(j) / q * q;
      break;
    }
    for (auto const j : fragments) {
      auto const start = aligned ? up(gap, megatron::row(unit[j].dims)) : gap;
      if (placed[j] || start + size(j) > gap_end) continue;
      put(j, start);
      gap = start + size(j);
    }
  }
  for (auto const j : fragments) {
    if (placed[j]) continue;
    put(j, aligned ? up(next, megatron::row(unit[j].dims)) : next);
    next = p.starts[j] + size(j);
  }
  p.segment = up(std::max(end, next), q * w) / w;
  return p;
}

// q = 60. "a" leaves 30, beside which "b" is the first that fits, with 15 that end at 120. The gap from 90 to 105 is as
// long as "d", but the next row of 12 begins at 96; "e" and "f" fill it.
constexpr auto gaps =
    parameters({{"a", {9, 10}}, {"b", {5, 15}}, {"c", {5, 12}}, {"d", {1, 12}}, {"e", {4, 2}}, {"f", {2}}});
static_assert(packing_of(packed(megatron_packing::experimental), {gaps.begin(), gaps.end()}, world<2>{}) ==
              packed_unit{{0, 105, 180, 240, 90, 98}, 180});
// Production: q = 60 too, "b" goes first, and fragments lie anywhere.
static_assert(packing_of(packed(megatron_packing::production), {gaps.begin(), gaps.end()}, world<2>{}) ==
              packed_unit{{90, 0, 180, 75, 240, 87}, 180});

}  // namespace

TEST_CASE("megatron: every tensor lies where the plain rule puts it") {
  std::mt19937_64 random{20261129};
  auto const below = [&](std::size_t n) { return random() % n; };
  // Rows that divide each other, rows that do not, and both beside vectors: gaps of every kind.
  std::array<std::vector<std::size_t>, 6> const rows{
      {{1, 2, 4, 8}, {6, 4}, {6, 10, 15}, {12, 8, 3, 2, 1}, {7, 14, 28, 4}, {16, 24, 36, 5}}};
  for (auto const packing : {megatron_packing::production, megatron_packing::experimental}) {
    auto const policy = packed(packing);
    std::size_t filled = 0, paired = 0;
    for (int n = 0; n < 20000; ++n) {
      auto const& lengths = rows[below(rows.size())];
      auto const count = 1 + below(n % 50 == 0 ? 700 : 24);  // past 8^3, too
      auto const longest = 1 + below(40);
      std::vector<parameter> unit;
      for (std::size_t t = 0; t < count; ++t) {
        auto const first = below(16) == 0 ? 0 : 1 + below(longest);
        auto const row = lengths[below(lengths.size())];
        unit.push_back({"w", below(5) == 0  ? shape{first}
                             : row % 2 == 0 ? shape{first, 2, row / 2}
                                            : shape{first, row}});
      }
      if (packing == megatron_packing::production && below(8) == 0) unit.push_back({"scalar", {}});
      auto const w = 1 + below(9);
      auto const plain = plain_packing_of(policy, unit, w);
      CAPTURE(n);
      REQUIRE(packing_of(policy, unit, world{w}) == plain);
      // What the units show: gaps that fragments fill, and tensors that end a remainder at a multiple of q.
      auto const q = policy.quantum(unit).value;
      std::size_t last = 0;
      for (std::size_t t = 0; t < count; ++t)
        if (unit[t].dims.numel() >= q) {
          last = std::max(last, plain.starts[t] + unit[t].dims.numel());
          paired += plain.starts[t] % q != 0 ? 1 : 0;
        }
      for (std::size_t t = 0; t < count; ++t)
        filled += unit[t].dims.numel() > 0 && unit[t].dims.numel() < q && plain.starts[t] < last ? 1 : 0;
    }
    CHECK(paired > 10000);
    CHECK(filled > 10000);
  }
}

TEST_CASE("megatron: a million tensors that leave remainders are packed in seconds, not in minutes") {
  std::array<shape, 9> const layer{{{4096, 4096},
                                    {1024, 4096},
                                    {1024, 4096},
                                    {4096, 4096},
                                    {14336, 4096},
                                    {14336, 4096},
                                    {4096, 14336},
                                    {4096},
                                    {4096}}};
  std::vector<parameter> unit;
  for (std::size_t t = 0; t < 1000000; ++t) unit.push_back({"w", layer[t % layer.size()]});
  for (auto const packing : {megatron_packing::production, megatron_packing::experimental}) {
    auto const start = std::chrono::steady_clock::now();
    listed_layout<megatron> const l{packed(packing), std::span<parameter const>{unit}, world{100000}};
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{10});
    CHECK(l.gathered() >= l.real());
  }
}

}  // namespace megatron_test
