// SPDX-License-Identifier: Apache-2.0
// Layouts at the size that they are designed for: 1e6 tensors over 1e5 ranks, on one core; and the search of `planned`.
// Every benchmark checks an answer before it times it.
#include "models.hpp"

#include <flatshard/flatshard.hpp>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <malloc.h>

using namespace flatshard;

// Bytes that are allocated now, and the most that ever were, so that a layout's memory is counted and not estimated.
namespace {
std::size_t held = 0, peak = 0;
constexpr std::size_t header = alignof(std::max_align_t);
}  // namespace
void* operator new(std::size_t size) {
  auto* const block = static_cast<std::size_t*>(std::malloc(size + header));
  if (block == nullptr) throw std::bad_alloc{};
  *block = size;
  held += size;
  peak = std::max(peak, held);
  return reinterpret_cast<std::byte*>(block) + header;
}
void operator delete(void* p) noexcept {
  if (p == nullptr) return;
  auto* const block = reinterpret_cast<std::byte*>(p) - header;
  held -= *reinterpret_cast<std::size_t*>(block);
  std::free(block);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

namespace {

constexpr std::size_t tensors = 1000000, ranks = 100000, other_ranks = 99991;

void expect(benchmark::State& state, bool holds, char const* what) {
  if (!holds) state.SkipWithError(what);
}

// As many parameters as are measured, of these shapes in turn.
std::vector<parameter> in_turn(std::span<shape const> shapes) {
  std::vector<parameter> made;
  made.reserve(tensors);
  for (std::size_t t = 0; t < tensors; ++t) made.push_back({"layers.mlp.experts.weight", shapes[t % shapes.size()]});
  return made;
}
// Experts and norms, as one flat list of parameters.
std::vector<parameter> const& unit() {
  static constexpr shape shapes[]{{768, 2048}, {768, 2048}, {2048, 768}, {2048}};
  static auto const list = in_turn(shapes);
  return list;
}
// The layers of Llama 3 8B: for megatron most tensors leave a remainder that another one, or norms, fill.
std::vector<parameter> const& dense_unit() {
  static constexpr shape shapes[]{{4096, 4096},  {1024, 4096},  {1024, 4096}, {4096, 4096}, {14336, 4096},
                                  {14336, 4096}, {4096, 14336}, {4096},       {4096}};
  static auto const list = in_turn(shapes);
  return list;
}
// The same number of tensors, each of which the ranks divide: what `llmc` and `ragged` can cut.
std::vector<parameter> const& even_unit() {
  static constexpr shape shapes[]{{1000, 2000}, {1000, 2000}, {2000, 1000}, {2 * ranks}};
  static auto const list = in_turn(shapes);
  return list;
}
template <class P>
std::vector<parameter> const& unit_of(P const&) {
  return unit();
}
std::vector<parameter> const& unit_of(llmc const&) { return even_unit(); }
std::vector<parameter> const& unit_of(ragged<> const&) { return even_unit(); }
struct query {
  std::size_t tensor;
  elements index;
  rank_id rank;
  elements position;
};
// Random elements, with where they lie.
template <class L>
std::vector<query> queries(L const& l) {
  std::mt19937_64 random{7};
  std::vector<query> list(1 << 20);  // more placements than a cache holds
  for (auto& q : list) {
    q.tensor = random() % l.size();
    q.index = {random() % l.place_at(q.tensor).numel};
    q.rank = l.owner(q.tensor, q.index);
    q.position = l.local(q.tensor, q.index);
  }
  return list;
}

template <class P>
void build(benchmark::State& state, P policy, std::vector<parameter> const& list) {
  malloc_trim(0);
  auto const before = held;
  peak = held;
  std::size_t kept = 0;
  {
    auto const start = std::chrono::steady_clock::now();
    layout const l{policy, list, world{ranks}};
    std::chrono::duration<double, std::milli> const taken = std::chrono::steady_clock::now() - start;
    state.counters["fresh_ms"] = taken.count();
    kept = held - before;
    expect(state, l.size() == tensors && l.gathered() >= l.real(), "a wrong layout");
  }
  state.counters["MB"] = static_cast<double>(kept) / 1e6;
  state.counters["peak_MB"] = static_cast<double>(peak - before) / 1e6;
  for (auto _ : state) {
    layout const l{policy, list, world{ranks}};
    benchmark::DoNotOptimize(l.segment());
  }
}
template <class P>
void owner(benchmark::State& state, P policy) {
  layout const l{policy, unit_of(policy), world{ranks}};
  auto const list = queries(l);
  for (auto const& q : list)
    expect(state, l.at(q.rank, q.position) == element_place{q.tensor, q.index, false}, "owner and inverse differ");
  for (auto _ : state)
    for (auto const& q : list) benchmark::DoNotOptimize(l.owner(q.tensor, q.index));
  state.SetItemsProcessed(static_cast<std::int64_t>(list.size()) * state.iterations());
}
// The same elements in one call, which fetches placements ahead.
template <class P>
void owners(benchmark::State& state, P policy) {
  layout const l{policy, unit_of(policy), world{ranks}};
  auto const list = queries(l);
  std::vector<tensor_element> asked;
  for (auto const& q : list) asked.push_back({q.tensor, q.index});
  std::vector<rank_id> found(list.size());
  for (auto _ : state) {
    l.owners(asked, found);
    benchmark::ClobberMemory();
  }
  for (std::size_t i = 0; i < list.size(); ++i) expect(state, found[i] == list[i].rank, "owners and owner differ");
  state.SetItemsProcessed(static_cast<std::int64_t>(list.size()) * state.iterations());
}
template <class P>
void inverse(benchmark::State& state, P policy) {
  layout const l{policy, unit_of(policy), world{ranks}};
  auto const list = queries(l);
  for (auto _ : state)
    for (auto const& q : list) benchmark::DoNotOptimize(l.at(q.rank, q.position));
  state.SetItemsProcessed(static_cast<std::int64_t>(list.size()) * state.iterations());
}
// What one rank sends, or receives: of the middle, or of the first hundred where that one owns nothing.
template <class A, class B>
void reshard(benchmark::State& state, A from, B to, bool sending) {
  layout const a{from, unit(), world{ranks}};
  layout const b{to, unit(), world{other_ranks}};
  resharding const plan{a, b};
  auto const of = [&](auto const& l) {
    auto const middle = rank_at(ranks / 2);
    return l.owned(middle) > elements{} ? middle : rank_at(100);
  };
  auto const run = [&](auto const& transfers, elements owned) {
    std::size_t count = 0, moved = 0;
    for (auto const& m : transfers) {
      expect(state, b.owner(m.tensor, m.begin) == m.to && a.at(m.from, m.from_position).index == m.begin,
             "a wrong transfer");
      ++count;
      moved += m.size().value;
    }
    expect(state, count > 0 && moved == owned.value, "not every element is moved once");
    for (auto _ : state) {
      std::size_t sum = 0;
      for (auto const& m : transfers) sum += m.size().value + m.to_position.value;
      benchmark::DoNotOptimize(sum);
    }
    state.counters["transfers"] = static_cast<double>(count);
    state.SetItemsProcessed(static_cast<std::int64_t>(count) * state.iterations());
  };
  if (sending) {
    run(plan.sends(of(a)), a.owned(of(a)));
  } else {
    run(plan.receives(of(b)), b.owned(of(b)));
  }
}
void plan(benchmark::State& state, bench_models::model const& model, block keep) {
  auto const w = static_cast<std::size_t>(state.range(0));
  layout const l{planned{keep}, model.unit, world{w}};
  auto const bound = l.policy().lower_bound();
  expect(state, l.segment() >= bound, "a segment below its bound");
  state.counters["over_percent"] =
      100 * (static_cast<double>(l.segment().value) / static_cast<double>(bound.value) - 1);
  for (auto _ : state) {
    layout const again{planned{keep}, model.unit, world{w}};
    benchmark::DoNotOptimize(again.segment());
  }
}

// Every world from 8 to 1024: how many plans are more than 1 % over their bound, the worst, the slowest to be found.
void plan_every_world(benchmark::State& state, bench_models::model const& model, block keep) {
  double over = 0, worst = 0, slowest = 0;
  for (auto _ : state) {
    over = worst = slowest = 0;
    for (std::size_t w = 8; w <= 1024; ++w) {
      auto const start = std::chrono::steady_clock::now();
      layout const l{planned{keep}, model.unit, world{w}};
      std::chrono::duration<double, std::milli> const taken = std::chrono::steady_clock::now() - start;
      auto const bound = static_cast<double>(l.policy().lower_bound().value);
      auto const percent = 100 * (static_cast<double>(l.segment().value) / bound - 1);
      over += percent > 1 ? 1 : 0;
      worst = std::max(worst, percent);
      slowest = std::max(slowest, taken.count());
    }
  }
  state.counters["over_1_percent"] = over;
  state.counters["worst_percent"] = worst;
  state.counters["slowest_ms"] = slowest;
}

}  // namespace

int main(int argc, char** argv) {
  using benchmark::kMillisecond;
  // Memory that was freed stays with the process, so that every build but the first of each policy (fresh_ms) finds
  // its pages there; otherwise the system would take them back after some policies and not after others.
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_MMAP_MAX, 0);
  using benchmark::RegisterBenchmark;
  auto const add = [](std::string const& name, auto const& policy) {
    RegisterBenchmark(("build/" + name).c_str(), [=](auto& s) {
      build(s, policy, unit_of(policy));
    })->Unit(kMillisecond);
    RegisterBenchmark(("owner/" + name).c_str(), [=](auto& s) { owner(s, policy); });
    RegisterBenchmark(("owners/" + name).c_str(), [=](auto& s) { owners(s, policy); });
    RegisterBenchmark(("inverse/" + name).c_str(), [=](auto& s) { inverse(s, policy); });
  };
  zero12 robin;
  robin.round_robin = true;
  hpz secondary;
  secondary.whole_world = 10 * ranks;
  megatron experimental;
  experimental.packing = megatron_packing::experimental;
  auto const add_dense = [](std::string const& name, auto const& policy) {
    RegisterBenchmark(("build/" + name + "/dense layers").c_str(), [=](auto& s) {
      build(s, policy, dense_unit());
    })->Unit(kMillisecond);
  };
  add("native", native{});
  add("zero3", zero3{});
  add("hpz", secondary);
  add("zero12", zero12{});
  add("zero12 round robin", robin);
  add("fsdp1", fsdp1{});
  add("fsdp2", fsdp2{});
  add("megatron", megatron{});
  add("megatron experimental", experimental);
  add("llmc", llmc{});
  add("ragged", ragged{std::vector<std::size_t>(ranks, 1), 2});
  std::vector<std::size_t> units(ranks, 1);  // of 1 and 3 in turn
  for (std::size_t r = 1; r < ranks; r += 2) units[r] = 3;
  add("ragged uneven", ragged{units, 2});
  add("owned", owned{});
  add("planned", planned{block::rows()});
  add_dense("megatron", megatron{});
  add_dense("megatron experimental", experimental);
  add_dense("planned", planned{block::rows()});
  auto const add_reshard = [](std::string const& name, auto const& from, auto const& to) {
    for (bool const sending : {true, false})
      RegisterBenchmark((std::string{"reshard one rank/"} + name + (sending ? "/sends" : "/receives")).c_str(),
                        [=](auto& s) { reshard(s, from, to, sending); })
          ->Unit(kMillisecond);
  };
  add_reshard("native to native", native{}, native{});
  add_reshard("zero3 to zero3", zero3{}, zero3{});
  add_reshard("zero3 to native", zero3{}, native{});
  add_reshard("zero3 to planned", zero3{}, planned{block::rows()});
  add_reshard("fsdp2 to zero3", fsdp2{}, zero3{});
  add_reshard("fsdp2 to native", fsdp2{}, native{});
  static auto const models = bench_models::five();
  for (auto const& model : models)
    for (auto const& [name, keep] : {std::pair{"tiles of 128", block::tiles(128)}, std::pair{"rows", block::rows()}})
      RegisterBenchmark((std::string{"planned/"} + name + '/' + model.name).c_str(),
                        [&model, kept = keep](auto& s) { plan(s, model, kept); })
          ->RangeMultiplier(2)
          ->Range(8, 1024)
          ->Unit(kMillisecond);
  for (auto const& model : models)
    for (auto const& [name, keep] : {std::pair{"tiles of 128", block::tiles(128)}, std::pair{"rows", block::rows()}})
      RegisterBenchmark((std::string{"planned of every world/"} + name + '/' + model.name).c_str(),
                        [&model, kept = keep](auto& s) { plan_every_world(s, model, kept); })
          ->Iterations(1)
          ->Unit(kMillisecond);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
