// SPDX-License-Identifier: Apache-2.0
/// What the command line says.
#pragma once

#include "training_setup.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace trainer {

struct arguments {
  setup_arguments setup;
  std::string model, save, tokens, dump, adamw, sum_order = "by_rank";
  std::vector<std::string> data;
  std::size_t world = 1, steps = 10, batch = 8, tokens_in_sequence = 64;
  bool batch_given = false, tokens_given = false, json = false, final_loss = false;
  double lr = 1e-3, max_grad_norm = 0, grad_scale = 1;
  std::uint64_t seed = 0;
};

}  // namespace trainer
