// SPDX-License-Identifier: Apache-2.0
/// The fused paths over virtual ranks of one process: N streams, or one cooperative launch, against the CPU backend.
#include "device_memory.hpp"
#include "random_layouts.hpp"
#include "tier.hpp"
#include "virtual_ranks.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/cuda.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
using namespace flatshard::kernels;
using namespace device_memory;

namespace {

constexpr std::size_t sizes[]{1, 7, 8, 9, 64, 8191, 8192, 8193};

template <class Full, class Shard>
std::size_t wrong_push(std::size_t ranks, std::size_t n, bool together, std::mt19937& random) {
  virtual_ranks v{ranks, ranks * n * sizeof(Full), 2};
  std::size_t wrong = 0;
  for (int round = 0; round < 2; ++round) {  // flags and epochs go on counting
    std::vector<array<Shard>> shards;
    std::vector<Full> want(ranks * n);
    for (std::size_t r = 0; r < ranks; ++r) {
      auto const values = moderate<Shard>(n, random);
      shards.emplace_back(values, v.streams[r]);
      auto const slot = std::span{want}.subspan(r * n, n);
      cast(view(std::span<Full const>{slot}), view(values));
      v.memory[r].fill(0x7F, v.streams[r]);
    }
    for (auto const& s : v.streams) s.wait();
    if (together) {
      auto const works = v.works(shards);
      push_all(v.group(0), dtype_of<Full>, view(shards[0]), works.data(), v.streams[0]);
      v.streams[0].wait();
    } else {
      for (std::size_t r = 0; r < ranks; ++r) push(v.group(r), dtype_of<Full>, view(shards[r]), v.streams[r]);
      for (auto const& s : v.streams) s.wait();
    }
    v.check_all();
    for (std::size_t r = 0; r < ranks; ++r) wrong += differing(v.get<Full>(r, want.size()), want);
  }
  return wrong;
}

template <class Wire>
std::size_t wrong_pull(std::size_t ranks, std::size_t n, bool together, reduce_options o, std::mt19937& random) {
  virtual_ranks v{ranks, ranks * n * sizeof(Wire), 2};
  std::vector<std::vector<Wire>> grads;
  std::vector<std::vector<float>> before;
  std::vector<array<float>> outs;
  for (std::size_t r = 0; r < ranks; ++r) {
    grads.push_back(moderate<Wire>(ranks * n, random));
    std::vector<std::byte> raw(grads[r].size() * sizeof(Wire));
    std::memcpy(raw.data(), grads[r].data(), raw.size());
    v.memory[r].put(raw, v.streams[r]);
    before.push_back(moderate<float>(n, random));
    outs.emplace_back(before[r], v.streams[r]);
  }
  if (together) {
    auto const works = v.works(outs);
    pull_all(v.group(0), outs[0].span(), dtype_of<Wire>, o, works.data(), v.streams[0]);
    v.streams[0].wait();
  } else {
    for (std::size_t r = 0; r < ranks; ++r) pull(v.group(r), outs[r].span(), dtype_of<Wire>, o, v.streams[r]);
    for (auto const& s : v.streams) s.wait();
  }
  v.check_all();
  std::size_t wrong = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    std::vector<std::span<Wire const>> in;
    for (auto const& g : grads) in.push_back(std::span{g}.subspan(r * n, n));
    sum(before[r], std::span<std::span<Wire const> const>{in}, o);
    wrong += differing(outs[r].get(v.streams[r]), before[r]);
  }
  return wrong;
}

}  // namespace

TEST_CASE("push: every rank holds every shard, cast; N streams and one launch; every length") {
  std::mt19937 random{3};
  std::size_t wrong = 0;
  for (std::size_t const ranks : {1u, 2u, 3u, 4u, 8u})
    for (auto const n : sizes) {
      if ((ranks == 8 && n > 64) || (sanitized && (ranks == 3 ? n == 8191 || n == 8192 : n != 9))) continue;
      bool const together = (n + ranks) % 2 == 0;
      wrong += wrong_push<bf16, float>(ranks, n, together, random);
      if (n < 8000) {
        wrong += wrong_push<f16, float>(ranks, n, !together, random);
        wrong += wrong_push<bf16, bf16>(ranks, n, together, random);
        wrong += wrong_push<f16, f16>(ranks, n, together, random);
        wrong += wrong_push<float, float>(ranks, n, !together, random);
      }
    }
  CHECK(wrong == 0);
}

