// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace planted {
inline constexpr std::size_t one = 1;
}
