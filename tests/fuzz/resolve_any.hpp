// SPDX-License-Identifier: Apache-2.0
/// What must hold of the resolution of any document, whatever text it was read from.
#pragma once

#include "../../tools/resolver.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace fuzz {

inline void check(bool holds, char const* rule) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", rule);
  std::abort();
}

/// train = micro * steps * world; numbers that are no 64-bit integers are not looked at.
inline bool holds(flatshard::value const& train, flatshard::value const& micro, flatshard::value const& steps,
                  flatshard::value const& world) {
  if (!train.integer() || !micro.integer() || !steps.integer() || !world.integer()) return true;
  std::int64_t product = 0;
  bool const wraps = __builtin_mul_overflow(*micro.integer(), *steps.integer(), &product) ||
                     __builtin_mul_overflow(product, *world.integer(), &product);
  return wraps || product == *train.integer();
}

/// Resolves it under every profile that reads the form, as `many` ranks.
inline void resolve_any(flatshard::document const& config, flatshard::config_form form, std::size_t many) {
  using namespace flatshard;
  facts f;
  f.world = many;
  f.hidden_size = 64;
  f.form = form;
  f.accelerator.mixed_precision = mixed_precision_names[many % 4];
  f.accelerator.dataloader_batch_sizes = {4};
  f.training.bf16 = many % 3 == 1;
  f.training.fp16 = many % 3 == 2;
  f.zero_init = many % 2 == 1;
  for (auto const front_end : profiles) {
    if (!reads(front_end, form)) continue;
    auto const r = decide(config, front_end, f);
    for (auto const& p : r.problems) check(!p.detail.empty(), "a problem has words");
    for (auto const& d : r.decisions) check(!d.key.empty() && !d.rule.empty(), "a decision has a key and a rule");
    if (front_end != profile::llamafactory_review)
      check(r.hash() == decide(config, front_end, f).hash(), "equal inputs are decided alike");
    if (r.has_errors()) continue;
    check(r.policies.dtypes.has_value() != r.policies.undecided.has_value(),
          "dtypes are decided or said to be nobody's");
    if (auto const& b = r.policies.batch) check(holds(b->train, b->micro, b->steps, b->world), "the triangle holds");
  }
}

/// What was read can be written, and read again as the same value.
inline void check_round_trip(flatshard::document const& config) {
  auto const text = to_json(config.value_of_root());
  auto const again = flatshard::parse_json(text, "again");
  check(again.has_value(), "what is written can be read");
  check(to_json(again->value_of_root()) == text, "what is written is read as it was");
}

}  // namespace fuzz
