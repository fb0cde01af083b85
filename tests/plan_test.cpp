// SPDX-License-Identifier: Apache-2.0
// A model as units and buffers, what ranks hold of it, and the order of the steps.
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/plan.hpp>
#include <flatshard/schedule.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace plan_test {

using namespace flatshard;

namespace {

constexpr auto small = parameters({{"a", {10}}, {"b", {7}}, {"c", {3}}});
constexpr native dense{{}, 8, 8};  // P = 0 16 24, N = 27, S = 8 over 4 ranks

constexpr training_plan two_units(plan_settings const& settings = {}, mesh<2> ranks = mesh{1, 4}) {
  training_plan plan{ranks, fsdp2_bf16, settings};
  plan.add({.name = "first", .parameters = small}, dense);
  plan.repeat("second");
  return plan;
}

/// Letters of the steps with the unit's number: `G0 F0 R0 ...`.
constexpr char letter(step_kind k) { return "<^GFRcBSAv=U>"[static_cast<std::size_t>(k)]; }
std::string order_of(training_plan const& plan) {
  std::string text;
  for_each_step(plan, [&](plan_step const& s) {
    if (!text.empty()) text += ' ';
    text += letter(s.kind);
    text += std::to_string(s.unit);
  });
  return text;
}
template <class Is>
constexpr std::size_t count_of(training_plan const& plan, Is is) {
  std::size_t n = 0;
  for_each_step(plan, [&](plan_step const& s) { n += is(s) ? 1u : 0u; });
  return n;
}

// ---- at compile time

static_assert(two_units().size() == 2 && two_units().buffers().size() == 2 && two_units().real() == elements{40});
static_assert(two_units().buffers(1)[0].segment == elements{8} && two_units().buffers(1)[0].gathered == elements{32});
// fp32 storage, fp32 gradients, two fp32 moments: 8 elements each, twice
static_assert(two_units().held()[3] == rank_bytes{64, 64, 128});
static_assert(two_units().owned()[1] == rank_bytes{16, 16, 32} && two_units().owned_elements()[1] == 4);
static_assert(count_of(two_units(), [](plan_step const& s) { return s.kind == step_kind::gather; }) == 4);
static_assert(count_of(two_units({.micro_batches = 3}), [](plan_step const& s) {
                return s.kind == step_kind::reduce_scatter && s.size == bytes{128} && s.ranks == 4;
              }) == 6);
static_assert(count_of(two_units({.keep = {.ranks = 1}}),
                       [](plan_step const& s) { return s.kind == step_kind::gather; }) == 2);

}  // namespace

TEST_CASE("each unit is gathered, used and released, forward and back, then the optimizer runs") {
  CHECK(order_of(two_units()) == "G0 F0 R0 G1 F1 R1 G1 B1 S1 R1 G0 B0 S0 R0 =0 U0 U1");
  CHECK(order_of(two_units({.recompute = true})) == "G0 F0 R0 G1 F1 R1 G1 c1 B1 S1 R1 G0 c0 B0 S0 R0 =0 U0 U1");
  CHECK(order_of(two_units({.prefetch = 1})) == "G0 G1 F0 R0 F1 R1 G1 G0 B1 S1 R1 B0 S0 R0 =0 U0 U1");
  CHECK(order_of(two_units({.micro_batches = 2, .keep = {.ranks = 1}, .reduce_once = true})) ==
        "G0 F0 G1 F1 B1 R1 B0 R0 G0 F0 G1 F1 B1 S1 R1 B0 S0 R0 =0 U0 U1");
}

TEST_CASE("replicas add their gradients once a step, or after every micro-batch") {
  auto const adds = [](plan_settings const& settings) {
    return count_of(two_units(settings, mesh{3, 4}), [](plan_step const& s) {
      return s.kind == step_kind::all_reduce && s.ranks == 3 && s.stride == 4 && s.size == bytes{32};
    });
  };
  CHECK(adds({.micro_batches = 2}) == 2);
  CHECK(adds({.micro_batches = 2, .replicas_each = true}) == 4);
  CHECK(two_units({}, mesh{3, 4}).held().size() == 12);
  CHECK(two_units({}, mesh{3, 4}).owned()[1] == two_units({}, mesh{3, 4}).owned()[9]);
}

