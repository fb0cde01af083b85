// SPDX-License-Identifier: Apache-2.0
#include "code_arguments.hpp"

#include "report.hpp"

#include <flatshard/config/arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/releases.hpp>
#include <flatshard/json.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;

/// NAME=VALUE in its two parts.
std::pair<std::string_view, std::string_view> split(std::string_view option, std::string_view text) {
  auto const equals = text.find('=');
  if (equals == 0 || equals == std::string_view::npos)
    throw wrong_usage{fmt::format("{} takes NAME=VALUE, found '{}'", option, one_line(text))};
  return {text.substr(0, equals), text.substr(equals + 1)};
}

/// A value as JSON, or the text itself: `4`, `true`, `[4, 2]`, `bf16`.
fs::value value_of(std::string_view text) {
  auto const read = fs::parse_json(text);
  return read ? read->value_of_root() : fs::value{text};
}

/// Whose code has an argument.
enum class reader : std::uint8_t { transformers, accelerate, both, deepspeed, engine };

struct argument {
  std::string_view name, wanted;
  bool (*take)(fs::value const&, fs::facts&);  ///< false: a value of another kind
  reader read_by = reader::transformers;
};

template <auto Member>
bool take_integer(fs::value const& v, fs::facts& f) {
  auto const n = v.integer();
  if (n) f.training.*Member = *n;
  return n.has_value();
}
template <auto Member>
bool take_number(fs::value const& v, fs::facts& f) {
  if (!v.is_number()) return false;
  f.training.*Member = *v.number();
  return true;
}
template <auto Member>
bool take_flag(fs::value const& v, fs::facts& f) {
  if (!v.is(fs::value_kind::boolean)) return false;
  f.training.*Member = v.is_true();
  return true;
}
bool take_steps(fs::value const& v, fs::facts& f) {
  if (!take_integer<&fs::training_arguments::gradient_accumulation_steps>(v, f)) return false;
  f.accelerator.gradient_accumulation_steps = v;
  return true;
}
bool take_betas(fs::value const& v, fs::facts& f) {
  auto const given = v.elements();
  if (given.size() != 2 || !given[0].is_number() || !given[1].is_number()) return false;
  f.training.betas = {*given[0].number(), *given[1].number()};
  return true;
}
bool take_batch_sizes(fs::value const& v, fs::facts& f) {
  std::vector<std::int64_t> sizes;
  for (auto const& one : v.elements()) {
    auto const n = one.integer();
    if (!n) return false;
    sizes.push_back(*n);
  }
  f.accelerator.dataloader_batch_sizes = std::move(sizes);
  return v.is(fs::value_kind::array);
}
bool take_mixed_precision(fs::value const& v, fs::facts& f) {
  if (!v.is(fs::value_kind::string)) return false;
  f.accelerator.mixed_precision = std::string{v.text()};
  return true;
}
bool take_init_flag(fs::value const& v, fs::facts& f) {
  f.accelerator.zero3_init_flag = v;
  return true;
}
bool take_zero_init(fs::value const& v, fs::facts& f) {
  if (!v.is(fs::value_kind::boolean)) return false;
  f.zero_init = v.is_true();
  return true;
}
bool take_optimizer_class(fs::value const& v, fs::facts& f) {
  if (!v.is(fs::value_kind::string)) return false;
  f.optimizer_class = v.text();
  return true;
}

