// SPDX-License-Identifier: Apache-2.0
// A Llama-3-8B layer laid out over 8 ranks while this file is compiled: the offsets are constants of the object file,
// and what must hold of them is checked before there is a program. Build: g++ -std=c++20 -I include static_layout.cpp
#include <flatshard/laws.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/planned.hpp>

#include <array>
#include <cstdint>
#include <cstdio>
#include <vector>

using namespace flatshard;

constexpr auto layer = parameters({{"self_attn.q_proj", {4096, 4096}},
                                   {"self_attn.k_proj", {1024, 4096}},
                                   {"self_attn.v_proj", {1024, 4096}},
                                   {"self_attn.o_proj", {4096, 4096}},
                                   {"mlp.gate_proj", {14336, 4096}},
                                   {"mlp.up_proj", {14336, 4096}},
                                   {"mlp.down_proj", {4096, 14336}},
                                   {"input_layernorm", {4096}},
                                   {"post_attention_layernorm", {4096}}});
constexpr layout unit{native{}, layer, world<8>{}};

// No element twice, none is lost; every rank holds the same number of elements without padding, and segments begin at
// 256 bytes.
static_assert(keeps_laws(unit));
static_assert(unit.real() == elements{218112000} && unit.gathered() == unit.real());
// Quantisation blocks of 128 x 128 that no rank's bound cuts, for less than 1 % of padding.
static_assert([] {
  layout const blocks{planned{block::tiles(128)}, layer, world<8>{}};
  return keeps_laws(blocks) && 100 * blocks.gathered().value < 101 * blocks.real().value;
}());
static_assert(unit.shard_bytes(fsdp2_bf16, role::parameter_storage) == bytes{109056000});
static_assert(unit.shard_bytes(fsdp2_bf16, role::compute) % 256 == 0);
static_assert(unit["mlp.down_proj"].gathered % 8 == 0);  // 16-byte loads of bf16
static_assert(unit.owner(unit.number_of("mlp.up_proj"), elements{0}) == rank_id{3});
static_assert(file_range(unit.piece_of(6, rank_id{7}), {0}, dtype::bf16).size() == bytes{54511616});

// Offsets in the gathered buffer, one a tensor, then the segment: in a section of its own, so that a test can read it.
constexpr std::array<std::uint64_t, layer.size() + 1> offsets_of_unit() {
  std::array<std::uint64_t, layer.size() + 1> offsets{};
  for (std::size_t t = 0; t < unit.size(); ++t) offsets[t] = unit[t].gathered.value;
  offsets.back() = unit.segment().value;
  return offsets;
}
[[gnu::section(".rodata.static_layout"), gnu::used]] constinit auto const static_layout_offsets = offsets_of_unit();

int main() {
  std::vector<parameter> const read{layer.begin(), layer.end()};
  layout const same{native{}, read, world{read.size() - 1}};  // the same template when the shapes are read from a file
  for (std::size_t t = 0; t < same.size(); ++t)
    std::printf("%llu\n", static_cast<unsigned long long>(same[t].gathered.value));
  std::printf("%llu\n", static_cast<unsigned long long>(same.segment().value));
  return same.hash() == unit.hash() ? 0 : 1;
}
