// SPDX-License-Identifier: Apache-2.0
/// accelerate's file up to the start of its workers: keys, distributed type, number of processes, precision, launcher.
#pragma once

#include <flatshard/config/accelerate/deepspeed.hpp>
#include <flatshard/config/accelerate/fsdp_environment.hpp>
#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/accelerate/parallelism.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>

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

/// The top-level keys of accelerate's file. Source:
/// accelerate@16cb6eb8:src/accelerate/commands/config/config_args.py:75-230.
// clang-format off
inline constexpr std::array<std::string_view, 31> accelerate_keys{
    "compute_environment", "distributed_type", "mixed_precision", "use_cpu", "debug", "num_processes", "machine_rank",
    "num_machines", "gpu_ids", "main_process_ip", "main_process_port", "rdzv_backend", "same_network",
    "main_training_function", "enable_cpu_affinity", "fp8_config", "deepspeed_config", "fsdp_config",
    "parallelism_config", "megatron_lm_config", "mpirun_config", "downcast_bf16", "tpu_name", "tpu_zone",
    "tpu_use_cluster", "tpu_use_sudo", "command_file", "commands", "tpu_vm", "tpu_env", "dynamo_config"};
/// Keys of earlier releases that are converted.
inline constexpr std::array<std::string_view, 2> accelerate_old_keys{"dynamo_backend", "fp16"};
inline constexpr std::array<std::string_view, 14> distributed_types{
    "NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU",
    "MULTI_NEURON", "DEEPSPEED", "FSDP", "XLA", "MEGATRON_LM"};
// clang-format on
/// Whether a key is one of those by which an accelerate file is recognised.
[[nodiscard]] constexpr bool is_accelerate_mark(std::string_view key) {
  return key == "distributed_type" || key == "compute_environment" || key == "fsdp_config" ||
         key == "deepspeed_config" || key == "num_processes" || key == "num_machines";
}
/// Whether a string is a date for PyYAML: plain in a YAML text, and as Python prints one.
[[nodiscard]] inline bool is_date(document const& file, value const& v);

/// What the launcher starts.
struct accelerate_start {
  backend_kind launcher = backend_kind::none;  ///< none: refused
  std::optional<std::int64_t> processes;
};
/// Checks the file, decides the launcher and fills the environment of the workers.
[[nodiscard]] inline accelerate_start start_accelerate(document const& file, launch_arguments const& arguments,
                                                       facts const& f, worker_environment& env, findings& out);

// ---- definitions

inline bool is_date(document const& file, value const& v) {
  auto const text = v.text(), written = file.spelling(v);
  auto const digit = [](char c) { return c >= '0' && c <= '9'; };
  return v.is(value_kind::string) && text.size() >= 10 && text[4] == '-' && text[7] == '-' && !written.empty() &&
         digit(written.front()) && std::all_of(text.begin(), text.begin() + 4, digit);
}

