// SPDX-License-Identifier: Apache-2.0
// Units over a fake of one rank that records its calls; many ranks are in ranks_test.
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/unit.hpp>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace unit_test {

using namespace flatshard;

namespace {

// A group of one rank; remembers what it was asked.
struct lone_rank {
  using stream_type = inline_stream;
  std::vector<std::string> calls;
  int size() const { return 1; }
  rank_id self() const { return rank_id{0}; }
  template <class Full, class Shard>
  void all_gather(std::span<Full> full, std::span<Shard const> shard, inline_stream) {
    require(full.size() == shard.size(), "full [size * shard]");
    calls.push_back("all_gather " + std::to_string(shard.size()));
    if constexpr (std::is_same_v<Full, Shard>) {
      if (!shard.empty() && full.data() != shard.data()) std::memcpy(full.data(), shard.data(), full.size_bytes());
    } else {
      for (std::size_t i = 0; i < full.size(); ++i) full[i] = narrow<Full>(shard[i]);
    }
  }
  template <class Out, class In>
  void reduce_scatter(std::span<Out> out, std::span<In const> in, reduce_options o, inline_stream) {
    calls.push_back("reduce_scatter " + std::to_string(out.size()));
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = narrow<Out>((o.accumulate ? widen(out[i]) : 0.0f) + widen(in[i]) * o.scale);
  }
  void broadcast(std::span<std::byte>, rank_id, inline_stream) {}
  void all_to_all_v(std::span<std::byte> out, std::span<elements const>, std::span<std::byte const> in,
                    std::span<elements const>, inline_stream) {
    std::copy(in.begin(), in.end(), out.begin());
  }
  [[nodiscard]] lone_rank& with_deadline(deadline) { return *this; }
  void all_reduce(std::span<double>, reduction, inline_stream) { calls.push_back("all_reduce"); }
  void barrier(inline_stream) {}
  void wait(inline_stream) {}
  void abort() {}
};
static_assert(Communicator<lone_rank>);

// The same, but nothing happens before `wait`: what backends that only enqueue may do.
struct late_rank : lone_rank {
  std::vector<std::function<void()>> pending;
  template <class Full, class Shard>
  void all_gather(std::span<Full> full, std::span<Shard const> shard, inline_stream s) {
    pending.push_back([=, this] { lone_rank::all_gather(full, shard, s); });
  }
  template <class Out, class In>
  void reduce_scatter(std::span<Out> out, std::span<In const> in, reduce_options o, inline_stream s) {
    pending.push_back([=, this] { lone_rank::reduce_scatter(out, in, o, s); });
  }
  void all_reduce(std::span<double> values, reduction how, inline_stream s) {
    pending.push_back([=, this] { lone_rank::all_reduce(values, how, s); });
  }
  void wait(inline_stream) {
    for (auto const& call : std::exchange(pending, {})) call();
  }
};
static_assert(Communicator<late_rank>);

// Throws at the n-th collective.
struct failing_rank : lone_rank {
  int left = 0;
  void fail() {
    if (left-- == 0) throw std::runtime_error{"the wire is cut"};
  }
  template <class Full, class Shard>
  void all_gather(std::span<Full> full, std::span<Shard const> shard, inline_stream s) {
    fail();
    lone_rank::all_gather(full, shard, s);
  }
  template <class Out, class In>
  void reduce_scatter(std::span<Out> out, std::span<In const> in, reduce_options o, inline_stream s) {
    fail();
    lone_rank::reduce_scatter(out, in, o, s);
  }
};

struct buffer {  // 256-byte aligned, poisoned
  explicit buffer(std::size_t n) : memory(n + 256, std::byte{0x77}) {}
  std::span<std::byte> span() {
    auto const base = reinterpret_cast<std::uintptr_t>(memory.data());
    return std::span{memory}.subspan((256 - base % 256) % 256, memory.size() - 256);
  }
  std::vector<std::byte> memory;
};

std::vector<parameter> const two{{"w", {3, 5}}, {"b", {7}}};

}  // namespace

TEST_CASE_TEMPLATE("gather gives whole tensors in the compute dtype, and a second gather is free", Sharding, native,
                   zero3, fsdp2) {
  buffer memory{1 << 16};
  memory_arena arena{memory.span()};
  lone_rank comm;
  inline_stream const s;
  {
    sharded_unit unit{std::span<parameter const>{two}, world{1}, fsdp2_bf16, Sharding{}, arena};
    CHECK(unit.master().data() == reinterpret_cast<float*>(unit.storage().data));
    CHECK_FALSE(unit.has_master());
    for (std::size_t t = 0; t < 2; ++t) {
      auto const p = unit.layout().piece_of(t, rank_id{0});
      for (std::size_t i = 0; i < p.size().value; ++i)
        unit.master()[p.local.value + i] = static_cast<float>(100 * t + i);
    }
    CHECK_FALSE(unit.live());
    auto const before = arena.used();
    auto const w = gather(unit, comm, s);
    CHECK(unit.live());
    CHECK(w["w"].dims == shape{3, 5});
    for (std::size_t i = 0; i < 15; ++i) CHECK(widen(w["w"].template data<bf16>()[i]) == static_cast<float>(i));
    for (std::size_t i = 0; i < 7; ++i) CHECK(widen(w["b"].template data<bf16>()[i]) == static_cast<float>(100 + i));
    static_cast<void>(gather(unit, comm, s));
    CHECK(unit.counters().gathers == 1);
    CHECK(unit.counters().gathered == size_of(unit.layout().gathered(), dtype::bf16));
    CHECK_THROWS_WITH_AS(static_cast<void>(w["w"].template data<float>()),
                         "a tensor is read as the type that its buffer has", broken_rule);
    CHECK_THROWS_WITH_AS(static_cast<void>(w["x"]), "the unit has no parameter of that name", broken_rule);
    release(unit, s);
    CHECK(arena.used() == before);
    CHECK_THROWS_WITH_AS(static_cast<void>(w["w"]), "the weights of a unit are read between gather and release",
                         broken_rule);
    auto const need = bytes_needed(unit.layout(), fsdp2_bf16);
    CHECK(before == need.persistent);
    CHECK(arena.peak() <= need.persistent + need.gathered + need.staging);
  }
  CHECK(arena.used() == bytes{0});
  CHECK(comm.calls.front() == "all_gather 8");  // the agreement on the layout comes first
}

TEST_CASE_TEMPLATE("gradients are reduced into the shard, scaled, accumulated; padding stays zero", Sharding, native,
                   zero3, fsdp2) {
  buffer memory{1 << 16};
  memory_arena arena{memory.span()};
  lone_rank comm;
  inline_stream const s;
  for (auto const& p :
       {fsdp2_bf16, deepspeed_bf16, deepspeed_fp32, precision{.reduce = dtype::f32, .grad_accum = dtype::bf16}}) {
    sharded_unit unit{std::span<parameter const>{two}, world{1}, p, Sharding{}, arena};
    auto const before = arena.used();
    for (int round = 0; round < 2; ++round) {
      auto const g = unit.gradients();
      detail::with_element(p.reduce, [&]<class T>(T) {
        for (auto& x : g["w"].template data<T>()) {
          CHECK(widen(x) == 0.0f);
          x = narrow<T>(4.0f);
        }
        g["b"].template data<T>()[6] = narrow<T>(8.0f);
      });
      reduce_scatter(unit, comm, {.scale = 0.5f, .accumulate = round == 1}, s);
      auto const rest = arena.take({arena.capacity().value - arena.used().value});  // what the first round left there
      std::memset(rest.data(), 0x77, rest.size());
      arena.give_back(rest);
    }
    CHECK(arena.used() == before);
    CHECK(unit.counters().reduce_scatters == 2);
    detail::with_element(p.grad_accum, [&]<class T>(T) {
      auto const grad = unit.template grad<T>();
      auto const w = unit.layout().piece_of(0, rank_id{0});
      auto const b = unit.layout().piece_of(1, rank_id{0});
      float sum = 0;
      for (auto const x : grad) sum += widen(x);
      CHECK(sum == 15 * 4.0f + 8.0f);
      CHECK(widen(grad[w.local.value + 14]) == 4.0f);
      CHECK(widen(grad[b.local.value + 6]) == 8.0f);
    });
    std::vector<sharded_unit<precision, Sharding>> units;
    units.push_back(std::move(unit));
    CHECK(global_norm(units, comm, s) == doctest::Approx(std::sqrt(15 * 16.0 + 64.0)));
  }
  CHECK(arena.used() == bytes{0});
}

TEST_CASE("the storage follows the master copy at the next gather") {
  buffer memory{1 << 16};
  memory_arena arena{memory.span()};
  lone_rank comm;
  inline_stream const s;
  sharded_unit unit{std::span<parameter const>{two}, world{1}, static_precision<deepspeed_bf16>{}, zero3{}, arena};
  CHECK(unit.has_master());
  unit.master()[0] = 1.00390625f;  // halfway between two bf16 numbers: to even
  static_cast<void>(gather(unit, comm, s));
  CHECK(detail::typed<bf16>(unit.storage())[0].bits == 0x3F80);
  release(unit, s);
  unit.master()[0] = 3.0f;
  unit.publish(comm, s);
  CHECK(widen(detail::typed<bf16>(unit.storage())[0]) == 3.0f);
}

TEST_CASE("misuse is a broken rule with its sentence") {
  buffer memory{1024};
  memory_arena arena{memory.span()};
  CHECK_THROWS_WITH_AS((sharded_unit{std::span<parameter const>{two}, world{1}, fsdp2_fp32, native{}, arena, 9}),
                       "the arena is too small for the buffers of its units (see bytes_needed)", broken_rule);
  lone_rank comm;
  buffer more{1 << 16};
  memory_arena wide{more.span()};
  sharded_unit unit{std::span<parameter const>{two}, world{2}, fsdp2_fp32, native{}, wide};
  CHECK_THROWS_WITH_AS(static_cast<void>(gather(unit, comm, inline_stream{})),
                       "the communicator and the unit must have the same world size", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(unit.state(2)), "the unit has no optimizer state of that number", broken_rule);
  CHECK_THROWS_AS(memory_arena{more.span().subspan(1)}, broken_rule);
}

TEST_CASE_TEMPLATE("a frozen unit holds its storage alone, moves no gradient and refuses what trains", Sharding, native,
                   zero3) {
  parameter_traits const frozen{.frozen = true};
  std::vector<parameter> const both{{"w", {3, 5}, dtype::none, frozen}, {"b", {7}, dtype::none, frozen}};
  buffer memory{1 << 16};
  lone_rank comm;
  inline_stream const s;
  for (auto const& p : {fsdp2_bf16, fsdp2_fp32, deepspeed_bf16}) {
    memory_arena arena{memory.span()};
    sharded_unit unit{std::span<parameter const>{both}, world{1}, p, Sharding{}, arena};
    auto const need = bytes_needed(unit.layout(), p);
    CHECK(arena.used() == need.persistent);
    CHECK(need.persistent == memory_arena::block(size_of(unit.layout().segment(), p.parameter_storage)));
    CHECK(need.gradients == bytes{0});
    CHECK(unit.frozen());
    CHECK_FALSE(unit.has_master());
    CHECK(unit.updated().data == unit.storage().data);
    CHECK((unit.grad().type == dtype::none && unit.grad().count == elements{0}));
    unit.storage().data[0] = std::byte{1};
    static_cast<void>(gather(unit, comm, s));
    CHECK(arena.peak() <= need.persistent + need.gathered + need.staging);
    auto const calls = comm.calls.size();
    reduce_scatter(unit, comm, {}, s);
    CHECK(comm.calls.size() == calls);
    CHECK(unit.counters().reduce_scatters == 0);
    CHECK(unit.live());
    release(unit, s);
    CHECK(unit.storage().data[0] == std::byte{1});  // no master that is cast into it
    auto const text = "a frozen unit has no gradient and nothing that an optimizer updates";
    CHECK_THROWS_WITH_AS(static_cast<void>(unit.gradients()), text, broken_rule);
    CHECK_THROWS_WITH_AS(static_cast<void>(unit.template grad<float>()), text, broken_rule);
    CHECK_THROWS_WITH_AS(static_cast<void>(unit.master()), text, broken_rule);
    CHECK_THROWS_WITH_AS(static_cast<void>(unit.state(0)), "the unit has no optimizer state of that number",
                         broken_rule);
  }
  memory_arena arena{memory.span()};
  std::vector<parameter> const none;
  CHECK_FALSE(sharded_unit{std::span<parameter const>{none}, world{1}, fsdp2_bf16, Sharding{}, arena}.frozen());
}

TEST_CASE("a unit that is frozen in part is a broken rule that names the first of each kind") {
  parameter_traits const frozen{.frozen = true};
  buffer memory{1 << 16};
  memory_arena arena{memory.span()};
  auto const make = [&](std::vector<parameter> const& of) {
    return sharded_unit{std::span<parameter const>{of}, world{2}, fsdp2_bf16, native{}, arena};
  };
  auto const text = "the parameters of a unit are all frozen or all trained: wq is frozen, lora is not";
  std::vector<parameter> const first{{"wq", {4}, dtype::none, frozen}, {"wk", {4}, dtype::none, frozen}, {"lora", {2}}};
  std::vector<parameter> const last{{"lora", {2}}, {"lorb", {2}}, {"wq", {4}, dtype::none, frozen}};
  CHECK_THROWS_WITH_AS(make(first), text, broken_rule);
  CHECK_THROWS_WITH_AS(make(last), text, broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(bytes_needed(layout{native{}, last, world{2}}, fsdp2_bf16)), text,
                       broken_rule);
  CHECK(arena.used() == bytes{0});
}

TEST_CASE("an arena hands out aligned blocks, joins what comes back, and refuses a block twice") {
  buffer memory{2048};
  memory_arena arena{memory.span()};
  auto const a = arena.take({1}), b = arena.take({256}), c = arena.take({257});
  CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 256 == 0);
  CHECK(arena.used() == bytes{1024});
  arena.give_back(a);
  arena.give_back(c);
  CHECK_THROWS_WITH_AS(arena.give_back(a), "a block is given back once", broken_rule);
  arena.give_back(b);
  CHECK(arena.used().value == 0);
  CHECK(arena.take({2048}).size() == 2048);
  CHECK(arena.peak() == bytes{2048});
}

