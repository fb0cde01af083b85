// SPDX-License-Identifier: Apache-2.0
/// accelerate's prepare: the last edits of a DeepSpeed configuration before DeepSpeed reads it. Every front end that
/// runs accelerate comes through here.
#pragma once

#include <flatshard/config/deepspeed/autofill.hpp>
#include <flatshard/config/deepspeed/batch.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_number.hpp>
#include <flatshard/config/python_text.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// An object that the training program hands to prepare.
enum class prepared_object : std::uint8_t {
  none,
  in_code,      ///< a real optimizer or scheduler
  placeholder,  ///< DummyOptim or DummyScheduler: the file's section makes the object
  callable      ///< a DummyScheduler that brings its own function
};
/// What is handed to prepare, and the Accelerator's own steps.
struct prepare_arguments {
  value gradient_accumulation_steps = 1;
  bool steps_are_compared = true;                      ///< a file that accumulates otherwise is warned about
  std::vector<std::int64_t> dataloader_batch_sizes{};  ///< of the dataloaders
  prepared_object optimizer = prepared_object::in_code, scheduler = prepared_object::none;
  value optimizer_settings = value::object();  ///< of a placeholder: lr, weight_decay
  value scheduler_settings = value::object();  ///< of a placeholder: total_num_steps, warmup_num_steps, lr
};

/// Fills the rest of `config`, refuses what is left as "auto", and objects that stand both in the file and in code.
/// Returns whether the micro batch is known. Source: accelerate@16cb6eb8:src/accelerate/accelerator.py:2134-2346.
inline bool prepare_deepspeed(value& config, node const& root, prepare_arguments const& given, profile p,
                              facts const& f, bucket_fill& buckets, findings& out);

// ---- definitions

