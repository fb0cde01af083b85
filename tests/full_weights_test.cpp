// SPDX-License-Identifier: Apache-2.0
// Whole weights over rank threads: read, changed by hand, put back; no bit of the master is lost.
#include <flatshard/full_weights.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace full_weights_test {

using namespace flatshard;
using namespace std::chrono_literals;
using kernels::thread_communicator;
using kernels::thread_group;

namespace {

std::vector<parameter> const odd{{"n", {1000}}, {"w", {7, 9}}, {"few", {3}}, {"none", {0, 4}}, {"b", {5}}};

// 1 + an odd multiple of 2^-20: exact in fp32, and lost in bf16.
float weight(std::size_t t, std::size_t i) {
  return 1 + static_cast<float>(2 * (t * 1009 + i) + 1) / static_cast<float>(1 << 20);
}
float rounded(float x, dtype t) {
  return t == dtype::f32 ? x : t == dtype::bf16 ? widen(narrow<bf16>(x)) : widen(narrow<f16>(x));
}

template <class Sharding, class F>
void on_ranks(std::size_t w, precision p, F const& body, std::vector<parameter> const& list = odd) {
  thread_group{world{w}, {.deadline = 20s}}.run([&](thread_communicator& comm) {
    layout const l{Sharding{}, std::span<parameter const>{list}, world{w}};
    auto const need = bytes_needed(l, p);
    auto const full = full_bytes_needed(l, p);
    kernels::page_buffer memory{need.persistent + full, kernels::page_size::plain};
    std::memset(memory.span().data(), 0x77, memory.span().size());
    memory_arena arena{memory.span()};
    {
      sharded_unit<precision, Sharding> unit{list, world{w}, p, Sharding{}, arena};
      for (auto const& mine : unit.layout().pieces(comm.self()))
        detail::with_element(unit.updated().type, [&]<class T>(T) {
          auto const shard = detail::typed<T>(unit.updated()).subspan(mine.local.value, mine.size().value);
          for (std::size_t i = 0; i < shard.size(); ++i)
            shard[i] = narrow<T>(weight(mine.tensor, mine.begin.value + i));
        });
      unit.mark_updated();
      auto const held = arena.used();
      body(comm, unit);
      CHECK(arena.used() == held);
      CHECK(arena.peak() == need.persistent + full);
    }
    CHECK(arena.used() == bytes{0});
  });
}

float value_of(tensor_view const& one, std::size_t i) {
  float x = 0;
  detail::with_element(one.type, [&]<class T>(T) { x = widen(one.template data<T>()[i]); });
  return x;
}

constexpr std::array precisions{fsdp2_bf16, deepspeed_bf16, deepspeed_fp32,
                                precision{.parameter_storage = dtype::bf16, .grad_accum = dtype::bf16}};

}  // namespace

TEST_CASE_TEMPLATE("the full weights of a frozen unit are its storage, which has no master", Sharding, native, zero3) {
  auto frozen = odd;
  for (auto& p : frozen) p.traits = parameter_traits{.frozen = true};
  for (auto const& p : precisions)
    on_ranks<Sharding>(
        3, p,
        [&](thread_communicator& comm, auto& unit) {
          auto const full = gather_full(unit, comm, access::read, inline_stream{});
          REQUIRE(full[0].type == p.parameter_storage);
          for (std::size_t t = 0; t < odd.size(); ++t)
            for (std::size_t i = 0; i < odd[t].dims.numel(); ++i)
              REQUIRE(value_of(full[t], i) == rounded(weight(t, i), p.parameter_storage));
        },
        frozen);
}

TEST_CASE_TEMPLATE("every rank sees every weight, in the dtype that the optimizer updates", Sharding, native, zero3,
                   fsdp2, owned) {
  for (std::size_t const w : {1u, 2u, 3u, 7u})
    for (auto const& p : precisions)
      on_ranks<Sharding>(w, p, [&](thread_communicator& comm, auto& unit) {
        auto const full = gather_full(unit, comm, access::read, {});
        auto const type = p.master == dtype::none ? p.parameter_storage : p.master;
        CHECK(full.size() == odd.size());
        for (std::size_t t = 0; t < odd.size(); ++t) {
          REQUIRE(full[t].type == type);
          CHECK(full[odd[t].name].dims == odd[t].dims);
          for (std::size_t i = 0; i < odd[t].dims.numel(); ++i)
            REQUIRE(value_of(full[t], i) == rounded(weight(t, i), type));
        }
        CHECK(unit.counters().full_gathers == 1);
        CHECK(unit.counters().gathers == 0);
        CHECK_FALSE(unit.live());
      });
}

