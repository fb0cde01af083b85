// SPDX-License-Identifier: Apache-2.0
/// device.cuh on the host: what lies where is what the layout says; the rounding rules are those of dtype.hpp.
#include "random_layouts.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/kernels/device.cuh>

#include <bit>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
using namespace flatshard::kernels;

static_assert(std::is_trivially_copyable_v<device_map> && std::is_trivially_copyable_v<flat_run>);

TEST_CASE("a device map finds every element and all padding of every policy") {
  std::mt19937 random{51};
  std::size_t wrong = 0;
  for (int c = 0; c < 100; ++c)
    for (auto const& l : random_layouts::one_of_each(random)) {
      device_map const map{l.runs.data(), l.runs.size()};
      std::vector<bool> real(l.gathered);
      for (std::size_t t = 0; t < l.sizes.size(); ++t)
        for (std::size_t i = 0; i < l.sizes[t]; ++i) {
          auto const found = map.at(l.positions[t][i]);
          wrong += found.padding || found.tensor != t || found.element != i;
          real[l.positions[t][i]] = true;
        }
      for (std::size_t g = 0; g < l.gathered; ++g) wrong += !real[g] && !map.at(g).padding;
      wrong += !map.at(l.gathered).padding;
    }
  CHECK(wrong == 0);
  CHECK(device_map{nullptr, 0}.at(3).padding);
}

TEST_CASE("a position before the first run, and between runs, is padding") {
  flat_run const runs[]{{2, 5, 10, 4}, {3, 0, 20, 1}};
  device_map const map{runs, 2};
  CHECK(map.at(9).padding);
  CHECK(map.at(14).padding);
  auto const inside = map.at(13);
  CHECK(inside.tensor == 2);
  CHECK(inside.element == 8);
  CHECK(map.at(20).tensor == 3);
}

TEST_CASE("the rounding rules for the user's kernels") {
  random_stream const stream{.seed = 8, .step = 3};
  std::size_t wrong = 0;
  for (std::uint32_t i = 0; i < 100'000; ++i) {
    auto const b = i * 2654435761u;
    auto const x = std::bit_cast<float>(b);
    wrong += nearest_bf16(x) != narrow<bf16>(x).bits;
    wrong += nearest_f16(x) != narrow<f16>(x).bits;
    wrong += stochastic_bf16(x, stream, {1, i}) != element::bf16_stochastic(b, stream, {1, i});
  }
  CHECK(wrong == 0);
}