namespace detail {

inline void check_accelerate_keys(node const& root, findings& out) {
  std::vector<object_member const*> unknown;
  for (auto const& m : root->members())
    if (std::find(accelerate_keys.begin(), accelerate_keys.end(), m.key) == accelerate_keys.end() &&
        std::find(accelerate_old_keys.begin(), accelerate_old_keys.end(), m.key) == accelerate_old_keys.end())
      unknown.push_back(&m);
  std::sort(unknown.begin(), unknown.end(), [](auto const* a, auto const* b) { return a->key < b->key; });
  std::string all;
  for (auto const* m : unknown) all += (all.empty() ? "'" : ", '") + m->key + "'";
  all = sentence(std::move(all));
  for (auto const* m : unknown) {
    auto hint = out.suggest(m->key, accelerate_keys);
    if (m->key.starts_with("fsdp_")) hint = "; it belongs into fsdp_config";
    if (m->key == "bf16") hint = "; write mixed_precision: \"bf16\"";
    if (m->key == "gradient_accumulation_steps" || m->key == "gradient_clipping" || m->key == "zero_stage")
      hint = "; it belongs into deepspeed_config, or into the training program";
    out.error(
        errc::unknown_keys, root.key_place(*m), at_read, "the key \"" + m->key + "\" is not known" + hint,
        {"ValueError", "accelerate", "The config file at " + root.where().file + " had unknown keys ([" + all + "])"});
  }
}

/// The value of distributed_type; empty: no type that upstream knows by name.
inline std::string check_distributed_type(document const& file, node const& root, findings& out) {
  auto const at = root["distributed_type"];
  if (at->is(value_kind::string) && !is_date(file, *at)) {
    if (std::find(distributed_types.begin(), distributed_types.end(), at->text()) != distributed_types.end())
      return std::string{at->text()};
    std::vector<std::string_view> known{distributed_types.begin(), distributed_types.end()};
    auto const big = upper(at->text());
    bool const case_only = std::find(known.begin(), known.end(), big) != known.end();
    out.error(errc::bad_distributed_type, at.where(), at_read,
              "found " + to_json(*at) +
                  ", allowed: NO, MULTI_GPU, FSDP, DEEPSPEED, MULTI_CPU and the like, XLA, "
                  "MEGATRON_LM, in upper case" +
                  (case_only ? "; write " + big : out.suggest(at->text(), known)),
              {"ValueError", "accelerate", "'" + std::string{at->text()} + "' is not a valid DistributedType"});
    return "?";
  }
  out.warn(errc::trap, at.where(), at_read,
           "found " + to_json(*at) +
               (at->is_false() ? ", as YAML reads an unquoted NO: one process without any section; write \"NO\""
                               : ", no name of a type: one process without any section"));
  return {};
}

/// The number of processes as the launcher checks it: absent, or -1, which stands for it, is refused.
inline setting check_processes(launch_arguments const& arguments, std::string const& type, findings& out) {
  auto s = arguments.find("num_processes");
  bool const absent = !s.given.present() || equals(s.given, -1);
  if (!s.given.present() && type == "NO")
    s.given = 1;
  else if (absent)
    out.error(errc::processes_missing, s.where, at_read,
              s.said + "; write how many processes there are, over all machines",
              {"ValueError", "accelerate", "You need to manually pass in `--num_processes` using this config yaml."});
  return absent && type != "NO" ? setting{} : s;
}
/// The same as torch's launcher takes it: text of an integer, so that quotes do no harm; `auto` and devices count for
/// themselves.
inline std::optional<std::int64_t> decide_processes(setting const& s, findings& out) {
  if (!s.given.present()) return std::nullopt;
  auto const text = python_str(s.given);
  auto const n = s.given.is(value_kind::boolean) ? std::nullopt : python_int(text);
  if (text == "auto" || text == "gpu" || text == "cpu" || text == "xpu") {
    out.note(errc::unsupported, s.where, at_read, s.said + ": torch counts the devices, which are not known here");
  } else if (!n) {
    out.error(errc::wrong_type, s.where, at_read, s.said + ", an integer is needed",
              {"ValueError", "torch", "Unsupported nproc_per_node value: " + text});
  } else if (*n < 1) {
    out.error(errc::out_of_range, s.where, at_read, s.said + ", at least 1 is needed", {});
  } else {
    out.decide("num_processes", std::to_string(*n), s.said, accelerate_rule("num_processes"), s.where);
    return n;
  }
  return std::nullopt;
}

/// mixed_precision as the launcher hands it on: the argument, then the file, then `no`.
struct launched_precision {
  std::optional<std::string> word;
  setting from;
  bool of_file = false;
};
inline launched_precision decide_launched_precision(document const& file, node const& root,
                                                    launch_arguments const& arguments, facts const& f, findings& out) {
  launched_precision p;
  p.from = arguments.find("mixed_precision");
  bool const in_words = arguments.in_words("mixed_precision") && truthy(p.from.given);
  auto const at = root["mixed_precision"];
  if (!in_words) {
    p.from = {*at, at.where(), "mixed_precision is " + (at.present() ? to_json(*at) : std::string{"absent"})};
    if (!at.present() && truthy(*root["fp16"]))
      p.from = {"fp16", root["fp16"].where(), "the old key fp16 is " + to_json(*root["fp16"])};
  }
  if (!p.from.is_set()) {
    p.word = "no";
    p.from.said += ", default of " + accelerate_text(f);
    return p;
  }
  p.of_file = !in_words;
  if (!p.from.given.is(value_kind::string) || is_date(file, p.from.given)) {
    auto const kind =
        is_date(file, p.from.given) ? std::string_view{"datetime.date"} : python_name(p.from.given.kind());
    out.error(errc::wrong_type, p.from.where, at_read,
              p.from.said + (p.from.given.is_false() ? ", as YAML reads an unquoted no; write \"no\" in quotes"
                                                     : ", allowed: \"no\", \"bf16\", \"fp16\" or \"fp8\""),
              {"AttributeError", "accelerate", "'" + std::string{kind} + "' object has no attribute 'lower'"});
    return p;
  }
  auto const word = lower(p.from.given.text());
  if (word == "no" || word == "bf16" || word == "fp16" || word == "fp8")
    p.word = word;
  else
    out.error(errc::bad_mixed_precision, p.from.where, at_read,
              p.from.said + ", allowed: \"no\", \"bf16\", \"fp16\" or \"fp8\"" +
                  (word == "fp32" ? "; \"no\" trains in the dtype of the model" : ""),
              {"ValueError", "accelerate",
               "Unknown mixed_precision mode: " + word + ". Choose between ['no', 'fp8', 'fp16', 'bf16']."});
  return p;
}

inline backend_kind launcher_of(std::string const& type, launch_arguments const& arguments) {
  if (arguments.flag("cpu")) return backend_kind::simple;
  bool const by_flag = arguments.flag("multi_gpu") || arguments.flag("tpu") || arguments.flag("use_deepspeed") ||
                       arguments.flag("use_fsdp") || arguments.flag("use_megatron_lm");
  if (by_flag)
    return arguments.flag("use_deepspeed") ? backend_kind::deepspeed
           : arguments.flag("use_fsdp")    ? backend_kind::fsdp
           : arguments.flag("multi_gpu")   ? backend_kind::multi_gpu
                                           : backend_kind::simple;
  if (type == "?") return backend_kind::none;
  if (type == "FSDP") return backend_kind::fsdp;
  if (type == "DEEPSPEED") return backend_kind::deepspeed;
  return type.starts_with("MULTI_") && type != "MULTI_CPU" ? backend_kind::multi_gpu : backend_kind::simple;
}

/// Words of the launcher that exclude each other, and too few GPUs for several processes. Source:
/// accelerate@16cb6eb8:src/accelerate/commands/launch.py:1196-1256.
inline void check_launcher(launch_arguments const& arguments, backend_kind launcher, findings& out) {
  auto const refuse = [&](place where, std::string detail, std::string message) {
    out.error(errc::value_error, std::move(where), at_read, std::move(detail),
              {"ValueError", "accelerate", std::move(message)});
  };
  constexpr std::array<std::string_view, 5> launchers{"multi_gpu", "cpu", "tpu", "use_deepspeed", "use_fsdp"};
  auto const given = [&](std::string_view name) { return arguments.flag(name); };
  if (std::count_if(launchers.begin(), launchers.end(), given) > 1)
    refuse({}, "more than one of --cpu, --multi_gpu, --tpu, --use_deepspeed, --use_fsdp is given; give one",
           "You can only use one of `--cpu`, `--multi_gpu`, `--tpu`, `--use_deepspeed`, `--use_fsdp` at a time.");
  auto const processes = arguments.find("num_processes");
  if (given("multi_gpu") && arguments.in_words("num_processes") && processes.given.integer().value_or(2) < 2)
    refuse({}, processes.said + ", --multi_gpu needs 2 or more",
           "You need to use at least 2 processes to use `--multi_gpu`.");
  if (given("use_parallelism_config") && !given("use_fsdp"))
    refuse({}, "--use_parallelism_config is given without --use_fsdp; give both, or the section parallelism_config",
           "You cannot use `--use_parallelism_config` without `--use_fsdp` and `--fsdp_version=2`. ");
  auto const gpus = arguments.find("gpu_ids"), machines = arguments.find("num_machines");
  bool const one = gpus.given.is(value_kind::string) && gpus.given.text() != "all" &&
                   gpus.given.text().find(',') == std::string_view::npos;
  if (one && launcher == backend_kind::multi_gpu && machines.given.number().value_or(1) <= 1)
    refuse(gpus.where, gpus.said + ", which is one GPU on one machine; name two or more, or all",
           "Less than two GPU ids were configured and tried to run on multiple GPUs. Please ensure at least two are "
           "specified for `--gpu_ids`, or use `--gpu_ids='all'`.");
}

/// A section that the chosen launcher does not look at.
inline void report_idle_section(node const& root, std::string_view key, std::string const& why, findings& out) {
  auto const at = root[key];
  if (truthy(*at)) out.warn(errc::ignored_key, at.where(), at_read, std::string{key} + " is ignored: " + why);
}

inline void report_sections(node const& root, backend_kind launcher, std::string const& type, findings& out) {
  for (auto const key : accelerate_sections)
    if (auto const at = root[key]; truthy(*at) && !at->is(value_kind::object))
      out.warn(errc::ignored_key, at.where(), at_read,
               std::string{key} + " holds " + std::string{name(at->kind())} + ", an object is needed; it is ignored");
  if (launcher == backend_kind::none) return;
  auto const why =
      "the launcher is " + std::string{name(launcher)} + (type.empty() ? "" : ", distributed_type " + type);
  if (launcher != backend_kind::fsdp) report_idle_section(root, "fsdp_config", why, out);
  if (launcher != backend_kind::deepspeed) report_idle_section(root, "deepspeed_config", why, out);
  if (launcher == backend_kind::simple) {
    report_idle_section(root, "parallelism_config", why, out);
    if (type == "MEGATRON_LM" || type == "XLA")
      out.note(errc::unsupported, root["distributed_type"].where(), at_read,
               "the launcher of " + type + " has rules of its own that are not known here");
  }
}

}  // namespace detail

