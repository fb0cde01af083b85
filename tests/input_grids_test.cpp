// SPDX-License-Identifier: Apache-2.0
// Properties of the resolver over whole grids of inputs. No sanitizer watches these: they ask what is decided, and
// resolve_test runs the same code under one.
#include "../tools/resolver.hpp"
#include "value_kinds.hpp"

#include <flatshard/config/resolve.hpp>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace input_grids_test {

using namespace flatshard;
using value_kinds::all_kinds;

namespace {

problem const* find(resolution const& r, errc code) {
  for (auto const& p : r.problems)
    if (p.code == code) return &p;
  return nullptr;
}

/// The rule of LLaMA-Factory once more, from the value: fp16 on is refused, else bf16 unless one of them is off and
/// bf16 is not on.
precision_mode compact_rule(value const& bf16, value const& fp16) {
  auto const says = [](value const& v, bool b, std::string_view word) {
    return (b ? v.is_true() : v.is_false()) || (v.is(value_kind::string) && lower(v.text()) == word);
  };
  if (says(fp16, true, "true")) return precision_mode::refused;
  bool const off = says(bf16, false, "false") || says(fp16, false, "false");
  return off && !says(bf16, true, "true") ? precision_mode::fp32 : precision_mode::bf16;
}

}  // namespace

TEST_CASE("the written-out precision rule equals the compact one on all value kinds") {
  for (auto const& bf16 : all_kinds())
    for (auto const& fp16 : all_kinds()) {
      auto const long_form = llamafactory_mode(read_enabled_word(bf16), read_enabled_word(fp16)).mode;
      CHECK_MESSAGE(long_form == compact_rule(bf16, fp16), to_json(bf16), " ", to_json(fp16));
    }
}

TEST_CASE("on DeepSpeed storage, compute and output agree for every accepted input but the offload to the host") {
  int accepted = 0, refused = 0, offloaded = 0;
  for (auto const& bf16 : all_kinds())
    for (auto const& fp16 : all_kinds())
      for (auto const& stage : {value{}, value{0}, value{1}, value{2}, value{3}, value{"3"}, value{3.0}, value{"auto"}})
        for (bool const offload : {false, true}) {
          auto zero = value::object();
          if (stage.present()) zero.set("stage", stage);
          if (offload) zero.set({"offload_param", "device"}, "cpu");
          auto root = value::object({{"zero_optimization", zero}});
          if (bf16.present()) root.set({"bf16", "enabled"}, bf16);
          if (fp16.present()) root.set({"fp16", "enabled"}, fp16);
          auto const r = decide(document{root}, profile::llamafactory, {.world = 4, .hidden_size = 64});
          if (r.has_errors()) {
            ++refused;
            CHECK(compact_rule(bf16, fp16) == precision_mode::refused);
            continue;
          }
          ++accepted;
          auto const& p = r.policies.dtypes.value();
          REQUIRE(p.parameter_storage == p.compute);
          REQUIRE(p.compute == p.output);
          auto const mode = dtype_of_mode(r.policies.mode);
          bool const widened = offload && r.policies.load.partitioned && mode == dtype::bf16;
          offloaded += widened;
          REQUIRE(p.parameter_storage == (widened ? dtype::f32 : mode));
          auto const* d = r.find("parameter_storage");
          REQUIRE(d);
          REQUIRE((d->reason.find("offload_param.device is cpu") != std::string::npos) == widened);
          REQUIRE(d->load_value == (widened ? "bf16" : ""));
          if (widened) {
            REQUIRE(p.reduce == dtype::bf16);
            REQUIRE(p.grad_accum == dtype::bf16);
            REQUIRE(find(r, errc::load_train_differ));
          }
        }
  CHECK(accepted > 5000);
  CHECK(refused > 100);
  CHECK(offloaded > 100);
}

TEST_CASE("a batch triangle that does not hold is told once, whatever the profile") {
  std::vector<value> const sizes{{}, nullptr, 0, 1, 8, 2.5, "auto", "x"};
  std::size_t refused = 0;
  for (auto const front_end : {profile::llamafactory, profile::llamafactory_review, profile::accelerate,
                               profile::transformers_v4, profile::transformers_v5, profile::deepspeed})
    for (std::size_t const world : {1u, 4u})
      for (auto const& train : sizes)
        for (auto const& micro : sizes)
          for (auto const& steps : sizes) {
            auto config = value::object({{"zero_optimization", value::object({{"stage", 3}})}});
            if (train.present()) config.set("train_batch_size", train);
            if (micro.present()) config.set("train_micro_batch_size_per_gpu", micro);
            if (steps.present()) config.set("gradient_accumulation_steps", steps);
            auto const r = decide(document{config, "ds.json"}, front_end, {.world = world, .zero_init = true});
            refused += r.has_errors();
            std::set<std::string> told;
            for (auto const& p : r.problems)
              if (!p.upstream.empty() && p.level == severity::error)
                REQUIRE_MESSAGE(told.insert(p.where.pointer + p.upstream).second, name(front_end), " ", to_json(config),
                                ": ", to_string(p));
          }
  CHECK(refused > 1000);
}

}  // namespace input_grids_test
