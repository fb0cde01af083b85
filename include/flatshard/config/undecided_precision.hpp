// SPDX-License-Identifier: Apache-2.0
/// What holds where nobody decides the dtypes of the roles, so that the framework takes the weights as it finds them:
/// DDP, FSDP version 1, one process of accelerate.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <string>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// A precision that nobody decides.
struct undecided_precision {
  /// What then holds; weights that stay as they were loaded count as what `facts::checkpoint` says, else as fp32.
  precision roles;
  bool as_loaded = true;  ///< no weight is cast: a loader leaves them as they are in the file
  std::string said;       ///< the same as a sentence
};

/// What a framework does with weights that no policy is about; `none`: a role has their dtype.
struct framework_dtypes {
  std::string casts;            ///< who casts the weights, as the begin of a sentence
  dtype weights = dtype::none;  ///< what they are cast to; none: they stay as they were loaded
  dtype compute = dtype::none;  ///< of the forward and backward
  dtype output = dtype::none;   ///< none: as computed
  dtype reduce = dtype::none;   ///< of gradients on the wire
  std::string by{};             ///< what decides these three
};

/// Leaves the roles to the framework: the one decision is `precision`, and it is `undecided`.
[[nodiscard]] inline undecided_precision leave_precision(framework_dtypes const& d, profile p, place where,
                                                         facts const& f, findings& out) {
  bool const as_loaded = d.weights == dtype::none;
  auto const own = as_loaded ? f.checkpoint.value_or(dtype::f32) : d.weights;
  precision const given{.parameter_storage = dtype::none,
                        .compute = d.compute,
                        .output = d.output == dtype::none ? d.compute : d.output,
                        .reduce = d.reduce,
                        .grad_accum = dtype::none,
                        .optimizer_state = dtype::none};
  auto const of = [&](role r) { return given(r) == dtype::none ? own : given(r); };
  std::string left, known;
  for (auto const r : roles) {
    if (r == role::master) continue;  // there is none: the optimizer updates the weights
    auto& list = given(r) == dtype::none ? left : known;
    list += (list.empty() ? "" : ", ") + std::string{name(r)};
    if (given(r) != dtype::none) list += ' ' + std::string{name(given(r))};
  }
  auto said = d.casts + ", so " + (known.empty() ? "all roles" : left) + " are ";
  if (!as_loaded)
    said += name(own);
  else
    said += f.checkpoint ? "as loaded, " + std::string{name(own)} + " in the checkpoint"
                         : std::string{"as loaded, fp32 unless the checkpoint says otherwise"};
  if (!known.empty()) said += "; " + known + " by " + d.by;
  out.decide("precision", "undecided", said, rule_of(p, "precision"), std::move(where));
  return {{.parameter_storage = own,
           .compute = of(role::compute),
           .output = of(role::output),
           .reduce = of(role::reduce),
           .grad_accum = own,
           .optimizer_state = own},
          as_loaded,
          std::move(said)};
}

}  // namespace v0
}  // namespace flatshard