TEST_CASE_TEMPLATE("changes reach the shards by write_back alone; padding stays zero", Sharding, native, zero3, fsdp2,
                   owned) {
  for (std::size_t const w : {1u, 3u, 4u})
    for (auto const& p : precisions)
      on_ranks<Sharding>(w, p, [&](thread_communicator& comm, auto& unit) {
        auto const change = [&](auto& full, float by) {
          for (std::size_t t = 0; t < odd.size(); ++t)
            detail::with_element(full[t].type, [&]<class T>(T) {
              auto const all = full.edit(t).template data<T>();
              for (std::size_t i = 0; i < all.size(); ++i) all[i] = narrow<T>(by * static_cast<float>(i % 100));
            });
        };
        auto const holds = [&](auto&& expected) {
          auto const full = gather_full(unit, comm, access::read, {});
          for (std::size_t t = 0; t < odd.size(); ++t)
            for (std::size_t i = 0; i < odd[t].dims.numel(); ++i)
              REQUIRE(value_of(full[t], i) == rounded(expected(t, i), full[t].type));
        };
        {
          auto full = gather_full(unit, comm, access::write, {});
          change(full, 9);
        }
        holds(weight);  // nothing was written back
        {
          auto full = gather_full(unit, comm, access::write, {});
          change(full, 2);
          full.write_back();
        }
        holds([](std::size_t, std::size_t i) { return 2 * static_cast<float>(i % 100); });
        unit.publish(comm, {});
        for (auto const& mine : unit.layout().pieces(comm.self()))
          for (std::size_t i = 0; i < mine.size().value; ++i)
            detail::with_element(unit.storage().type, [&]<class T>(T) {
              REQUIRE(widen(detail::typed<T>(unit.storage())[mine.local.value + i]) ==
                      2 * static_cast<float>((mine.begin.value + i) % 100));
            });
        {
          auto full = gather_full(unit, comm, access::write, {});
          change(full, static_cast<float>(1 + index(comm.self())));  // ranks differ: the root's count
          full.write_back(comm, rank_at(w - 1), {});
        }
        holds([&](std::size_t, std::size_t i) { return static_cast<float>(w) * static_cast<float>(i % 100); });
        unit.publish(comm, {});  // it was published before: only write_back says that the storage is old
        for (auto const& mine : unit.layout().pieces(comm.self()))
          for (std::size_t i = 0; i < mine.size().value; ++i)
            detail::with_element(unit.storage().type, [&]<class T>(T) {
              REQUIRE(widen(detail::typed<T>(unit.storage())[mine.local.value + i]) ==
                      rounded(static_cast<float>(w) * static_cast<float>((mine.begin.value + i) % 100),
                              unit.storage().type));
            });
        auto const kept = unit.updated();
        for (std::size_t j = 0; j < kept.count.value; ++j)
          if (unit.layout().at(comm.self(), elements{j}).padding)
            detail::with_element(kept.type, [&]<class T>(T) { REQUIRE(widen(detail::typed<T>(kept)[j]) == 0.0f); });
      });
}

TEST_CASE("misuse is a broken rule with its sentence") {
  thread_group{world{1}, {.deadline = 20s}}.run([&](thread_communicator& comm) {
    kernels::page_buffer memory{bytes{1 << 18}, kernels::page_size::plain};
    memory_arena arena{memory.span()};
    sharded_unit<precision, native> unit{odd, world{1}, fsdp2_bf16, native{}, arena};
    auto read = gather_full(unit, comm, access::read, {});
    CHECK_THROWS_WITH_AS(static_cast<void>(read.edit("w")), "full weights are changed under access::write",
                         broken_rule);
    CHECK_THROWS_WITH_AS(read.write_back(), "full weights are changed under access::write", broken_rule);
    CHECK_THROWS_WITH_AS(static_cast<void>(read["x"]), "the unit has no parameter of that name", broken_rule);
    CHECK_THROWS_WITH_AS(static_cast<void>(read[5]), "the unit has no parameter of that number", broken_rule);
    auto write = gather_full(unit, comm, access::write, {});
    static_cast<void>(gather(unit, comm, {}));
    CHECK_THROWS_WITH_AS(write.write_back(), "the weights of a unit are changed after release and before gather",
                         broken_rule);
    auto const used = arena.used();
    auto const moved = std::move(write);
    CHECK(arena.used() == used);
    CHECK(moved["w"].dims == shape{7, 9});
  });
}

}  // namespace full_weights_test