TEST_CASE("pull: sums of bf16, fp16 and fp32 in both orders are the CPU's; N streams and one launch") {
  std::mt19937 random{5};
  std::size_t wrong = 0;
  for (auto const order : {sum_order::by_rank, sum_order::pairwise})
    for (std::size_t const ranks : {1u, 2u, 3u, 4u, 8u})
      for (auto const n : sizes) {
        if ((ranks == 8 && n > 64) || (sanitized && (ranks == 3 ? n == 8191 || n == 8192 : n != 9))) continue;
        reduce_options const o{.scale = 1.0f / static_cast<float>(ranks), .accumulate = n % 3 == 1, .order = order};
        bool const together = (n + ranks) % 2 == 1;
        wrong += wrong_pull<bf16>(ranks, n, together, o, random);
        if (n > 8000) continue;
        wrong += wrong_pull<f16>(ranks, n, !together, o, random);
        wrong += wrong_pull<float>(ranks, n, together, o, random);
      }
  CHECK(wrong == 0);
}

TEST_CASE("stochastic push and totals of a pull, over the tiles of each rank's segment") {
  std::mt19937 random{7};
  random_stream const bits{.seed = 17, .step = 2};
  std::vector<parameter> const unit{{"a", {33, 8}}, {"b", {5}}, {"c", {1000}}};
  for (auto const& l : {random_layouts::native_of(unit, 3), random_layouts::fsdp2_of(unit, 3)}) {
    std::size_t const ranks = 3, n = l.gathered / 3;
    virtual_ranks v{ranks, l.gathered * sizeof(bf16), 2};
    std::vector<float> whole(l.gathered, 0.0f);
    std::vector<bf16> want(l.gathered, bf16{});
    for (std::size_t t = 0; t < l.sizes.size(); ++t) {
      auto const values = moderate<float>(l.sizes[t], random);
      for (std::size_t i = 0; i < values.size(); ++i) {
        whole[l.positions[t][i]] = values[i];
        want[l.positions[t][i]].bits = element::bf16_stochastic(std::bit_cast<std::uint32_t>(values[i]), bits,
                                                                {static_cast<std::uint32_t>(t + 4), i});
      }
    }
    std::vector<tile_table> tables;
    std::vector<array<std::byte>> workspaces;
    std::vector<device_tiles> tiles;
    std::vector<array<float>> shards;
    for (std::size_t r = 0; r < ranks; ++r) {
      tables.push_back(make_tiles(l.runs_of_ranks[r], {.most = elements{64}}));
      workspaces.emplace_back(workspace_size(tables[r]).value);
      tiles.push_back(upload(tables[r], workspaces[r].span(), v.streams[r]));
      auto const first = whole.begin() + static_cast<std::ptrdiff_t>(r * n);
      shards.emplace_back(std::vector<float>(first, first + static_cast<std::ptrdiff_t>(n)), v.streams[r]);
    }
    for (std::size_t r = 0; r < ranks; ++r)
      push(v.group(r), std::span<float const>{shards[r].span()}, tiles[r], bits, 4, v.streams[r]);
    for (auto const& s : v.streams) s.wait();
    v.check_all();
    for (std::size_t r = 0; r < ranks; ++r) CHECK(differing(v.get<bf16>(r, want.size()), want) == 0);

    // Gradients: what was gathered, with poison in the padding; the sum is three times that, and 0 in the padding.
    std::vector<bool> real(l.gathered);
    for (auto const& tensor : l.positions)
      for (auto const g : tensor) real[g] = true;
    auto grads = want;
    for (std::size_t g = 0; g < grads.size(); ++g)
      if (!real[g]) grads[g] = bf16{0x7FC0};
    std::vector<std::byte> raw(grads.size() * sizeof(bf16));
    std::memcpy(raw.data(), grads.data(), raw.size());
    for (std::size_t r = 0; r < ranks; ++r) v.memory[r].put(raw, v.streams[r]);
    std::vector<array<value_totals>> totals;
    for (std::size_t r = 0; r < ranks; ++r) {
      shards[r].fill(0x7F, v.streams[r]);
      totals.emplace_back(1);
    }
    for (std::size_t r = 0; r < ranks; ++r) {
      pull(v.group(r), shards[r].span(), dtype::bf16, {.scale = 0.5f}, tiles[r], v.streams[r]);
      total(totals[r].data(), tiles[r], v.streams[r]);
    }
    for (auto const& s : v.streams) s.wait();
    v.check_all();
    double squares = 0, exact = 0;
    std::size_t wrong = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      auto const got = shards[r].get(v.streams[r]);
      for (std::size_t i = 0; i < n; ++i) {
        float const x = real[r * n + i] ? widen(want[r * n + i]) : 0.0f;
        float const y = ((x + x) + x) * 0.5f;
        wrong += std::memcmp(&got[i], &y, sizeof y) != 0;
        exact += double{y} * double{y};
      }
      auto const found = totals[r].get(v.streams[r])[0];
      squares += found.squares;
      CHECK(found.not_finite == 0);
    }
    CHECK(wrong == 0);
    CHECK(squares == doctest::Approx(exact).epsilon(1e-12));
  }
}

