// SPDX-License-Identifier: Apache-2.0
/// A DeepSpeed configuration under LLaMA-Factory: the trigger while the model is built, and accelerate's steps when
/// training starts.
#pragma once

#include <flatshard/config/accelerate/deepspeed_plugin.hpp>
#include <flatshard/config/accelerate/precision.hpp>
#include <flatshard/config/accelerate/prepare.hpp>
#include <flatshard/config/deepspeed/file.hpp>
#include <flatshard/config/load_trigger.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/resolution.hpp>

#include <optional>
#include <string>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// What is left of loading when training starts.
struct deepspeed_load {
  bool readable = false;         ///< the root is an object, so that anything can follow
  bool precision_known = false;  ///< the precision was decided while the model was built
  std::optional<precision_mode> mode;
};

/// While the model is built: the trigger of partitioned loading; if it is on, precision and DeepSpeed's own reading.
[[nodiscard]] inline deepspeed_load load_deepspeed(document const& config, profile p, facts const& f, findings& out,
                                                   resolved_policies& policies);

/// The start of training, after a readable load. `micro` and `steps` are the front end's own batch numbers.
inline void train_deepspeed(document const& config, deepspeed_load const& load, profile p, facts const& f,
                            value const& micro, value const& steps, findings& out, resolved_policies& policies);

/// Resolves one DeepSpeed configuration: loading, then training.
inline void resolve_deepspeed(document const& config, profile front_end, facts const& f, value const& micro,
                              value const& steps, findings& out, resolved_policies& policies) {
  auto const load = load_deepspeed(config, front_end, f, out, policies);
  if (load.readable) train_deepspeed(config, load, front_end, f, micro, steps, out, policies);
}

// ---- definitions

inline deepspeed_load load_deepspeed(document const& config, profile p, facts const& f, findings& out,
                                     resolved_policies& policies) {
  auto const root = config.root();
  policies.backend = backend_kind::deepspeed;
  report_duplicates(root, out);
  if (reads_first_llamafactory(f.upstream)) {
    out.error(
        errc::unsupported, root.where(), at_load,
        "before its pull request 10300 LLaMA-Factory hands a DeepSpeed file to accelerate as it is, with no rule of "
        "its own for precision and loading: choose --profile accelerate",
        {});
    return {};
  }
  if (!root->is(value_kind::object)) {
    out.error(errc::root_not_object, root.where(), at_load,
              "the file holds " + std::string{name(root->kind())} + ", an object is needed",
              {"AttributeError", package_of(p),
               "'" + std::string{python_name(root->kind())} + "' object has no attribute 'get'"});
    return {};
  }
  deepspeed_load load{.readable = true, .precision_known = false, .mode = std::nullopt};
  auto const trigger = load_trigger(root);
  report_load_trigger(trigger, root, p, out);
  if (trigger.active) {
    load.precision_known = true;
    // what is refused here is refused at train too: the same look at the same file
    load.mode = decide_precision(root, p, at_load_and_train, out);
    if (load.mode) {
      policies.mode = *load.mode;
      auto pinned = with_precision(*root, *load.mode);
      pin_batch(pinned);
      auto const read = read_natively(pinned, root, f.world_at_load, f, at_load, out);
      if (read.batch) policies.batch_at_load = read.batch->sizes;
    }
  }
  policies.load = decide_load_trigger(trigger, load.mode, root, p, out);
  return load;
}

namespace detail {

/// accelerate looks at the sections once more, with its variable's word.
inline void apply_precision_variable(value& config, node const& root, precision_mode mode, facts const& f,
                                     findings& out) {
  auto const variable = f.variable("ACCELERATE_MIXED_PRECISION");
  if (!variable || *variable == "no" || variable->empty()) return;
  wanted_precision const wanted{std::string{*variable},
                                "the environment sets ACCELERATE_MIXED_PRECISION=" + std::string{*variable}};
  if (apply_mixed_precision(config, root, wanted, at_train, out) &&
      dtype_of_mode(mode) != dtype_of_deepspeed_word(*variable == "fp8" ? "bf16" : *variable))
    out.warn(errc::ignored_key, root["bf16"].where(), at_train,
             wanted.said + ", which is ignored: training runs in " + std::string{name(dtype_of_mode(mode))});
}

}  // namespace detail

inline void train_deepspeed(document const& config, deepspeed_load const& load, profile p, facts const& f,
                            value const& micro, value const& steps, findings& out, resolved_policies& policies) {
  auto const root = config.root();
  report_ignored_keys(root, p, f, out);
  handed_config handed;
  handed.mode = load.precision_known ? load.mode : decide_precision(root, p, at_train, out);
  auto& copy = handed.config;
  copy = handed.mode ? with_precision(*root, *handed.mode) : without_precision(*root);
  auto const& micro_at = copy["train_micro_batch_size_per_gpu"];
  if (!micro_at.present() || micro_at.is(value_kind::null) || micro_at.is_text("auto"))
    copy.set("train_micro_batch_size_per_gpu", micro);
  if (copy["gradient_accumulation_steps"].is_text("auto")) copy.set("gradient_accumulation_steps", steps);
  static_cast<void>(build_deepspeed_plugin(copy, root, p, f, at_train, out));
  if (handed.mode) detail::apply_precision_variable(copy, root, *handed.mode, f, out);
  auto const client = f.client_optimizer ? prepared_object::in_code : prepared_object::none;
  prepare_arguments given{.gradient_accumulation_steps = steps, .optimizer = client, .scheduler = client};
  static_cast<void>(prepare_deepspeed(copy, root, given, p, f, handed.buckets, out));
  handed.read = read_natively(copy, root, f.world.value_or(1), f, at_train, out);
  decide_engine(handed, root, p, f, out, policies);
}

}  // namespace v0
}  // namespace flatshard