TEST_CASE("ZeRO's stages 0 to 2 keep parameters whole") {
  // Stage 2: whole weights of 40 elements over 4 ranks in flat groups of 24: 6 elements a rank
  auto const plan_of = [](cut_states cut, std::size_t bucket = 0) {
    training_plan plan{mesh{1, 4}, deepspeed_bf16, {.micro_batches = 2, .cut = cut, .bucket = {bucket}}};
    plan.add({.name = "first", .parameters = small}, zero12{});
    plan.repeat("second");
    return plan;
  };
  CHECK(order_of(plan_of(cut_states::gradients)) == "F0 F1 B1 S1 B0 S0 F0 F1 B1 S1 B0 S0 =0 U0 G0 U1 G1");
  CHECK(order_of(plan_of(cut_states::optimizer)) == "F0 F1 B1 B0 F0 F1 B1 S1 B0 S0 =0 U0 G0 U1 G1");
  CHECK(order_of(plan_of(cut_states::nothing)) == "F0 F1 B1 B0 F0 F1 B1 A1 B0 A0 =0 U0 U1");
  // bf16 weights whole (the flat buffer of 24), gradients bf16, an fp32 master and two moments
  CHECK(plan_of(cut_states::gradients).held()[0] == rank_bytes{2 * 24 * 2, 2 * 6 * 2, 2 * 6 * 12});
  CHECK(plan_of(cut_states::optimizer).held()[0] == rank_bytes{2 * 24 * 2, 2 * 24 * 2, 2 * 6 * 12});
  CHECK(plan_of(cut_states::nothing).held()[0] == rank_bytes{2 * 20 * 2, 2 * 20 * 2, 2 * 20 * 12});
  // Reductions of 24 elements in buckets of 10; the gather after the update is one call
  std::size_t full = 0, rest = 0, gathers = 0;
  bytes most;
  for_each_step(plan_of(cut_states::gradients, 10), [&](plan_step const& s) {
    if (s.kind == step_kind::reduce_scatter && s.calls == 2 && s.size == bytes{20} && s.count == elements{10}) ++full;
    if (s.kind == step_kind::reduce_scatter && s.calls == 1 && s.size == bytes{8} && s.count == elements{4}) ++rest;
    if (s.kind == step_kind::gather && s.calls == 1 && s.size == bytes{48} && s.count == elements{24}) ++gathers;
    most = std::max(most, s.live.gradients);
  });
  CHECK(full == 4);
  CHECK(rest == 4);
  CHECK(gathers == 2);
  CHECK(most == bytes{20});  // one bucket lives
}

TEST_CASE("what leaves the device goes to and fro") {
  auto const plan_of = [](memory_space parameters_in, memory_space optimizer_in) {
    training_plan plan{mesh{1, 4}, deepspeed_bf16, {.parameters = parameters_in, .optimizer = optimizer_in}};
    plan.add({.name = "one", .parameters = small}, dense);
    return order_of(plan);
  };
  using enum memory_space;
  CHECK(plan_of(device, host) == "G0 F0 R0 G0 B0 S0 v0 v0 R0 =0 U0 ^0");
  CHECK(plan_of(host, host) == "^0 G0 F0 R0 ^0 G0 B0 S0 v0 v0 R0 =0 U0");
  CHECK(plan_of(host, device) == "^0 G0 F0 R0 ^0 G0 B0 S0 R0 =0 U0 v0");
  CHECK(plan_of(nvme, nvme) == "<0 ^0 G0 F0 R0 <0 ^0 G0 B0 S0 v0 v0 >0 R0 =0 <0 U0 >0 >0");
}

TEST_CASE("a part that stays after forward is gathered again in a smaller group") {
  auto const groups = [](plan_settings const& settings) {
    std::vector<std::size_t> found;
    for_each_step(two_units(settings), [&](plan_step const& s) {
      if (s.kind == step_kind::gather) found.push_back(s.ranks);
    });
    return found;
  };
  CHECK(groups({.keep = {.ranks = 2}}) == std::vector<std::size_t>{4, 4, 2, 2});
  CHECK(groups({.keep = {.ranks = 2}, .secondary = true}) == std::vector<std::size_t>{4, 4, 2, 2});
  std::vector<bytes> kept, held;
  for_each_step(two_units({.keep = {.ranks = 2}}), [&](plan_step const& s) { kept.push_back(s.live.gathered); });
  for_each_step(two_units({.keep = {.ranks = 2}, .secondary = true}),
                [&](plan_step const& s) { held.push_back(s.live.gathered); });
  CHECK(kept.front() == bytes{64});       // the gather of the first unit alone
  CHECK(held.front() == bytes{64 + 64});  // halves of both units lie beside it
  CHECK(kept.back() == bytes{0});
  CHECK(held.back() == bytes{64});
}

