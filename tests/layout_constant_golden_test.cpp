// SPDX-License-Identifier: Apache-2.0
// `llmc` and `owned` as constant expressions: what the compiler computes, what the same template gives at run time, and
// what a file says are one number, the hash of the gathered map (README of tests/golden/layouts). Of `llmc` the file
// has ranges, of which the number follows; of `owned`, and of `llmc` with several tensors, no file has cases: the
// numbers of these were computed from the rule by a program of its own. The cases of all other layouts:
// constant_cases.cpp.
#include "golden.hpp"

#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/owned.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;

namespace {

constexpr owned owned_of(std::size_t tensor_align, std::size_t segment_align) {
  owned policy;
  policy.tensor_align = tensor_align;
  policy.segment_align = segment_align;
  return policy;
}

constexpr std::uint64_t hash_start = 0xcbf29ce484222325u, hash_factor = 0x100000001b3u;
template <class L>
constexpr std::uint64_t map_hash(L const& l) {
  std::uint64_t h = hash_start;
  for (std::size_t g = 0; g < l.gathered().value; ++g) {
    auto const found = l.at_gathered({g});
    auto const v = found.padding ? ~std::uint64_t{0} : (std::uint64_t{found.tensor} << 40) | found.index.value;
    h = (h ^ v) * hash_factor;
  }
  return h;
}

// clang-format off
// id, world, hash, policy, parameters
#define CONSTANT_CASES(X) \
  X("rules/g0203", 1, 0x2a8c7ed8430bcee9, llmc{}, parameters({{"t", {60}}})) \
  X("rules/g0205", 3, 0xb11d013568a3b7cf, llmc{}, parameters({{"t", {9}}})) \
  X("rules/g0211", 4, 0x4475327f98e05411, llmc{}, parameters({{"t", {4}}})) \
  X("rules/g0214", 8, 0xe6cb594c1a148ac5, llmc{}, parameters({{"t", {32}}})) \
  X("rules/g0221", 4, 0xc9ccf0fe5fbdeb1d, llmc{}, parameters({{"t", {40}}})) \
  X("rules/g0223", 2, 0x5ad71c1e9364d192, llmc{}, parameters({{"t", {42}}})) \
  X("llmc/1", 4, 0x38021ccc91bb065d, llmc{}, parameters({{"t", {12}}, {"t", {4, 2}}, {"t", {0}}})) \
  X("llmc/2", 7, 0xeed709cfbba7e691, llmc{}, parameters({{"t", {5, 7}}, {"t", {14}}})) \
  X("owned/1", 2, 0x0e56282bdb191bd4, owned_of(1, 1), parameters({{"t", {10}}, {"t", {7}}, {"t", {3}}})) \
  X("owned/2", 5, 0xdedb00fdbd6a378a, owned_of(1, 1), parameters({{"t", {10}}, {"t", {7}}, {"t", {3}}})) \
  X("owned/3", 2, 0x96338b1bd7fb9d54, owned_of(8, 128), parameters({{"t", {10}}, {"t", {7}}, {"t", {3}}})) \
  X("owned/4", 3, 0x84a8fd2ad165c4bd, owned_of(4, 8), parameters({{"t", {3, 5}}, {"t", {0}}, {"t", {}}, {"t", {4, 4}}, {"t", {15}}, {"t", {1}}})) \
  X("owned/5", 4, 0x54e9fab6b458386c, owned_of(2, 4), parameters({{"t", {6}}, {"t", {6}}, {"t", {6}}, {"t", {6}}, {"t", {6}}, {"t", {6}}, {"t", {6}}, {"t", {6}}, {"t", {6}}})) \
  X("owned/6", 3, 0xcbf29ce484222325, owned_of(8, 128), parameters({{"t", {0}}})) \
  X("owned/7", 1, 0xffd9f0e237fe4785, owned_of(8, 8), parameters({{"t", {257}}, {"t", {1}}}))
// clang-format on

#define COMPILED(id, w, expected, policy, unit) \
  static_assert(map_hash(layout{policy, unit, world<w>{}}) == expected, id);
CONSTANT_CASES(COMPILED)

}  // namespace

TEST_CASE("golden llmc and owned in constant expressions are those of run time and of the file") {
  golden::tally count{"constant cases"};
  std::map<std::string, std::uint64_t> in_files;
  auto const rules = golden::read("layouts/rules.json");
  if (!rules) return;
  for (auto const& one : rules->at("cases").as_array()) {
    if (one.at("rule") != "llmc_shard" || !one.at("expect").is_array()) continue;
    auto h = hash_start;  // of the one tensor's elements, range after range: its number is 0, nothing is padding
    for (auto const& range : one.at("expect").as_array()) {
      auto const begin = range.at(0).to_number<std::uint64_t>(), size = range.at(1).to_number<std::uint64_t>();
      for (auto i = begin; i < begin + size; ++i) h = (h ^ i) * hash_factor;
    }
    in_files.emplace(one.at("id").as_string().c_str(), h);
  }
#define RUN(id, w, expected, policy, unit)                                                                             \
  {                                                                                                                    \
    auto const fixed = unit;                                                                                           \
    std::vector<parameter> const list{fixed.begin(), fixed.end()};                                                     \
    ++count.ran;                                                                                                       \
    auto const dynamic = layout{policy, list, world{w}};                                                               \
    auto const half = layout{policy, fixed, world{w}};                                                                 \
    auto const in_file = in_files.find(id); /* another set may lack the case */                                        \
    bool const passed = (in_file == in_files.end() || in_file->second == expected) && map_hash(dynamic) == expected && \
                        map_hash(half) == expected && dynamic.hash() == half.hash() &&                                 \
                        dynamic.hash() == layout{policy, fixed, world<w>{}}.hash();                                    \
    CHECK_MESSAGE(passed, id);                                                                                         \
    count.passed += passed;                                                                                            \
  }
  CONSTANT_CASES(RUN)
  CHECK(count.passed == count.ran);
}
