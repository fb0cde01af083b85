// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <flatshard/is_first.hpp>

#include <flatshard/base.hpp>

namespace planted {
inline constexpr std::size_t three = two + one;
}
