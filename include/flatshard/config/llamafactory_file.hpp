// SPDX-License-Identifier: Apache-2.0
/// LLaMA-Factory v1's own file or dict: sections, mesh, loading, batch, backend, in upstream's order.
#pragma once

#include <flatshard/config/deepspeed_file.hpp>
#include <flatshard/config/process_group.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/roles.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The top-level keys of LLaMA-Factory v1. Source: LLaMA-Factory@ff6d4d12e:src/llamafactory/v1/config/.
inline constexpr auto llamafactory_keys = std::to_array<std::string_view>({"bf16",
                                                                           "enable_activation_checkpointing",
                                                                           "micro_batch_size",
                                                                           "global_batch_size",
                                                                           "mp_replicate_size",
                                                                           "mp_shard_size",
                                                                           "dp_size",
                                                                           "cp_size",
                                                                           "dist_timeout",
                                                                           "max_grad_norm",
                                                                           "flash_attn",
                                                                           "dist_config",
                                                                           "init_config",
                                                                           "model",
                                                                           "custom_chat_template",
                                                                           "trust_remote_code",
                                                                           "model_class",
                                                                           "peft_config",
                                                                           "kernel_config",
                                                                           "quant_config",
                                                                           "train_dataset",
                                                                           "eval_dataset",
                                                                           "output_dir",
                                                                           "cutoff_len",
                                                                           "learning_rate",
                                                                           "num_train_epochs",
                                                                           "max_steps",
                                                                           "batching_strategy",
                                                                           "batching_workers",
                                                                           "cp_mode",
                                                                           "optim_config",
                                                                           "lr_scheduler_config",
                                                                           "seed",
                                                                           "full_determinism",
                                                                           "resume_from_checkpoint",
                                                                           "save_steps",
                                                                           "save_epochs",
                                                                           "save_ckpt_as_hf",
                                                                           "save_total_limit",
                                                                           "logging_steps",
                                                                           "pref_loss",
                                                                           "pref_beta",
                                                                           "pref_ftx",
                                                                           "simpo_gamma",
                                                                           "dpo_label_smoothing",
                                                                           "ld_alpha",
                                                                           "sample_backend",
                                                                           "max_new_tokens"});
/// The sections that upstream converts, in its order.
inline constexpr std::array<std::string_view, 7> llamafactory_sections{
    "init_config", "peft_config",  "kernel_config",      "quant_config",
    "dist_config", "optim_config", "lr_scheduler_config"};
inline constexpr std::array<std::string_view, 5> fsdp2_keys{"name", "reshard_after_forward", "offload_params",
                                                            "pin_memory", "dcp_path"};
inline constexpr std::array<std::string_view, 2> deepspeed_backend_keys{"name", "config_file"};

/// A section after upstream's conversion: words and digits in strings become bools and numbers, in nested objects too
/// and in arrays not. Places are kept.
[[nodiscard]] inline value converted_section(value const& section);

/// Replaces sections given as JSON text (a string that starts with `{`) by the object that `parse` reads; what it
/// cannot read stays a string, which `resolve` reports. `parse(text)` returns an optional value.
template <class Parse>
void expand_json_sections(document& file, Parse&& parse);

/// Applies one override `a.b=value` to a file's root: it wins over the file; a path through a scalar makes an object.
/// Returns the refusal of a path through an array.
[[nodiscard]] inline std::optional<problem> apply_override(document& file, std::string_view dotted_key, value to);

/// The DeepSpeed file that a LLaMA-Factory file names and upstream will open; empty if there is none.
[[nodiscard]] inline std::string config_file_of(document const& file);
/// The checkpoint folder that it names (dcp_path), for which `facts::files` needs an entry if the folder exists.
[[nodiscard]] inline std::string checkpoint_folder_of(document const& file);

/// Resolves a LLaMA-Factory file or dict.
inline void resolve_llamafactory(document const& file, profile front_end, facts const& f, findings& out,
                                 resolved_policies& policies);

// ---- definitions

inline value converted_section(value const& section) {
  if (section.is(value_kind::object)) {
    auto out = value::object();
    for (auto const& m : section.members())
      out.add_at(out.members().size(), m.key, m.key_at, converted_section(m.held));
    out.place_at(section.at());
    return out;
  }
  if (!section.is(value_kind::string)) return section;
  auto const text = section.text();
  auto const place_kept = [&](value v) { return v.place_at(section.at()); };
  auto const word = lower(text);
  if (word == "true" || word == "false") return place_kept(word == "true");
  auto const point = text.find('.');
  auto const digits = [](std::string_view t) { return t.find_first_not_of("0123456789") == std::string_view::npos; };
  if (text.empty() || text == ".") return section;
  if (point == std::string_view::npos && digits(text)) {
    auto const significant = text.substr(std::min(text.find_first_not_of('0'), text.size() - 1));  // "007" is 7
    return place_kept(value::number(significant));
  }
  if (point != std::string_view::npos && digits(text.substr(0, point)) && digits(text.substr(point + 1))) {
    double x = 0;
    if (detail::parse_python_float(text, x)) return place_kept(x);
  }
  return section;
}

