// SPDX-License-Identifier: Apache-2.0
// What a plan holds and moves: small cases by hand, published numbers, DeepSpeed's formulas.
#include <flatshard/deepspeed_estimate.hpp>
#include <flatshard/estimate.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace estimate_test {

using namespace flatshard;

namespace {

constexpr auto small = parameters({{"a", {10}}, {"b", {7}}, {"c", {3}}});
constexpr native dense{{}, 8, 8};

constexpr step_estimate one_unit(std::size_t node_size, plan_settings const& settings = {},
                                 mesh<2> ranks = mesh{1, 4}) {
  training_plan plan{ranks, fsdp2_bf16, settings};
  plan.add({.name = "u", .parameters = small}, dense);
  return estimate_of(plan, node_size);
}

// 32 elements gathered as bf16, twice; reduced as fp32; one number for the norm: of each 3/4 is sent.
static_assert(one_unit(0).wire == wire_bytes{{2 * 48 + 96 + 12}, {0}});
// On two nodes of two ranks, of the ring 0 1 2 3 the steps 1 -> 2 and 3 -> 0 cross.
static_assert(one_unit(2).wire == wire_bytes{{102}, {102}});
static_assert(one_unit(1).wire == wire_bytes{{0}, {204}});
static_assert(one_unit(4).wire.between == bytes{0});
static_assert(one_unit(0).peak.kind == step_kind::backward && one_unit(0).peak.live.sum() == bytes{64 + 128});
static_assert(one_unit(0).padding == elements{12} && one_unit(0).empty_ranks == 0);
// Of 12 elements of this rank's expert, 6 on each of two ranks padded to 8; ranks 1 and 3 hold as many of another one.
static_assert([] {
  training_plan plan{mesh{1, 4}, fsdp2_bf16};
  std::array<parameter, 1> const expert{parameter{"e", {12}, dtype::none, {.expert_ranks = 2}}};
  plan.add({.name = "u", .parameters = expert}, dense);
  auto const e = estimate_of(plan);
  return e.padding == elements{8} && e.parameters.padding() == bytes{8 * 4} && e.most_owned == elements{8};
}());
static_assert(one_unit(0).least_owned == elements{2} && one_unit(0).most_owned == elements{8});
static_assert(one_unit(0).parameters.held.most == bytes{32} && one_unit(0).parameters.owned.total == bytes{80});
static_assert(one_unit(0).parameters.padding() == bytes{48});
static_assert(one_unit(0).slot_alignment == bytes{16});  // 8 elements of bf16

// Llama-3-8B as DeepSpeed's formulas and the volume formula of docs/design.md see it.
constexpr auto embedding = parameters({{"embed_tokens", {128256, 4096}}});
constexpr auto layer = parameters({{"q", {4096, 4096}},
                                   {"k", {1024, 4096}},
                                   {"v", {1024, 4096}},
                                   {"o", {4096, 4096}},
                                   {"gate", {14336, 4096}},
                                   {"up", {14336, 4096}},
                                   {"down", {4096, 14336}},
                                   {"norm1", {4096}},
                                   {"norm2", {4096}}});
constexpr auto head = parameters({{"norm", {4096}}, {"lm_head", {128256, 4096}}});
template <ShardingPolicy P>
constexpr training_plan llama(P policy, precision types, mesh<2> ranks, plan_settings const& settings = {}) {
  training_plan plan{ranks, types, settings};
  plan.add({.name = "embedding", .parameters = embedding}, policy);
  plan.add({.name = "layers.0", .parameters = layer}, policy);
  std::array<std::string_view, 31> others{};
  others.fill("layers");
  plan.repeat(others);
  plan.add({.name = "head", .parameters = head}, policy);
  return plan;
}
constexpr std::size_t llama_elements = 8'030'261'248;
static_assert(llama(zero3{}, fsdp2_bf16, mesh{1, 8}).real() == elements{llama_elements});
// 7/8 of 8 bytes an element: two bf16 gathers and one fp32 reduction; 14 bytes more for the norm
static_assert(estimate_of(llama(zero3{}, fsdp2_bf16, mesh{1, 8})).wire.sum() == bytes{llama_elements * 7 + 14});

constexpr std::size_t gib_hundredths(bytes b) { return (b.value * 100 + (1u << 29)) >> 30; }

}  // namespace

