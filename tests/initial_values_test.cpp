// SPDX-License-Identifier: Apache-2.0
// First values of weights: a function of seed, name and element, whoever owns it.
#include <flatshard/full_weights.hpp>
#include <flatshard/initial_values.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include <doctest/doctest.h>

namespace initial_values_test {

using namespace flatshard;
using namespace std::chrono_literals;
using kernels::thread_communicator;
using kernels::thread_group;

namespace {

std::vector<parameter> const odd{{"n", {1000}}, {"w", {7, 9}}, {"few", {3}}, {"none", {0, 4}}, {"norm", {5}}};
constexpr normal usual{0, 0.02};
constexpr std::uint64_t seed = 1234;

/// All values of the unit after `initialise`, seen by the last rank.
template <class Sharding>
std::vector<float> values_of(std::size_t w, precision p) {
  std::vector<float> all;
  thread_group{world{w}, {.deadline = 20s}}.run([&](thread_communicator& comm) {
    kernels::page_buffer memory{bytes{1 << 18}, kernels::page_size::plain};
    memory_arena arena{memory.span()};
    sharded_unit<precision, Sharding> unit{odd, world{w}, p, Sharding{}, arena};
    initialise(unit, comm.self(), usual, seed);
    initialise(unit, comm.self(), 4, constant{1}, seed);
    auto const full = gather_full(unit, comm, access::read, {});
    std::vector<float> here;
    for (std::size_t t = 0; t < odd.size(); ++t)
      detail::with_element(full[t].type, [&]<class T>(T) {
        for (auto const x : full[t].template data<T>()) here.push_back(widen(x));
      });
    auto const live = gather(unit, comm, {});  // the storage followed
    detail::with_element(
        p.compute, [&]<class T>(T) { CHECK(widen(live["w"].template data<T>()[62]) == widen(narrow<T>(here[1062]))); });
    CHECK_THROWS_WITH_AS(initialise(unit, comm.self(), usual, seed),
                         "the weights of a unit are changed after release and before gather", broken_rule);
    release(unit, inline_stream{});
    auto const kept = unit.updated();
    for (std::size_t j = 0; j < kept.count.value; ++j)
      if (unit.layout().at(comm.self(), elements{j}).padding)
        detail::with_element(kept.type, [&]<class T>(T) { REQUIRE(widen(detail::typed<T>(kept)[j]) == 0.0f); });
    if (index(comm.self()) + 1 == w) all = here;
  });
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("the values are equal for every world size and layout", Sharding, native, zero3, fsdp2, owned) {
  for (auto const& p :
       {fsdp2_bf16, deepspeed_bf16, precision{.parameter_storage = dtype::bf16, .grad_accum = dtype::bf16}}) {
    bool const narrow_kept = p.parameter_storage == dtype::bf16 && p.master == dtype::none;
    std::vector<float> expected;
    for (std::size_t t = 0; t < odd.size(); ++t)
      for (std::size_t i = 0; i < odd[t].dims.numel(); ++i) {
        auto const x = t == 4 ? 1.0f : usual(random_bits(tensor_key(seed, odd[t].name), i));
        expected.push_back(narrow_kept ? widen(narrow<bf16>(x)) : x);
      }
    for (std::size_t const w : {1u, 2u, 3u, 8u}) CHECK(values_of<Sharding>(w, p) == expected);
  }
}

TEST_CASE("seed, name and element all count") {
  static_assert(tensor_key(1, "a") != tensor_key(2, "a") && tensor_key(1, "a") != tensor_key(1, "b"));
  // SplitMix64 from state 0: its first outputs are those of the published program.
  static_assert(random_bits(0, 1) == 0xE220A8397B1DCDAFu && random_bits(0, 2) == 0x6E789E6AA1B965F4u);
  std::set<float> seen;
  auto const key = tensor_key(seed, "w");
  for (std::uint64_t i = 0; i < 1000; ++i) seen.insert(usual(random_bits(key, i)));
  CHECK(seen.size() > 990);
}

TEST_CASE("normal values have their mean, deviation and shape") {
  normal const values{3, 0.5};
  constexpr std::size_t n = 200000;
  double sum = 0, squares = 0, fourth = 0;
  std::size_t within = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    auto const z = (values(random_bits(7, i)) - 3.0) / 0.5;
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    within += std::abs(z) < 1;
  }
  CHECK(std::abs(sum / n) < 0.01);
  CHECK(std::abs(squares / n - 1) < 0.02);
  CHECK(std::abs(fourth / n - 3) < 0.1);
  CHECK(std::abs(static_cast<double>(within) / n - 0.6827) < 0.005);
  CHECK(std::isfinite(values(0)));
  CHECK(std::abs(normal{}(0) - 6.7637) < 1e-3);  // sqrt(2 ln 2^33)
  CHECK(std::isfinite(values(std::numeric_limits<std::uint64_t>::max())));
  CHECK(normal{2, 0}(99) == 2.0f);
  static_assert(constant{0.25}(99) == 0.25f);
}

}  // namespace initial_values_test
