// SPDX-License-Identifier: Apache-2.0
// What a DeepSpeed configuration decides, and what that makes of a layer on 8 ranks.
#include <flatshard/flatshard.hpp>
#include <flatshard/json.hpp>

#include <iostream>

using namespace flatshard;

int main() {
  auto const text = R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})";
  auto const config = parse_json(text, "ds_z3.json").value();  // a document, or every problem of the text
  auto const decided = resolve(config, profile::llamafactory, {.world = 8, .hidden_size = 4096}).value();
  for (auto const& d : decided.decisions)
    if (d.key.starts_with("zero_optimization.")) std::cout << d.key << " = " << d.value << "  [" << d.rule << "]\n";

  constexpr auto layer = parameters({{"q_proj", {4096, 4096}}, {"k_proj", {1024, 4096}}, {"norm", {4096}}});
  layout const unit{zero3{}, layer, world{8}};
  auto const& dtypes = decided.policies.dtypes.value();  // DeepSpeed always decides them
  std::cout << unit << '\n';
  for (auto const r : {role::parameter_storage, role::master})
    std::cout << name(r) << ": " << name(dtypes(r)) << ", " << unit.shard_bytes(dtypes, r).value << " bytes a rank\n";
}
