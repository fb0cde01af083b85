// SPDX-License-Identifier: Apache-2.0
/// When blocks that others read are sent past the caches: by what they took, which is given here.
#include <chrono>
#include <cstddef>

#include <doctest/doctest.h>
#include <store_pace.hpp>

using flatshard::kernels::store_pace;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t block = 32768;
constexpr auto fast = 3000ns, slow = 13000ns;  // of cores that share a cache, and that do not

}  // namespace

TEST_CASE("blocks go past the caches after four slow ones in a row, and one is tried again after 32") {
  store_pace pace;
  for (int i = 0; i < 3; ++i) {
    CHECK(!pace.past_caches(block));
    pace.timed(block, slow);
  }
  CHECK(!pace.past_caches(block));
  pace.timed(block, fast);  // the three were something else
  for (int i = 0; i < 4; ++i) {
    CHECK(!pace.past_caches(block));
    pace.timed(block, slow);
  }
  for (int i = 0; i < 32; ++i) CHECK(pace.past_caches(block));
  CHECK(!pace.past_caches(block));
  pace.timed(block, slow);  // still so
  for (int i = 0; i < 32; ++i) CHECK(pace.past_caches(block));
  CHECK(!pace.past_caches(block));
  pace.timed(block, fast);  // no more
  CHECK(!pace.past_caches(block));
}

TEST_CASE("the limit is an eighth of a nanosecond a byte, and small blocks are neither judged nor sent past") {
  store_pace pace;
  for (int i = 0; i < 9; ++i) pace.timed(block, std::chrono::nanoseconds{block / 8});
  CHECK(!pace.past_caches(block));
  for (int i = 0; i < 9; ++i) pace.timed(4095, 1s);
  CHECK(!pace.past_caches(block));
  for (int i = 0; i < 4; ++i) pace.timed(4096, 513ns);
  CHECK(!pace.past_caches(4095));
  CHECK(!pace.past_caches(0));
  for (int i = 0; i < 32; ++i) CHECK(pace.past_caches(4096));
  CHECK(!pace.past_caches(4096));
}
