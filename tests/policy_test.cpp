// SPDX-License-Identifier: Apache-2.0
#include <flatshard/extent.hpp>
#include <flatshard/policy.hpp>

#include <doctest/doctest.h>

namespace policy_test {

using namespace flatshard;

namespace {
struct returns_int {
  int operator()(role) const { return 0; }
};
static_assert(!PrecisionPolicy<returns_int>);
static_assert(fsdp2_bf16(role::parameter_storage) == dtype::f32 && fsdp2_bf16(role::compute) == dtype::bf16);
static_assert(static_precision<deepspeed_bf16>{}(role::master) == dtype::f32);
static_assert(sizeof(world<8>) == 1 && sizeof(world<>) == sizeof(std::size_t));
static_assert(world<>{world<8>{}}.value() == 8);
static_assert(size_of(elements{3}, dtype::bf16) == bytes{6} && size_of(elements{2}, dtype::f4) == bytes{1});
static_assert(size_of(elements{4}, dtype::f6_e2m3) == bytes{3});
}  // namespace

TEST_CASE("sizes that pass 64 bits are a broken rule") {
  CHECK_THROWS_AS(static_cast<void>(checked_mul(std::size_t{1} << 33, std::size_t{1} << 31)), broken_rule);
  CHECK_THROWS_AS(static_cast<void>(size_of(elements{std::size_t{1} << 62}, dtype::f32)), broken_rule);
  CHECK_THROWS_AS(static_cast<void>(shape({std::size_t{1} << 40, std::size_t{1} << 40}).numel()), broken_rule);
  CHECK_THROWS_AS(static_cast<void>(size_of(elements{3}, dtype::f4)), broken_rule);
  CHECK_THROWS_AS(static_cast<void>(elements{1} - elements{2}), broken_rule);
  CHECK_THROWS_AS(world{0}, broken_rule);
}

}  // namespace policy_test
