// SPDX-License-Identifier: Apache-2.0
/// The headers that need the standard library alone: `g++ -std=c++20 -I include x.cpp` and nothing else.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>
#include <flatshard/version.hpp>
