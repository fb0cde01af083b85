// SPDX-License-Identifier: Apache-2.0
// Mutable state on purpose, for the check that looks for it.
#pragma once

namespace flatshard {
inline int counter = 0;
inline thread_local int per_thread = 1;
inline int next() {
  static int calls = 7;
  return ++calls + ++counter + ++per_thread;
}
template <class T>
int& each() {
  static int value;
  return value;
}
inline int use() { return each<int>(); }
inline constexpr int limit = 3;
}  // namespace flatshard
