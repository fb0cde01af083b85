// SPDX-License-Identifier: Apache-2.0
/// What a training program passes in code to accelerate, to Transformers' Trainer and to fully_shard.
#pragma once

#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Arguments of accelerate's Accelerator, its launcher and its plugins.
struct accelerator_arguments {
  std::optional<std::string> mixed_precision{};  ///< no, bf16, fp16, fp8; absent: ACCELERATE_MIXED_PRECISION, then no
  value gradient_accumulation_steps = 1;
  std::vector<std::int64_t> dataloader_batch_sizes{};  ///< of the dataloaders given to prepare
  value zero3_init_flag{};                             ///< of the DeepSpeed plugin; absent: not given
  std::optional<value> placeholder_optimizer{};        ///< DummyOptim's lr and weight_decay; none: see client_optimizer
  std::optional<value>
      placeholder_scheduler{};  ///< DummyScheduler's total_num_steps, warmup_num_steps; lr: of an optimizer in code
  std::optional<value> fsdp_plugin{};   ///< FullyShardedDataParallelPlugin's arguments; none: no plugin
  std::vector<std::string> launcher{};  ///< words after `accelerate launch`, before the program
};

/// Transformers' TrainingArguments, as far as a configuration is held against them. Defaults are upstream's.
struct training_arguments {
  bool bf16 = false, fp16 = false;
  std::int64_t per_device_train_batch_size = 1, gradient_accumulation_steps = 1;
  double max_grad_norm = 1.0, learning_rate = 5e-5, weight_decay = 0.0, eps = 1e-8;
  std::array<double, 2> betas{0.9, 0.999};
  std::int64_t warmup_steps = 0, num_training_steps = 100;
};

/// Arguments of torch's fully_shard and MixedPrecisionPolicy, as given: an absent key is not passed.
struct fully_shard_arguments {
  value mp_policy = value::object();  ///< param_dtype, reduce_dtype, output_dtype, cast_forward_inputs
  value mesh{};                       ///< [shard] or [replicate, shard]
  value reshard_after_forward{};      ///< true, false, null or a group size
  value offload_policy{};             ///< {"cpu": bool, "pin_memory": bool}
  dtype storage = dtype::f32;         ///< of the module
  dtype input = dtype::f32;           ///< of what the first unit's forward is given
};

}  // namespace v0
}  // namespace flatshard
