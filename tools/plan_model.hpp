// SPDX-License-Identifier: Apache-2.0
/// The model that `flatshard plan` looks at: units in the order of forward, from a checkpoint or an architecture.
#pragma once

#include "architectures.hpp"
#include "report.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/json.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/plan.hpp>
#include <flatshard/policy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
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
  /// Whether another part has the same shapes in the same order and the same types.
  [[nodiscard]] bool like(model_part const& other) const {
    return throughout == other.throughout && types == other.types &&
           std::equal(
               parameters.begin(), parameters.end(), other.parameters.begin(), other.parameters.end(),
               [](auto const& a, auto const& b) { return a.dims == b.dims && last_of(a.name) == last_of(b.name); });
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

/// Names live in `checkpoint` or `tensors`: parts refer to them.
struct plan_model {
  std::string name, source;  ///< `llama-3-8b`; "checkpoint model/" or "architecture"
  std::vector<model_part> parts;
  bool tied = false, known = true;  ///< known: the order of registration
  std::size_t tensors{}, files{};
  std::uint64_t elements{}, largest_module{};
  std::string largest_name;
  std::optional<flatshard::checkpoint_files> checkpoint{};
  std::shared_ptr<std::vector<tensor_shape> const> shapes{};
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

/// Counts what the report and DeepSpeed's formula need: the largest module's own parameters.
inline void count(plan_model& m) {
  std::map<std::string_view, std::uint64_t> modules;
  for (auto const& part : m.parts)
    for (auto const& p : part.parameters) {
      auto const n = p.dims.numel();
      ++m.tensors;
      m.elements = flatshard::checked_add(m.elements, n);
      auto const dot = p.name.rfind('.');
      auto& sum = modules[dot == std::string_view::npos ? p.name : p.name.substr(0, dot)];
      sum += n;
      if (sum > m.largest_module) {
        m.largest_module = sum;
        m.largest_name = dot == std::string_view::npos ? p.name : p.name.substr(0, dot);
      }
    }
  if (m.elements == 0) throw failure{m.source + " has no parameters, so there is nothing to plan"};
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
  bool const said = std::filesystem::exists(config, ignored) &&
                    fs::parse_file(config.string()).value().value_of_root()["tie_word_embeddings"].is_true();
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

}  // namespace tool
