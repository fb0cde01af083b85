// SPDX-License-Identifier: Apache-2.0
// The expected partitions of tests/golden/layouts for the policies that exist; the format is in the README there.
#include "golden.hpp"

#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/fsdp2_groups.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace layout_golden_test {

using namespace flatshard;
namespace js = boost::json;

namespace {

std::size_t number(js::value const& v) { return v.to_number<std::size_t>(); }

// Run-length encoded [value, repeat] over ranks or owners, built up from single values.
struct run_lengths {
  std::vector<std::pair<std::size_t, std::size_t>> runs;
  void add(std::size_t value) {
    if (!runs.empty() && runs.back().first == value) {
      ++runs.back().second;
    } else {
      runs.emplace_back(value, 1);
    }
  }
  bool operator==(js::value const& expected) const {
    auto const& list = expected.as_array();
    if (list.size() != runs.size()) return false;
    for (std::size_t i = 0; i < runs.size(); ++i)
      if (number(list[i].at(0)) != runs[i].first || number(list[i].at(1)) != runs[i].second) return false;
    return true;
  }
};

template <class L>
std::uint64_t gathered_hash(L const& l) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (std::size_t r = 0; r < l.world_size(); ++r)
    for (std::size_t j = 0; j < l.segment(rank_at(r)).value; ++j) {
      auto const found = l.at(rank_at(r), elements{j});
      auto const v = found.padding ? ~std::uint64_t{0} : (std::uint64_t{found.tensor} << 40) | found.index.value;
      h = (h ^ v) * 0x100000001b3u;
    }
  return h;
}

// Calls `f` with the parameters as an array, whose length is part of its type: of at most 8, as each length is a layout
// that is compiled for every policy. Longer ones are laid out statically in constant expressions alone
// (constant_cases.cpp).
template <std::size_t T = 1, class F>
void with_array(std::span<parameter const> unit, F f) {
  if (unit.size() == T) {
    std::array<parameter, T> fixed;
    std::copy(unit.begin(), unit.end(), fixed.begin());
    f(fixed);
  } else if constexpr (T < 8) {
    with_array<T + 1>(unit, f);
  }
}

#define EXPECT(...)                   \
  do {                                \
    CHECK(__VA_ARGS__);               \
    if (!(__VA_ARGS__)) return false; \
  } while (false)

template <class P, class L>
[[nodiscard]] bool extras(P const& policy, L const& l, std::vector<parameter> const& unit, js::object const& options,
                          js::object const& expect) {
  if (auto const* offsets = expect.if_contains("flat_offsets"))
    for (std::size_t t = 0; t < l.size(); ++t) EXPECT(l.place_at(t).start == number(offsets->at(t)));
  if (auto const* slots = expect.if_contains("slots"))
    for (std::size_t t = 0; t < l.size(); ++t) EXPECT(l.place_at(t).step == number(slots->at(t)));
  if (auto const* order = expect.if_contains("order")) {  // by start; empty tensors before what shares their start
    std::vector<std::size_t> got;
    for (std::size_t t = 0; t < l.size(); ++t) got.push_back(t);
    if constexpr (std::same_as<P, zero12>) {
      if (policy.round_robin) got = round_robin_order(l.size(), l.world_size());
    } else if constexpr (std::same_as<P, megatron>) {
      auto const looked_at = policy.tensor_order(unit);
      got.assign(looked_at.begin(), looked_at.end());
    }
    for (std::size_t k = 0; k < got.size(); ++k) EXPECT(got[k] == number(order->at(k)));
  }
  if constexpr (std::same_as<P, megatron>) EXPECT(policy.quantum(unit).value == number(expect.at("chunk")));
  if constexpr (std::same_as<P, fsdp1>) EXPECT(flat_numel(l).value == number(expect.at("flat_numel")));
  if constexpr (std::same_as<P, hpz>) {
    layout const primary{zero3{}, unit, world{policy.whole_world}};
    for (std::size_t t = 0; t < l.size(); ++t)
      EXPECT(primary.place_at(t).step == number(expect.at("primary_slots").at(t)));
  }
  if constexpr (std::same_as<P, zero3>) {
    if (auto const* groups = expect.if_contains("sub_groups")) {
      auto const got = sub_groups(l, elements{number(options.at("sub_group_size"))});
      EXPECT(got.size() == groups->as_array().size());
      for (std::size_t g = 0; g < got.size(); ++g) {
        auto const& row = groups->at(g);
        EXPECT(got[g] == sub_group{number(row.at(0)), number(row.at(1)), {number(row.at(2))}});
      }
    }
  }
  if constexpr (std::same_as<P, fsdp2>) {
    // Every second tensor frozen: the gather does not see it, the reduce-scatter holds the slots of the others.
    auto half = unit;
    for (std::size_t t = 0; t < half.size(); t += 2) half[t].traits = parameter_traits{true};
    auto const both = fsdp2_group_buffers(half, l.world_size());
    EXPECT(both.gather.segment() == l.segment());
    EXPECT(both.reduced.size() == l.size() / 2);
    for (std::size_t k = 0; k < both.reduced.size(); ++k) {
      auto const t = both.reduced[k];
      EXPECT(both.reduce_scatter.place_at(k).step == number(expect.at("slots").at(t)));
      run_lengths sizes;
      for (std::size_t r = 0; r < l.world_size(); ++r)
        sizes.add(both.reduce_scatter.piece_of(k, rank_at(r)).size().value);
      EXPECT(sizes == expect.at("tensors").at(t).at("sizes"));
    }
    if (auto const* rows = expect.if_contains("rows"))
      for (std::size_t t = 0; t < l.size(); ++t) {
        run_lengths got;
        auto const& dims = l.parameter_at(t).dims;
        auto const row = dims.dims[0] == 0 ? 0 : dims.numel() / dims.dims[0];
        for (std::size_t r = 0; r < l.world_size(); ++r) {
          auto const size = l.piece_of(t, rank_at(r)).size().value;
          got.add(row == 0 ? 0 : size / row);
          if (row != 0) EXPECT(size % row == 0);
        }
        EXPECT(got == rows->at(t));
      }
    if (auto const* slots = expect.if_contains("post_forward_slot")) {
      auto const k = number(options.at("post_forward"));
      for (std::size_t t = 0; t < l.size(); ++t) {
        run_lengths real;
        for (std::size_t i = 0; i < k; ++i) {
          auto const kept = post_forward(l, t, k, rank_at(i));
          real.add(kept.size.value);
          EXPECT((kept.size + kept.padding).value == number(slots->at(t)));
        }
        EXPECT(real == expect.at("post_forward_real").at(t));
      }
    }
  }
  return true;
}

