// SPDX-License-Identifier: Apache-2.0
/// What the program does: a training, or AdamW alone.
#pragma once

#include "arguments.hpp"

namespace trainer {

/// Trains. Everything that can be refused is refused before a line is printed or a rank starts. Throws `bad_input` and
/// what the ranks throw.
void train(arguments const& args);

/// AdamW alone: runs the optimizer on stored gradients, without a model.
void run_adamw(arguments const& args);

}  // namespace trainer
