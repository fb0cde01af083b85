// SPDX-License-Identifier: Apache-2.0
/// First values of new weights, keyed by seed, tensor name and element: equal for every world size and layout.
///
///     initialise(unit, comm.self(), normal{0, 0.02}, seed);  // every tensor of the unit
///     initialise(unit, comm.self(), 3, constant{1}, seed);   // tensor 3 alone
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/parameter_table.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/unit.hpp>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace flatshard {
inline namespace v0 {

namespace detail {

/// The finaliser of SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
inline constexpr std::uint64_t golden_step = 0x9E3779B97F4A7C15u;

}  // namespace detail

/// The key of one tensor's random numbers: seed and name (FNV-1a), mixed.
[[nodiscard]] constexpr std::uint64_t tensor_key(std::uint64_t seed, std::string_view name) {
  return detail::mixed(detail::mixed(seed + detail::golden_step) ^ detail::fnv(detail::fnv_offset, name));
}
/// 64 random bits, number `i` of a key. Any of them by itself, in any order.
[[nodiscard]] constexpr std::uint64_t random_bits(std::uint64_t key, std::uint64_t i) {
  return detail::mixed(key + i * detail::golden_step);
}

/// What makes a value from 64 random bits; the same bits give the same value.
template <class F>
concept InitialValues = requires(F const& f, std::uint64_t bits) {
  { f(bits) } -> std::same_as<float>;
};

/// N(mean, deviation^2). Largest distance from the mean: 6.8 deviations. Source: Box, Muller, "A note on the generation
/// of random normal deviates", 1958. The logarithm and the cosine are the C library's, in fp64.
struct normal {
  double mean = 0, deviation = 1;
  [[nodiscard]] float operator()(std::uint64_t bits) const {
    constexpr double step = 1.0 / 4294967296.0;
    auto const radius = std::sqrt(-2 * std::log((static_cast<double>(bits >> 32) + 0.5) * step));
    auto const angle = 2 * std::numbers::pi * step * static_cast<double>(bits & 0xFFFFFFFFu);
    return static_cast<float>(mean + deviation * radius * std::cos(angle));
  }
};
/// One value everywhere: ones for norms, zeros for biases.
struct constant {
  double value = 0;
  [[nodiscard]] constexpr float operator()(std::uint64_t) const { return static_cast<float>(value); }
};
static_assert(InitialValues<normal> && InitialValues<constant> && !InitialValues<double>);

/// Gives tensor `t` of a unit its first values on rank `self`, in the copy that the optimizer updates; the storage
/// follows at the next `gather` or `publish`. Element i of the tensor is `values(random_bits(tensor_key(seed, name),
/// i))`, rounded to the dtype of that copy, whatever the world size and the layout: tensors of one name in two units
/// want two seeds. Local. The unit must not be live.
template <PrecisionPolicy P, ShardingPolicy S, std::size_t W, InitialValues V>
void initialise(sharded_unit<P, S, W>& unit, rank_id self, std::size_t t, V const& values, std::uint64_t seed) {
  require(!unit.live(), "the weights of a unit are changed after release and before gather");
  require(t < unit.layout().size(), "the unit has no parameter of that number");
  auto const mine = unit.layout().piece_of(t, self);
  if (mine.size() == elements{0}) return;
  auto const key = tensor_key(seed, unit.layout().parameter_at(t).name);
  detail::with_element(unit.updated().type, [&]<class T>(T) {
    auto const to = detail::typed<T>(unit.updated()).subspan(mine.local.value, mine.size().value);
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = narrow<T>(values(random_bits(key, mine.begin.value + i)));
  });
  unit.mark_updated();
}
/// The same for every tensor of the unit.
template <PrecisionPolicy P, ShardingPolicy S, std::size_t W, InitialValues V>
void initialise(sharded_unit<P, S, W>& unit, rank_id self, V const& values, std::uint64_t seed) {
  for (std::size_t t = 0; t < unit.layout().size(); ++t) initialise(unit, self, t, values, seed);
}

}  // namespace v0
}  // namespace flatshard
