// SPDX-License-Identifier: Apache-2.0
#include <flatshard/flatshard.hpp>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this test is compiled with -fno-exceptions -fno-rtti"
#endif

int main(int count, char**) {
  auto const size = static_cast<std::size_t>(count == 1 ? 8 : 0);
  return flatshard::world{size}.value() == 8 ? 0 : 1;
}
