// SPDX-License-Identifier: Apache-2.0
/// What a training program would pass in code, given on the command line: --argument NAME=VALUE, --release
/// PACKAGE=VERSION.
#pragma once

#include <flatshard/config/profiles.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace tool {

/// Takes over texts `NAME=VALUE`: arguments of accelerate's Accelerator or of Transformers' TrainingArguments under
/// their own names; both where both have it. Throws `wrong_usage` for an unknown name, one that is given twice or a
/// value of another kind.
void take_arguments(std::vector<std::string> const& texts, flatshard::facts& facts);

/// Whether an argument that `take_arguments` knows has an effect under a front end.
[[nodiscard]] bool reads_argument(flatshard::profile front_end, std::string_view name);

/// Takes over texts `PACKAGE=VERSION`, for instance `deepspeed=0.19.8`. Throws `wrong_usage`, also for one package
/// twice.
void take_releases(std::vector<std::string> const& texts, flatshard::facts& facts);

}  // namespace tool
