// SPDX-License-Identifier: Apache-2.0
/// The ranks of one training: threads of this process.
#pragma once

#include "arguments.hpp"
#include "matmul_backend.hpp"
#include "model_shape.hpp"
#include "rank_trainer.hpp"
#include "reporter.hpp"
#include "token_source.hpp"
#include "training_setup.hpp"

#include <flatshard/kernels/threads.hpp>
#include <flatshard/value.hpp>

#include <cstddef>
#include <span>

namespace trainer {

struct training {
  arguments const& args;
  training_setup const& setup;
  value const& config;  ///< the model's config.json
  model_shape const& model;
  unit_tables const& tables;
  std::size_t file_bytes;  ///< of the checkpoint
  token_source const& tokens;
  training_options options;
  llama::matmul_backend backend;
  reporter& report;
  std::span<float> logits;  ///< of the first step, [batch, tokens, vocabulary]; every rank writes its own sequences
};

/// Trains on the ranks that the arguments ask for, from loading to the last file.
void train_ranks(training const& job, flatshard::kernels::thread_options const& waits);

}  // namespace trainer
