// SPDX-License-Identifier: Apache-2.0
/// What `resolve` returns: decisions, problems, and the same as typed policies.
#pragma once

#include <flatshard/config/accelerate/deepspeed_plugin.hpp>
#include <flatshard/config/deepspeed/batch.hpp>
#include <flatshard/config/deepspeed/native_reading.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/config/schema.hpp>
#include <flatshard/config/undecided_precision.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Who runs the sharded training.
enum class backend_kind : std::uint8_t {
  none,
  ddp,
  fsdp2,  ///< fully_shard, called by the front end or in user code
  deepspeed,
  fsdp,       ///< accelerate's FSDP plugin, whose version says which FSDP
  multi_gpu,  ///< accelerate's launcher for several devices: DDP
  simple      ///< accelerate's launcher for one process
};
[[nodiscard]] constexpr std::string_view name(backend_kind b) {
  constexpr std::array<std::string_view, 7> names{"none", "ddp", "fsdp2", "deepspeed", "fsdp", "multi_gpu", "simple"};
  return names[static_cast<std::size_t>(b)];
}

/// How parameters are cut over ranks. `none` and `zero12` keep them whole on every rank (`zero12` cuts gradients and
/// optimizer states only).
enum class sharding_kind : std::uint8_t { none, zero12, zero3, fsdp2, native, fsdp1 };
[[nodiscard]] constexpr std::string_view name(sharding_kind s) {
  constexpr std::array<std::string_view, 6> names{"none", "zero12", "zero3", "fsdp2", "native", "fsdp1"};
  return names[static_cast<std::size_t>(s)];
}

/// How the weights come into the model.
enum class load_way : std::uint8_t {
  from_pretrained,
  zero_init,
  broadcast_from_rank0,
  safetensors_per_rank,
  dcp,
  every_rank  ///< each rank reads everything, then keeps its shard
};
[[nodiscard]] constexpr std::string_view name(load_way w) {
  constexpr std::array<std::string_view, 6> names{"from-pretrained",      "zero-init", "broadcast-from-rank0",
                                                  "safetensors-per-rank", "dcp",       "every-rank"};
  return names[static_cast<std::size_t>(w)];
}

/// Loading the model. `partitioned`: each rank loads its own shard (ZeRO-3 low-memory loading).
struct load_policy {
  bool partitioned = false;
  dtype type = dtype::none;  ///< of the partitioned parameters
  std::string reason;        ///< why it is on or off, naming the input
  place where;               ///< of that input
  load_way way = load_way::from_pretrained;
  std::string device = "accelerator";    ///< accelerator, cpu or meta
  bool transformers_low_memory = false;  ///< accelerate's FSDP: ranks other than 0 start with empty weights
};

/// The process group: its backend by device, and who makes it.
struct process_group_policy {
  enum class origin : std::uint8_t { none, created, adopted } how = origin::none;
  std::string backend;
  std::int64_t timeout_seconds = 0;  ///< 0: the backend's own default
};

/// Optimizer settings of a DeepSpeed file; what it does not say is absent.
struct optimizer_policy {
  std::string type;
  std::optional<double> learning_rate{}, eps{}, weight_decay{};
  std::optional<std::array<double, 2>> betas{};
};

/// Which modules become units of their own. Source: docs/config.md, front-end files.
enum class wrap_kind : std::uint8_t { none, transformer, size };
[[nodiscard]] constexpr std::string_view name(wrap_kind w) {
  constexpr std::array<std::string_view, 3> names{"none", "transformer", "size"};
  return names[static_cast<std::size_t>(w)];
}
struct wrap_policy {
  wrap_kind kind = wrap_kind::none;
  std::optional<std::vector<std::string>> classes{};  ///< of `transformer`; none: the model's own list
  std::optional<std::int64_t> min_num_params{};       ///< of `size`
};
/// Modules of one class, or a list of modules joined by `+`, that become units.
struct unit_count {
  std::string modules;
  std::size_t count = 0;
};

/// `fully_shard` as a front end or user code calls it.
struct fsdp2_policy {
  dtype param_type = dtype::none, reduce_type = dtype::none, output_type = dtype::none;
  bool cast_forward_inputs = true;
  value reshard_after_forward;  ///< true, false, null (layers true, root false), or a group size
  std::int64_t replicate = 1, shard = 1;
  bool offload_params = false;
  value pin_memory;
  bool embedding_unit = true;  ///< the embedding is a unit of its own: it is not tied to the head
  std::size_t dimensions = 2;  ///< of the device mesh
  value reshard_root;          ///< of the root unit, with torch's null decided: true, false or a group size
  std::optional<std::vector<unit_count>> units{};  ///< where the model's modules are known
  dtype input_type = dtype::none;                  ///< what the first unit's forward sees; none: not known
};

/// What accelerate's launcher and workers decide beside the sharding itself.
struct accelerate_policy {
  std::vector<std::pair<std::string, std::string>> environment{};  ///< what the launcher sets for its workers
  std::optional<std::int64_t> num_processes{};
  std::string mixed_precision = "no";     ///< as the Accelerator reports it
  value gradient_accumulation_steps = 1;  ///< the Accelerator's
  std::int64_t fsdp_version = 0;          ///< 0: no FSDP plugin
  wrap_policy auto_wrap{};
  std::string state_dict_type{};    ///< SHARDED_STATE_DICT, FULL_STATE_DICT, LOCAL_STATE_DICT
  std::string sharding_strategy{};  ///< of version 1
  bool activation_checkpointing_offload = false;
};