namespace detail {

/// Python's `steps`: the Accelerator takes int() of its variable over its argument.
inline value accelerator_steps(prepare_arguments const& given, facts const& f, node const& root, findings& out) {
  auto const variable = f.variable("ACCELERATE_GRADIENT_ACCUMULATION_STEPS");
  if (!variable) return given.gradient_accumulation_steps;
  if (auto const steps = python_int(*variable)) return *steps;
  out.error(errc::bad_number, root["gradient_accumulation_steps"].where(), at_train,
            "the environment sets ACCELERATE_GRADIENT_ACCUMULATION_STEPS=" + std::string{*variable} +
                ", an integer is needed",
            {"ValueError", "accelerate", "invalid literal for int() with base 10: " + python_repr(value{*variable})});
  return given.gradient_accumulation_steps;
}

/// The Trainer asks first, where it starts to train.
inline void check_tensor_parallel(node const& root, profile p, findings& out) {
  auto const section = root["tensor_parallel"];
  std::string_view const raised_by = is_transformers(p) ? "transformers" : "accelerate";
  if (!section.present()) return;
  if (!section->is(value_kind::object))
    return out.error(errc::section_not_object, section.where(), at_train,
                     "found " + std::string{name(section->kind())} + ", allowed: an object",
                     {"AttributeError", raised_by,
                      "'" + std::string{python_name(section->kind())} + "' object has no attribute 'get'"});
  auto const size = section["autotp_size"];
  if (size.present() && !size->number())
    out.error(errc::wrong_type, size.where(), at_train, "found " + to_json(*size) + ", a number is needed",
              {"TypeError", raised_by,
               "'>' not supported between instances of '" + std::string{python_name(size->kind())} + "' and 'int'"});
}

/// The micro batch: the file's, or the least of the dataloaders'.
inline void fill_micro_batch(value& config, node const& root, prepare_arguments const& given, findings& out) {
  constexpr std::string_view key = "train_micro_batch_size_per_gpu";
  if (!config[key].is_text("auto")) return;
  auto const& sizes = given.dataloader_batch_sizes;
  if (sizes.empty())
    return out.error(
        errc::micro_batch_unresolved, root[key].where(), at_train,
        "train_micro_batch_size_per_gpu is \"auto\" and no dataloader is given to prepare; write a "
        "number, or give dataloader_batch_sizes",
        {"ValueError", "accelerate",
         "When using DeepSpeed, `accelerate.prepare()` requires you to pass at least one of training or evaluation "
         "dataloaders with `batch_size` attribute returning an integer value or alternatively set an integer value in "
         "`train_micro_batch_size_per_gpu` in the deepspeed config file or assign integer value to "
         "`AcceleratorState().deepspeed_plugin.deepspeed_config['train_micro_batch_size_per_gpu']`."});
  config.set(key, *std::min_element(sizes.begin(), sizes.end()));
}

/// accelerate multiplies the three itself, whatever train_batch_size says, so a value that is no number fails there.
inline void fill_train_batch(value& config, node const& root, std::size_t world, findings& out) {
  auto const& micro = config["train_micro_batch_size_per_gpu"];
  auto const& steps = config["gradient_accumulation_steps"];
  if (!micro.present() || micro.is(value_kind::null) || micro.is_text("auto")) return;
  auto const total = batch_product(micro, steps, world);
  if (total) {
    if (config["train_batch_size"].is_text("auto")) config.set("train_batch_size", *total);
    return;
  }
  bool const by_steps = python_number_of(micro).has_value();
  auto const culprit = root[by_steps ? "gradient_accumulation_steps" : "train_micro_batch_size_per_gpu"];
  auto const& odd = by_steps ? steps : micro;
  bool const repeats = odd.is(value_kind::string) || odd.is(value_kind::array);
  out.error(errc::wrong_type, culprit.where(), at_train, "found " + to_json(odd) + ", a number or \"auto\" is needed",
            {"TypeError", "accelerate",
             repeats ? "unsupported operand type(s) for //: '" + std::string{python_name(odd.kind())} + "' and 'int'"
                     : "unsupported operand type(s) for *: 'int' and '" + std::string{python_name(odd.kind())} + "'"});
}

/// Sections whose object the training program brings, or brings a placeholder for.
inline void check_prepared_objects(value& config, node const& root, prepare_arguments const& given, profile p,
                                   findings& out) {
  std::string const product{product_of(p)};
  auto const conflict = [&](std::string const& key, std::string const& article, std::string const& placeholder) {
    out.error(errc::optimizer_conflict, root[key].where(), at_train,
              "the file has a section \"" + key + "\", but " + (p == profile::accelerate ? "the program" : product) +
                  " brings its own in code; remove it",
              {"ValueError", "accelerate",
               "You cannot specify " + article + ' ' + key +
                   " in the config file and in the code at the same time. Please remove the " + key +
                   " from the config file or create `accelerate.utils." + placeholder + "` in the code."});
  };
  using enum prepared_object;
  bool const optimizer = config.has("optimizer"), scheduler = config.has("scheduler");
  if (given.optimizer == in_code && optimizer) conflict("optimizer", "an", "DummyOptim");
  if (given.optimizer == placeholder && !optimizer)
    out.error(errc::optimizer_section_missing, root.where(), at_train,
              "the program passes a DummyOptim, but the file has no section \"optimizer\"; add one",
              {"ValueError", "accelerate",
               "You cannot create a `DummyOptim` without specifying an optimizer in the config file."});
  if (given.optimizer == in_code) config.set("zero_allow_untested_optimizer", true);
  if (given.scheduler == in_code && scheduler) conflict("scheduler", "a", "DummyScheduler");
  if (given.scheduler == placeholder && !scheduler)
    out.error(errc::optimizer_section_missing, root.where(), at_train,
              "the program passes a DummyScheduler, but the file has no section \"scheduler\"; add one",
              {"ValueError", "accelerate",
               "Either specify a scheduler in the config file or pass in the `lr_scheduler_callable` parameter when "
               "using `accelerate.utils.DummyScheduler`."});
}

/// `optimizer.params` and `scheduler.params`, where they are "auto", from placeholders.
inline void fill_from_placeholders(value& config, node const& root, prepare_arguments const& given, facts const& f,
                                   findings& out) {
  auto const fill = [&](std::string_view section, std::string_view key, value const& to) {
    if (config[section]["params"][key].is_text("auto")) config.set({section, "params", key}, to);
  };
  auto const setting = [](value const& from, std::string_view key, value const& otherwise) {
    return from.has(key) ? from[key] : otherwise;
  };
  bool const dummy = given.optimizer == prepared_object::placeholder;
  auto const rate = dummy ? setting(given.optimizer_settings, "lr", 0.001) : given.scheduler_settings["lr"];
  if (dummy) {
    fill("optimizer", "lr", rate);
    fill("optimizer", "weight_decay", setting(given.optimizer_settings, "weight_decay", 0));
  }
  if (given.scheduler != prepared_object::placeholder) return;
  auto const& settings = given.scheduler_settings;
  fill("scheduler", "warmup_min_lr", 0);
  if (config["scheduler"]["params"]["warmup_max_lr"].is_text("auto") && !rate.present())
    out.note(
        errc::auto_unresolved, root["scheduler"]["params"]["warmup_max_lr"].where(), at_train,
        "warmup_max_lr is \"auto\": accelerate takes the learning rate of the optimizer in code, which is not given");
  fill("scheduler", "warmup_max_lr", rate.present() ? rate : value{nullptr});
  auto warmup = setting(settings, "warmup_num_steps", 0);
  if (is_since(f.upstream.accelerate, {1, 15, 0}, false) && warmup.number().value_or(1) < 1) warmup = 1;
  fill("scheduler", "warmup_num_steps", warmup);
  if (auto const total = settings["total_num_steps"].number()) {
    auto const each = std::ceil(*total / static_cast<double>(f.world.value_or(1)));
    bool const whole = std::abs(each) < 9e18;
    fill("scheduler", "total_num_steps", whole ? value{static_cast<std::int64_t>(each)} : value{each});
  }
}

/// What prepare asks of the section for an optimizer in code: objects, where null passed everything before.
inline void check_offload_for_client(node const& root, findings& out) {
  auto const zero = root["zero_optimization"], offload = zero["offload_optimizer"];
  for (auto const& at : {zero, offload})
    if (at.present() && at->is(value_kind::null) && !out.refused_section(at.where(), at_train))
      out.error(errc::section_not_object, at.where(), at_train, "found null, allowed: an object, or no such key",
                {"AttributeError", "accelerate", "'NoneType' object has no attribute 'get'"});
}

}  // namespace detail