// Whether two layouts of the same unit place every element alike: all ranks' segments and pieces, the hash, and the
// gathered buffer, of which large ones are looked at where the file has samples. Without a check of its own: there is
// one of it for each number of tensors.
template <class A, class B>
[[nodiscard]] bool alike(A const& a, B const& b, js::object const& expect) {
  if (a.hash() != b.hash() || a.gathered() != b.gathered() || a.real() != b.real()) return false;
  for (std::size_t t = 0; t < a.size(); ++t)
    if (a.place_at(t) != b.place_at(t) || a.parameter_at(t) != b.parameter_at(t)) return false;
  for (std::size_t r = 0; r < a.world_size(); ++r) {
    auto const rank = rank_at(r);
    if (a.segment(rank) != b.segment(rank) || a.padding(rank) != b.padding(rank)) return false;
    for (std::size_t t = 0; t < a.size(); ++t)
      if (a.piece_of(t, rank) != b.piece_of(t, rank)) return false;
  }
  if (expect.contains("hash") && gathered_hash(a) != gathered_hash(b)) return false;
  if (auto const* samples = expect.if_contains("samples"))
    for (auto const& s : samples->as_array()) {
      auto const t = number(s.at(0));
      elements const i{number(s.at(1))}, g{number(s.at(4))};
      if (a.owner(t, i) != b.owner(t, i) || a.local(t, i) != b.local(t, i) || a.gathered(t, i) != g ||
          a.at_gathered(g) != element_place{t, i, false})
        return false;
    }
  return true;
}

// The layout with a static table, and with a static world where there is one, against the listed one.
template <class P, class L>
[[nodiscard]] bool static_forms(P const& policy, L const& listed, std::vector<parameter> const& unit,
                                js::object const& expect) {
  world const w{listed.world_size()};
  bool same = true;
  auto const compare = [&](auto const& fixed) { same &= alike(layout{policy, fixed, w}, listed, expect); };
  with_array(unit, compare);
  EXPECT(same);
  EXPECT(with_static_world(w.value(), [&](auto of_type) {
    return alike(layout{policy, unit, of_type}, listed, expect);
  }));
  return true;
}

// Whether building a layout breaks a rule with one of these sentences.
template <class Build>
[[nodiscard]] bool refuses(std::vector<std::string> const& sentences, Build build) {
  try {
    build();
  } catch (broken_rule const& broken) {
    return std::any_of(sentences.begin(), sentences.end(), [&](std::string const& sentence) {
      return std::string_view{broken.what()}.find(sentence) != std::string_view::npos;
    });
  }
  return false;
}

