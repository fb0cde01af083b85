// SPDX-License-Identifier: Apache-2.0
/// From the tensors of a checkpoint to units in order: one a layer, and the root unit with the rest.
///
///     auto units = model_units(checkpoint).value();  // order by config.json's model_type where it is known
///     for (auto const& u : units)
///       layouts.emplace_back(native{}, u.parameters, world{8});  // names live in `checkpoint`
#pragma once

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/document.hpp>
#include <flatshard/json.hpp>
#include <flatshard/policy.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Tensors that are gathered together. Names of parameters belong to the checkpoint.
struct model_unit {
  std::string name;  ///< `model.layers.7`; `root` for what is in no layer
  std::vector<parameter> parameters;
  std::vector<dtype> types;  ///< in the file, one a parameter
};

/// `model_type` of the config.json beside the files; empty if there is no such file or key. `model_config` if it cannot
/// be read or holds no object; a fault of the text has its line and column.
[[nodiscard]] result<std::string> model_type(checkpoint_files const& checkpoint);

/// Whether registration order is known for the architecture: llama, qwen2, qwen3, qwen3_moe, gpt_oss.
[[nodiscard]] constexpr bool known_architecture(std::string_view type) {
  constexpr std::array<std::string_view, 5> known{"llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss"};
  return std::find(known.begin(), known.end(), type) != known.end();
}

/// The `7` of `model.layers.7.mlp.up_proj.weight`; nothing for the name of a tensor that is in no layer so called.
[[nodiscard]] constexpr std::optional<std::size_t> layer_number(std::string_view tensor) {
  constexpr std::string_view start = "model.layers.";
  if (!tensor.starts_with(start)) return {};
  tensor.remove_prefix(start.size());
  auto const digits = std::min(tensor.find_first_not_of("0123456789"), tensor.size());
  if (digits == 0 || digits > 9 || digits == tensor.size() || tensor[digits] != '.') return {};
  std::size_t n = 0;
  for (auto const c : tensor.substr(0, digits)) n = n * 10 + static_cast<std::size_t>(c - '0');
  return n;
}

/// Whether `a` stands before `b` when runs of digits count as numbers.
[[nodiscard]] bool natural_less(std::string_view a, std::string_view b);
/// Whether the module of parameter `a` is registered before that of `b` in the known architectures; what is not known
/// comes last, in natural order. Source: transformers, models/{llama,qwen2,qwen3,qwen3_moe,gpt_oss}/modeling_*.py.
[[nodiscard]] bool registered_less(std::string_view a, std::string_view b);

/// The units of a checkpoint, the root unit first (left out if empty), then by their first tensor. A unit is the
/// shortest prefix ending in `.<integer>.` that at least two integers share. Tensors of a known `type` come in
/// registration order, of others in natural order. A tensor of more than 8 dimensions is a problem.
/// Complexity: a sort of the names.
[[nodiscard]] result<std::vector<model_unit>> model_units(checkpoint_files const& checkpoint, std::string_view type);
/// The same with the type that config.json names.
[[nodiscard]] inline result<std::vector<model_unit>> model_units(checkpoint_files const& checkpoint) {
  auto const type = model_type(checkpoint);
  if (!type) return type.error();
  return model_units(checkpoint, *type);
}

namespace detail {

constexpr bool is_name_digit(char c) { return c >= '0' && c <= '9'; }

/// Below, at, or above zero as the run of digits `a` is smaller than, equal to, or larger than `b`.
inline int compare_numbers(std::string_view a, std::string_view b) {
  a.remove_prefix(std::min(a.find_first_not_of('0'), a.size()));
  b.remove_prefix(std::min(b.find_first_not_of('0'), b.size()));
  if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
  return a.compare(b);
}

inline int compare_natural(std::string_view a, std::string_view b) {
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (is_name_digit(a[i]) && is_name_digit(b[j])) {
      auto const i0 = i, j0 = j;
      while (i < a.size() && is_name_digit(a[i])) ++i;
      while (j < b.size() && is_name_digit(b[j])) ++j;
      if (auto const order = compare_numbers(a.substr(i0, i - i0), b.substr(j0, j - j0)); order != 0) return order;
    } else {
      if (a[i] != b[j]) return static_cast<unsigned char>(a[i]) < static_cast<unsigned char>(b[j]) ? -1 : 1;
      ++i;
      ++j;
    }
  }
  if (i < a.size() || j < b.size()) return i < a.size() ? 1 : -1;
  return a.compare(b);  // 07 and 7: told apart, whichever comes first
}

/// The names of modules and parameters, each after those registered before it in the same parent. A module's own
/// parameters come before those of its children.
inline constexpr std::array<std::string_view, 31> registered_names{"model",
                                                                   "lm_head",
                                                                   "embed_tokens",
                                                                   "layers",
                                                                   "norm",
                                                                   "self_attn",
                                                                   "mlp",
                                                                   "input_layernorm",
                                                                   "post_attention_layernorm",
                                                                   "sinks",
                                                                   "q_proj",
                                                                   "k_proj",
                                                                   "v_proj",
                                                                   "o_proj",
                                                                   "q_norm",
                                                                   "k_norm",
                                                                   "gate",
                                                                   "router",
                                                                   "experts",
                                                                   "gate_proj",
                                                                   "up_proj",
                                                                   "gate_up_proj",
                                                                   "gate_up_proj_blocks",
                                                                   "gate_up_proj_scales",
                                                                   "gate_up_proj_bias",
                                                                   "down_proj",
                                                                   "down_proj_blocks",
                                                                   "down_proj_scales",
                                                                   "down_proj_bias",
                                                                   "weight",
                                                                   "bias"};

