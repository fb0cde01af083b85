// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace planted {
inline constexpr std::size_t two = 2;  // <cstddef> is missing
}