TEST_CASE("tied embeddings live from the first unit to the last") {
  training_plan plan{mesh{1, 4}, fsdp2_bf16};
  plan.add({.name = "embedding", .parameters = small, .keep = after_forward{.throughout = true}}, dense);
  plan.add({.name = "layer", .parameters = small}, dense);
  CHECK(order_of(plan) == "G0 F0 G1 F1 R1 G1 B1 S1 R1 B0 S0 R0 =0 U0 U1");
  bytes gradients;
  for_each_step(plan, [&](plan_step const& s) {
    if (s.kind == step_kind::backward && s.unit == 1) gradients = s.live.gradients;
  });
  CHECK(gradients == bytes{2 * 128});  // both units' at once
}

TEST_CASE("frozen, tied, persistent and ignored parameters") {
  auto const traits = std::to_array<parameter_traits>({{.frozen = true}, {}, {.tied = true}});
  training_plan plan{mesh{1, 4}, fsdp2_bf16};
  plan.add({.name = "u", .parameters = small, .traits = traits}, dense);
  REQUIRE(plan.buffers().size() == 2);
  CHECK(plan.real() == elements{17});                    // the tied one takes no space
  CHECK(plan.held()[0] == rank_bytes{32 + 32, 32, 64});  // the frozen one has no gradient and no states
  CHECK(order_of(plan) == "G0 G0 F0 R0 G0 G0 B0 S0 R0 =0 U0");
  training_plan kept{mesh{1, 4}, fsdp2_bf16, {.micro_batches = 2}, {{.pattern = "b", .traits = {.persistent = true}}}};
  kept.add({.name = "u", .parameters = small}, dense);
  CHECK(order_of(kept) == "G0 G0 F0 R0 G0 B0 S0 S0 R0 G0 F0 R0 G0 B0 S0 S0 R0 =0 U0");
  training_plan whole{mesh{1, 4}, fsdp2_bf16, {}, {{.pattern = "a", .traits = {.ignored = true}}}};
  whole.add({.name = "u", .parameters = small}, dense);
  CHECK(whole.held()[0] == rank_bytes{10 * 4 + 32, 10 * 4 + 32, 10 * 8 + 64});
  CHECK(order_of(whole) == "G0 F0 R0 G0 B0 S0 R0 =0 U0");
  // Nothing of a frozen parameter is cut where parameters are whole.
  training_plan two{mesh{1, 4}, fsdp2_bf16, {.cut = cut_states::gradients}};
  two.add({.name = "u", .parameters = small, .traits = traits}, dense);
  CHECK(two.buffers()[0].policy.empty());
  CHECK(two.buffers()[0].segment == two.buffers()[0].real);
  CHECK(two.buffers()[1].policy == "native");
  CHECK(two.buffers()[1].gathered == two.buffers()[1].segment * 4);
  CHECK(two.held()[0].parameters == 4 * two.buffers()[0].real.value + 4 * two.buffers()[1].whole.value);
  CHECK(whole.owned()[0].parameters == 10 * 4 + 7 * 4);
}

TEST_CASE("precision, policy and group by pattern") {
  constexpr precision narrow{
      .parameter_storage = dtype::bf16, .grad_accum = dtype::bf16, .optimizer_state = dtype::bf16};
  training_plan plan{
      mesh{1, 4}, fsdp2_bf16, {}, {{.pattern = "b", .types = narrow}, {.pattern = "c", .traits = {.expert_ranks = 2}}}};
  plan.add({.name = "u", .parameters = small}, dense, sharding_rule{"a", owned{{}, 8, 8}});
  REQUIRE(plan.buffers().size() == 3);
  auto const by_tensors = plan.buffers();
  CHECK(by_tensors[0].types == fsdp2_bf16);  // a: 10 elements whole on one rank: a segment of 16
  CHECK(by_tensors[0].segment == elements{16});
  CHECK(by_tensors[1].types == narrow);
  CHECK(by_tensors[2].ranks == 2);  // c: over ranks 0 and 2, and over 1 and 3
  CHECK(by_tensors[2].stride == 2);
  CHECK(plan.owned()[0].parameters == 10 * 4 + 7 * 2 + 3 * 4);
  CHECK(plan.owned()[1].parameters == 3 * 4);
  CHECK(plan.owned()[2].parameters == 0);
  CHECK(plan.owned_elements()[0] == 20);
}