TEST_CASE_TEMPLATE("a backend that only enqueues gives the same results", Sharding, native, zero3, fsdp2) {
  for (auto const& p :
       {fsdp2_bf16, deepspeed_bf16, precision{.reduce = dtype::f32, .grad_accum = dtype::bf16},
        precision{
            .parameter_storage = dtype::bf16, .compute = dtype::f32, .output = dtype::f32, .master = dtype::f32}}) {
    buffer memory{1 << 16};
    memory_arena arena{memory.span()};
    late_rank comm;
    inline_stream const s;
    std::vector<sharded_unit<precision, Sharding>> units;
    units.emplace_back(std::span<parameter const>{two}, world{1}, p, Sharding{}, arena);
    auto& unit = units.front();
    for (int round = 1; round <= 3; ++round) {
      for (auto& x : unit.master()) x = static_cast<float>(round);
      auto const w = gather(unit, comm, s);
      comm.wait(s);
      detail::with_element(p.compute, [&]<class T>(T) {
        for (auto const x : w["b"].template data<T>()) CHECK(widen(x) == static_cast<float>(round));
      });
      detail::with_element(p.reduce, [&]<class T>(T) {
        for (auto& x : unit.gradients()["w"].template data<T>()) x = narrow<T>(static_cast<float>(round));
      });
      reduce_scatter(unit, comm, {}, s);
      release(unit, s);
      CHECK(global_norm(units, comm, s) == doctest::Approx(round * std::sqrt(15.0)));
    }
  }
}