/// Takes the string of one key of a text that is an object.
struct top_level_string {
  std::string_view wanted;
  std::string value{};
  std::size_t depth = 0;
  bool here = false, found = false, object = false;
  bool open() {
    here = false;
    ++depth;
    return true;
  }
  bool close() {
    --depth;
    return true;
  }
  bool object_begin(std::size_t) {
    object |= depth == 0;
    return open();
  }
  bool object_end(std::size_t) { return close(); }
  bool array_begin(std::size_t) { return open(); }
  bool array_end(std::size_t) { return close(); }
  bool key(std::string_view text, std::size_t) {
    here = depth == 1 && text == wanted;
    return true;
  }
  bool string(std::string_view text, std::size_t) {
    if (here) value = text;
    found |= here;
    return true;
  }
  bool number(std::string_view, std::size_t) { return true; }
  bool boolean(bool, std::size_t) { return true; }
  bool null(std::size_t) { return true; }
};

/// The prefixes of a name that end in `.<integer>.`, short ones first: calls f(stem, whole prefix), with the dots,
/// until it returns true.
template <class F>
void numbered_prefixes(std::string_view name, F f) {
  for (auto dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
    auto end = dot + 1;
    while (end < name.size() && is_name_digit(name[end])) ++end;
    if (end > dot + 1 && end < name.size() && name[end] == '.' && f(name.substr(0, dot + 1), name.substr(0, end + 1)))
      return;
  }
}

}  // namespace detail

inline bool natural_less(std::string_view a, std::string_view b) { return detail::compare_natural(a, b) < 0; }

inline bool registered_less(std::string_view a, std::string_view b) {
  auto const& names = detail::registered_names;
  auto const next = [](std::string_view& rest) {
    auto const part = rest.substr(0, rest.find('.'));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    return part;
  };
  auto x = a, y = b;
  while (!x.empty() && !y.empty()) {
    auto const p = next(x), q = next(y);
    if (p == q) continue;
    auto const i = std::find(names.begin(), names.end(), p), j = std::find(names.begin(), names.end(), q);
    if (i != j) return i < j;
    return natural_less(p, q);
  }
  return x.empty() && y.empty() ? a < b : x.empty();
}

inline result<std::string> model_type(checkpoint_files const& checkpoint) {
  auto const path = checkpoint.directory() / "config.json";
  auto opened = input_file::open(path);
  if (!opened) {
    if (opened.error().problems.front().code == errc::file_missing) return std::string{};
    return opened.error();
  }
  auto const bad = [&](std::string detail, text_place at = {}) {
    auto one = detail::file_problem(errc::model_config, path.string(), std::move(detail));
    one.problems.front().where.line = at.line;
    one.problems.front().where.column = at.column;
    return one;
  };
  constexpr std::size_t most = std::size_t{64} << 20;
  if (opened->size().value > most) return bad("config.json has more than " + std::to_string(most >> 20) + " MiB");
  std::string text(opened->size().value, '\0');
  if (auto read = opened->read_at(std::as_writable_bytes(std::span{text}), {0}); !read) return read.error();
  detail::top_level_string reader{"model_type"};
  if (auto const end = walk_json(text, reader); end.how != json_end::kind::whole)
    return bad("not strict JSON: " + end.message, line_table{text}(end.at, end.at));
  if (!reader.object) return bad("config.json holds no object");
  return std::move(reader.value);
}

inline result<std::vector<model_unit>> model_units(checkpoint_files const& checkpoint, std::string_view type) {
  std::vector<std::size_t> order(checkpoint.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  auto const less = known_architecture(type) ? registered_less : natural_less;
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return less(checkpoint.name(a), checkpoint.name(b)); });

  std::map<std::string_view, std::optional<std::string_view>> stems;  // stem -> its one prefix, or none for several
  for (auto const i : order)
    detail::numbered_prefixes(checkpoint.name(i), [&](std::string_view stem, std::string_view prefix) {
      auto const [found, fresh] = stems.try_emplace(stem, prefix);
      if (!fresh && found->second && *found->second != prefix) found->second.reset();
      return false;
    });

  std::vector<problem> problems;
  std::vector<model_unit> units(1);
  units[0].name = "root";
  std::map<std::string_view, std::size_t> numbers;
  for (auto const i : order) {
    std::size_t unit = 0;
    detail::numbered_prefixes(checkpoint.name(i), [&](std::string_view stem, std::string_view prefix) {
      if (stems.find(stem)->second) return false;
      auto const [found, fresh] = numbers.try_emplace(prefix, units.size());
      if (fresh) {
        units.emplace_back();
        units[units.size() - 1].name = prefix.substr(0, prefix.size() - 1);
      }
      unit = found->second;
      return true;
    });
    auto const tensor = checkpoint[i];
    if (tensor.dims.size() > shape::max_rank) {
      problems.push_back(
          detail::file_problem(errc::shape_mismatch, checkpoint.files()[checkpoint.file_number(i)].file.path(),
                               "tensor " + shown(tensor.name) + " has " + std::to_string(tensor.dims.size()) +
                                   " dimensions, a parameter has at most 8; save it with fewer")
              .problems.front());
      continue;
    }
    units[unit].parameters.push_back({tensor.name, shape{std::span<std::size_t const>{tensor.dims}}, tensor.type});
    units[unit].types.push_back(tensor.type);
  }
  if (!problems.empty()) return config_error{std::move(problems)};
  if (units[0].parameters.empty()) units.erase(units.begin());
  return units;
}

}  // namespace v0
}  // namespace flatshard
