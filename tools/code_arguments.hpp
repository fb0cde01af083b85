// SPDX-License-Identifier: Apache-2.0
/// What a training program would pass in code, given on the command line: --argument NAME=VALUE, --release
/// PACKAGE=VERSION.
#pragma once

#include <flatshard/config/profiles.hpp>

#include <string_view>

namespace tool {

/// Takes over `NAME=VALUE`: an argument of accelerate's Accelerator or of Transformers' TrainingArguments under its own
/// name; both where both have it. Throws `wrong_usage` for an unknown name or a value of another kind.
void take_argument(std::string_view text, flatshard::facts& facts);

/// Takes over `PACKAGE=VERSION`, for instance `deepspeed=0.19.8`. Throws `wrong_usage`.
void take_release(std::string_view text, flatshard::facts& facts);

}  // namespace tool