TEST_CASE_TEMPLATE("a collective that throws leaves the unit as it was and nothing taken", Sharding, native, zero3,
                   fsdp2) {
  for (auto const& p : {fsdp2_bf16, deepspeed_bf16, precision{.reduce = dtype::f32, .grad_accum = dtype::bf16}}) {
    buffer memory{1 << 16};
    memory_arena arena{memory.span()};
    inline_stream const s;
    {
      failing_rank comm;
      sharded_unit unit{std::span<parameter const>{two}, world{1}, p, Sharding{}, arena};
      auto const before = arena.used();
      for (int n : {0, 1}) {  // the agreement, then the gather
        comm.left = n;
        CHECK_THROWS_WITH(static_cast<void>(gather(unit, comm, s)), "the wire is cut");
        CHECK_FALSE(unit.live());
        CHECK(arena.used() == before);
      }
      comm.left = 9;
      static_cast<void>(gather(unit, comm, s));  // agreed at last
      CHECK(comm.calls.front() == "all_gather 8");
      unit.release();
      detail::with_element(p.reduce,
                           [&]<class T>(T) { unit.gradients()["b"].template data<T>()[0] = narrow<T>(2.0f); });
      auto const full = arena.used();
      comm.left = 0;
      CHECK_THROWS_WITH(reduce_scatter(unit, comm, {}, s), "the wire is cut");
      CHECK(arena.used() == full);
      detail::with_element(p.reduce,
                           [&]<class T>(T) { CHECK(widen(unit.gradients()["b"].template data<T>()[0]) == 2.0f); });
    }
    CHECK(arena.used() == bytes{0});
  }
  buffer small{2048};
  memory_arena arena{small.span()};
  CHECK_THROWS_AS((sharded_unit{std::span<parameter const>{two}, world{1}, fsdp2_fp32, Sharding{}, arena, 9}),
                  broken_rule);
  CHECK(arena.used() == bytes{0});
}

