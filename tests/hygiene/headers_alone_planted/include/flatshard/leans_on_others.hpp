// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <flatshard/base.hpp>

namespace planted {
inline std::vector<int> const numbers{1};  // <vector> is missing
}