TEST_CASE("many rounds on the same flags: memory is poisoned before each, and the values are new") {
  constexpr std::size_t ranks = 3, n = 65;
  std::mt19937 random{13};
  virtual_ranks gathered{ranks, ranks * n * sizeof(bf16), 2}, summed{ranks, ranks * n * sizeof(bf16), 2};
  std::vector<array<float>> shards, sums;
  for (std::size_t r = 0; r < ranks; ++r) {
    shards.emplace_back(n);
    sums.emplace_back(n);
  }
  std::size_t wrong = 0;
  for (int rounds = long_tier() ? 1000 : 20; rounds > 0; --rounds) {
    std::vector<bf16> want(ranks * n);
    std::vector<std::vector<bf16>> grads;
    for (std::size_t r = 0; r < ranks; ++r) {
      auto const values = moderate<float>(n, random);
      cast(std::span{want}.subspan(r * n, n), values);
      shards[r].put(values, gathered.streams[r]);
      sums[r].fill(0x7F, summed.streams[r]);
      gathered.memory[r].fill(0x7F, gathered.streams[r]);
      grads.push_back(moderate<bf16>(ranks * n, random));
      std::vector<std::byte> raw(grads[r].size() * sizeof(bf16));
      std::memcpy(raw.data(), grads[r].data(), raw.size());
      summed.memory[r].put(raw, summed.streams[r]);
    }
    for (auto const& s : gathered.streams) s.wait();
    for (auto const& s : summed.streams) s.wait();
    for (std::size_t r = 0; r < ranks; ++r) {
      push(gathered.group(r), dtype::bf16, view(shards[r]), gathered.streams[r]);
      pull(summed.group(r), sums[r].span(), dtype::bf16, {.scale = 0.5f}, summed.streams[r]);
    }
    for (auto const& s : gathered.streams) s.wait();
    for (auto const& s : summed.streams) s.wait();
    gathered.check_all();
    summed.check_all();
    for (std::size_t r = 0; r < ranks; ++r) {
      wrong += differing(gathered.get<bf16>(r, want.size()), want);
      std::vector<std::span<bf16 const>> in;
      for (auto const& g : grads) in.push_back(std::span{g}.subspan(r * n, n));
      std::vector<float> sum_of_all(n);
      sum(sum_of_all, std::span<std::span<bf16 const> const>{in}, {.scale = 0.5f});
      wrong += differing(sums[r].get(summed.streams[r]), sum_of_all);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a stochastic push takes padding to the nearest, the same for every rank, seed and step") {
  // Values that a random rounding would often take elsewhere, and those that stay: ties, NaN, both zeros, an overflow.
  constexpr std::uint32_t in[]{0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7FC00001,
                               0x00000000, 0x80000000, 0x7F7FFFFF, 0xFF800000, 0xBF808000};
  constexpr std::uint16_t want[]{0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7FFF, 0x0000, 0x8000, 0x7F80, 0xFF80, 0xBF80};
  constexpr std::size_t ranks = 2, real = 13, padding = 51, n = real + padding;
  for (auto const most : {8u, 64u})  // padding that begins inside a pack, alone and in pieces
    for (std::uint64_t seed = 1; seed < 4; ++seed) {
      virtual_ranks v{ranks, ranks * n * sizeof(bf16), 1};
      flat_run const runs[]{{0, 0, 0, real}, {no_tensor, 0, real, padding}};
      auto const table = make_tiles(runs, {.most = elements{most}});
      std::vector<float> shard(n, 0.5f);
      for (std::size_t i = 0; i < padding; ++i) shard[real + i] = std::bit_cast<float>(in[i % std::size(in)]);
      std::vector<array<float>> shards;
      std::vector<array<std::byte>> workspaces;
      for (std::size_t r = 0; r < ranks; ++r) {
        shards.emplace_back(shard, v.streams[r]);
        workspaces.emplace_back(workspace_size(table).value);
      }
      for (std::size_t r = 0; r < ranks; ++r)
        push(v.group(r), std::span<float const>{shards[r].span()}, upload(table, workspaces[r].span(), v.streams[r]),
             {.seed = seed, .step = 5}, 0, v.streams[r]);
      for (auto const& s : v.streams) s.wait();
      v.check_all();
      std::size_t wrong = 0;
      for (std::size_t r = 0; r < ranks; ++r) {
        auto const got = v.get<bf16>(r, ranks * n);
        for (std::size_t k = 0; k < ranks; ++k)
          for (std::size_t i = 0; i < padding; ++i) wrong += got[k * n + real + i].bits != want[i % std::size(want)];
      }
      CHECK(wrong == 0);
    }
}

TEST_CASE("a rank that does not come: the others give up at the deadline and name it, and later calls fail at once") {
  std::mt19937 random{11};
  virtual_ranks v{3, 3 * 64 * sizeof(bf16), 2};
  v.patience = 20'000'000;
  std::vector<array<float>> shards;
  for (std::size_t r = 0; r < 3; ++r) shards.emplace_back(moderate<float>(64, random), v.streams[r]);
  for (int call = 0; call < 2; ++call)
    for (std::size_t const r : {0u, 2u}) push(v.group(r), dtype::bf16, view(shards[r]), v.streams[r]);
  for (auto const& s : v.streams) s.wait();
  for (std::size_t const r : {0u, 2u}) {
    auto const status = v.status[r].get(v.streams[r])[0];
    CHECK(status.failed == 1);
    CHECK(status.rank == r);
    try {
      check(status);
      FAIL_CHECK("no exception");
    } catch (peer_lost const& lost) {
      CHECK((lost.ranks == std::vector{rank_at(1)}));
      CHECK(std::string{lost.what()}.find("rank 1 did not arrive") != std::string::npos);
    }
  }
  CHECK_NOTHROW(check(v.status[1].get(v.streams[1])[0]));
}

TEST_CASE("what a group cannot do is a broken rule") {
  virtual_ranks v{2, 64, 1};
  array<bf16> const narrow_shard{8};
  array<float> const shard{8};
  auto group = v.group(0);
  CHECK_THROWS_WITH_AS(push(group, dtype::f32, view(narrow_shard), v.streams[0]),
                       "a push casts from fp32 to bf16 or fp16 only", broken_rule);
  CHECK_THROWS_WITH_AS(push(group, dtype::i32, view(shard), v.streams[0]),
                       "a push casts from fp32 to bf16 or fp16 only", broken_rule);
  CHECK_THROWS_WITH_AS(
      push(group, std::span<float const>{shard.span()}, device_tiles{}, random_stream{}, 0, v.streams[0]),
      "the tiles of a segment must cover the shard", broken_rule);
  CHECK_THROWS_WITH_AS(pull(group, shard.span(), dtype::bf16, {}, device_tiles{}, v.streams[0]),
                       "the tiles of a segment must cover the shard", broken_rule);
  flat_run const gap_runs[]{{0, 0, 0, 3}, {no_tensor, 0, 4, 4}};  // ends where the shard does, and leaves one out
  auto const gap_table = make_tiles(gap_runs);
  array<std::byte> const workspace{workspace_size(gap_table).value};
  auto const gap = upload(gap_table, workspace.span(), v.streams[0]);
  v.streams[0].wait();
  CHECK_THROWS_WITH_AS(push(group, std::span<float const>{shard.span()}, gap, random_stream{}, 0, v.streams[0]),
                       "the tiles of a segment must cover the shard", broken_rule);
  CHECK_THROWS_WITH_AS(pull(group, shard.span(), dtype::bf16, {}, gap, v.streams[0]),
                       "the tiles of a segment must cover the shard", broken_rule);
  group.ranks = 200;
  CHECK_THROWS_WITH_AS(pull(group, shard.span(), dtype::bf16, {.order = sum_order::pairwise}, v.streams[0]),
                       "a pairwise sum on a device takes at most 127 ranks", broken_rule);
  group.ranks = 0;
  CHECK_THROWS_WITH_AS(push(group, dtype::bf16, view(shard), v.streams[0]),
                       "a group has at least one rank and one block", broken_rule);
  CHECK_NOTHROW(push(v.group(0), dtype::bf16, view(std::span<float const>{}), v.streams[0]));
  CHECK_NOTHROW(pull(v.group(0), {}, dtype::bf16, {}, v.streams[0]));
}