template <class Parse>
void expand_json_sections(document& file, Parse&& parse) {
  for (auto const key : llamafactory_sections) {
    auto const& v = file.value_of_root()[key];
    if (!v.is(value_kind::string) || !v.text().starts_with('{')) continue;
    std::optional<value> const read = parse(v.text());
    if (!read) continue;
    auto object = *read;
    object.place_at(v.at());
    file.edit().set(key, std::move(object));
  }
}

namespace detail {
/// Merges as omegaconf does: objects key by key, other values replace; an object and an array do not mix.
inline bool merge(value& into, value const& from) {
  if (into.is(value_kind::object) && from.is(value_kind::object)) {
    for (auto const& m : from.members()) {
      auto merged = into[m.key];
      if (!merge(merged, m.held)) return false;
      into.set(m.key, std::move(merged));
    }
    return true;
  }
  auto const container = [](value const& v) { return v.is(value_kind::object) || v.is(value_kind::array); };
  if (container(into) && container(from) && into.kind() != from.kind()) return false;
  into = from;
  return true;
}
}  // namespace detail

inline std::optional<problem> apply_override(document& file, std::string_view dotted_key, value to) {
  std::vector<std::string_view> path;
  for (auto rest = dotted_key;;) {
    auto const dot = rest.find('.');
    path.push_back(rest.substr(0, dot));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  auto const refused = [&](std::string detail) {
    return problem{errc::root_not_object, {file.file(), {}, 0, 0},
                   std::move(detail),     severity::error,
                   std::string{at_read},  "TypeError (omegaconf): Cannot merge incompatible container types"};
  };
  if (path.size() > max_nesting / 2)
    return refused("the override \"" + std::string{dotted_key.substr(0, 40)} + "...\" is too deep");
  auto from = value::object();
  from.set(path, std::move(to));
  if (!file.value_of_root().is(value_kind::object)) return refused("an override needs a file that holds an object");
  if (!detail::merge(file.edit(), from))
    return refused("the override \"" + std::string{dotted_key} + "\" goes through an array");
  return std::nullopt;
}

inline std::string config_file_of(document const& file) {
  auto const section = converted_section(file.value_of_root()["dist_config"]);
  if (!section["name"].is_text("deepspeed") || !section["config_file"].is(value_kind::string)) return {};
  return std::string{section["config_file"].text()};
}
inline std::string checkpoint_folder_of(document const& file) {
  auto const section = converted_section(file.value_of_root()["dist_config"]);
  return section["dcp_path"].is(value_kind::string) ? std::string{section["dcp_path"].text()} : std::string{};
}

namespace detail {

class llamafactory_file {
 public:
  llamafactory_file(document const& file, profile front_end, facts const& f, findings& out, resolved_policies& policies)
      : file_{file}, root_{file_.root()}, profile_{front_end}, facts_{f}, out_{out}, policies_{policies} {}

  void resolve() {
    report_duplicates(root_, out_);
    if (root_->is(value_kind::null) || !root_.present()) {
      file_.edit() = value::object();  // an empty file is one without keys
    } else if (!root_->is(value_kind::object)) {
      out_.error(errc::root_not_object, root_.where(), at_read,
                 "the file holds " + std::string{name(root_->kind())} + ", an object of keys is needed",
                 {"TypeError", "omegaconf", "Cannot merge incompatible container types"});
      return;
    }
    check_attention();
    convert_sections();
    check_keys();
    mesh();
    backend_name_ = dist_["name"]->is(value_kind::string) ? std::string{dist_["name"]->text()} : std::string{};
    open_deepspeed();
    decide_backend_first();
    load();
    batch();
    if (backend_name_ == "deepspeed") check_context_parallel();
    backend();
    check_flash_attention();
    decide_rest();
  }

 private:
  [[nodiscard]] std::string rule(std::string_view key) const { return "llamafactory." + std::string{key}; }
  [[nodiscard]] static std::string absent(std::string_view what) {
    return std::string{what} + " is absent, default of " + std::string{llamafactory_version};
  }
  /// "key is value", or that it is absent.
  [[nodiscard]] static std::string said(node const& n, std::string_view key) {
    return n.present() ? std::string{key} + " is " + to_json(*n) : absent(key);
  }
  void attribute_error(node const& at, std::string detail) {
    out_.error(errc::wrong_type, at.where(), at_read, std::move(detail),
               {"AttributeError", "llamafactory",
                "'" + std::string{python_name(at->kind())} + "' object has no attribute 'items'"});
  }

  void check_attention() {
    auto const at = root_["flash_attn"];
    if (!at.present() || at->is_text("eager") || at->is_text("sdpa") || at->is_text("flash_attention_2")) return;
    out_.error(errc::bad_attention, at.where(), at_read,
               "found " + to_json(*at) + ", allowed: \"eager\", \"sdpa\" or \"flash_attention_2\"",
               {"ValueError", "llamafactory", python_text(*at) + " is not a valid attention function"});
  }

  void convert_sections() {
    for (auto const key : llamafactory_sections) {
      auto const at = root_[key];
      if (!at.present() || at->is(value_kind::null)) continue;
      if (at->is(value_kind::string) && at->text().starts_with('{')) {
        out_.error(errc::json_syntax, at.where(), at_read,
                   "found a string in braces that is not one strict JSON object; write the section as keys",
                   {"JSONDecodeError", "json", "invalid JSON"});
        broken_.push_back(std::string{key});
        continue;
      }
      if (!at->is(value_kind::object)) {
        attribute_error(at, "found " + to_json(*at) + ", allowed: an object with a key \"name\", or null");
        broken_.push_back(std::string{key});
        continue;
      }
      auto section = converted_section(*at);
      if (!section.has("name")) {
        out_.error(errc::backend_name_missing, at.where(), at_read, "the section has no key \"name\"",
                   {"ValueError", "llamafactory", "Plugin configuration must have a 'name' field."});
        broken_.push_back(std::string{key});
      }
      report_conversions(at, section);
      sections_.edit().set(key, std::move(section));
    }
    dist_ = sections_.root()["dist_config"];
    init_ = sections_.root()["init_config"];
  }
  void report_conversions(node const& before, value const& after) {
    for (auto const& m : before->members())
      if (m.held.is(value_kind::string) && !after[m.key].is(value_kind::string))
        out_.warn(after[m.key].is(value_kind::boolean) ? errc::string_as_bool : errc::odd_truth_value,
                  before[m.key].where(), at_read,
                  "found the string " + to_json(m.held) + ", which LLaMA-Factory turns into " + to_json(after[m.key]) +
                      " inside sections; write it without quotes");
  }
  [[nodiscard]] bool is_broken(std::string_view key) const {
    return std::find(broken_.begin(), broken_.end(), key) != broken_.end();
  }

  void check_keys() {
    std::vector<std::string_view> const known{llamafactory_keys.begin(), llamafactory_keys.end()};
    std::vector<object_member const*> unknown;
    for (auto const& m : root_->members())
      if (m.key.empty() || std::find(known.begin(), known.end(), m.key) == known.end()) unknown.push_back(&m);
    std::sort(unknown.begin(), unknown.end(), [](auto const* a, auto const* b) { return a->key < b->key; });
    auto const word = lower(facts_.variable("ALLOW_EXTRA_KEYS").value_or(""));
    constexpr std::array<std::string_view, 6> yes{"true", "yes", "on", "t", "y", "1"};
    bool const allowed = std::find(yes.begin(), yes.end(), word) != yes.end();
    for (auto const* m : unknown) {
      auto hint = out_.suggest(m->key, known);
      if (std::find(fsdp2_keys.begin(), fsdp2_keys.end(), m->key) != fsdp2_keys.end() || m->key == "config_file")
        hint = "; it belongs into dist_config";
      else if (std::find(deepspeed_top_keys.begin(), deepspeed_top_keys.end(), m->key) != deepspeed_top_keys.end())
        hint = "; it is a key of a DeepSpeed file, which dist_config.config_file names";
      if (allowed)
        out_.warn(errc::ignored_key, root_.key_place(*m), at_read,
                  "the key \"" + m->key + "\" is not known and ignored, because ALLOW_EXTRA_KEYS is set" + hint);
      else
        out_.error(
            errc::unknown_keys, root_.key_place(*m), at_read, "the key \"" + m->key + "\" is not known" + hint,
            {"ValueError", "transformers", "Some keys are not used by the HfArgumentParser: ['" + m->key + "']"});
    }
  }

  /// Upstream's check of one pair of sizes: `outer * inner == world`, or inner = world // outer.
  void pair_of_sizes(std::string_view outer_key, std::string_view inner_key, value& outer, value& inner) {
    auto const outer_at = root_[outer_key], inner_at = root_[inner_key];
    outer = outer_at.present() ? *outer_at : value{1};
    inner = inner_at.present() ? *inner_at : value{nullptr};
    if (!facts_.world) {
      inner = 1;
      return;
    }
    value const world = static_cast<std::int64_t>(*facts_.world);
    auto const ws = std::to_string(*facts_.world);
    auto const wrong_type = [&](node const& at, value const& v) {
      out_.error(
          errc::wrong_type, at.where(), at_read, "found " + to_json(v) + ", an integer is needed",
          {"TypeError", "llamafactory", "unsupported operand type(s): '" + std::string{python_name(v.kind())} + "'"});
      inner = 1;
      mesh_failed_ = true;
    };
    auto const mismatch = [&](node const& at, std::string detail, std::string message) {
      out_.error(errc::mesh_mismatch, at.where(), at_read, std::move(detail),
                 {"ValueError", "llamafactory", std::move(message)});
      inner = 1;
      mesh_failed_ = true;
    };
    auto const a = python_number_of(outer);
    if (inner.is(value_kind::null)) {
      if (!a) return wrong_type(outer_at, outer);
      if (a->zero()) {
        out_.error(errc::division_by_zero, outer_at.where(), at_read,
                   std::string{outer_key} + " is 0, it must divide the world size",
                   {"ZeroDivisionError", "llamafactory", "integer modulo by zero"});
        inner = 1;
        mesh_failed_ = true;
        return;
      }
      auto const quotient = floor_divide(*python_number_of(world), *a);
      if (!same_number(multiply(quotient, *a), *python_number_of(world)))
        return mismatch(
            outer_at,
            "the world size " + ws + " is not a multiple of " + std::string{outer_key} + " = " + python_text(outer),
            "world_size (" + ws + ") must be divisible by " + std::string{outer_key} + " (" + python_text(outer) +
                ").");
      inner = to_value(quotient);
    } else {
      auto const b = python_number_of(inner);
      // a number times a text or list repeats it upstream, and the result equals no number
      auto const repeats = [](value const& n, value const& sequence) {
        return (n.is(value_kind::integer) || n.is(value_kind::boolean)) &&
               (sequence.is(value_kind::string) || sequence.is(value_kind::array));
      };
      if ((!a || !b) && !repeats(outer, inner) && !repeats(inner, outer))
        return wrong_type(a ? inner_at : outer_at, a ? inner : outer);
      if (!a || !b || !same_number(multiply(*a, *b), *python_number_of(world)))
        return mismatch(inner_at,
                        std::string{outer_key} + " * " + std::string{inner_key} + " = " + python_text(outer) + " * " +
                            python_text(inner) + " must equal the world size " + ws +
                            (b && a ? "" : "; write the number without quotes"),
                        std::string{outer_key} + " * " + std::string{inner_key} + " must equal to world_size, got " +
                            python_text(outer) + " * " + python_text(inner) + " != " + ws + ".");
    }
    for (auto const* size : {&outer, &inner})
      if (!size->is(value_kind::integer)) {
        out_.error(errc::mesh_mismatch, (size == &outer ? outer_at : inner_at).where(), at_read,
                   std::string{size == &outer ? outer_key : inner_key} + " comes to " + to_json(*size) +
                       ", an integer is needed",
                   {"ValueError", "torch", "the device mesh needs integers"});
        mesh_failed_ = true;
        return;
      }
  }
  void mesh() {
    auto& p = policies_.front_end.emplace();
    pair_of_sizes("mp_replicate_size", "mp_shard_size", p.mp_replicate_size, p.mp_shard_size);
    pair_of_sizes("cp_size", "dp_size", p.cp_size, p.dp_size);
    auto const decide = [&](std::string_view key, value const& v) {
      auto const at = root_[key];
      auto reason = !facts_.world && (key == "mp_shard_size" || key == "dp_size") ? std::string{"1 without a launcher"}
                    : at.present() && !at->is(value_kind::null) ? std::string{key} + " is " + to_json(*at)
                    : key == "mp_shard_size" || key == "dp_size"
                        ? "the world size " + std::to_string(*facts_.world) + " // " +
                              (key == "dp_size" ? "cp_size" : "mp_replicate_size")
                        : absent(key);
      out_.decide(std::string{key}, python_text(v), std::move(reason), rule(key), at.where());
      if (!facts_.world && at.present() && !at->is(value_kind::null) && (key == "mp_shard_size" || key == "dp_size"))
        out_.warn(errc::ignored_key, at.where(), at_read, "ignored without a launcher: there is one process");
    };
    decide("mp_replicate_size", p.mp_replicate_size);
    decide("mp_shard_size", p.mp_shard_size);
    decide("cp_size", p.cp_size);
    decide("dp_size", p.dp_size);
  }

  /// The DeepSpeed file, if upstream opens one at load.
  void open_deepspeed() {
    auto const at = dist_["config_file"];
    if (backend_name_ != "deepspeed" || !truthy(*at)) return;
    policies_.config_file = python_text(*at);
    named_ = facts_.file(policies_.config_file);
    if (!named_ || (!named_->problems.empty() && named_->problems[0].code == errc::file_missing)) {
      out_.error(errc::named_file_missing, at.where(), at_load, "the file " + to_json(*at) + " does not exist",
                 {"FileNotFoundError", "llamafactory",
                  "[Errno 2] No such file or directory: '" + policies_.config_file + "'"});
      named_ = nullptr;
    } else if (!named_->problems.empty()) {
      for (auto const& p : named_->problems) out_.problems.push_back(p);
      named_ = nullptr;
    }
  }

  void decide_backend_first() {
    if (is_broken("dist_config")) return;
    auto const at = root_["dist_config"];
    auto const& dp = policies_.front_end->dp_size;
    if (!dist_.present()) {
      bool const ddp = dp.integer() && *dp.integer() > 1;
      policies_.backend = ddp ? backend_kind::ddp : backend_kind::none;
      out_.decide("backend", std::string{name(policies_.backend)},
                  ddp ? "no dist_config and dp_size is " + python_text(dp) + ": LLaMA-Factory falls back to DDP"
                      : "no dist_config and one process",
                  rule("dist_config"), at.where());
      return;
    }
    if (backend_name_ == "fsdp2") policies_.backend = backend_kind::fsdp2;
    if (backend_name_ == "deepspeed") policies_.backend = backend_kind::deepspeed;
    if (policies_.backend != backend_kind::none)
      out_.decide("backend", backend_name_, "dist_config.name is \"" + backend_name_ + "\"", rule("dist_config.name"),
                  root_["dist_config"]["name"].where());
  }

  void load() {
    if (named_) {
      engine_ = load_deepspeed(named_->content, profile_, facts_, out_, policies_);
      if (!engine_->readable) engine_.reset();
    }
    if (policies_.load.partitioned) {
      if (init_.present())
        out_.warn(errc::ignored_key, root_["init_config"].where(), at_load,
                  "init_config is ignored: the model is built partitioned, because ZeRO stage 3 is on");
      decide_load();
      return;
    }
    auto& load = policies_.load;
    if (!policies_.zero && load.reason.empty()) {
      load.reason =
          backend_name_ == "deepspeed" ? "off: no DeepSpeed file was read" : "off: the backend is not deepspeed";
      load.where = root_["dist_config"].where();
      if (backend_name_ != "deepspeed" || !engine_)
        out_.decide("zero3_loading", "false", load.reason, rule("zero3_loading"), load.where);
    }
    if (init_.present() && !is_broken("init_config")) init_way();
    decide_load();
  }
  void init_way() {
    auto& load = policies_.load;
    auto const name_at = init_["name"];
    if (name_at->is(value_kind::null)) {
      out_.error(errc::backend_name_missing, name_at.where(), at_load, "init_config.name is null",
                 {"ValueError", "llamafactory", "InitPlugin must be constructed with a name."});
      return;
    }
    bool const fsdp2 = policies_.backend == backend_kind::fsdp2;
    if (name_at->is_text("init_on_default")) return;
    if (name_at->is_text("init_on_rank0")) {
      load.device = facts_.rank == 0 ? "cpu" : "meta";
      if (fsdp2) load.way = load_way::broadcast_from_rank0;
    } else if (name_at->is_text("init_on_meta")) {
      load.device = "meta";
      if (sections_.root()["peft_config"]["name"]->is_text("lora"))
        out_.error(errc::adapter_on_meta, name_at.where(), at_load,
                   "LoRA cannot be loaded into a model on the meta device",
                   {"ValueError", "llamafactory", "Currently lora stage does not support loading model by meta."});
      if (fsdp2) {
        load.way = load_way::safetensors_per_rank;
        auto const path = dist_["dcp_path"];
        bool const exists = path->is(value_kind::string)
                                ? facts_.file(path->text()) != nullptr
                                : path->integer() && *path->integer() >= 0 && *path->integer() < 3;
        if (truthy(*path) && (exists || path->is_true()))
          load.way = load_way::dcp;
        else if (truthy(*path))
          out_.warn(errc::dcp_path_missing, path.where(), at_load,
                    "the folder " + to_json(*path) + " does not exist; weights come from the safetensors files",
                    "a warning on rank 0 (llamafactory)");
      }
    } else {
      out_.error(
          errc::unknown_backend, name_at.where(), at_load,
          "found " + to_json(*name_at) + ", allowed: \"init_on_default\", \"init_on_rank0\" or \"init_on_meta\"",
          {"ValueError", "llamafactory", "Plugin '" + python_text(*name_at) + "' is not registered under InitPlugin."});
      return;
    }
    if (!fsdp2 && load.device != "accelerator")
      out_.warn(errc::meta_weights_unfilled, name_at.where(), at_train,
                "with the backend " + std::string{name(policies_.backend)} +
                    " nothing fills the weights that are on the meta device; use init_on_default");
    for (auto const& m : init_->members())
      if (m.key != "name")
        out_.warn(errc::ignored_key, init_.key_place(m), at_load,
                  "the key \"" + m.key + "\" of init_config is ignored in silence");
  }
  void decide_load() {
    auto const at = root_["init_config"];
    out_.decide("load.way", std::string{name(policies_.load.way)},
                policies_.load.partitioned ? policies_.load.reason : said(at["name"], "init_config.name"),
                rule("init_config"), at.where());
    out_.decide("load.device", policies_.load.device, said(at["name"], "init_config.name"), rule("init_config"),
                at.where());
  }

  void batch() {
    auto& p = *policies_.front_end;
    auto const micro_at = root_["micro_batch_size"], global_at = root_["global_batch_size"];
    p.micro_batch_size = micro_at.present() ? *micro_at : value{1};
    p.num_micro_batch = 1;
    p.global_batch_size = global_at.present() ? *global_at : value{nullptr};
    auto const dp = python_number_of(p.dp_size), micro = python_number_of(p.micro_batch_size);
    auto const refuse = [&](node const& at, errc code, std::string detail, upstream_error const& e) {
      if (!mesh_failed_) out_.error(code, at.where(), at_train, std::move(detail), e);
      batch_failed_ = true;
    };
    auto const decide = [&] {
      out_.decide("micro_batch_size", python_text(p.micro_batch_size), said(micro_at, "micro_batch_size"),
                  rule("micro_batch_size"), micro_at.where());
      out_.decide("global_batch_size", python_text(p.global_batch_size),
                  global_at->is(value_kind::null) || !global_at.present() ? "dp_size * micro_batch_size"
                                                                          : said(global_at, "global_batch_size"),
                  rule("global_batch_size"), global_at.where());
      out_.decide("num_micro_batch", python_text(p.num_micro_batch), "global_batch_size // dp_size // micro_batch_size",
                  rule("num_micro_batch"), global_at.where());
    };
    auto const repeats = p.micro_batch_size.is(value_kind::string) || p.micro_batch_size.is(value_kind::array);
    if (!dp) {
      decide();
      return;
    }
    if (p.global_batch_size.is(value_kind::null)) {
      if (micro)
        p.global_batch_size = to_value(multiply(*dp, *micro));
      else if (!repeats)
        refuse(micro_at, errc::wrong_type, "found " + to_json(p.micro_batch_size) + ", an integer is needed",
               {"TypeError", "llamafactory", "unsupported operand type(s) for *"});
    } else {
      auto const global = python_number_of(p.global_batch_size);
      if (!global || !micro) {
        auto const& at = !micro ? micro_at : global_at;
        refuse(at, errc::wrong_type, "found " + to_json(*at) + ", an integer is needed; write it without quotes",
               {"TypeError", "llamafactory", "unsupported operand type(s) for %"});
      } else if (auto const unit = multiply(*dp, *micro); unit.zero()) {
        refuse(micro_at, errc::division_by_zero, "micro_batch_size is 0",
               {"ZeroDivisionError", "llamafactory", "integer modulo by zero"});
      } else if (!same_number(multiply(floor_divide(*global, unit), unit), *global)) {
        auto const sum = python_text(p.global_batch_size) + " % (" + python_text(p.dp_size) + " * " +
                         python_text(p.micro_batch_size) + ") != 0";
        refuse(global_at, errc::batch_not_divisible,
               "global_batch_size must be a multiple of dp_size * micro_batch_size, found " + sum,
               {"ValueError", "llamafactory",
                "Global batch size must be divisible by DP size and micro batch size. Got " + sum});
      } else {
        p.num_micro_batch = to_value(floor_divide(floor_divide(*global, *dp), *micro));
      }
    }
    if (!batch_failed_) {
      auto const steps = python_number_of(p.num_micro_batch);
      std::optional<python_number> size;
      if (micro && steps) size = multiply(*micro, *steps);
      if (!size || size->floating || size->whole <= 0)
        refuse(micro_at, errc::bad_batch_size,
               "micro_batch_size * num_micro_batch comes to " +
                   (size ? python_text(to_value(*size)) : to_json(p.micro_batch_size)) +
                   ", a positive integer is needed",
               {"ValueError", "torch",
                "batch_size should be a positive integer value, but got batch_size=" +
                    (size ? python_text(to_value(*size)) : python_text(p.micro_batch_size))});
      else if (!micro->positive())
        out_.warn(errc::trap, micro_at.where(), at_train,
                  "two negative sizes multiply to a positive one and pass upstream's check");
    }
    decide();
  }

  void check_context_parallel() {
    auto const& cp = policies_.front_end->cp_size;
    auto const at = root_["cp_size"];
    auto const n = python_number_of(cp);
    if (!n) return cp_wrong_type(at, cp);
    if (n->as_real() > 1)
      out_.error(errc::context_parallel_needs_fsdp2, at.where(), at_train,
                 "cp_size is " + python_text(cp) + ", which needs dist_config.name fsdp2",
                 {"ValueError", "llamafactory", "Context parallelism currently requires `dist_config.name: fsdp2`."});
  }
  void cp_wrong_type(node const& at, value const& cp) {
    if (mesh_failed_) return;
    out_.error(errc::wrong_type, at.where(), at_train, "found " + to_json(cp) + ", an integer is needed",
               {"TypeError", "llamafactory",
                "'>' not supported between instances of '" + std::string{python_name(cp.kind())} + "' and 'int'"});
    mesh_failed_ = true;
  }
  void check_flash_attention() {
    auto const& cp = policies_.front_end->cp_size;
    auto const at = root_["cp_size"];
    auto const n = python_number_of(cp);
    if (!n) return cp_wrong_type(at, cp);
    if (n->as_real() > 1 && !root_["flash_attn"]->is_text("flash_attention_2"))
      out_.error(errc::needs_flash_attention, at.where(), at_train,
                 "cp_size is " + python_text(cp) + ", which needs flash_attn: flash_attention_2",
                 {"ValueError", "llamafactory",
                  "Sequence parallelism requires flash attention. Please set `flash_attn: flash_attention_2`."});
  }

  void backend() {
    bool const launcher = facts_.world.has_value();
    if (is_broken("dist_config")) return;
    if (!dist_.present()) {
      if (policies_.backend == backend_kind::ddp) {
        out_.warn(errc::ddp_fallback, root_["dist_config"].where(), at_train,
                  "no dist_config on " + std::to_string(*facts_.world) +
                      " ranks: trained with DDP, everything whole on every rank",
                  "a warning on rank 0 (llamafactory)");
        return;
      }
      whole_roles();
      return;
    }
    auto const name_at = dist_["name"];
    if (name_at->is(value_kind::null)) {
      out_.error(errc::backend_name_missing, root_["dist_config"]["name"].where(), at_train, "dist_config.name is null",
                 {"ValueError", "llamafactory", "DistributedPlugin must be constructed with a name."});
      return;
    }
    if (policies_.backend == backend_kind::none) {
      constexpr std::array<std::string_view, 2> names{"fsdp2", "deepspeed"};
      out_.error(errc::unknown_backend, root_["dist_config"]["name"].where(), at_train,
                 "found " + to_json(*name_at) + ", allowed: \"fsdp2\" or \"deepspeed\", in lower case" +
                     did_you_mean(lower(python_text(*name_at)), names),
                 {"ValueError", "llamafactory",
                  "Plugin '" + python_text(*name_at) + "' is not registered under DistributedPlugin."});
      return;
    }
    bool const deepspeed = policies_.backend == backend_kind::deepspeed;
    auto const known = [&](std::string_view key) {
      return deepspeed ? std::find(deepspeed_backend_keys.begin(), deepspeed_backend_keys.end(), key) !=
                             deepspeed_backend_keys.end()
                       : std::find(fsdp2_keys.begin(), fsdp2_keys.end(), key) != fsdp2_keys.end();
    };
    for (auto const& m : dist_->members()) {
      if (known(m.key)) continue;
      auto const where = root_["dist_config"].key_place(m);
      auto hint = deepspeed ? out_.suggest(m.key, deepspeed_backend_keys) : out_.suggest(m.key, fsdp2_keys);
      if (m.key == "mixed_precision") hint = "; since pull request 10300 only the top-level key bf16 counts";
      out_.error(errc::unknown_backend_keys, where, at_train,
                 "the key \"" + m.key + "\" is not known to the backend " + backend_name_ + hint,
                 {"ValueError", "llamafactory", "Unknown params for DistributedPlugin: ['" + m.key + "']"});
    }
    if (deepspeed) return train_deepspeed();
    if (!launcher) {
      out_.warn(errc::no_device_mesh, root_["dist_config"].where(), at_train, "no launcher, so there is no device mesh",
                "a warning (llamafactory)");
      out_.warn(errc::fsdp_skipped, root_["dist_config"].where(), at_train,
                "FSDP2 is skipped without a device mesh: one process trains everything in fp32, whatever bf16 says; "
                "start with a launcher",
                "a warning (llamafactory)");
      whole_roles();
      return;
    }
    fully_shard();
  }

  void train_deepspeed() {
    if (!truthy(*dist_["config_file"])) {
      out_.error(errc::config_file_missing, root_["dist_config"]["config_file"].where(), at_train,
                 "dist_config.config_file is " +
                     (dist_["config_file"].present() ? to_json(*dist_["config_file"]) : std::string{"absent"}) +
                     "; name a DeepSpeed file",
                 {"ValueError", "llamafactory", "DeepSpeed config_file is required."});
      return;
    }
    if (engine_)
      flatshard::train_deepspeed(named_->content, *engine_, profile_, facts_, policies_.front_end->micro_batch_size,
                                 policies_.front_end->num_micro_batch, out_, policies_);
  }

  /// Without sharding: everything in fp32, nothing on the wire.
  void whole_roles() {
    policies_.dtypes = {dtype::f32, dtype::f32, dtype::f32, dtype::none, dtype::f32, dtype::none, dtype::f32};
    auto const reason = policies_.backend == backend_kind::fsdp2 ? "FSDP2 is skipped without a launcher"
                                                                 : "no backend: nothing is cast";
    for (auto const r : roles)
      out_.decide(std::string{name(r)}, r == role::reduce ? "none" : "fp32", reason, rule(name(r)),
                  root_["dist_config"].where());
  }

  [[nodiscard]] bool bf16() const {
    return facts_.bf16 ? *facts_.bf16 : !root_["bf16"].present() || truthy(*root_["bf16"]);
  }

  void fully_shard() {
    auto& p = policies_.fsdp2.emplace();
    policies_.sharding = sharding_kind::fsdp2;
    policies_.dtypes = llamafactory_fsdp2_roles(bf16());
    auto const bf16_at = root_["bf16"];
    auto const bf16_said =
        facts_.bf16 ? std::string{"the argument bf16 is "} + (*facts_.bf16 ? "true" : "false") : said(bf16_at, "bf16");
    p.param_type = bf16() ? dtype::bf16 : dtype::f32;
    p.reduce_type = dtype::f32;
    out_.decide("precision", bf16() ? "bf16" : "fp32", bf16_said, rule("bf16"), bf16_at.where());
    for (auto const r : roles) {
      bool const computed = r == role::compute || r == role::output;
      auto const shown = r == role::master ? "fp32" : name(policies_.dtypes(r));
      auto const reason = computed            ? bf16_said
                          : r == role::reduce ? std::string{"LLaMA-Factory always reduces in fp32 with FSDP2"}
                          : r == role::master ? std::string{"the fp32 shards themselves are what the optimizer updates"}
                                              : std::string{"LLaMA-Factory casts the model to fp32 before sharding"};
      out_.decide(std::string{name(r)}, std::string{shown}, reason, rule(name(r)),
                  computed ? bf16_at.where() : root_["dist_config"].where());
    }
    out_.decide("sharding", "fsdp2", "dist_config.name is \"fsdp2\"", rule("dist_config.name"),
                root_["dist_config"]["name"].where());
    policies_.printed.push_back(
        precision_debug_line("fsdp2", policies_.dtypes.parameter_storage, policies_.dtypes.output));
    p.replicate = policies_.front_end->mp_replicate_size.integer().value_or(1);
    p.shard = policies_.front_end->mp_shard_size.integer().value_or(1);
    auto const dist_at = root_["dist_config"];
    auto const offload = dist_["offload_params"];
    p.offload_params = truthy(*offload);
    p.pin_memory = dist_["pin_memory"].present() ? *dist_["pin_memory"] : value{true};
    out_.decide("offload_params", p.offload_params ? "true" : "false", said(offload, "dist_config.offload_params"),
                rule("offload_params"), dist_at["offload_params"].where());
    if (offload.present() && !offload->is(value_kind::boolean))
      out_.warn(offload->is(value_kind::string) ? errc::string_as_bool : errc::odd_truth_value,
                dist_at["offload_params"].where(), at_train,
                "found " + to_json(*offload) + " for a boolean; by its truth value it counts as " +
                    (p.offload_params ? "true" : "false"));
    reshard(p, dist_["reshard_after_forward"], dist_at["reshard_after_forward"]);
    p.embedding_unit = !(facts_.model_config && truthy((*facts_.model_config)["tie_word_embeddings"]));
  }
  void reshard(fsdp2_policy& p, node const& given, node const& at) {
    p.reshard_after_forward = given.present() ? *given : value{true};
    if (auto const k = given->integer()) {
      if (*k < 1 || p.shard % *k != 0) {
        out_.error(errc::bad_reshard_group, at.where(), at_train,
                   "found " + to_json(*given) + ", allowed: true, false, or a divisor of the shard size " +
                       std::to_string(p.shard),
                   {"ValueError", "torch",
                    "If passing reshard_after_forward as an int, it should be a factor of " + std::to_string(p.shard) +
                        ", not " + to_json(*given)});
        return;
      }
      if (*k == 1)
        p.reshard_after_forward = false;
      else if (*k == p.shard)
        p.reshard_after_forward = true;
    } else if (given.present() && !given->is(value_kind::boolean) && !given->is(value_kind::null)) {
      out_.error(errc::bad_reshard_value, at.where(), at_train,
                 "found " + to_json(*given) + ", allowed: true, false, or a divisor of the shard size",
                 {"ValueError", "torch",
                  "reshard_after_forward should be a bool or an int representing the group size to reshard to"});
      return;
    }
    out_.decide("reshard_after_forward", to_json(p.reshard_after_forward),
                said(given, "dist_config.reshard_after_forward"), rule("reshard_after_forward"), at.where());
  }

  /// Words for booleans at top level, where strings are not converted.
  void truth(std::string_view key, bool became) {
    auto const at = root_[key];
    if (!at.present() || at->is(value_kind::boolean)) return;
    auto const code = at->is(value_kind::string) ? errc::string_as_bool
                      : at->is_number()          ? errc::number_as_bool
                                                 : errc::odd_truth_value;
    out_.warn(code, at.where(), at_train,
              "found " + to_json(*at) + " for a boolean; by its truth value it counts as " +
                  (became ? "true" : "false") + "; write " + (became ? "true" : "false") +
                  (at->is(value_kind::string) ? " without quotes" : ""));
  }

  void decide_rest() {
    truth("bf16", !root_["bf16"].present() || truthy(*root_["bf16"]));
    bool const sharded = policies_.backend == backend_kind::fsdp2 && facts_.world;
    if ((root_["bf16"].present() || facts_.bf16) && !sharded)
      out_.warn(errc::ignored_key, root_["bf16"].where(), at_train,
                std::string{"bf16 is ignored: "} + (policies_.backend == backend_kind::deepspeed
                                                        ? "with DeepSpeed only its file's sections bf16 and fp16 count"
                                                        : "only FSDP2 under a launcher reads it"));
    auto const checkpointing = root_["enable_activation_checkpointing"];
    policies_.activation_checkpointing = !checkpointing.present() || truthy(*checkpointing);
    truth("enable_activation_checkpointing", policies_.activation_checkpointing);
    out_.decide("activation_checkpointing", policies_.activation_checkpointing ? "true" : "false",
                said(checkpointing, "enable_activation_checkpointing"), rule("enable_activation_checkpointing"),
                checkpointing.where());
    auto const norm = root_["max_grad_norm"];
    auto const max_norm = norm.present() ? *norm : value{1.0};
    policies_.front_end->max_grad_norm = max_norm;
    out_.decide("max_grad_norm", python_text(max_norm), said(norm, "max_grad_norm"), rule("max_grad_norm"),
                norm.where());
    if (policies_.backend != backend_kind::deepspeed)
      policies_.gradient_clipping = max_norm;
    else if (norm.present())
      out_.warn(errc::ignored_key, norm.where(), at_train,
                "max_grad_norm is never handed to DeepSpeed; gradient_clipping of its file counts");
    auto const timeout = root_["dist_timeout"];
    timeout_ = timeout.present() ? *timeout : value{18000};
    decide_process_group(facts_, timeout_, timeout.where(), out_, policies_);
  }

  document file_;
  node root_;
  profile profile_;
  facts const& facts_;
  findings& out_;
  resolved_policies& policies_;
  document sections_{value::object(), file_.file()};
  node dist_, init_;
  std::vector<std::string> broken_;
  std::string backend_name_;
  named_file const* named_ = nullptr;
  std::optional<deepspeed_load> engine_;
  bool mesh_failed_ = false, batch_failed_ = false;
  value timeout_;
};

}  // namespace detail

inline void resolve_llamafactory(document const& file, profile front_end, facts const& f, findings& out,
                                 resolved_policies& policies) {
  detail::llamafactory_file{file, front_end, f, out, policies}.resolve();
}

}  // namespace v0
}  // namespace flatshard