TEST_CASE("the storage follows a master span that was taken once") {
  buffer memory{1 << 16};
  memory_arena arena{memory.span()};
  lone_rank comm;
  inline_stream const s;
  sharded_unit unit{std::span<parameter const>{two}, world{1}, deepspeed_bf16, zero3{}, arena};
  auto const kept = unit.master();
  for (int round = 1; round <= 3; ++round) {
    static_cast<void>(gather(unit, comm, s));
    static_cast<void>(unit.gradients());
    reduce_scatter(unit, comm, {}, s);
    release(unit, s);
    kept[0] = static_cast<float>(round);  // the optimizer
    auto const w = gather(unit, comm, s);
    CHECK(widen(w["w"].data<bf16>()[0]) == static_cast<float>(round));
    release(unit, s);
  }
}

TEST_CASE("moved units and units without an element") {
  buffer memory{1 << 16};
  memory_arena arena{memory.span()};
  lone_rank comm;
  inline_stream const s;
  std::vector<parameter> const none{{"empty", {0, 4}}};
  sharded_unit empty{std::span<parameter const>{none}, world{1}, fsdp2_bf16, zero3{}, arena};
  CHECK_FALSE(empty.live());
  auto const w = gather(empty, comm, s);
  CHECK(empty.live());
  CHECK(w["empty"].data<bf16>().empty());
  reduce_scatter(empty, comm, {}, s);
  release(empty, s);
  CHECK_FALSE(empty.live());
  sharded_unit unit{std::span<parameter const>{two}, world{1}, fsdp2_bf16, zero3{}, arena};
  static_cast<void>(gather(unit, comm, s));
  auto const used = arena.used();
  auto const moved = std::move(unit);
  CHECK(moved.live());
  CHECK_FALSE(unit.live());  // NOLINT: what is left of it
  CHECK(arena.used() == used);
}

TEST_CASE("the clip factor") {
  static_assert(clip_factor(0.0, 1.0) == 1.0 && clip_factor(2.0, 1.0) < 0.5);
  CHECK(std::isnan(clip_factor(std::numeric_limits<double>::quiet_NaN(), 1.0)));
  CHECK(clip_factor(std::numeric_limits<double>::infinity(), 1.0) == 0.0);
  CHECK(clip_factor(5.0, std::numeric_limits<double>::infinity()) == 1.0);
}

TEST_CASE("an arena refuses what is not its own") {
  buffer memory{2048}, other{512};
  memory_arena arena{memory.span()};
  CHECK_THROWS_WITH_AS(arena.give_back(other.span()), "an arena takes back its own blocks", broken_rule);
}

}  // namespace unit_test