template <class P>
bool run_case(P const& policy, js::object const& one) {
  auto const& expect = one.at("expect").as_object();
  auto const& shapes = one.at("shapes").as_array();
  std::vector<std::string> names;
  names.reserve(shapes.size());
  std::vector<parameter> unit;
  for (auto const& s : shapes) {
    std::vector<std::size_t> dims;
    for (auto const& d : s.as_array()) dims.push_back(number(d));
    names.push_back("t" + std::to_string(names.size()));
    unit.push_back({names.back(), shape{dims}});
  }
  auto w = number(one.at("world"));
  if constexpr (std::same_as<P, hpz>) w = number(one.at("options").at("hpz"));  // the layout of one group
  if (auto const* error = expect.if_contains("error"); error != nullptr && error->as_string() == "upstream_rejects") {
    // A legal input that upstream refuses: an empty tensor shares its start with another.
    std::size_t owned = 0;
    layout const l{policy, unit, world{w}};
    for (std::size_t r = 0; r < w; ++r) owned += l.owned(rank_at(r)).value;
    EXPECT(owned == l.real().value);
    return static_forms(policy, l, unit, expect);
  } else if (error != nullptr) {
    static std::map<std::string, std::vector<std::string>> const sentences{
        {"scalar", {"cannot shard a scalar"}},
        {"zero_row", {"rows are empty"}},
        {"not_divisible", {"the units must divide every tensor"}},
        {"not_row_aligned", {"every part must be a whole number of blocks"}},
        {"bad_units", {"one unit count a rank", "at least one unit"}}};
    auto const& wanted = sentences.at(std::string{error->as_string()});
    bool refused = refuses(wanted, [&] { layout{policy, unit, world{w}}; });
    with_array(unit, [&](auto const& fixed) {
      refused = refused && refuses(wanted, [&] { layout{policy, fixed, world{w}}; });
    });
    CHECK_MESSAGE(refused, "not refused with its sentence: ", std::string{error->as_string()});
    return refused;
  }
  layout const l{policy, unit, world{w}};
  if (auto const* segment = expect.if_contains("segment")) {
    EXPECT(l.segment().value == number(*segment));
  } else {
    run_lengths segments;
    for (std::size_t r = 0; r < w; ++r) segments.add(l.segment(rank_at(r)).value);
    EXPECT(segments == expect.at("segments"));
  }
  EXPECT(l.gathered().value == number(expect.at("gathered")));
  EXPECT(l.real().value == number(expect.at("real")));

  run_lengths padding;
  for (std::size_t r = 0; r < w; ++r) padding.add(l.padding(rank_at(r)).value);
  EXPECT(padding == expect.at("padding"));
  for (std::size_t t = 0; t < l.size(); ++t) {
    auto const& tensor = expect.at("tensors").at(t);
    EXPECT(l.place_at(t).numel == number(tensor.at("numel")));
    run_lengths sizes, locals;
    for (std::size_t r = 0; r < w; ++r) {
      auto const p = l.piece_of(t, rank_at(r));
      sizes.add(p.size().value);
      if (p.size().value != 0) locals.add(p.local.value);
    }
    EXPECT(sizes == tensor.at("sizes"));
    EXPECT(locals == tensor.at("local"));
  }
  for (auto const& s : expect.at("samples").as_array()) {
    auto const t = number(s.at(0));
    elements const i{number(s.at(1))};
    auto const owner = l.owner(t, i);
    EXPECT(index(owner) == number(s.at(2)));
    EXPECT(l.local(t, i).value == number(s.at(3)));
    EXPECT(l.gathered(t, i).value == number(s.at(4)));
    EXPECT(l.at(owner, l.local(t, i)) == element_place{t, i, false});
    EXPECT(l.at_gathered(l.gathered(t, i)) == element_place{t, i, false});
  }
  for (auto const& p : expect.at("pads").as_array()) {
    EXPECT(l.at(rank_at(number(p.at(0))), elements{number(p.at(1))}).padding);
    EXPECT(l.segment_start(number(p.at(0))).value + number(p.at(1)) == number(p.at(2)));
    EXPECT(l.at_gathered(elements{number(p.at(2))}).padding);
    EXPECT(l.padding_value() == (p.at(3).is_null() ? std::nullopt : std::optional<int>{p.at(3).to_number<int>()}));
  }
  if (auto const* hash = expect.if_contains("hash")) {
    std::uint64_t wanted = 0;
    auto const& text = hash->as_string();
    std::from_chars(text.data(), text.data() + text.size(), wanted, 16);
    EXPECT(gathered_hash(l) == wanted);
  }
  if (!static_forms(policy, l, unit, expect)) return false;
  return extras(policy, l, unit, one.at("options").as_object(), expect);
}

template <class MakePolicy>
void run_file(char const* name, std::size_t cases, MakePolicy make) {
  golden::tally count{name};
  auto const file = golden::read(std::string{"layouts/"} + name);
  if (!file) return;
  for (auto const& one : file->at("cases").as_array()) {
    auto const& c = one.as_object();
    CAPTURE(std::string{c.at("id").as_string()});
    ++count.ran;
    if (run_case(make(c), c)) ++count.passed;
  }
  CHECK(count.ran == cases);  // none is missing
  CHECK(count.passed == count.ran);
}

}  // namespace

