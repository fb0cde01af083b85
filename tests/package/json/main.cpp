// SPDX-License-Identifier: Apache-2.0
// A client of the readers: the places of the numbers of a JSON text.
#include <flatshard/json.hpp>

#include <iostream>

struct numbers {
  std::size_t sum = 0;
  bool object_begin(std::size_t) { return true; }
  bool object_end(std::size_t) { return true; }
  bool array_begin(std::size_t) { return true; }
  bool array_end(std::size_t) { return true; }
  bool key(std::string_view, std::size_t) { return true; }
  bool string(std::string_view, std::size_t) { return true; }
  bool number(std::string_view, std::size_t at) { return (sum += at, true); }
  bool boolean(bool, std::size_t) { return true; }
  bool null(std::size_t) { return true; }
};

int main() {
  numbers found;
  auto const end = flatshard::walk_json(R"({"a": 1, "b": [2.5]})", found);
  std::cout << "numbers begin at bytes that add up to " << found.sum << '\n';
  return end.how == flatshard::json_end::kind::whole && found.sum == 21 ? 0 : 1;
}