TEST_CASE("DeepSpeed's six documented rows of stage 3, and stage 2 with the optimizer on the host") {
  // Source: DeepSpeed, docs/code-docs/source/memory.rst: 2851e6 parameters, largest layer 32e6, one node of 8.
  constexpr elements p{2'851'000'000}, l{32'000'000};
  using enum offloaded_states;
  struct row {
    offloaded_states offloaded;
    bool sharded;
    std::size_t host, device;
  };
  for (auto const& r : {row{optimizer_and_parameters, true, 7169, 12}, row{optimizer_and_parameters, false, 12745, 12},
                        row{optimizer, true, 6372, 78}, row{optimizer, false, 12745, 78}, row{none, true, 143, 609},
                        row{none, false, 12745, 609}}) {
    auto const found = deepspeed_stage3(p, l, 8, 1, r.offloaded, r.sharded);
    CHECK(gib_hundredths(found.host) == r.host);
    CHECK(gib_hundredths(found.device) == r.device);
  }
  CHECK(gib_hundredths(deepspeed_stage2(p, 8, 1, optimizer).device) == 531);
  CHECK(gib_hundredths(deepspeed_stage2(p, 8, 1, optimizer).host) == 12745);
  CHECK(deepspeed_stage2(p, 8, 1).device == bytes{p.value * 2 + p.value * 18 / 8});
  // Several nodes: host numbers are of one node, and stage 2 counts 4 bytes for every device of all nodes.
  CHECK(deepspeed_stage3(p, l, 8, 4, optimizer_and_parameters).host == bytes{p.value * 18 * 3 / 8});
  CHECK(deepspeed_stage2(p, 8, 4, optimizer).host == bytes{p.value * 128 * 3 / 2});
  CHECK_THROWS_WITH(static_cast<void>(deepspeed_stage2(p, 0, 1)), "world size must be positive");
  // Llama-3-8B on 8: 4 bytes of the embedding and 18/8 a parameter
  CHECK(deepspeed_stage3({llama_elements}, {525'336'576}, 8, 1).device == bytes{20'169'434'112});
}

TEST_CASE("volumes follow the formulas") {
  constexpr std::size_t n = llama_elements, norm = 14;
  auto const wire = [](training_plan const& plan) { return estimate_of(plan).wire.sum().value; };
  for (std::size_t const k : {1u, 2u, 5u}) {
    // full shard: k n (2 e_ag + e_rs); kept after forward: k n (e_ag + e_rs); reduced once: k gathers, one reduction
    CHECK(wire(llama(zero3{}, fsdp2_bf16, mesh{1, 8}, {.micro_batches = k})) == k * n * 8 / 8 * 7 + norm);
    CHECK(wire(llama(zero3{}, fsdp2_bf16, mesh{1, 8}, {.micro_batches = k, .keep = {.ranks = 1}})) ==
          k * n * 6 / 8 * 7 + norm);
    CHECK(wire(llama(zero3{}, fsdp2_bf16, mesh{1, 8}, {.micro_batches = k, .reduce_once = true})) ==
          (k * n * 4 + n * 4) / 8 * 7 + norm);
  }
  // Stage 1: one reduction and one gather a step, whatever k; all-reduced, the reduction counts twice
  plan_settings stage1{.micro_batches = 3, .cut = cut_states::optimizer};
  CHECK(wire(llama(zero12{}, deepspeed_bf16, mesh{1, 8}, stage1)) == n * 4 / 8 * 7 + norm);
  stage1.all_reduce = true;
  CHECK(wire(llama(zero12{}, deepspeed_bf16, mesh{1, 8}, stage1)) == n * 6 / 8 * 7 + norm);
}

TEST_CASE("hybrid sharding: shards inside a node, gradients of the shards over replicas between nodes") {
  auto const e = estimate_of(llama(zero3{}, fsdp2_bf16, mesh{2, 8}), 8);
  CHECK(e.wire.inside.value == llama_elements * 7 + 14);
  CHECK(e.wire.between.value == llama_elements / 8 * 4);  // 2 (Q - 1)/Q S e_rs
}

TEST_CASE("hpZ: the backward gather stays inside the node, at the price of a secondary copy") {
  auto const e = estimate_of(llama(zero3{}, deepspeed_bf16, mesh{1, 16}, {.keep = {.ranks = 8}, .secondary = true}), 8);
  auto const plain = estimate_of(llama(zero3{}, deepspeed_bf16, mesh{1, 16}), 8);
  CHECK(e.most.gathered.value == plain.most.gathered.value + llama_elements * 2 / 8);
  CHECK(e.wire.between.value < plain.wire.between.value);
  std::size_t inside = 0, over_all = 0;
  for (auto const& c : e.collectives)
    if (c.kind == step_kind::gather) (c.ranks == 8 ? inside : over_all) += c.calls;
  CHECK(inside == 34);
  CHECK(over_all == 34);
}

TEST_CASE("spaces, transfers and the fullest rank") {
  auto const e = one_unit(0, {.parameters = memory_space::host, .optimizer = memory_space::nvme});
  auto const at = [&](memory_space s) { return e.spaces[static_cast<std::size_t>(s)]; };
  CHECK(at(memory_space::device).most == bytes{192});    // what lives in backward alone
  CHECK(at(memory_space::host).most == bytes{32 + 32});  // parameters, gradients
  CHECK(at(memory_space::nvme).most == bytes{64});       // two moments
  CHECK(e.uploaded == bytes{64});                        // the shard, before each gather
  CHECK(e.downloaded == bytes{32});                      // the reduced gradients
  CHECK(e.read == bytes{64});
  CHECK(e.written == bytes{64});
  CHECK(one_unit(0).parameters.owned.fullest == rank_id{0});
  CHECK(one_unit(0).parameters.owned.least == bytes{8});
  CHECK(one_unit(0).parameters.owned.mean() == bytes{20});
}

TEST_CASE("what an optimizer off the device leaves there, holds elsewhere and moves, computed by hand") {
  // 28 elements over 4 ranks. `zero12`: 32 in a flat group, 8 a rank; `zero3`, `llmc`, `fsdp2`: 7 a rank;
  // whole tensors of `llmc` begin at multiples of 128: 384.
  static constexpr auto even = parameters({{"a", {16}}, {"b", {8}}, {"c", {4}}});
  using enum memory_space;
  struct row {
    std::string_view layout;
    cut_states cut;
    std::size_t micro_batches;
    memory_space parameters, optimizer;
    std::size_t on_device, on_host, on_nvme;  // held all the time
    std::size_t down, up, read, written;
  };
  using enum cut_states;
  // deepspeed_bf16: bytes of an element: weights 2, gradients 2, master and moments 12, the optimizer's gradients 4
  // fsdp2_bf16: weights 4, gradients 4, moments 8, of whole gradients the part that the optimizer reads 4
  for (auto const& r : {
           row{"zero12", nothing, 2, device, device, 448, 0, 0, 0, 0, 0, 0},  // 28 (2 + 2 + 12)
           row{"zero12", nothing, 2, device, host, 112, 448, 0, 112, 56, 0, 0},
           row{"zero12", nothing, 2, device, nvme, 112, 0, 448, 112, 56, 448, 448},
           row{"zero12", optimizer, 2, device, device, 224, 0, 0, 0, 0, 0, 0},  // 32 (2 + 2) + 8 * 12
           row{"zero12", optimizer, 2, device, host, 128, 128, 0, 32, 16, 0, 0},
           row{"zero12", optimizer, 1, device, host, 128, 128, 0, 32, 16, 0, 0},
           row{"zero12", optimizer, 2, device, nvme, 128, 0, 128, 32, 16, 128, 128},
           row{"zero12", gradients, 2, device, device, 176, 0, 0, 0, 0, 0, 0},   // 32 * 2 + 8 (2 + 12)
           row{"zero12", gradients, 2, device, host, 64, 144, 0, 64, 16, 0, 0},  // 8 (2 + 12 + 4); 2 * 8 * 2 + 8 * 4
           row{"zero12", gradients, 1, device, host, 64, 128, 0, 32, 16, 0, 0},  // nothing adds up: 8 (12 + 4)
           row{"zero12", gradients, 2, device, nvme, 64, 16, 128, 64, 16, 128, 128},
           row{"zero3", cut_states::parameters, 2, device, device, 112, 0, 0, 0, 0, 0, 0},  // 7 (2 + 2 + 12)
           row{"zero3", cut_states::parameters, 2, device, host, 14, 126, 0, 56, 14, 0, 0},
           row{"zero3", cut_states::parameters, 2, device, nvme, 14, 14, 112, 56, 14, 112, 112},
           row{"zero3", cut_states::parameters, 2, host, host, 0, 140, 0, 56, 56, 0, 0},  // up before four gathers
           row{"llmc", optimizer, 2, device, device, 1620, 0, 0, 0, 0, 0, 0},             // 384 (2 + 2) + 7 * 12
           row{"llmc", optimizer, 2, device, host, 1536, 112, 0, 28, 14, 0, 0},
           row{"llmc of fsdp2", optimizer, 2, device, host, 3072, 84, 0, 28, 28, 0, 0},  // 384 (4 + 4); 7 (8 + 4)
           row{"fsdp2", cut_states::parameters, 2, device, device, 112, 0, 0, 0, 0, 0, 0},
           row{"fsdp2", cut_states::parameters, 2, host, host, 0, 112, 0, 56, 112, 0, 0},
       }) {
    CAPTURE(r.layout);
    CAPTURE(name(r.optimizer));
    CAPTURE(r.micro_batches);
    training_plan plan{
        mesh{1, 4},
        r.layout.ends_with("fsdp2") ? fsdp2_bf16 : deepspeed_bf16,
        {.micro_batches = r.micro_batches, .cut = r.cut, .parameters = r.parameters, .optimizer = r.optimizer}};
    plan_unit const unit{.name = "u", .parameters = even};
    if (r.layout == "zero12") plan.add(unit, zero12{});
    if (r.layout == "zero3") plan.add(unit, zero3{});
    if (r.layout.starts_with("llmc")) plan.add(unit, llmc{});
    if (r.layout == "fsdp2") plan.add(unit, fsdp2{});
    auto const e = estimate_of(plan);
    CHECK(e.spaces[0].most - e.peak.live.sum() == bytes{r.on_device});
    CHECK(e.spaces[1].most == bytes{r.on_host});
    CHECK(e.spaces[2].most == bytes{r.on_nvme});
    CHECK(e.downloaded == bytes{r.down});
    CHECK(e.uploaded == bytes{r.up});
    CHECK(e.read == bytes{r.read});
    CHECK(e.written == bytes{r.written});
    if (r.optimizer != device && r.cut < gradients) {  // what is held beside the states is what came down
      CHECK(e.gradients.space == device);
      CHECK(e.optimizer_gradients.space == r.optimizer);
      CHECK(e.optimizer_gradients.held.most == e.downloaded);
    }
  }
  // Replicas of a model that is not cut add whole gradients, not a rank's part of them.
  training_plan plan{mesh{2, 4}, deepspeed_bf16, {.cut = nothing}};
  plan.add({.name = "u", .parameters = even}, zero12{});
  auto const e = estimate_of(plan);
  CHECK(std::any_of(e.collectives.begin(), e.collectives.end(), [](collective_line const& c) {
    return c.kind == step_kind::all_reduce && c.ranks == 2 && c.size == bytes{56};
  }));
}

TEST_CASE("many micro-batches cost no more than three, and count all") {
  for (auto settings : {plan_settings{}, plan_settings{.prefetch = 1, .parameters = memory_space::nvme},
                        plan_settings{.keep = {.ranks = 2}, .reduce_once = true}, plan_settings{.replicas_each = true}})
    for (std::size_t const k : {1u, 2u, 3u, 4u, 7u}) {
      settings.micro_batches = k;
      auto const plan = llama(native{}, fsdp2_bf16, mesh{2, 4}, settings);
      auto const e = estimate_of(plan, 4);
      wire_bytes sent;
      bytes read, uploaded;
      live_bytes most;
      std::size_t calls = 0;
      for_each_step(plan, [&](plan_step const& s) {
        if (is_collective(s.kind)) sent += wire_of(s, 8, 4);
        if (is_collective(s.kind)) calls += s.calls;
        if (s.kind == step_kind::read) read += s.size;
        if (s.kind == step_kind::upload) uploaded += s.size;
        if (most.sum() < s.live.sum()) most = s.live;
      });
      std::size_t counted = 0;
      for (auto const& c : e.collectives) counted += c.calls;
      CHECK(e.wire == sent);
      CHECK(e.read == read);
      CHECK(e.uploaded == uploaded);
      CHECK(e.peak.live == most);
      CHECK(counted == calls);
    }
  auto const many = estimate_of(llama(native{}, fsdp2_bf16, mesh{1, 8}, {.micro_batches = 1'000'000}));
  CHECK(many.collectives.front().calls == 2'000'000);  // of the embedding, forward and back
}

TEST_CASE("rows degenerate where there are more ranks than rows") {
  training_plan plan{mesh{1, 32}, fsdp2_bf16};
  std::vector<parameter> const rows{{"w", {33, 16}}};
  plan.add({.name = "u", .parameters = rows}, fsdp2{});
  auto const e = estimate_of(plan);
  CHECK(e.empty_ranks == 15);
  CHECK(e.padding == elements{31 * 16});
  CHECK(e.copies == 2);
  CHECK(e.small_gathers == 2);
}

TEST_CASE("a sum over all ranks that does not fit in 64 bits leaves the rest of a spread right") {
  auto const spread = [](std::size_t ranks, std::size_t n) {
    return detail::spread_of(ranks, [&](std::size_t r) { return bytes{n + r % 2}; });
  };
  auto const fits = spread(4, 10), past = spread(4, std::size_t{1} << 62);
  CHECK(fits.total == bytes{42});
  CHECK(fits.mean() == bytes{10});
  CHECK(past.total == bytes{SIZE_MAX});
  CHECK_FALSE(past.total_fits());
  CHECK(past.mean() == bytes{std::size_t{1} << 62});
  CHECK(past.most == bytes{(std::size_t{1} << 62) + 1});
  CHECK(memory_line{memory_space::device, past, fits}.padding() == bytes{SIZE_MAX});
  CHECK(memory_line{memory_space::device, fits, spread(4, 9)}.padding() == bytes{4});
}

TEST_CASE("calls of reductions in buckets are counted and sent one by one, gathers after the update in one") {
  training_plan plan{mesh{1, 4}, deepspeed_bf16, {.cut = cut_states::gradients, .bucket = {10}}};
  std::vector<parameter> const rows{{"w", {24}}};
  plan.add({.name = "u", .parameters = rows}, zero12{});
  auto const e = estimate_of(plan);
  REQUIRE(e.collectives.size() == 4);
  CHECK(e.collectives[0].size == bytes{20});
  CHECK(e.collectives[0].calls == 2);
  CHECK(e.collectives[0].wire.sum() == bytes{30});
  CHECK(e.collectives[1].size == bytes{8});
  CHECK(e.collectives[1].calls == 1);
  CHECK(e.collectives[3].kind == step_kind::gather);
  CHECK(e.collectives[3].calls == 1);
  CHECK(e.small_gathers == 1);
}

TEST_CASE("one rank sends nothing; a group must fit into the world") {
  auto const e = one_unit(0, {}, mesh{1, 1});
  CHECK(e.wire == wire_bytes{});
  CHECK(e.collectives.empty());
  plan_step step;
  step.kind = step_kind::gather;
  step.size = {90};
  step.ranks = 3;
  CHECK(wire_of(step, 6, 3) == wire_bytes{{60}, {0}});
  CHECK(wire_of(step, 6, 2) == wire_bytes{{20}, {40}});  // 1 -> 2, 2 -> 0 | 3 -> 4, 5 -> 3
  // 8 bytes over 64 ranks: 15.75 there and back, 1.97 of them between nodes of 8
  step.kind = step_kind::norm;
  step.size = {8};
  step.ranks = 64;
  CHECK(wire_of(step, 64, 8) == wire_bytes{{14}, {2}});
  step.size = {std::size_t{1} << 62};
  CHECK(wire_of(step, 64, 8).sum() == bytes{(std::size_t{1} << 57) * 63});
  step.size = {std::size_t{1} << 63};
  CHECK_THROWS_AS(static_cast<void>(wire_of(step, 64, 8)), broken_rule);
  step.ranks = 3;
  CHECK_THROWS_WITH(static_cast<void>(wire_of(step, 4, 0)), "the group of a collective must divide the world size");
}

}  // namespace estimate_test