TEST_CASE("golden layouts: native") {
  run_file("native.json", 320, [](js::object const& c) {
    native policy;
    policy.tensor_align = number(c.at("options").at("tensor_align"));
    policy.segment_align = number(c.at("options").at("segment_align"));
    return policy;
  });
}
TEST_CASE("golden layouts: DeepSpeed ZeRO-3") {
  run_file("ds_zero3.json", 320, [](js::object const&) { return zero3{}; });
}
TEST_CASE("golden layouts: DeepSpeed hpZ") {
  run_file("ds_hpz.json", 160, [](js::object const& c) {
    hpz policy;
    policy.whole_world = number(c.at("world"));
    return policy;
  });
}
TEST_CASE("golden layouts: DeepSpeed ZeRO-1/2") {
  run_file("ds_zero12.json", 320, [](js::object const& c) {
    zero12 policy;
    policy.round_robin = c.at("options").at("round_robin").as_bool();
    return policy;
  });
}
TEST_CASE("golden layouts: FSDP1") {
  run_file("fsdp1.json", 320, [](js::object const& c) {
    fsdp1 policy;
    policy.use_orig_params = c.at("options").at("use_orig_params").as_bool();
    policy.element_bytes = number(c.at("options").at("element_bytes"));
    return policy;
  });
}
TEST_CASE("golden layouts: FSDP2") {
  run_file("fsdp2.json", 320, [](js::object const&) { return fsdp2{}; });
}
TEST_CASE("golden layouts: Megatron-FSDP, production") {
  run_file("megatron_production.json", 320, [](js::object const&) { return megatron{}; });
}
TEST_CASE("golden layouts: Megatron-FSDP, experimental") {
  run_file("megatron_experimental.json", 320, [](js::object const&) {
    megatron policy;
    policy.packing = megatron_packing::experimental;
    return policy;
  });
}
TEST_CASE("golden layouts: RaggedShard") {
  run_file("ragged.json", 320, [](js::object const& c) {
    std::vector<std::size_t> units;
    for (auto const& u : c.at("options").at("units").as_array()) units.push_back(number(u));
    return ragged<>{units, number(c.at("options").at("prefix_dims"))};
  });
}
TEST_CASE("golden layouts: the totals of the padding table") {
  golden::tally count{"padding_table.json"};
  auto const file = golden::read("layouts/padding_table.json");
  if (!file) return;
  for (auto const& one : file->at("cases").as_array()) {
    CAPTURE(std::string{one.at("id").as_string()});
    ++count.ran;
    auto const unit_of = [](js::value const& shapes) {
      std::vector<parameter> unit;
      for (auto const& s : shapes.as_array()) {
        auto const* repeated = s.if_object();  // {"repeat": k, "shapes": [...]}
        for (std::size_t k = 0, times = repeated ? number(repeated->at("repeat")) : 1; k < times; ++k)
          for (auto const& each : repeated ? repeated->at("shapes").as_array() : js::array{s}) {
            std::vector<std::size_t> dims;
            for (auto const& d : each.as_array()) dims.push_back(number(d));
            unit.push_back({"t", shape{dims}});
          }
      }
      return unit;
    };
    auto const dense = unit_of(one.at("shapes"));
    auto const experts = unit_of(one.at("expert_shapes"));
    auto all = dense;
    all.insert(all.end(), experts.begin(), experts.end());
    world const w{number(one.at("world"))};
    auto const& expect = one.at("gathered_elements").as_object();
    auto const total = [&](auto const& policy, std::vector<parameter> const& unit) {
      return unit.empty() ? elements{} : layout{policy, unit, w}.gathered();
    };
    megatron experimental;
    experimental.packing = megatron_packing::experimental;
    auto const check = [&](char const* key, elements got) {
      CHECK_MESSAGE(got.value == number(expect.at(key)), key);
      return got.value == number(expect.at(key));
    };
    bool const passed[]{check("ds_zero3", total(zero3{}, all)),
                        check("ds_zero12", total(zero12{}, all)),
                        check("fsdp1_bf16_use_orig_params", total(fsdp1{}, all)),
                        check("fsdp2", total(fsdp2{}, all)),
                        check("megatron_production", total(megatron{}, dense) + total(megatron{}, experts)),
                        check("megatron_experimental", total(experimental, dense) + total(experimental, experts)),
                        check("native_8_128", total(native{}, all))};
    count.passed += std::all_of(std::begin(passed), std::end(passed), [](bool b) { return b; });
  }
  CHECK(count.ran == 28);  // none is missing
  CHECK(count.passed == count.ran);
}

}  // namespace layout_golden_test