inline bool prepare_deepspeed(value& config, node const& root, prepare_arguments const& given, profile p,
                              facts const& f, bucket_fill& buckets, findings& out) {
  auto const steps = detail::accelerator_steps(given, f, root, out);
  detail::check_tensor_parallel(root, p, out);
  detail::fill_micro_batch(config, root, given, out);
  if (config["gradient_accumulation_steps"].is_text("auto")) config.set("gradient_accumulation_steps", steps);
  if (given.steps_are_compared)
    check_accumulation(config["gradient_accumulation_steps"], steps, root["gradient_accumulation_steps"].where(), out);
  detail::fill_train_batch(config, root, f.world.value_or(1), out);
  detail::check_prepared_objects(config, root, given, p, out);
  bool const text_first = f.buckets == bucket_source::text_config && !reads_older_llamafactory(f.upstream);
  auto const lookup =
      is_llamafactory(p) && text_first ? hidden_size_lookup::text_config : hidden_size_lookup::accelerate;
  fill_buckets(config, root, {.lookup = lookup}, f, buckets, out);
  detail::fill_from_placeholders(config, root, given, f, out);
  if (config["gradient_clipping"].is_text("auto")) config.set("gradient_clipping", 1.0);
  auto const& gather = config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"];
  if (gather.is_text("auto")) config.set({"zero_optimization", "stage3_gather_16bit_weights_on_model_save"}, false);
  if (given.optimizer == prepared_object::in_code) detail::check_offload_for_client(root, out);
  bool const known = !config["train_micro_batch_size_per_gpu"].is_text("auto");
  if (!known) {  // refused above: nothing that follows from it is refused again
    config.set("train_micro_batch_size_per_gpu", 1);
    if (config["train_batch_size"].is_text("auto")) config.erase("train_batch_size");
  }
  report_left_auto(config, root, out);
  return known;
}

}  // namespace v0
}  // namespace flatshard