inline accelerate_start start_accelerate(document const& file, launch_arguments const& arguments, facts const& f,
                                         worker_environment& env, findings& out) {
  auto const root = file.root();
  accelerate_start start;
  auto const environment = root["compute_environment"];
  if (environment.present() && !environment->is_text("LOCAL_MACHINE")) {
    out.error(errc::unsupported, environment.where(), at_read,
              "compute_environment is " + to_json(*environment) + ", only LOCAL_MACHINE is known here", {});
    return start;
  }
  auto const type_at = root["distributed_type"];
  std::string type = "?";
  if (!type_at.present())
    out.error(errc::distributed_type_missing, type_at.where(), at_read,
              "the key distributed_type is missing; write FSDP, DEEPSPEED, MULTI_GPU or \"NO\"",
              {"ValueError", "accelerate", "A `distributed_type` must be specified in the config file."});
  detail::check_accelerate_keys(root, out);
  if (type_at.present()) type = detail::check_distributed_type(file, root, out);
  auto const gpus = arguments.find("gpu_ids");
  if (gpus.is_set() && !gpus.given.is(value_kind::string))
    out.error(errc::wrong_type, gpus.where, at_read, gpus.said + ", a string is needed, for instance \"0,1\" or all",
              {"AttributeError", "accelerate",
               "'" + std::string{python_name(gpus.given.kind())} + "' object has no attribute 'split'"});
  start.launcher = detail::launcher_of(type, arguments);
  detail::check_launcher(arguments, start.launcher, out);
  auto const processes = detail::check_processes(arguments, type, out);
  detail::report_sections(root, start.launcher, type, out);
  if (start.launcher == backend_kind::none) return start;
  out.decide("launcher", std::string{name(start.launcher)},
             arguments.flag("cpu") ? std::string{"the argument --cpu is given"}
                                   : key_said(type_at, "distributed_type", accelerate_text(f)),
             accelerate_rule("distributed_type"), type_at.where());
  if (start.launcher == backend_kind::simple) {
    start.processes = 1;
    return start;
  }
  auto const precision = detail::decide_launched_precision(file, root, arguments, f, out);
  env.set("ACCELERATE_MIXED_PRECISION", precision.word.value_or("no"), precision.from);
  if (start.launcher == backend_kind::fsdp) set_fsdp_environment(arguments, f, env, out);
  if (start.launcher == backend_kind::deepspeed)
    set_deepspeed_environment(root, arguments, precision.of_file, f, env, out);
  auto const parallelism = root["parallelism_config"];
  bool const empty = !parallelism.present() || parallelism->is(value_kind::null) ||
                     (parallelism->is(value_kind::object) && parallelism->members().empty());
  if (!empty || arguments.flag("use_parallelism_config")) set_parallelism_environment(parallelism, arguments, env, out);
  start.processes = detail::decide_processes(processes, out);
  for (auto const& v : env.launched())
    if (auto const outer = f.variable(v.name); outer && *outer != v.text)
      out.warn(errc::shadowed_key, v.from.where, at_train,
               "the variable " + v.name + " is " + to_json(value{*outer}) +
                   " outside, and the launcher replaces it by " + to_json(value{v.text}) + ": " + v.from.said);
  return start;
}

}  // namespace v0
}  // namespace flatshard
