// SPDX-License-Identifier: Apache-2.0
#include "configuration.hpp"

#include "arguments.hpp"
#include "code_arguments.hpp"
#include "frontend.hpp"
#include "report.hpp"

#include <flatshard/document.hpp>
#include <flatshard/json.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

namespace tool {
namespace {

namespace fs = flatshard;

std::string read_standard_input() {
  std::string text;
  std::array<char, 65536> block{};
  while (auto const n = std::fread(block.data(), 1, block.size(), stdin)) {
    text.append(block.data(), n);
    if (text.size() > fs::max_text_bytes) break;  // the reader says so
  }
  if (std::ferror(stdin) != 0)
    throw failure{fmt::format("cannot read standard input: {}", std::generic_category().message(errno))};
  return text;
}

/// The variables of this process: what upstream would see if it were started here.
std::vector<std::pair<std::string, std::string>> environment() {
  std::vector<std::pair<std::string, std::string>> all;
  for (auto** entry = ::environ; *entry != nullptr; ++entry) {
    std::string_view const text{*entry};
    auto const equals = text.find('=');
    if (equals != std::string_view::npos) all.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return all;
}

/// The type of the weights that a model's configuration names; none if it leaves that open.
std::optional<fs::dtype> weights_type(fs::value const& config, std::string_view path) {
  auto const* const key = config.has("dtype") ? "dtype" : "torch_dtype";
  auto const& named = config[key];
  if (!named.present() || named.is(fs::value_kind::null) || named.is_text("auto")) return {};
  for (auto const& row : fs::dtype_table)
    if (named.is(fs::value_kind::string) && !row.torch_name.empty() && row.torch_name.substr(6) == named.text())
      return row.type;
  throw failure{fmt::format("{}:{}:{}: /{}: found {}, allowed: a dtype of torch such as \"bfloat16\"", one_line(path),
                            named.at().line, named.at().column, key, one_line(fs::to_json(named)))};
}

/// The document as a front end's own reader gives it.
fs::result<fs::document> parse_as(fs::profile front_end, std::string_view text, std::string_view name,
                                  fs::facts& known) {
  auto const first = text.find_first_not_of(" \t\r\n");
  bool const nameless_yaml = name == "<stdin>" && first != std::string_view::npos && text[first] != '{';
  if (nameless_yaml && front_end == fs::profile::accelerate) {
    known.form = fs::config_form::accelerate_file;
    return fs::frontend::parse_accelerate(text, name);
  }
  if (nameless_yaml && fs::is_llamafactory(front_end)) {
    known.form = fs::config_form::llamafactory_file;
    return fs::frontend::parse_llamafactory(text, name);
  }
  return fs::frontend::parse_configuration(text, name, {}, front_end);
}

/// A validator of `/json/pointer=value`.
CLI::Validator pointer_and_value() {
  return {[](std::string& setting) -> std::string {
            if (auto const bad = fs::utf8_end(setting); bad != setting.size())
              return fmt::format("takes UTF-8, found the byte 0x{:02x} at offset {}",
                                 static_cast<unsigned char>(setting[bad]), bad);
            auto const equals = setting.find('=');
            if (equals == std::string::npos || !setting.starts_with('/'))
              return fmt::format("takes /json/pointer=value, found '{}'", setting);
            auto const pointer = setting.substr(0, equals);
            auto const keys = fs::pointer_keys(pointer);
            if (!keys) return fmt::format("'{}' is no JSON Pointer: write ~0 for ~ and ~1 for / inside a key", pointer);
            return keys->size() > fs::max_nesting / 2 ? "the pointer is too deep" : std::string{};
          },
          "", "setting"};
}

/// Says which of --bf16, --fp16 and --argument does nothing under a front end: it has no such argument, or another
/// option wins. What LLaMA-Factory does with bf16 is a rule of its own.
void report_arguments(fs::profile front_end, configuration_request const& request, fs::facts const& known,
                      fs::resolution& resolved) {
  auto const ignored = [&](std::string_view name, std::string_view word, std::string const& why) {
    resolved.problems.push_back({fs::errc::ignored_key,
                                 {},  // it stands on the command line
                                 fmt::format("the argument {0} (--{0} {1}) is ignored: {2}", name, word, why),
                                 fs::severity::warning,
                                 std::string{fs::at_train},
                                 {}});
  };
  for (std::string_view const text : request.arguments) {
    auto const argument = text.substr(0, text.find('='));
    if (!reads_argument(front_end, argument))
      resolved.problems.push_back({fs::errc::ignored_key,
                                   {},
                                   fmt::format("--argument {} is ignored: {} takes no such argument here",
                                               one_line(text), product_of(front_end)),
                                   fs::severity::warning,
                                   std::string{fs::at_train},
                                   {}});
  }
  struct option {
    std::string_view name, word;
    bool counts;  // as the facts have it
  };
  auto const mixed = known.accelerator.mixed_precision.value_or("no");
  bool const accelerate = front_end == fs::profile::accelerate;
  for (auto const& [name, word, counts] :
       {option{"bf16", request.bf16, accelerate ? mixed == "bf16" : known.training.bf16},
        option{"fp16", request.fp16, accelerate ? mixed == "fp16" : known.training.fp16}}) {
    if (word == "auto") continue;
    if (front_end == fs::profile::deepspeed || front_end == fs::profile::torch)
      ignored(name, word,
              fmt::format("{} has no such argument", front_end == fs::profile::torch ? "torch" : "DeepSpeed"));
    else if (is_llamafactory(front_end) && name == "fp16")
      ignored(name, word, "LLaMA-Factory has no such argument");
    else if (!is_llamafactory(front_end) && (word == "true") != counts)
      ignored(name, word,
              accelerate ? fmt::format("accelerate has one argument mixed_precision, and it is {} here", mixed)
                         : fmt::format("--argument {}={} wins", name, counts));
  }
}

/// Applies `/json/pointer=value`, which pointer_and_value accepts; the value is JSON, or else a string. Objects are
/// made on the way.
void apply_setting(std::string_view setting, fs::document& config) {
  auto const equals = setting.find('=');
  auto const pointer = setting.substr(0, equals);
  auto const keys = fs::pointer_keys(pointer).value();
  if (!config.value_of_root().is(fs::value_kind::object))
    throw failure{fmt::format("{}: --set needs a configuration that is an object", one_line(config.file()))};
  auto const* here = &config.value_of_root();
  std::string made;  // the pointer of what this setting writes: the first key on the way that the file does not have
  std::string on_the_way;
  for (auto const& key : keys) {
    if (here->present()) made += '/' + fs::pointer_token(key);
    if (here->present() && !here->is(fs::value_kind::object))
      throw failure{fmt::format("{}:{}:{}: --set {}: {} stands at {}, which has no keys; set it as a whole",
                                one_line(config.file()), here->at().line, here->at().column, one_line(pointer),
                                name(here->kind()), on_the_way)};
    here = &(*here)[key];
    on_the_way += '/' + fs::pointer_token(key);
  }
  auto const read = fs::parse_json(setting.substr(equals + 1));
  std::vector<std::string_view> const path{keys.begin(), keys.end()};
  config.edit().set(path, read ? read->value_of_root() : fs::value{setting.substr(equals + 1)});
  config.came_from({std::move(made), {"--set", std::string{pointer}, 0, 0}});  // on the command line
}

}  // namespace

void add_configuration_options(CLI::App& command, configuration_request& request) {
  std::vector<std::string> const profiles{fs::profile_names.begin(), fs::profile_names.end()};
  command
      .add_option("--profile", request.profile,
                  fmt::format("Whose rules decide: {} (default llamafactory)", fmt::join(profiles, ", ")))
      ->check(one_of(profiles))
      ->type_name("NAME");
  command
      .add_option("--bf16", request.bf16,
                  "The front end's argument bf16 (accelerate: mixed_precision): true, false, or auto (default: the "
                  "file decides)")
      ->check(one_of({"true", "false", "auto"}))
      ->type_name("WORD");
  command
      .add_option("--fp16", request.fp16,
                  "The same for fp16; LLaMA-Factory has no such argument: true, false, or auto (default)")
      ->check(one_of({"true", "false", "auto"}))
      ->type_name("WORD");
  command
      .add_option("--argument", request.arguments,
                  "What the program passes in code: NAME=VALUE of accelerate's Accelerator or Transformers' "
                  "TrainingArguments, such as per_device_train_batch_size=4; may be repeated")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  command
      .add_option("--release", request.releases,
                  "The rules of a release: deepspeed, accelerate, transformers, llamafactory or torch=VERSION, such as "
                  "deepspeed=0.19.8 (default: the commits that docs/config.md cites); may be repeated")
      ->type_name("PACKAGE=VERSION")
      ->allow_extra_args(false);
  command
      .add_option("--set", request.settings,
                  "Change the configuration first: /json/pointer=value, the value being JSON or else a string; may be "
                  "repeated")
      ->check(pointer_and_value())
      ->type_name("POINTER=VALUE")
      ->allow_extra_args(false);
  command.add_option("--device", request.device, "What ranks run on: cuda (default), npu or cpu")
      ->check(one_of({"cuda", "npu", "cpu"}))
      ->type_name("NAME");
  command.add_flag("--strict", request.strict, "What upstream accepts in silence is an error too");
}

configuration_text read_configuration_text(configuration_request const& request) {
  configuration_text out;
  auto& known = out.known;
  known.world = request.world;
  known.device = request.device == "cuda"  ? fs::device_kind::cuda
                 : request.device == "npu" ? fs::device_kind::npu
                                           : fs::device_kind::cpu;
  known.environment = environment();
  if (request.bf16 != "auto") {
    known.bf16 = known.training.bf16 = request.bf16 == "true";
    if (*known.bf16) known.accelerator.mixed_precision = "bf16";
  }
  if (request.fp16 == "true") {
    known.training.fp16 = true;
    known.accelerator.mixed_precision = "fp16";
  }
  if (request.bf16 == "false" || request.fp16 == "false")
    if (!known.accelerator.mixed_precision) known.accelerator.mixed_precision = "no";
  take_arguments(request.arguments, known);
  take_releases(request.releases, known);
  if (!request.model.empty() || !request.model_text.empty()) {
    auto const path = request.model.empty() ? std::string{"config.json"}
                                            : (std::filesystem::path{request.model} / "config.json").string();
    if (std::error_code ignored; std::filesystem::is_regular_file(request.model, ignored))
      throw failure{fmt::format("--model {}: this is a file; give the folder that holds it", one_line(request.model))};
    auto const config = request.model.empty() ? fs::parse_json(request.model_text).value()
                                              : fs::parse_file(path, fs::json_text::other).value();
    if (!config.value_of_root().is(fs::value_kind::object)) throw failure{one_line(path) + ": this is no object"};
    known.model_config = config.value_of_root();
    known.model_file = path;
    known.checkpoint = weights_type(config.value_of_root(), path);
  }
  bool const from_stdin = request.file == "-";
  out.name = from_stdin ? "<stdin>" : request.file;
  out.text = from_stdin ? fs::result<std::string>{read_standard_input()} : fs::read_text(request.file);
  return out;
}

front_end_reading read_as(fs::profile front_end, configuration_text const& text, configuration_request const& request) {
  front_end_reading out{{}, text.known, {}};
  out.resolved.front_end = front_end;
  auto read = text.text ? parse_as(front_end, *text.text, text.name, out.known) : text.text.error();
  if (!read) {
    out.resolved.problems = read.error().problems;
    return out;
  }
  out.document = *std::move(read);
  if (auto const& root = out.document->value_of_root();
      root["model_type"].is(fs::value_kind::string) && root["architectures"].is(fs::value_kind::array))
    throw failure{one_line(text.name) +
                  ": this is a model's config.json, which configures no training; name the file that DeepSpeed or the "
                  "front end reads"};
  for (auto const& setting : request.settings) apply_setting(setting, *out.document);
  fs::frontend::read_named_files(*out.document, out.known);
  out.resolved = decide(*out.document, front_end, out.known);
  report_arguments(front_end, request, out.known, out.resolved);
  if (request.strict) out.resolved = strict(std::move(out.resolved));
  return out;
}

fs::resolution resolve_configuration(configuration_request const& request) {
  return read_as(fs::profile_of(request.profile).value(), read_configuration_text(request), request).resolved;
}

}  // namespace tool
