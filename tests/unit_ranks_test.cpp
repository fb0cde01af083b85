// SPDX-License-Identifier: Apache-2.0
// Units over rank threads: whole tensors come back, sums are exact, disagreement is an error on every rank.
#include "tier.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/unit.hpp>

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace unit_ranks_test {

using namespace flatshard;
using namespace std::chrono_literals;
using kernels::thread_communicator;
using kernels::thread_group;

namespace {

std::vector<parameter> const odd{{"n", {1000}}, {"w", {7, 9}}, {"few", {3}}, {"none", {0, 4}}, {"b", {5}}};

// Small integers: exact in bf16 and in every sum of a few of them.
float weight(std::size_t t, std::size_t i) { return static_cast<float>(static_cast<int>((t * 31 + i) % 251) - 125); }
float gradient(std::size_t r, std::size_t t, std::size_t i) {
  return static_cast<float>(static_cast<int>((r * 7 + t * 3 + i) % 15) - 7);
}

struct configuration {
  std::uint64_t value;
  std::uint64_t hash() const { return value; }
};

template <class Sharding>
void train_once(std::size_t w, precision p, unsigned char poison,
                std::vector<std::vector<std::byte>>* shards = nullptr) {
  thread_group group{world{w}, {.deadline = 20s}};
  if (shards) shards->resize(w);
  group.run([&](thread_communicator& comm) {
    auto const self = comm.self();
    kernels::page_buffer memory{bytes{1 << 18}, kernels::page_size::plain};
    std::memset(memory.span().data(), poison, memory.span().size());
    memory_arena arena{memory.span()};
    inline_stream const s;
    std::vector<sharded_unit<precision, Sharding>> units;
    units.emplace_back(std::span<parameter const>{odd}, world{w}, p, Sharding{}, arena);
    auto& unit = units.front();
    agree(comm, configuration{7}, units);
    for (std::size_t t = 0; t < odd.size(); ++t) {
      auto const mine = unit.layout().piece_of(t, self);
      for (std::size_t i = 0; i < mine.size().value; ++i)
        unit.master()[(mine.local.value + i)] = weight(t, mine.begin.value + i);
    }
    for (int round = 0; round < 2; ++round) {
      auto const weights = gather(unit, comm, s);
      auto const grads = unit.gradients();
      for (std::size_t t = 0; t < odd.size(); ++t) {
        auto const n = odd[t].dims.numel();
        detail::with_element(p.compute, [&]<class T>(T) {
          for (std::size_t i = 0; i < n; ++i)
            REQUIRE(widen(weights[t].template data<T>()[i]) == weight(t, i) + static_cast<float>(round));
        });
        detail::with_element(p.reduce, [&]<class T>(T) {
          for (std::size_t i = 0; i < n; ++i) grads[t].template data<T>()[i] = narrow<T>(gradient(index(self), t, i));
        });
      }
      reduce_scatter(unit, comm, {.scale = 0.5f}, s);
      release(unit, s);
      double squares = 0;
      for (std::size_t t = 0; t < odd.size(); ++t)
        for (std::size_t i = 0; i < odd[t].dims.numel(); ++i) {
          float sum = 0;
          for (std::size_t r = 0; r < w; ++r) sum += gradient(r, t, i);
          squares += static_cast<double>(sum) * sum / 4;
          if (unit.layout().owner(t, elements{i}) != self) continue;
          auto const local = unit.layout().local(t, elements{i}).value;
          detail::with_element(p.grad_accum,
                               [&]<class T>(T) { REQUIRE(widen(unit.template grad<T>()[local]) == sum * 0.5f); });
        }
      detail::with_element(p.grad_accum, [&]<class T>(T) {  // padding: zero in the shard, and in no norm
        auto const grad = unit.template grad<T>();
        for (std::size_t j = 0; j < grad.size(); ++j) {
          if (!unit.layout().at(self, elements{j}).padding) continue;
          REQUIRE(widen(grad[j]) == 0.0f);
          grad[j] = narrow<T>(7777.0f);
        }
      });
      CHECK(global_norm(units, comm, s) == doctest::Approx(std::sqrt(squares)).epsilon(1e-12));
      for (auto const& mine : unit.layout().pieces(self))  // the optimizer
        for (std::size_t i = 0; i < mine.size().value; ++i) unit.master()[mine.local.value + i] += 1.0f;
    }
    if (shards) {
      unit.publish(comm, s);
      auto& kept = (*shards)[index(self)];
      auto const keep = [&](std::span<std::byte const> held) { kept.insert(kept.end(), held.begin(), held.end()); };
      keep(detail::raw(unit.storage()));
      keep(detail::raw(unit.grad()));
      keep(std::as_bytes(unit.master()));
      for (std::size_t k : {0u, 1u}) keep(std::as_bytes(unit.state(k)));
    }
  });
}

}  // namespace

TEST_CASE_TEMPLATE("gather, reduce-scatter and norm over 1 to 8 ranks, at every precision", Sharding, native, zero3,
                   fsdp2, zero12, fsdp1, megatron, owned, planned) {
  auto widened = deepspeed_bf16;  // stored in bf16, cast to fp32 before the gather
  widened.compute = dtype::f32;
  for (std::size_t const w : {1u, 2u, 3u, 4u, 7u, 8u}) {
    if (sanitized && w != 3 && w != 8) continue;
    for (auto const& p : {fsdp2_bf16, fsdp2_fp32, deepspeed_bf16, deepspeed_fp32,
                          precision{.reduce = dtype::f32, .grad_accum = dtype::bf16}, widened}) {
      CAPTURE(w);
      train_once<Sharding>(w, p, 0x77);
    }
  }
}

TEST_CASE_TEMPLATE("what memory held before is never seen", Sharding, native, zero3, fsdp2, zero12, fsdp1, megatron,
                   owned, planned) {
  std::vector<std::vector<std::byte>> first, second;
  for (auto const& p : {deepspeed_bf16, fsdp2_bf16}) {
    train_once<Sharding>(7, p, 0x77, &first);
    train_once<Sharding>(7, p, 0xFF, &second);
    CHECK(first == second);
  }
}

TEST_CASE_TEMPLATE("frozen units beside trained ones: gathered alike, in no reduction, no norm, no optimizer", Sharding,
                   native, zero3, fsdp2, zero12, fsdp1, megatron, owned, planned) {
  auto fixed = odd;
  for (auto& p : fixed) p.traits = parameter_traits{.frozen = true};
  for (std::size_t const w : {1u, 3u, 4u})
    for (auto const& p : {fsdp2_bf16, deepspeed_bf16}) {
      CAPTURE(w);
      thread_group group{world{w}, {.deadline = 20s}};
      group.run([&](thread_communicator& comm) {
        auto const self = comm.self();
        kernels::page_buffer memory{bytes{1 << 18}, kernels::page_size::plain};
        memory_arena arena{memory.span()};
        inline_stream const s;
        std::vector<sharded_unit<precision, Sharding>> units;
        units.emplace_back(std::span<parameter const>{fixed}, world{w}, p, Sharding{}, arena);
        CHECK(arena.used() == bytes_needed(units[0].layout(), p).persistent);
        units.emplace_back(std::span<parameter const>{odd}, world{w}, p, Sharding{}, arena);
        agree(comm, configuration{7}, units);
        for (auto const& mine : units[0].layout().pieces(self))
          detail::with_element(p.parameter_storage, [&]<class T>(T) {
            for (std::size_t i = 0; i < mine.size().value; ++i)
              detail::typed<T>(units[0].storage())[mine.local.value + i] =
                  narrow<T>(weight(mine.tensor, mine.begin.value + i));
          });
        for (int round = 0; round < 2; ++round) {
          for (auto& unit : units) {
            auto const weights = gather(unit, comm, s);
            if (unit.frozen())
              for (std::size_t t = 0; t < odd.size(); ++t)
                detail::with_element(p.compute, [&]<class T>(T) {
                  auto const values = weights[t].template data<T>();
                  for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(widen(values[i]) == weight(t, i));
                });
            if (!unit.frozen())
              detail::with_element(p.reduce,
                                   [&]<class T>(T) { unit.gradients()["b"].template data<T>()[4] = narrow<T>(1.0f); });
            reduce_scatter(unit, comm, {}, s);
            release(unit, s);
          }
          CHECK(global_norm(units, comm, s) == static_cast<double>(w));
        }
        CHECK(units[0].counters().gathers == 2);
        CHECK(units[0].counters().reduce_scatters == 0);
        CHECK(units[1].counters().reduce_scatters == 2);
      });
    }
}

TEST_CASE("ranks that disagree on the layout, the configuration or the world all get the error, before data moves") {
  struct one_case {
    char const* what;
    bool layouts, configurations, silent, worlds = false, dtypes = false, files = false, traits = false;
  };
  for (auto const& c :
       {one_case{"the layouts of the units", true, false, false},
        one_case{"the resolved configuration", false, true, false}, one_case{"the layout of a unit", true, false, true},
        one_case{"the world size of the units", false, false, false, true},
        one_case{"the layouts of the units", false, false, false, false, true},
        one_case{"the layout of a unit", false, false, true, false, true},
        one_case{"the layouts of the units", false, false, false, false, false, true},
        one_case{"the layout of a unit", false, false, true, false, false, true},
        one_case{"the layouts of the units", false, false, false, false, false, false, true},
        one_case{"the layout of a unit", false, false, true, false, false, false, true}}) {
    std::atomic<int> failed{0};
    thread_group group{world{3}, {.deadline = 20s}};
    CHECK_THROWS_AS(group.run([&](thread_communicator& comm) {
      kernels::page_buffer memory{bytes{1 << 18}, kernels::page_size::plain};
      memory_arena arena{memory.span()};
      auto const odd_one = index(comm.self()) == 1;
      std::vector<parameter> unit_parameters{{"a", {40}}, {"b", {2}}};
      if (odd_one && c.layouts) std::swap(unit_parameters[0], unit_parameters[1]);
      if (odd_one && c.files) unit_parameters[1].type = dtype::bf16;  // its file holds another type
      for (auto& p : unit_parameters) p.traits = parameter_traits{.frozen = odd_one && c.traits};
      std::vector<sharded_unit<precision, zero3>> units;
      auto const ranks = world{odd_one && c.worlds ? std::size_t{4} : std::size_t{3}};
      auto const& types = odd_one && c.dtypes ? accelerate_fsdp2_bf16 : fsdp2_bf16;  // another dtype on the wire
      units.emplace_back(std::span<parameter const>{unit_parameters}, ranks, types, zero3{}, arena);
      std::vector<parameter> const alike{{"c", {9}}};  // the last of the units is the same everywhere
      units.emplace_back(std::span<parameter const>{alike}, ranks, fsdp2_bf16, zero3{}, arena);
      try {
        if (c.silent) {  // nobody asked for an agreement: the unit's first collective does
          static_cast<void>(gather(units[0], comm, inline_stream{}));
        } else {
          agree(comm, configuration{odd_one && c.configurations ? 1u : 2u}, units);
        }
      } catch (mismatch const& e) {
        CHECK(e.field == c.what);
        CHECK((e.ranks[0] == rank_id{0} && e.ranks[1] == rank_id{1}));
        CHECK(e.values[0] != e.values[1]);
        CHECK(units[0].counters().gathers == 0);
        ++failed;
        throw;
      }
    }),
                    mismatch);
    CHECK(failed == 3);
  }
}

TEST_CASE("a rank that throws in the middle of a step fails the others with its words") {
  std::atomic<int> told{0};
  thread_group group{world{3}, {.deadline = 20s}};
  CHECK_THROWS_WITH(group.run([&](thread_communicator& comm) {
    kernels::page_buffer memory{bytes{1 << 18}, kernels::page_size::plain};
    memory_arena arena{memory.span()};
    sharded_unit unit{std::span<parameter const>{odd}, world{3}, fsdp2_bf16, fsdp2{}, arena};
    static_cast<void>(gather(unit, comm, inline_stream{}));
    if (index(comm.self()) == 2) throw std::runtime_error{"the data ran out"};
    try {
      reduce_scatter(unit, comm, {}, inline_stream{});
    } catch (peer_lost const& e) {
      CHECK(e.ranks == std::vector{rank_id{2}});
      CHECK(std::string{e.what()}.find("the data ran out") != std::string::npos);
      ++told;
      throw;
    }
  }),
                    "the data ran out");
  CHECK(told == 2);
}

}  // namespace unit_ranks_test
