// SPDX-License-Identifier: Apache-2.0
// A client of the headers alone: the layout of a layer, when compiled and when run.
#include <flatshard/flatshard.hpp>
#include <flatshard/laws.hpp>

#include <iostream>

using namespace flatshard;
constexpr auto layer = parameters({{"wq", {4096, 4096}}, {"wk", {1024, 4096}}, {"norm", {4096}}});
constexpr layout fixed{native{}, layer, world<8>{}};

int main(int count, char**) {
  layout const read{native{}, std::vector<parameter>(layer.begin(), layer.end()),
                    world{static_cast<std::size_t>(7 + count)}};
  std::cout << fixed << '\n' << read << '\n';
  if (auto const broken = first_broken_law(read)) {
    std::cerr << *broken << '\n';
    return 1;
  }
  return to_string(fixed) == to_string(read) && fixed.hash() == read.hash() ? 0 : 1;
}
