// SPDX-License-Identifier: Apache-2.0
// What units over rank threads did and held is what their plan says.
#include <flatshard/estimate.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/threads.hpp>
#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/unit.hpp>

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace plan_ranks_test {

using namespace flatshard;
using namespace std::chrono_literals;
using kernels::thread_communicator;
using kernels::thread_group;

namespace {

struct model_part {
  std::string_view name;
  std::vector<parameter> parameters;
  after_forward keep;
};
std::vector<model_part> const model{
    {"embedding", {{"e", {50, 9}}}, {.throughout = true}},
    {"layer", {{"n", {1000}}, {"w", {7, 9}}, {"few", {3}}, {"none", {0, 4}}}, {}},
    {"frozen", {{"h", {21, 11}, dtype::none, {.frozen = true}}, {"g", {100}, dtype::none, {.frozen = true}}}, {}},
    {"wide", {{"w", {33, 40}}, {"b", {5}}}, {.ranks = 1}},
};

/// Does what the steps say with real units and compares after each: bytes of the arena, then counters of every unit.
template <class Sharding>
void run_and_compare(std::size_t w, precision const& types, plan_settings settings) {
  settings.block = {memory_arena::alignment};
  training_plan plan{mesh{std::size_t{1}, w}, types, settings};
  for (auto const& part : model)
    plan.add({.name = part.name, .parameters = part.parameters, .keep = part.keep}, Sharding{});
  auto const expected = estimate_of(plan);
  thread_group const group{world{w}, {.deadline = 20s}};
  group.run([&](thread_communicator& comm) {
    inline_stream const s;
    kernels::page_buffer memory{bytes{1 << 20}, kernels::page_size::plain};
    memory_arena arena{memory.span()};
    std::vector<sharded_unit<precision, Sharding>> units;
    units.reserve(model.size());
    for (auto const& part : model)
      units.emplace_back(std::span<parameter const>{part.parameters}, world{w}, types, Sharding{}, arena,
                         settings.states);
    auto const self = index(comm.self());
    auto const resident = plan.held()[self].parameters + plan.held()[self].gradients + plan.held()[self].optimizer;
    REQUIRE(arena.used().value == resident);
    struct moved {
      std::size_t gathers = 0, reduce_scatters = 0;
      bytes gathered, reduced;
    };
    std::vector<moved> planned_moves(units.size());
    for_each_step(plan, [&](plan_step const& step) {
      auto& unit = units[step.unit];
      auto& sums = planned_moves[step.unit];
      switch (step.kind) {
        case step_kind::gather:
          unit.gather(comm, s);
          ++sums.gathers;
          sums.gathered += step.size;
          break;
        case step_kind::backward:
          if (!unit.frozen()) static_cast<void>(unit.gradients());
          break;
        case step_kind::reduce_scatter:
          REQUIRE(arena.used().value == resident + step.live.gathered.value + step.live.gradients.value);
          unit.reduce_scatter(comm, {}, s);
          ++sums.reduce_scatters;
          sums.reduced += step.size;
          return;
        case step_kind::release: unit.release(); break;
        case step_kind::norm: static_cast<void>(global_norm(units, comm, s)); break;
        default: break;
      }
      // The gradients of a unit that is used throughout live from the start of backward on.
      if (step.kind == step_kind::gather && step.live.gradients.value == 0 && step.micro_batch == 0)
        REQUIRE(arena.used().value == resident + step.live.gathered.value);
      if (step.kind == step_kind::backward) {
        for (std::size_t u = 0; u < units.size(); ++u)
          if (plan.keep(u).throughout) static_cast<void>(units[u].gradients());
        REQUIRE(arena.used().value == resident + step.live.gathered.value + step.live.gradients.value);
      }
    });
    for (std::size_t u = 0; u < units.size(); ++u) {
      auto const& did = units[u].counters();
      CHECK(did.gathers == planned_moves[u].gathers);
      CHECK(did.gathered == planned_moves[u].gathered);
      CHECK(did.reduce_scatters == planned_moves[u].reduce_scatters);
      CHECK(did.reduced == planned_moves[u].reduced);
      CHECK_FALSE(units[u].live());
    }
    CHECK(arena.peak().value == resident + expected.peak.live.sum().value);
    CHECK(expected.spaces[0].most.value == resident + expected.peak.live.sum().value);
    CHECK(arena.used().value == resident);
  });
}

}  // namespace

TEST_CASE_TEMPLATE("counters and live bytes of units are those of the plan", Sharding, native, zero3, fsdp2, zero12,
                   fsdp1, megatron, owned, planned) {
  for (std::size_t const w : {1u, 2u, 3u, 4u, 8u})
    for (auto const& types : {fsdp2_bf16, fsdp2_fp32, deepspeed_bf16, deepspeed_fp32,
                              precision{.reduce = dtype::f32, .grad_accum = dtype::bf16}})
      for (auto const& settings :
           {plan_settings{}, plan_settings{.micro_batches = 3}, plan_settings{.micro_batches = 2, .prefetch = 1},
            plan_settings{.keep = {.ranks = 1}, .states = 1},
            plan_settings{.micro_batches = 2, .reduce_once = true, .recompute = true}}) {
        CAPTURE(w);
        CAPTURE(settings.micro_batches);
        run_and_compare<Sharding>(w, types, settings);
      }
}

TEST_CASE("bytes_needed is the plan's, unit by unit") {
  auto const check = [](auto policy) {
    for (auto const& types : {fsdp2_bf16, deepspeed_bf16})
      for (auto const& part : model) {
        training_plan plan{mesh{1, 4}, types, {.block = {memory_arena::alignment}}};
        plan.add({.name = part.name, .parameters = part.parameters}, policy);
        layout const l{policy, part.parameters, world{4}};
        auto const need = bytes_needed(l, types);
        auto const e = estimate_of(plan);
        CHECK(need.persistent.value ==
              e.parameters.held.most.value + e.gradients.held.most.value + e.optimizer.held.most.value);
        CHECK(need.gathered == e.most.gathered);
        CHECK(need.gradients == e.most.gradients);
        CHECK(need.staging == e.most.staging);
      }
  };
  check(native{});
  check(zero3{});
  check(fsdp2{});
}

}  // namespace plan_ranks_test
