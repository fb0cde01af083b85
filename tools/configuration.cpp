// SPDX-License-Identifier: Apache-2.0
#include "configuration.hpp"

#include "arguments.hpp"
#include "frontend.hpp"
#include "report.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/document.hpp>
#include <flatshard/json.hpp>

#include <array>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

namespace tool {
namespace {

namespace fs = flatshard;

/// JSON if it begins like an object, else YAML.
fs::result<fs::document> read_standard_input(fs::facts& facts) {
  std::string text;
  std::array<char, 65536> block{};
  while (auto const n = std::fread(block.data(), 1, block.size(), stdin)) {
    text.append(block.data(), n);
    if (text.size() > fs::max_text_bytes) break;  // the reader says so
  }
  if (std::ferror(stdin) != 0) throw failure{"cannot read standard input"};
  constexpr std::string_view name = "<stdin>";
  auto const first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos || text[first] == '{') return fs::parse_json(text, name);
  facts.form = fs::config_form::llamafactory_file;
  return fs::frontend::parse_llamafactory(text, name);
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

/// The type of the weights that a model's configuration names, if the library has it.
std::optional<fs::dtype> weights_type(fs::value const& config) {
  auto const& named = config.has("dtype") ? config["dtype"] : config["torch_dtype"];
  for (auto const& row : fs::dtype_table)
    if (!row.torch_name.empty() && row.torch_name.substr(6) == named.text()) return row.type;
  return {};
}

}  // namespace

void add_configuration_options(CLI::App& command, configuration_request& request) {
  command.add_option("--profile", request.profile, "Whose rules decide: llamafactory (default) or llamafactory-review")
      ->check(one_of({"llamafactory", "llamafactory-review"}))
      ->type_name("NAME");
  command
      .add_option("--bf16", request.bf16, "The front end's argument: true, false, or auto (default: the file decides)")
      ->check(one_of({"true", "false", "auto"}))
      ->type_name("WORD");
  command.add_option("--device", request.device, "What ranks run on: cuda (default), npu or cpu")
      ->check(one_of({"cuda", "npu", "cpu"}))
      ->type_name("NAME");
  command.add_flag("--strict", request.strict, "What upstream accepts in silence is an error too");
}

fs::resolution resolve_configuration(configuration_request const& request) {
  fs::facts facts;
  facts.world = request.world;
  if (request.bf16 != "auto") facts.bf16 = request.bf16 == "true";
  facts.device = request.device == "cuda"  ? fs::device_kind::cuda
                 : request.device == "npu" ? fs::device_kind::npu
                                           : fs::device_kind::cpu;
  facts.environment = environment();
  if (!request.model.empty() || !request.model_text.empty()) {
    auto const path = request.model.empty() ? std::string{"config.json"}
                                            : (std::filesystem::path{request.model} / "config.json").string();
    auto const config =
        request.model.empty() ? fs::parse_json(request.model_text).value() : fs::parse_file(path).value();
    if (!config.value_of_root().is(fs::value_kind::object)) throw failure{one_line(path) + ": this is no object"};
    facts.model_config = config.value_of_root();
    facts.model_file = path;
    facts.checkpoint = weights_type(config.value_of_root());
  }
  auto const profile = fs::profile_of(request.profile).value();
  auto const read = request.file == "-" ? read_standard_input(facts) : fs::frontend::read_configuration(request.file);
  if (!read) {
    fs::resolution nothing;
    nothing.front_end = profile;
    nothing.problems = read.error().problems;
    return nothing;
  }
  fs::frontend::read_named_files(*read, facts);
  auto resolved = fs::resolve(*read, profile, facts);
  return request.strict ? strict(std::move(resolved)) : resolved;
}

}  // namespace tool
