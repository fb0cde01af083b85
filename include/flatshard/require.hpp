// SPDX-License-Identifier: Apache-2.0
/// The one precondition of the library: a rule with its sentence, checked when compiled and when run.
#pragma once

#if defined(__cpp_exceptions)
#include <stdexcept>
#else
#include <cstdio>
#include <cstdlib>
#endif

namespace flatshard {
inline namespace v0 {

#if defined(__cpp_exceptions)
/// A bug in the caller: the sentence of the rule that it broke.
struct broken_rule : std::logic_error {
  using std::logic_error::logic_error;
};

namespace detail {
[[noreturn]] inline void broken(char const* rule) { throw broken_rule{rule}; }  // apart, so that `require` is inlined
}  // namespace detail

/// Throws `broken_rule` with `rule` unless `holds`; in a constant expression a broken rule stops the build at the call.
/// Complexity: O(1), constexpr.
constexpr void require(bool holds, char const* rule) {
  if (!holds) detail::broken(rule);
}
#else
/// Without exceptions the sentence goes to stderr and the program aborts.
constexpr void require(bool holds, char const* rule) {
  if (!holds) {
    std::fprintf(stderr, "flatshard: %s\n", rule);
    std::abort();
  }
}
#endif

}  // namespace v0
}  // namespace flatshard
