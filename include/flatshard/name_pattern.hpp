// SPDX-License-Identifier: Apache-2.0
/// Patterns that choose parameters by name: `model.layers.*.mlp.experts.*`.
#pragma once

#include <cstddef>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Whether a pattern fits a whole name: `*` stands for any characters, dots among them, also for none; `?` for one
/// character; everything else for itself. Patterns of users that mean a part of the name say `*part*`.
/// Complexity: O(pattern * name). Source: the wildcards of POSIX.1-2017, 2.13.1, without brackets and escapes.
[[nodiscard]] constexpr bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, behind_star = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      behind_star = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {  // the last star takes one character more
      p = star + 1;
      n = ++behind_star;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace v0
}  // namespace flatshard
