// SPDX-License-Identifier: Apache-2.0
// Layouts against independently written rules: every buffer is built element by element, with appending, cutting and
// joining only, and no formula for a bound. 1e5 random models a rule.
#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;

namespace {

// Element i of tensor t, or padding.
struct cell {
  int tensor = -1;
  std::size_t index = 0;
  bool operator==(cell const&) const = default;
};
using cells = std::vector<cell>;
cell const pad{};

cells all_of(parameter const& p, int t) {
  cells c;
  std::size_t n = 1;
  for (auto const d : p.dims.sizes()) n *= d;
  for (std::size_t i = 0; i < n; ++i) c.push_back({t, i});
  return c;
}
void append(cells& to, cells const& more) { to.insert(to.end(), more.begin(), more.end()); }
void pad_to_multiple(cells& c, std::size_t k) {
  while (c.size() % k != 0) c.push_back(pad);
}
// As torch.chunk: pieces of ceil(size / count), then what is left, then nothing.
std::vector<cells> chunks(cells const& c, std::size_t count, std::size_t grain) {
  auto const rows = grain == 0 ? 0 : c.size() / grain;
  std::size_t each = 0;
  while (each * count < rows) ++each;
  std::vector<cells> parts(count);
  std::size_t next = 0;
  for (auto& part : parts)
    for (std::size_t row = 0; row < each && next < rows; ++row, ++next)
      part.insert(part.end(), c.begin() + static_cast<std::ptrdiff_t>(next * grain),
                  c.begin() + static_cast<std::ptrdiff_t>((next + 1) * grain));
  return parts;
}
// Per tensor: each rank's part, padded to the longest part.
std::vector<cells> slots(std::vector<std::vector<cells>> const& by_tensor, std::size_t w) {
  std::vector<cells> ranks(w);
  for (auto const& parts : by_tensor) {
    std::size_t longest = 0;
    for (auto const& part : parts) longest = std::max(longest, part.size());
    for (std::size_t r = 0; r < w; ++r) {
      append(ranks[r], parts[r]);
      for (auto k = parts[r].size(); k < longest; ++k) ranks[r].push_back(pad);
    }
  }
  return ranks;
}
// Flat: one buffer, cut evenly; padded until it can be.
std::vector<cells> even(cells buffer, std::size_t w, std::size_t grain) {
  while (buffer.size() % w != 0 || buffer.size() / w % grain != 0) buffer.push_back(pad);
  std::vector<cells> ranks(w);
  for (std::size_t r = 0, k = 0; r < w; ++r)
    for (std::size_t i = 0; i < buffer.size() / w; ++i, ++k) ranks[r].push_back(buffer[k]);
  return ranks;
}
cells in_a_row(std::vector<parameter> const& unit, std::vector<std::size_t> const& order, std::size_t align) {
  cells buffer;
  for (auto const t : order) {
    pad_to_multiple(buffer, align);
    append(buffer, all_of(unit[t], static_cast<int>(t)));
  }
  return buffer;
}

template <class L>
bool equal(L const& l, std::vector<cells> const& wanted) {
  if (l.world_size() != wanted.size()) return false;
  std::size_t g = 0;
  for (std::size_t r = 0; r < wanted.size(); ++r) {
    if (l.segment(rank_at(r)).value != wanted[r].size()) return false;
    for (std::size_t j = 0; j < wanted[r].size(); ++j, ++g) {
      auto const found = l.at(rank_at(r), {j});
      auto const here = found.padding ? pad : cell{static_cast<int>(found.tensor), found.index.value};
      if (!(here == wanted[r][j])) return false;
      if (!found.padding &&
          (index(l.owner(found.tensor, found.index)) != r || l.local(found.tensor, found.index).value != j ||
           l.gathered(found.tensor, found.index).value != g))
        return false;
    }
  }
  return true;
}

struct draw {
  std::mt19937_64 random;
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random() % n); }
  std::vector<parameter> unit(bool scalars, std::size_t multiple = 1, bool empty_rows = true) {
    std::vector<parameter> list;
    for (std::size_t t = 0, count = below(5); t < count; ++t) {
      shape dims;
      dims.rank = scalars ? below(4) : 1 + below(3);
      for (std::size_t i = 0; i < dims.rank; ++i)
        dims.dims[i] = i > 0 && !empty_rows ? 1 + below(4) : below(i == 0 ? 12 : 5);
      if (dims.rank > 0) dims.dims[0] *= multiple;
      list.push_back({"t", dims});
    }
    return list;
  }
};
std::vector<std::size_t> in_order(std::size_t count) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

