// SPDX-License-Identifier: Apache-2.0
/// The model that `flatshard plan` looks at: units in the order of forward, from a checkpoint or an architecture.
#pragma once

#include "architectures.hpp"
#include "parameter_rules.hpp"
#include "report.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/json.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/name_pattern.hpp>
#include <flatshard/plan.hpp>
#include <flatshard/policy.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// Parameters that are used together.
struct model_part {
  std::string name;
  std::vector<flatshard::parameter> parameters;
  std::vector<flatshard::dtype> types;  ///< in the file; empty for an architecture
  bool throughout = false;              ///< used from the first unit to the last
  /// Whether another part has the same shapes and traits in the same order and the same types.
  [[nodiscard]] bool like(model_part const& other) const {
    return throughout == other.throughout && types == other.types &&
           std::equal(parameters.begin(), parameters.end(), other.parameters.begin(), other.parameters.end(),
                      [](auto const& a, auto const& b) {
                        return a.dims == b.dims && a.traits == b.traits && last_of(a.name) == last_of(b.name);
                      });
  }

 private:
  // What follows the first number: equal in all layers.
  static std::string_view last_of(std::string_view name) {
    for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
      auto end = dot + 1;
      while (end < name.size() && name[end] >= '0' && name[end] <= '9') ++end;
      if (end > dot + 1 && end < name.size() && name[end] == '.') return name.substr(end);
    }
    return name;
  }
};

/// Names live in `checkpoint` or `shapes`: parts refer to them.
struct plan_model {
  std::string name, source;  ///< `llama-3-8b`; "checkpoint model/" or "architecture"
  std::vector<model_part> parts;
  bool tied = false, known = true;  ///< known: the order of registration
  std::size_t tensors{}, files{};
  std::uint64_t elements{}, largest_module{};
  std::string largest_name;
  std::optional<flatshard::checkpoint_files> checkpoint{};
  std::shared_ptr<std::vector<tensor_shape> const> shapes{};
  std::uint64_t expert_ranks = 1;  ///< parts hold the experts of one of so many ranks, the counts above all of them
  /// Parameters in the parts.
  [[nodiscard]] std::size_t listed() const {
    std::size_t n = 0;
    for (auto const& part : parts) n += part.parameters.size();
    return n;
  }
};

namespace model_parts {

/// Cuts the root unit where the layers begin, in the order of registration; a tied embedding stays one unit that is
/// used throughout.
inline void split_root(plan_model& m) {
  auto const root = std::find_if(m.parts.begin(), m.parts.end(), [](model_part const& p) { return p.name == "root"; });
  if (root == m.parts.end() || m.parts.size() == 1) return;
  if (m.tied || !m.known) {
    root->throughout = true;
    return;
  }
  auto const first_layer = (root == m.parts.begin() ? m.parts[1] : m.parts[0]).parameters.front().name;
  model_part before{"embedding", {}, {}, false}, after{"head", {}, {}, false};
  for (std::size_t i = 0; i < root->parameters.size(); ++i) {
    auto& to = flatshard::registered_less(root->parameters[i].name, first_layer) ? before : after;
    to.parameters.push_back(root->parameters[i]);
    if (!root->types.empty()) to.types.push_back(root->types[i]);
  }
  m.parts.erase(root);
  if (!before.parameters.empty()) m.parts.insert(m.parts.begin(), std::move(before));
  if (!after.parameters.empty()) m.parts.push_back(std::move(after));
}

/// Finds the module with the most parameters of its own, for DeepSpeed's formula.
inline void find_largest(plan_model& m) {
  std::map<std::string_view, std::uint64_t> modules;
  m.largest_module = 0;
  for (auto const& part : m.parts)
    for (auto const& p : part.parameters) {
      auto const dot = p.name.rfind('.');
      auto& sum = modules[dot == std::string_view::npos ? p.name : p.name.substr(0, dot)];
      sum += p.dims.numel();
      if (sum > m.largest_module) {
        m.largest_module = sum;
        m.largest_name = dot == std::string_view::npos ? p.name : p.name.substr(0, dot);
      }
    }
}
/// Counts what the report and DeepSpeed's formula need.
inline void count(plan_model& m) {
  m.tensors = m.listed();
  for (auto const& part : m.parts)
    for (auto const& p : part.parameters) m.elements = flatshard::checked_add(m.elements, p.dims.numel());
  if (m.elements == 0) throw failure{m.source + " has no parameters, so there is nothing to plan"};
  find_largest(m);
}

/// `model.layers.0.mlp.experts.17.up_proj.weight` -> `model.layers.0.mlp.experts` and 17: the number behind a word that
/// ends in "experts". Nothing where one tensor holds all experts.
inline std::optional<std::pair<std::string_view, std::uint64_t>> expert_of(std::string_view name) {
  constexpr std::string_view word = "experts.";
  for (auto at = name.find(word); at != std::string_view::npos; at = name.find(word, at + 1)) {
    auto const* const begin = name.data() + at + word.size();
    auto const* const last = name.data() + name.size();
    std::uint64_t number{};
    auto const [end, error] = std::from_chars(begin, last, number);
    if (error == std::errc{} && end != last && *end == '.')
      return std::pair{name.substr(0, at + word.size() - 1), number};
  }
  return {};
}
}  // namespace model_parts