TEST_CASE("patterns fit whole names") {
  static_assert(matches("model.layers.*.mlp.*", "model.layers.10.mlp.gate.weight") && !matches("*.mlp", "a.mlp.b"));
  static_assert(matches("", "") && !matches("", "a") && matches("*", "") && matches("*", "a.b"));
  static_assert(matches("model.layers.1.*", "model.layers.1.q") && !matches("model.layers.1.*", "model.layers.10.q"));
  static_assert(matches("?.?", "a.b") && !matches("?", "") && !matches("a?", "a") && !matches("a", "b"));
  static_assert(matches("*ab*ab", "aabab") && matches("**a**", "bab") && !matches("*ab*ab", "abb"));
  static_assert(!matches("[a]", "a") && matches("[a]", "[a]") && matches("a.b", "a.b") && !matches("a.b", "axb"));
  // by brute force: every pattern of up to four characters against every name of up to four
  auto const words = [](std::string_view letters) {
    std::vector<std::string> all{""};
    for (std::size_t i = 0; all[i].size() < 4; ++i)
      for (auto const c : letters) all.push_back(all[i] + c);
    return all;
  };
  auto const slow = [](auto const& self, std::string_view p, std::string_view n) -> bool {
    if (p.empty()) return n.empty();
    if (p[0] == '*') return self(self, p.substr(1), n) || (!n.empty() && self(self, p, n.substr(1)));
    return !n.empty() && (p[0] == '?' || p[0] == n[0]) && self(self, p.substr(1), n.substr(1));
  };
  std::size_t wrong = 0;
  for (auto const& p : words("ab*?"))
    for (auto const& n : words("ab")) wrong += matches(p, n) != slow(slow, p, n) ? 1u : 0u;
  CHECK(wrong == 0);
}

TEST_CASE("traits of a parameter, of a unit's list and of a rule hold together") {
  std::vector<parameter> const three{
      {"a", {10}, dtype::none, {.frozen = true}}, {"b", {7}, dtype::none, {.expert_ranks = 2}}, {"c", {3}}};
  auto const more = std::to_array<parameter_traits>({{.persistent = true}, {}, {}});
  training_plan plan{mesh{1, 4},
                     fsdp2_bf16,
                     {},
                     {{.pattern = "?", .traits = {.persistent = true}}, {.pattern = "c", .traits = {.frozen = true}}}};
  plan.add({.name = "u", .parameters = three, .traits = more}, dense);
  REQUIRE(plan.buffers().size() == 3);
  CHECK(plan.buffers()[0].traits == parameter_traits{.frozen = true, .persistent = true});
  CHECK(plan.buffers()[1].traits == parameter_traits{.persistent = true, .expert_ranks = 2});
  CHECK(plan.buffers()[1].ranks == 2);
  CHECK(plan.buffers()[2].traits == parameter_traits{.persistent = true});  // the first rule that fits decides alone
}

TEST_CASE("a unit names the sharding rule of a parameter by its number") {
  auto const numbers = std::to_array<std::size_t>({2, 0, 1});
  training_plan plan{mesh{1, 4}, fsdp2_bf16};
  plan.add({.name = "u", .parameters = small, .rules = numbers}, dense, sharding_rule{"a", native{{}, 4, 4}},
           sharding_rule{"", owned{{}, 8, 8}});
  REQUIRE(plan.buffers().size() == 3);
  CHECK(plan.buffers()[0].segment == elements{16});  // a by the second rule: whole on one rank
  CHECK(plan.buffers()[1].segment == elements{8});   // b
  CHECK(plan.buffers()[2].segment == elements{4});   // c by the first, whose pattern it does not fit
  CHECK_THROWS_WITH(plan.add({.name = "u", .parameters = small, .rules = numbers}, dense),
                    "a unit names sharding rules that it is added with");
  CHECK_THROWS_WITH(plan.add({.name = "u", .parameters = small, .rules = std::span{numbers}.first(2)}, dense),
                    "rules are one a parameter, or none");
}

