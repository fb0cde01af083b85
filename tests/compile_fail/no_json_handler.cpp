// must not compile: h.null(at)
// SPDX-License-Identifier: Apache-2.0
// A handler has a function for each kind of value; the missing one is named.
#include <flatshard/json.hpp>

struct counter {
  std::size_t values = 0;
  bool object_begin(std::size_t) { return true; }
  bool object_end(std::size_t) { return true; }
  bool array_begin(std::size_t) { return true; }
  bool array_end(std::size_t) { return true; }
  bool key(std::string_view, std::size_t) { return true; }
  bool string(std::string_view, std::size_t) { return ++values != 0; }
  bool number(std::string_view, std::size_t) { return ++values != 0; }
  bool boolean(bool, std::size_t) { return ++values != 0; }
#ifdef FLATSHARD_REPAIRED
  bool null(std::size_t) { return ++values != 0; }
#endif
};
std::size_t values_of(std::string_view text) {
  counter values;
  static_cast<void>(flatshard::walk_json(text, values));
  return values.values;
}