/// Reads the headers of a checkpoint. Throws `bad_input`.
[[nodiscard]] inline plan_model model_of_checkpoint(std::string const& directory) {
  namespace fs = flatshard;
  plan_model m;
  m.checkpoint = fs::open_checkpoint(directory).value();
  m.source = "checkpoint " + one_line(directory);
  auto path = std::filesystem::path{directory}.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  m.name = path.filename().string();
  m.files = m.checkpoint->files().size();
  auto const type = fs::model_type(*m.checkpoint).value();
  m.known = fs::known_architecture(type);
  auto const config = m.checkpoint->directory() / "config.json";
  std::error_code ignored;
  bool const said =
      std::filesystem::exists(config, ignored) &&
      fs::parse_file(config.string(), fs::json_text::other).value().value_of_root()["tie_word_embeddings"].is_true();
  m.tied = said && !m.checkpoint->find("lm_head.weight");
  for (auto& unit : fs::model_units(*m.checkpoint, type).value())
    m.parts.push_back({std::move(unit.name), std::move(unit.parameters), std::move(unit.types), false});
  model_parts::split_root(m);
  model_parts::count(m);
  return m;
}

/// The tensors of a published or scaled architecture.
[[nodiscard]] inline plan_model model_of_shape(std::string name, model_shape const& shape) {
  plan_model m;
  m.name = std::move(name);
  m.source = "architecture " + m.name;
  m.tied = shape.tied;
  m.shapes = std::make_shared<std::vector<tensor_shape> const>(tensors(shape));
  m.parts.push_back({"root", {}, {}, false});
  for (auto const& t : *m.shapes) {
    std::string_view const full = t.name;
    constexpr std::string_view layers = "model.layers.";
    auto const unit = full.starts_with(layers) ? std::string{full.substr(0, full.find('.', layers.size()))} : "root";
    auto to = unit == "root" ? m.parts.begin() : m.parts.end() - 1;
    if (to->name != unit) {
      m.parts.push_back({unit, {}, {}, false});
      to = m.parts.end() - 1;
    }
    to->parameters.push_back({full, flatshard::shape{std::span<std::size_t const>{t.shape}}});
  }
  model_parts::split_root(m);
  model_parts::count(m);
  return m;
}

/// Leaves in the parts what one of `expert_parallel` neighbouring ranks holds, the first, and marks its experts. An
/// expert is numbered in its parameters' names, or a first dimension counts them. Throws `failure` for experts that
/// cannot be shared out evenly and for a pattern that fits nothing.
inline void share_experts(plan_model& m, parameter_rules const& rules) {
  namespace fs = flatshard;
  auto const n = m.expert_ranks = rules.expert_parallel;
  auto const patterns = rules.expert_patterns();
  for (auto const& pattern : patterns) {
    auto const fits = [&](fs::parameter const& p) { return fs::matches(pattern, p.name); };
    if (std::none_of(m.parts.begin(), m.parts.end(), [&](model_part const& part) {
          return std::any_of(part.parameters.begin(), part.parameters.end(), fits);
        })) {
      if (rules.experts.empty())  // the pattern is the tool's own
        throw failure{
            fmt::format("--expert-parallel {}: {} has no experts: no parameter's name fits '{}'; --experts "
                        "says which are some",
                        n, one_line(m.name), pattern)};
      throw failure{fits_nothing("--experts", pattern, m.name, m.parts.front().parameters.front().name)};
    }
  }
  if (n == 1) return;
  auto const expert = [&](std::string_view name) {
    return std::any_of(patterns.begin(), patterns.end(), [&](auto const& one) { return fs::matches(one, name); });
  };
  std::map<std::string_view, std::set<std::uint64_t>> numbers;
  for (auto const& part : m.parts)
    for (auto const& p : part.parameters)
      if (expert(p.name))
        if (auto const numbered = model_parts::expert_of(p.name)) numbers[numbered->first].insert(numbered->second);
  auto const share_of = [&](std::uint64_t all, std::string_view whose) {
    if (all % n != 0)
      throw failure{fmt::format("--expert-parallel {} does not divide the {} experts of {}", n, all, one_line(whose))};
    return all / n;
  };
  for (auto& part : m.parts) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < part.parameters.size(); ++i) {
      auto p = part.parameters[i];
      if (expert(p.name)) {
        p.traits = fs::parameter_traits{.expert_ranks = n};
        if (auto const numbered = model_parts::expert_of(p.name)) {
          auto const& all = numbers[numbered->first];
          auto const share = share_of(all.size(), numbered->first);
          if (static_cast<std::uint64_t>(std::distance(all.begin(), all.find(numbered->second))) >= share) continue;
        } else {
          if (p.dims.rank == 0) throw failure{"--experts fits " + one_line(p.name) + ", which has no dimension"};
          p.dims.dims[0] = share_of(p.dims.dims[0], p.name);
        }
      }
      part.parameters[kept] = p;
      if (!part.types.empty()) part.types[kept] = part.types[i];
      ++kept;
    }
    part.parameters.resize(kept);
    if (!part.types.empty()) part.types.resize(kept);
  }
  std::erase_if(m.parts, [](model_part const& part) { return part.parameters.empty(); });
  model_parts::find_largest(m);
}

}  // namespace tool
