// SPDX-License-Identifier: Apache-2.0
// The scalar rules of tests/golden/layouts/rules.json; the format is in the README there.
#include "golden.hpp"

#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/mesh.hpp>

#include <charconv>
#include <functional>
#include <map>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
namespace js = boost::json;

namespace {

std::size_t number(js::value const& v) { return v.to_number<std::size_t>(); }
std::vector<std::size_t> numbers(js::value const& v) {
  std::vector<std::size_t> list;
  for (auto const& x : v.as_array()) list.push_back(number(x));
  return list;
}
bool refused(js::value const& expect) { return expect.is_object() && expect.as_object().contains("error"); }
template <class F>
bool breaks(F f) {
  try {
    f();
  } catch (broken_rule const&) {
    return true;
  }
  return false;
}

using check = std::function<bool(js::object const& in, js::value const& expect)>;

std::map<std::string, check> const rules{
    {"ds_sub_groups",
     [](auto const& in, auto const& expect) {
       auto const got = sub_groups(numbers(in.at("partition_numels")), elements{number(in.at("sub_group_size"))});
       if (got.size() != expect.as_array().size()) return false;
       for (std::size_t g = 0; g < got.size(); ++g) {
         std::vector<std::size_t> members;
         for (std::size_t i = 0; i < got[g].count; ++i) members.push_back(got[g].first + i);
         if (members != numbers(expect.at(g))) return false;
       }
       return true;
     }},
    {"ds_persistence",
     [](auto const& in, auto const& expect) {
       auto const numels = numbers(in.at("numels"));
       elements const parameter_limit{number(in.at("param_threshold"))};
       std::size_t limit = 0;
       auto const& text = in.at("model_threshold").as_string();
       std::from_chars(text.data(), text.data() + text.size(), limit);
       return persistent_parameters(numels, parameter_limit, {limit}) == numbers(expect.at("engine")) &&
              persistent_at_construction(numels, parameter_limit, {limit}, number(in.at("world"))) ==
                  numbers(expect.at("construction"));
     }},
    {"ds_prefetch",
     [](auto const& in, auto const& expect) {
       auto const count = prefetch_count(numbers(in.at("queue_numels")), {number(in.at("live"))},
                                         {number(in.at("max_live"))}, {number(in.at("bucket"))});
       auto const wanted = numbers(expect);
       if (count != wanted.size()) return false;
       for (std::size_t i = 0; i < count; ++i)
         if (wanted[i] != i) return false;
       return true;
     }},
    {"fp16_divide_factors",
     [](auto const& in, auto const& expect) {
       auto const got = gradient_divide_factors(number(in.at("world")));
       return got == divide_factors{number(expect.at("pre")), number(expect.at("post").at(0))} &&
              got.pre == number(expect.at("post").at(1));
     }},
    {"nccl_avg_bf16_scalar",
     [](auto const& in, auto const& expect) {
       auto const got = nccl_average_bf16(number(in.at("world")));
       unsigned wanted = 0;
       auto const& text = expect.at("bits").as_string();
       std::from_chars(text.data(), text.data() + text.size(), wanted, 16);
       return got.factor.bits == wanted && got.bias_ppm == expect.at("bias_ppm").template to_number<int>();
     }},
    {"qwz_groups",
     [](auto const& in, auto const& expect) {
       elements const n{number(in.at("partition_numel"))};
       if (refused(expect)) return breaks([&] { static_cast<void>(quantisation_groups(n)); });
       return quantisation_groups(n) == number(expect);
     }},
    {"ds_round_robin",
     [](auto const& in, auto const& expect) {
       return round_robin_order(number(in.at("tensors")), number(in.at("world"))) == numbers(expect);
     }},
    {"mics_groups",
     [](auto const& in, auto const& expect) {
       auto const m = groups_of(number(in.at("world")), number(in.at("shard_size")));
       auto const same = [](rank_group const& got, js::value const& wanted) {
         std::vector<std::size_t> ranks;
         for (auto const r : got) ranks.push_back(index(r));
         return ranks == numbers(wanted);
       };
       auto const& shards = expect.at("shard_groups").as_array();
       auto const& replicas = expect.at("replica_groups").as_array();
       if (shards.size() != m.size(0) || replicas.size() != m.size(1)) return false;
       for (std::size_t g = 0; g < shards.size(); ++g)
         if (!same(m.group(1, m.at(g, 0u)), shards[g])) return false;
       for (std::size_t g = 0; g < replicas.size(); ++g)
         if (!same(m.group(0, m.at(0u, g)), replicas[g])) return false;
       return true;
     }},
    {"hybrid_local_range",
     [](auto const& in, auto const& expect) {
       mesh const m{number(in.at("outer")), number(in.at("inner"))};
       if (expect.as_array().size() != m.world_size()) return false;
       for (auto const& row : expect.as_array()) {
         auto const got = m.nested_range({number(in.at("size"))}, m.at(number(row.at(0)), number(row.at(1))));
         if (got != shard{{number(row.at(2))}, {number(row.at(3))}, {}}) return false;
       }
       return true;
     }},
    {"llmc_shard",
     [](auto const& in, auto const& expect) {
       std::vector<parameter> const unit{{"t", {number(in.at("elements"))}}};
       world const w{number(in.at("world"))};
       if (refused(expect)) return breaks([&] { layout{llmc{}, unit, w}; });
       layout const l{llmc{}, unit, w};
       if (expect.as_array().size() != w.value()) return false;
       for (std::size_t r = 0; r < w.value(); ++r) {
         auto const p = l.piece_of(0, rank_at(r));
         if (std::vector{p.begin.value, p.size().value} != numbers(expect.at(r))) return false;
       }
       return true;
     }},
};

}  // namespace

TEST_CASE("golden rules: thresholds, groupings, factors") {
  golden::tally count{"rules.json"};
  auto const file = golden::read("layouts/rules.json");
  if (!file) return;
  for (auto const& one : file->at("cases").as_array()) {
    CAPTURE(std::string{one.at("id").as_string()});
    ++count.ran;
    auto const rule = rules.find(std::string{one.at("rule").as_string()});
    REQUIRE(rule != rules.end());
    bool const passed = rule->second(one.at("in").as_object(), one.at("expect"));
    CHECK(passed);
    count.passed += passed;
  }
  CHECK(count.ran == 228);  // none is missing
  CHECK(count.passed == count.ran);
}