TEST_CASE("a sharding rule without a pattern fits no name, not the empty one either") {
  std::vector<parameter> const nameless{{"", {10}}, {"b", {7}}};
  training_plan plan{mesh{1, 4}, fsdp2_bf16};
  plan.add({.name = "u", .parameters = nameless}, zero3{}, sharding_rule{"", native{}});
  REQUIRE(plan.buffers().size() == 1);
  CHECK(plan.buffers()[0].policy == "zero3");
}

TEST_CASE_TEMPLATE("owned elements by rank are those of the layout", Policy, native, zero3, fsdp2, owned, planned,
                   zero12) {
  std::vector<parameter> const unit{{"n", {1000}}, {"w", {7, 9}}, {"few", {3}}, {"none", {0, 4}}, {"b", {513}}};
  for (std::size_t const w : {1u, 2u, 3u, 7u, 8u, 64u}) {
    training_plan plan{mesh{std::size_t{1}, w}, fsdp2_bf16};
    plan.add({.name = "u", .parameters = unit}, Policy{});
    layout const l{Policy{}, unit, world{w}};
    for (std::size_t r = 0; r < w; ++r) CHECK(plan.owned_elements()[r] == l.owned(rank_at(r)).value);
    CHECK(plan.buffers()[0].gathered == l.gathered());
  }
}

TEST_CASE("segments may differ by rank") {
  std::vector<parameter> const unit{{"w", {12, 2}}};
  training_plan plan{mesh{1, 3}, fsdp2_fp32};
  plan.add({.name = "u", .parameters = unit}, ragged{1, 2, 3});
  CHECK(plan.held()[0].parameters == 4 * 4);
  CHECK(plan.held()[2].parameters == 12 * 4);
  CHECK(plan.buffers()[0].gathered == elements{24});
}

TEST_CASE("a world of 100 000 ranks and a million tensors is no table of both") {
  std::vector<parameter> const unit(1'000'000, parameter{"w", {300'007}});
  training_plan plan{mesh{1, 100'000}, fsdp2_bf16};
  plan.add({.name = "u", .parameters = unit}, zero3{});
  CHECK(plan.owned_elements()[0] == 4'000'000);
  CHECK(plan.owned_elements()[99'999] == 0);
}

TEST_CASE("broken rules have a sentence each") {
  CHECK_THROWS_WITH(training_plan(mesh{1, 4}, fsdp2_bf16, {.micro_batches = 0}), "a step has at least one micro-batch");
  CHECK_THROWS_WITH(training_plan(mesh{1, 4}, fsdp2_bf16, {.block = {0}}),
                    "memory is handed out in blocks of at least one byte");
  CHECK_THROWS_WITH(
      training_plan(mesh{1, 4}, fsdp2_bf16, {.cut = cut_states::gradients, .parameters = memory_space::host}),
      "parameters that are whole on every rank stay on the device");
  training_plan plan{mesh{1, 4}, fsdp2_bf16, {}, {{.pattern = "c", .traits = {.expert_ranks = 3}}}};
  CHECK_THROWS_WITH(plan.repeat("none"), "the plan has no unit of that number");
  CHECK_THROWS_WITH(plan.add({.name = "u", .parameters = small}, dense),
                    "the ranks of different experts must divide the shard group");
  training_plan groups{mesh{1, 4}, fsdp2_bf16};
  CHECK_THROWS_WITH(groups.add({.name = "u", .parameters = small, .keep = after_forward{.ranks = 3}}, dense),
                    "the group after forward must divide the world size");
  std::array<parameter_traits, 1> const one{};
  CHECK_THROWS_WITH(groups.add({.name = "u", .parameters = small, .traits = one}, dense),
                    "traits are one a parameter, or none");
  std::array<precision, 2> const two{};
  CHECK_THROWS_WITH(groups.add({.name = "u", .parameters = small, .types = two}, dense),
                    "types are one a parameter, or none");
  CHECK_THROWS_WITH(static_cast<void>(groups.unit_name(7)), "the plan has no unit of that number");
}

}  // namespace plan_test