using training = fs::training_arguments;
constexpr std::array arguments{
    argument{"bf16", "true or false", take_flag<&training::bf16>},
    argument{"fp16", "true or false", take_flag<&training::fp16>},
    argument{"per_device_train_batch_size", "an integer", take_integer<&training::per_device_train_batch_size>},
    argument{"gradient_accumulation_steps", "an integer", take_steps, reader::both},
    argument{"max_grad_norm", "a number", take_number<&training::max_grad_norm>},
    argument{"learning_rate", "a number", take_number<&training::learning_rate>},
    argument{"weight_decay", "a number", take_number<&training::weight_decay>},
    argument{"adam_epsilon", "a number", take_number<&training::eps>},
    argument{"adam_betas", "two numbers such as [0.9, 0.999]", take_betas},
    argument{"warmup_steps", "an integer", take_integer<&training::warmup_steps>},
    argument{"num_training_steps", "an integer", take_integer<&training::num_training_steps>},
    argument{"mixed_precision", "no, bf16, fp16 or fp8", take_mixed_precision, reader::accelerate},
    argument{"dataloader_batch_sizes", "integers such as [4, 2]", take_batch_sizes, reader::accelerate},
    argument{"zero3_init_flag", "true, false or a word", take_init_flag, reader::accelerate},
    argument{"zero_init", "true or false", take_zero_init, reader::deepspeed},
    argument{"optimizer_class", "the name of a class", take_optimizer_class, reader::engine},
};

template <class Rows>
std::string nearest(std::string_view name, Rows const& rows) {
  std::vector<std::string_view> names;
  for (auto const& row : rows) names.push_back(row.name);
  return fmt::format("{}; known: {}", fs::did_you_mean(name, names), fmt::join(names, ", "));
}

/// Takes over one `NAME=VALUE`.
void take_argument(std::string_view text, fs::facts& facts) {
  auto const [name, spelled] = split("--argument", text);
  for (auto const& one : arguments) {
    if (one.name != name) continue;
    if (one.take(value_of(spelled), facts)) return;
    throw wrong_usage{fmt::format("--argument {} must be {}, found '{}'", name, one.wanted, one_line(spelled))};
  }
  throw wrong_usage{fmt::format("--argument: no such argument: '{}'{}", one_line(name), nearest(name, arguments))};
}

/// Takes over one `PACKAGE=VERSION`.
void take_release(std::string_view text, fs::facts& facts) {
  struct package {
    std::string_view name;
    std::optional<fs::version_number>& chosen;
  };
  auto& all = facts.upstream;
  std::array const packages{package{"deepspeed", all.deepspeed}, package{"accelerate", all.accelerate},
                            package{"transformers", all.transformers}, package{"llamafactory", all.llamafactory},
                            package{"torch", all.torch}};
  auto const [name, spelled] = split("--release", text);
  for (auto const& one : packages) {
    if (one.name != name) continue;
    one.chosen = fs::version_number_of(spelled);
    if (one.chosen) return;
    throw wrong_usage{
        fmt::format("--release {} takes three numbers such as 0.19.8, found '{}'", name, one_line(spelled))};
  }
  throw wrong_usage{fmt::format("--release: no such package: '{}'{}", one_line(name), nearest(name, packages))};
}

/// Throws `wrong_usage` where two texts of one option have the same name.
void refuse_twice(std::string_view option, std::vector<std::string> const& texts) {
  std::vector<std::string_view> names;
  for (auto const& text : texts) {
    auto const name = split(option, text).first;
    if (std::find(names.begin(), names.end(), name) != names.end())
      throw wrong_usage{fmt::format("{} {} is given twice", option, one_line(name))};
    names.push_back(name);
  }
}

}  // namespace

void take_arguments(std::vector<std::string> const& texts, fs::facts& facts) {
  for (auto const& text : texts) take_argument(text, facts);
  refuse_twice("--argument", texts);
}

bool reads_argument(fs::profile front_end, std::string_view name) {
  auto const* const one =
      std::find_if(arguments.begin(), arguments.end(), [&](auto const& a) { return a.name == name; });
  fs::require(one != arguments.end(), "an argument that take_arguments knows");
  bool const accelerate = front_end == fs::profile::accelerate, transformers = fs::is_transformers(front_end);
  switch (one->read_by) {
    case reader::transformers: return transformers;
    case reader::accelerate: return accelerate;
    case reader::both: return transformers || accelerate;
    case reader::deepspeed: return front_end == fs::profile::deepspeed;
    case reader::engine: return front_end != fs::profile::torch;
  }
  return false;
}

void take_releases(std::vector<std::string> const& texts, fs::facts& facts) {
  for (auto const& text : texts) take_release(text, facts);
  refuse_twice("--release", texts);
}

}  // namespace tool