constexpr int models = 100000;

template <class F>
void for_models(F f) {
  draw d{std::mt19937_64{20260102}};
  int agree = 0;
  for (int k = 0; k < models; ++k) agree += f(d, 1 + d.below(k % 10 == 0 ? 40 : 7));
  CHECK(agree == models);
}

}  // namespace

TEST_CASE("oracle: every parameter padded to the world (ZeRO-3)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(true);
    std::vector<std::vector<cells>> by_tensor;
    for (std::size_t t = 0; t < unit.size(); ++t) by_tensor.push_back(even(all_of(unit[t], static_cast<int>(t)), w, 1));
    return equal(layout{zero3{}, unit, world{w}}, slots(by_tensor, w));
  });
}
TEST_CASE("oracle: padded to the whole world, cut in the group (hpZ)") {
  for_models([](draw& d, std::size_t group) {
    auto const unit = d.unit(true);
    hpz policy;
    policy.whole_world = group * (1 + d.below(4));
    std::vector<std::vector<cells>> by_tensor;
    for (std::size_t t = 0; t < unit.size(); ++t) {
      auto all = all_of(unit[t], static_cast<int>(t));
      pad_to_multiple(all, policy.whole_world);
      by_tensor.push_back(even(all, group, 1));
    }
    return equal(layout{policy, unit, world{group}}, slots(by_tensor, group));
  });
}
TEST_CASE("oracle: dimension 0 in ceil chunks (FSDP2)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(false);
    std::vector<std::vector<cells>> by_tensor;
    for (std::size_t t = 0; t < unit.size(); ++t) {
      std::size_t row = 1;
      for (std::size_t i = 1; i < unit[t].dims.rank; ++i) row *= unit[t].dims.dims[i];
      by_tensor.push_back(chunks(all_of(unit[t], static_cast<int>(t)), w, row));
    }
    return equal(layout{fsdp2{}, unit, world{w}}, slots(by_tensor, w));
  });
}
TEST_CASE("oracle: equal parts (llm.c)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(false, w);
    std::vector<std::vector<cells>> by_tensor;
    for (std::size_t t = 0; t < unit.size(); ++t)
      by_tensor.push_back(chunks(all_of(unit[t], static_cast<int>(t)), w, 1));
    return equal(layout{llmc{}, unit, world{w}}, slots(by_tensor, w));
  });
}
TEST_CASE("oracle: flat, aligned to a common multiple of vector and quantisation block (native)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(true);
    native policy;
    policy.tensor_align = std::lcm(std::size_t{1} << d.below(4), 1 + d.below(6));
    policy.segment_align = policy.tensor_align * (1 + d.below(3));
    return equal(layout{policy, unit, world{w}},
                 even(in_a_row(unit, in_order(unit.size()), policy.tensor_align), w, policy.segment_align));
  });
}
TEST_CASE("oracle: flat group in two times the world, also dealt out (ZeRO-1/2)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(true);
    zero12 policy;
    policy.round_robin = d.below(2) == 1;
    auto order = in_order(unit.size());
    if (policy.round_robin)
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return a % w < b % w; });
    auto buffer = in_a_row(unit, order, 1);
    pad_to_multiple(buffer, 2 * w);
    return equal(layout{policy, unit, world{w}}, even(buffer, w, 1));
  });
}
TEST_CASE("oracle: FlatParameter in 16-byte steps, or without any (FSDP1)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(true);
    fsdp1 policy;
    policy.use_orig_params = d.below(2) == 1;
    policy.element_bytes = std::size_t{1} << d.below(4);
    auto const align = policy.use_orig_params ? 16 / policy.element_bytes : 1;
    return equal(layout{policy, unit, world{w}}, even(in_a_row(unit, in_order(unit.size()), align), w, 1));
  });
}
TEST_CASE("oracle: parts in proportion (RaggedShard)") {
  for_models([](draw& d, std::size_t w) {
    std::vector<std::size_t> units(w);
    for (auto& u : units) u = d.below(4);
    if (std::accumulate(units.begin(), units.end(), std::size_t{0}) == 0) units[d.below(w)] = 1;
    auto const sum = std::accumulate(units.begin(), units.end(), std::size_t{0});
    auto const unit = d.unit(false, sum);
    std::vector<cells> ranks(w);
    for (std::size_t t = 0; t < unit.size(); ++t) {
      auto const all = all_of(unit[t], static_cast<int>(t));
      auto next = all.begin();
      for (std::size_t r = 0; r < w; ++r)
        for (std::size_t u = 0; u < units[r]; ++u) {
          auto const end = next + static_cast<std::ptrdiff_t>(all.size() / sum);
          ranks[r].insert(ranks[r].end(), next, end);
          next = end;
        }
    }
    return equal(layout{ragged<>{units}, unit, world{w}}, ranks);
  });
}
TEST_CASE("oracle: flat in segments of the least common multiple of the rows (Megatron-FSDP, guarantees)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(false, 1, false);
    megatron policy;
    policy.packing = d.below(2) == 1 ? megatron_packing::experimental : megatron_packing::production;
    layout const l{policy, unit, world{w}};
    // The quantum by trial: the least number that every row divides (experimental).
    std::size_t quantum = 1;
    auto const divided = [&](std::size_t q) {
      return std::all_of(unit.begin(), unit.end(), [&](parameter const& p) { return q % megatron::row(p.dims) == 0; });
    };
    while (!divided(quantum)) ++quantum;
    if (policy.packing == megatron_packing::experimental && policy.quantum(unit).value != quantum) return false;
    auto const q = policy.quantum(unit).value;
    if (l.segment() % q != 0) return false;
    // Nothing overlaps, no row is cut that the packing promises to keep, every tensor is whole in the buffer.
    std::vector<int> taken(l.gathered().value, 0);
    for (std::size_t t = 0; t < unit.size(); ++t) {
      auto const n = unit[t].dims.numel(), row = megatron::row(unit[t].dims), start = l.place_at(t).start;
      for (std::size_t i = 0; i < n; ++i)
        if (taken.at(start + i)++ != 0 || l.gathered(t, {i}).value != start + i) return false;
      if (policy.packing == megatron_packing::production && n < q) continue;
      for (std::size_t r = 0; r < w; ++r)
        if (l.begin(t, r).value % row != 0) return false;
    }
    return true;
  });
}
TEST_CASE("oracle: whole tensors, the largest first to who holds least (owned)") {
  for_models([](draw& d, std::size_t w) {
    auto const unit = d.unit(true);
    owned policy;
    policy.tensor_align = policy.segment_align = 1;
    auto order = in_order(unit.size());
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return unit[a].dims.numel() > unit[b].dims.numel(); });
    std::vector<cells> ranks(w);
    for (auto const t : order) {
      auto const least = std::min_element(ranks.begin(), ranks.end(),
                                          [](cells const& a, cells const& b) { return a.size() < b.size(); });
      append(*least, all_of(unit[t], static_cast<int>(t)));
    }
    std::size_t longest = 0;
    for (auto const& rank : ranks) longest = std::max(longest, rank.size());
    for (auto& rank : ranks) rank.resize(longest, pad);
    return equal(layout{policy, unit, world{w}}, ranks);
  });
}
