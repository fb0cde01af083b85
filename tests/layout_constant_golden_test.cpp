// SPDX-License-Identifier: Apache-2.0
// Cases of tests/golden/layouts as constant expressions: what the compiler computes, what the same template gives at
// run time, and what the file says are one number. The number is the hash of the gathered map, README there. Of `llmc`
// the file has ranges, of which the number follows; of `owned`, and of `llmc` with several tensors, no file has cases:
// the numbers of these were computed from the rule by a program of its own.
#include "golden.hpp"

#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <array>
#include <charconv>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;

namespace {

constexpr native native_of(std::size_t tensor_align, std::size_t segment_align) {
  native policy;
  policy.tensor_align = tensor_align;
  policy.segment_align = segment_align;
  return policy;
}
constexpr owned owned_of(std::size_t tensor_align, std::size_t segment_align) {
  owned policy;
  policy.tensor_align = tensor_align;
  policy.segment_align = segment_align;
  return policy;
}
constexpr hpz hpz_of(std::size_t whole_world) {
  hpz policy;
  policy.whole_world = whole_world;
  return policy;
}
constexpr zero12 zero12_of(bool round_robin) {
  zero12 policy;
  policy.round_robin = round_robin;
  return policy;
}
constexpr fsdp1 fsdp1_of(bool use_orig_params, std::size_t element_bytes) {
  fsdp1 policy;
  policy.use_orig_params = use_orig_params;
  policy.element_bytes = element_bytes;
  return policy;
}
constexpr megatron experimental() {
  megatron policy;
  policy.packing = megatron_packing::experimental;
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
  X("native/g0234", 9, 0xcd0e880b124bb365, native_of(8, 8), parameters({{"t", {12, 9}}, {"t", {5, 6}}, {"t", {}}, {"t", {29}}, {"t", {5, 1, 3}}, {"t", {2, 5}}})) \
  X("native/g0181", 8, 0x2cf715d3f2a64999, native_of(1, 1), parameters({{"t", {1}}, {"t", {13, 6}}, {"t", {128}}, {"t", {6, 6, 1}}})) \
  X("native/g0072", 6, 0x85bfcaa7a2e8c0d5, native_of(8, 8), parameters({{"t", {8}}, {"t", {31, 1}}, {"t", {0, 3, 2}}})) \
  X("native/g0123", 13, 0x77c29c58b2e424fa, native_of(1, 1), parameters({{"t", {12, 7}}, {"t", {17}}})) \
  X("native/g0226", 5, 0xdffa6fd84edb759a, native_of(4, 64), parameters({{"t", {}}, {"t", {0, 1}}})) \
  X("native/g0100", 15, 0x164b87f27bdfa14d, native_of(8, 8), parameters({{"t", {8, 6, 2}}})) \
  X("native/g0001", 4, 0xe09696c40f6cd9ae, native_of(4, 64), parameters({{"t", {5}}})) \
  X("ds_zero3/g0276", 15, 0x33a8b7d5b2d4399f, zero3{}, parameters({{"t", {}}, {"t", {}}, {"t", {1}}, {"t", {251}}, {"t", {16}}, {"t", {5, 7}}})) \
  X("ds_zero3/g0148", 6, 0x6536132aaca2804f, zero3{}, parameters({{"t", {}}, {"t", {128}}, {"t", {1, 4}}, {"t", {9, 6, 3}}})) \
  X("ds_zero3/g0007", 3, 0x12d80d35689270be, zero3{}, parameters({{"t", {0}}, {"t", {7}}, {"t", {0}}})) \
  X("ds_zero3/g0080", 12, 0x3c802b4e2112651c, zero3{}, parameters({{"t", {5, 10}}, {"t", {251}}})) \
  X("ds_zero3/g0092", 4, 0x205ec6d8a87c5ad5, zero3{}, parameters({{"t", {5, 0}}, {"t", {48, 5}}})) \
  X("ds_zero3/g0247", 16, 0xccbdbb42cfc2d9cd, zero3{}, parameters({{"t", {7, 1}}})) \
  X("ds_zero3/g0267", 7, 0xefcd6d156dcf0b50, zero3{}, parameters({{"t", {13}}})) \
  X("ds_hpz/g0098", 2, 0xdd76fb1832db48dc, hpz_of(8), parameters({{"t", {3, 5, 1}}, {"t", {1, 6}}, {"t", {5, 0}}, {"t", {4, 2}}, {"t", {}}, {"t", {5, 9}}})) \
  X("ds_hpz/g0086", 2, 0x0d67afeaf874767f, hpz_of(8), parameters({{"t", {12, 3}}, {"t", {1, 12}}, {"t", {257}}, {"t", {2, 3}}})) \
  X("ds_hpz/g0016", 2, 0x664861d0263d6bd1, hpz_of(2), parameters({{"t", {5, 4}}, {"t", {2, 6}}, {"t", {3}}})) \
  X("ds_hpz/g0069", 1, 0x33d850c2968096d8, hpz_of(7), parameters({{"t", {33, 1}}, {"t", {4}}})) \
  X("ds_hpz/g0026", 1, 0xa0b2bc80671faf55, hpz_of(2), parameters({{"t", {7, 0}}, {"t", {3}}})) \
  X("ds_hpz/g0152", 7, 0x08ab483850f77b6e, hpz_of(14), parameters({{"t", {2}}})) \
  X("ds_hpz/g0138", 12, 0xb73f3d244787d1cd, hpz_of(12), parameters({{"t", {3, 17}}})) \
  X("ds_zero12/g0105", 64, 0xcaaa4c7f887fa95f, zero12_of(true), parameters({{"t", {17, 9}}, {"t", {2}}, {"t", {4, 8}}, {"t", {73}}, {"t", {5, 5}}, {"t", {3, 0, 2}}})) \
  X("ds_zero12/g0307", 5, 0xe25d7345030e7a57, zero12_of(false), parameters({{"t", {64}}, {"t", {2}}, {"t", {11, 8}}, {"t", {5}}, {"t", {8, 10}}})) \
  X("ds_zero12/g0262", 9, 0x8f123386a236e4f7, zero12_of(true), parameters({{"t", {0, 3, 2}}, {"t", {5, 6, 4}}, {"t", {4}}})) \
  X("ds_zero12/g0144", 14, 0x770271a3933d8591, zero12_of(true), parameters({{"t", {79}}, {"t", {6, 2}}})) \
  X("ds_zero12/g0071", 1, 0x5a4dd4763d379715, zero12_of(false), parameters({{"t", {4, 2}}, {"t", {24, 3}}})) \
  X("ds_zero12/g0020", 13, 0xcb1eda8cd4f8be3b, zero12_of(false), parameters({{"t", {12}}})) \
  X("ds_zero12/g0173", 6, 0x2a8c7ed8430bcee9, zero12_of(true), parameters({{"t", {6, 5, 2}}})) \
  X("fsdp1/g0252", 257, 0xa6ac7aa236ed7e33, fsdp1_of(true, 1), parameters({{"t", {}}, {"t", {3, 32}}, {"t", {}}, {"t", {59}}, {"t", {1, 4}}, {"t", {}}})) \
  X("fsdp1/g0145", 14, 0x63295426820e03d1, fsdp1_of(false, 1), parameters({{"t", {}}, {"t", {5, 13}}, {"t", {32, 5}}})) \
  X("fsdp1/g0044", 2, 0xa40edaa8ce5f7a02, fsdp1_of(false, 2), parameters({{"t", {3, 2}}, {"t", {4}}, {"t", {1, 3}}})) \
  X("fsdp1/g0090", 6, 0x6f8a76ae00c33aaa, fsdp1_of(true, 2), parameters({{"t", {2, 3, 5}}, {"t", {7}}})) \
  X("fsdp1/g0066", 257, 0x5ad384d356b6b3df, fsdp1_of(true, 2), parameters({{"t", {257}}})) \
  X("fsdp1/g0056", 13, 0xb96137ea2d10008f, fsdp1_of(false, 2), parameters({{"t", {13}}})) \
  X("fsdp1/g0280", 8, 0x540a3ae392795a92, fsdp1_of(true, 4), parameters({{"t", {257}}})) \
  X("fsdp2/g0239", 5, 0x02d8eef273a9c772, fsdp2{}, parameters({{"t", {0}}, {"t", {2}}, {"t", {11, 2}}, {"t", {5, 0}}, {"t", {2}}, {"t", {2, 2, 3}}})) \
  X("fsdp2/g0032", 8, 0x532611bf6d130c4e, fsdp2{}, parameters({{"t", {16, 16}}, {"t", {16}}, {"t", {17}}})) \
  X("fsdp2/g0195", 257, 0x689716b15ef892df, fsdp2{}, parameters({{"t", {1}}, {"t", {0, 1}}})) \
  X("fsdp2/g0210", 8, 0x193494b3e5eb56a5, fsdp2{}, parameters({{"t", {31}}, {"t", {0, 3, 2}}})) \
  X("fsdp2/g0179", 2, 0x9696e969b0657f65, fsdp2{}, parameters({{"t", {3, 32}}, {"t", {5, 0}}})) \
  X("fsdp2/g0256", 13, 0xe4cfadf1e93253fb, fsdp2{}, parameters({{"t", {16, 9}}})) \
  X("fsdp2/g0134", 7, 0x124cffcac186abaa, fsdp2{}, parameters({{"t", {127}}})) \
  X("megatron_production/g0315", 15, 0x878298c102b09e0e, megatron{}, parameters({{"t", {}}, {"t", {43}}, {"t", {}}, {"t", {4, 12}}, {"t", {131}}, {"t", {1}}})) \
  X("megatron_production/g0021", 7, 0x8003f315e1378077, megatron{}, parameters({{"t", {2}}, {"t", {2}}, {"t", {2}}})) \
  X("megatron_production/g0149", 11, 0x510262f4b5c8df06, megatron{}, parameters({{"t", {257}}, {"t", {9, 2, 6}}})) \
  X("megatron_production/g0239", 5, 0xc7cdfd33821865ed, megatron{}, parameters({{"t", {64, 3}}, {"t", {}}})) \
  X("megatron_production/g0281", 15, 0xe9d920e24117a969, megatron{}, parameters({{"t", {47}}})) \
  X("megatron_production/g0167", 10, 0xc3a70565c57c8cd8, megatron{}, parameters({{"t", {1}}})) \
  X("megatron_production/g0000", 4, 0x2d6c4e19415f16b8, megatron{}, parameters({{"t", {10}}})) \
  X("megatron_experimental/g0192", 14, 0x42511399b7aa0d51, experimental(), parameters({{"t", {73}}, {"t", {0, 5}}, {"t", {11}}, {"t", {4, 2, 1}}, {"t", {53}}, {"t", {3, 4}}})) \
  X("megatron_experimental/g0013", 4, 0x0e56282bdb191bd4, experimental(), parameters({{"t", {10}}, {"t", {7}}, {"t", {3}}})) \
  X("megatron_experimental/g0301", 13, 0xcf08aa9906ccb8c7, experimental(), parameters({{"t", {31, 1}}, {"t", {6, 13}}})) \
  X("megatron_experimental/g0123", 4, 0x67033176a06c97f5, experimental(), parameters({{"t", {0, 3, 2}}, {"t", {32}}})) \
  X("megatron_experimental/g0092", 16, 0x7c84dc9477851775, experimental(), parameters({{"t", {16}}})) \
  X("megatron_experimental/g0289", 12, 0xa93a8922c3af865e, experimental(), parameters({{"t", {37}}})) \
  X("megatron_experimental/g0297", 6, 0x903e963b0c3bc926, experimental(), parameters({{"t", {2, 9}}})) \
  X("ragged/g0125", 64, 0xbae28509ef48216f, (ragged<64>{std::array<std::size_t, 64>{1, 1, 2, 3, 3, 5, 0, 5, 1, 1, 3, 5, 5, 2, 1, 1, 1, 0, 1, 2, 5, 1, 2, 1, 0, 1, 1, 2, 1, 0, 1, 1, 3, 3, 3, 1, 2, 5, 1, 1, 1, 1, 1, 2, 0, 1, 1, 1, 1, 1, 1, 5, 0, 0, 1, 5, 1, 5, 1, 5, 1, 3, 3, 2}, 1}), parameters({{"t", {121, 1}}})) \
  X("ragged/g0140", 12, 0xcc927f6ee23a0f61, (ragged<12>{std::array<std::size_t, 12>{1, 5, 0, 1, 1, 3, 3, 0, 0, 0, 5, 1}, 1}), parameters({{"t", {20, 1}}})) \
  X("ragged/g0201", 8, 0x103284ea9230dce6, (ragged<8>{std::array<std::size_t, 8>{1, 1, 2, 1, 5, 1, 1, 2}, 1}), parameters({{"t", {14}}})) \
  X("ragged/g0093", 6, 0xdb7a38f9e3c608fa, (ragged<6>{std::array<std::size_t, 6>{5, 5, 3, 3, 5, 1}, 1}), parameters({{"t", {22, 3}}})) \
  X("ragged/g0261", 5, 0x7c84dc9477851775, (ragged<5>{std::array<std::size_t, 5>{1, 0, 1, 1, 1}, 2}), parameters({{"t", {1, 16}}})) \
  X("ragged/g0148", 3, 0xa4dc49e2b28ecb7d, (ragged<3>{std::array<std::size_t, 3>{2, 1, 1}, 1}), parameters({{"t", {8}}})) \
  X("ragged/g0173", 2, 0x2d7d4819416d7fb9, (ragged<2>{std::array<std::size_t, 2>{2, 1}, 1}), parameters({{"t", {12}}})) \
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

TEST_CASE("golden layouts in constant expressions are those of run time and of the files") {
  golden::tally count{"constant cases"};
  std::map<std::string, std::uint64_t> in_files;
  for (auto const* name : {"native", "ds_zero3", "ds_hpz", "ds_zero12", "fsdp1", "fsdp2", "megatron_production",
                           "megatron_experimental", "ragged"}) {
    auto const file = golden::read(std::string{"layouts/"} + name + ".json");
    if (!file) return;
    for (auto const& one : file->at("cases").as_array())
      if (auto const* hash = one.at("expect").as_object().if_contains("hash")) {
        auto const& text = hash->as_string();
        std::uint64_t value = 0;
        std::from_chars(text.data(), text.data() + text.size(), value, 16);
        in_files.emplace(one.at("id").as_string().c_str(), value);
      }
  }
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
