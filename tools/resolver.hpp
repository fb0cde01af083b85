// SPDX-License-Identifier: Apache-2.0
/// `flatshard::resolve` for the programs and the tests, compiled once: its rules are most of what a program that calls
/// it compiles.
#pragma once

#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/document.hpp>

/// `flatshard::resolve` and nothing else.
[[nodiscard]] flatshard::resolution decide(flatshard::document const& config, flatshard::profile front_end,
                                           flatshard::facts const& known = {});
