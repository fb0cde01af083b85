// SPDX-License-Identifier: Apache-2.0
/// Which parameters Megatron-FSDP packs into one buffer.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// How Megatron-FSDP deals a model's parameters to buffers. What the spans hold must outlive the call.
struct megatron_grouping {
  std::span<std::size_t const> units{};  ///< one a parameter, or none at all: number of its FSDP unit, 0: in none
  std::span<std::size_t const> shared_embeddings{};  ///< numbers of parameters; upstream asks for none under no_shard
  elements bucket{40'000'000};                       ///< where parameters in no unit are cut; 0: nowhere
};

/// Parameters in one buffer: `layout{megatron{}, these, world}` packs them.
struct megatron_group {
  std::vector<std::size_t> numbers{};  ///< in the order of the model
  dtype type = dtype::none;            ///< of the first; all 8-bit floats count as one type
  bool expert = false;                 ///< the names hold ".experts."
  bool frozen = false;
  std::size_t unit{};  ///< 0: in none
  friend constexpr bool operator==(megatron_group const&, megatron_group const&) = default;
};

/// The buffers of a model. Parameters of one type, expert or not, frozen or not, and of one unit are together, groups
/// as they first appear. A shared embedding ends the buffer before it and has one of its own. Outside units a buffer
/// is ended once it holds `bucket` elements: appended, then tested, so it may pass that by one parameter. Another name
/// of a parameter (`tied`) and what is ignored are passed over. Collectives of the buffers of one unit are sent
/// together, those of experts apart. Complexity: O(T G) of G groups.
/// @throws broken_rule  units that are not one a parameter; a shared embedding that the model has not
/// Source: Megatron-LM@0056bc94:megatron/core/distributed/fsdp/src/megatron_fsdp/param_and_grad_buffer.py,
/// _get_parameter_groups and BucketingPolicy.
[[nodiscard]] constexpr std::vector<megatron_group> megatron_groups(std::span<parameter const> model,
                                                                    megatron_grouping const& by = {}) {
  require(by.units.empty() || by.units.size() == model.size(), "units are one a parameter, or none");
  std::vector<unsigned char> shared(model.size(), 0);
  for (auto const t : by.shared_embeddings) {
    require(t < model.size(), "the model has no parameter of that number");
    shared[t] = 1;
  }
  auto const float8 = [](dtype t) { return torch_name(t).starts_with("torch.float8"); };
  std::vector<megatron_group> together;
  for (std::size_t t = 0; t < model.size(); ++t) {
    auto const traits = model[t].traits.unpacked();
    if (traits.tied || traits.ignored) continue;
    auto const expert = model[t].name.find(".experts.") != std::string_view::npos;
    auto const unit = by.units.empty() ? 0 : by.units[t];
    auto at = std::find_if(together.begin(), together.end(), [&](megatron_group const& g) {
      auto const alike = g.type == model[t].type || (float8(g.type) && float8(model[t].type));
      return alike && g.expert == expert && g.frozen == traits.frozen && g.unit == unit;
    });
    if (at == together.end()) at = together.insert(at, {{}, model[t].type, expert, traits.frozen, unit});
    at->numbers.push_back(t);
  }
  std::vector<megatron_group> buffers;
  for (auto const& g : together) {
    megatron_group open{{}, g.type, g.expert, g.frozen, g.unit};
    elements size;
    auto const close = [&] {
      if (!open.numbers.empty()) buffers.push_back(open);
      open.numbers.clear();
      size = {};
    };
    for (auto const t : g.numbers) {
      if (shared[t] != 0) close();
      open.numbers.push_back(t);
      size += elements{model[t].dims.numel()};
      if (shared[t] != 0 || (g.unit == 0 && by.bucket > elements{} && size >= by.bucket)) close();
    }
    close();
  }
  return buffers;
}

}  // namespace v0
}  // namespace flatshard