/// LLaMA-Factory's four mesh sizes and its batch; values as upstream keeps them.
struct llamafactory_policy {
  value mp_replicate_size, mp_shard_size, dp_size, cp_size;
  value micro_batch_size, global_batch_size, num_micro_batch;
  value max_grad_norm;
};

/// ZeRO's settings that a trainer or an estimate needs.
struct zero_policy {
  std::int64_t stage = 0;
  std::int64_t reduce_bucket_size = 0, prefetch_bucket_size = 0, param_persistence_threshold = 0;
  bool buckets_known = true;  ///< false: a bucket is "auto" and the hidden size is not known
  offload_device offload_param = offload_device::none, offload_optimizer = offload_device::none;
};

/// Everything decided, as types: programs read this and never parse the printed decisions.
struct resolved_policies {
  backend_kind backend = backend_kind::none;
  sharding_kind sharding = sharding_kind::none;
  precision_mode mode = precision_mode::refused;  ///< of a DeepSpeed file
  /// The seven roles; a master of `none` updates the storage. None: nobody decides them, and `undecided` is there.
  std::optional<precision> dtypes;
  engine_wrapper wrapper = engine_wrapper::none;
  std::optional<zero_policy> zero;
  load_policy load;
  std::optional<batch_sizes> batch_at_load, batch;  ///< of a DeepSpeed file; at load only with partitioned loading
  std::optional<fsdp2_policy> fsdp2;
  std::optional<llamafactory_policy> front_end;
  std::optional<optimizer_policy> optimizer;
  bool activation_checkpointing = true;
  value gradient_clipping;  ///< the norm that gradients are clipped to: DeepSpeed's key, else max_grad_norm
  process_group_policy process_group;
  std::string config_file;           ///< of DeepSpeed, as the front end's file names it
  std::vector<std::string> printed;  ///< the lines that LLaMA-Factory prints about precision
  std::optional<accelerate_policy> accelerate;
  value deepspeed_config;  ///< what reaches DeepSpeed when training starts; absent if the front end refuses it
  std::optional<deepspeed_plugin> plugin;  ///< accelerate's, as it is built
  std::string reported_precision;          ///< the mode that accelerate reports; empty: it has none
  dtype model_init = dtype::none;          ///< of tensor-parallel models that Transformers builds
  std::optional<native_reading> native;    ///< all that DeepSpeed reads when training starts
  /// Instead of `dtypes`; an accepted configuration has one of the two.
  std::optional<undecided_precision> undecided;
  [[nodiscard]] std::optional<double> clip_norm() const { return gradient_clipping.number(); }
};

/// Whole also for a bad configuration: an explainer shows its decisions too.
struct resolution {
  profile front_end = profile::llamafactory;
  std::vector<decision> decisions;
  std::vector<problem> problems;
  resolved_policies policies;

  [[nodiscard]] bool has_errors() const {
    for (auto const& p : problems)
      if (p.level == severity::error) return true;
    return false;
  }
  /// This resolution, or bad_input with every problem if one of them is an error.
  [[nodiscard]] resolution const& value() const& {
    if (has_errors()) throw_bad_input(config_error{problems});
    return *this;
  }
  [[nodiscard]] resolution value() && {
    if (has_errors()) throw_bad_input(config_error{std::move(problems)});
    return std::move(*this);
  }
  /// Equal on ranks that decided alike: FNV-1a 64 over the keys and values of the decisions that all ranks share.
  /// Complexity: O(decisions).
  [[nodiscard]] std::uint64_t hash() const {
    std::uint64_t h = 0xcbf29ce484222325u;
    auto const add = [&h](std::string_view text) {
      for (char const c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
      h = (h ^ 0xFFu) * 0x100000001b3u;  // no byte of UTF-8: the end of a text
    };
    add(name(front_end));
    for (auto const& d : decisions) {
      if (d.of_rank) continue;
      add(d.key);
      add(d.value);
      add(d.load_value);
    }
    return h;
  }
  /// The decision of a key, or null.
  [[nodiscard]] decision const* find(std::string_view key) const {
    for (auto const& d : decisions)
      if (d.key == key) return &d;
    return nullptr;
  }
};

/// How this library loads the weights, and why.
struct loading_choice {
  bool partitioned = false;  ///< each rank reads its own ranges; else every rank reads everything
  std::string reason;
  place where;
};
/// Partitioned where the configuration shards the parameters from the start: under ZeRO-3 when the front end's own
/// trigger is on, under FSDP2 always (upstream's trigger is about ZeRO-3; loading takes the layout, whoever cuts).
[[nodiscard]] inline loading_choice loading_of(resolution const& r) {
  auto const& p = r.policies;
  if (p.sharding == sharding_kind::fsdp2) {
    auto const* const backend = r.find("backend");
    return {true, "on: FSDP2 shards every parameter", backend ? backend->source : place{}};
  }
  if (!p.load.reason.empty()) return {p.load.partitioned, p.load.reason, p.load.where};
  // accelerate without DeepSpeed: no trigger of ZeRO-3 was asked
  bool const fsdp1 = p.sharding == sharding_kind::fsdp1;
  auto const* const decided = r.find(fsdp1 ? "fsdp_version" : r.find("launcher") ? "launcher" : "backend");
  return {false,
          "off: " + (decided ? decided->reason + ", " : std::string{}) +
              (fsdp1 ? "which shards a model that every rank has loaded" : "nothing shards the parameters"),
          decided ? decided->source : place{}};
}

/// Every warning becomes an error; notes stay.
[[nodiscard]] inline resolution strict(resolution r) {
  for (auto& p : r.problems)
    if (p.level == severity::warning) p.level = severity::error;
  return r;
}

}  // namespace v0
}  // namespace flatshard
