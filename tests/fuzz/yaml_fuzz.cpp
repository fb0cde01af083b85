// SPDX-License-Identifier: Apache-2.0
// Any bytes as a front-end file: problems, or a document that both profiles resolve, alike each time.
#include "../../tools/frontend.hpp"
#include "resolve_any.hpp"

#include <cstdint>
#include <string_view>

namespace {

/// The same bytes as accelerate's file, whose reader takes more: duplicate keys, a root of any kind.
void accelerate(std::string_view text, std::size_t many) {
  auto const read = flatshard::frontend::parse_accelerate(text, "fuzz.yaml");
  if (!read) return fuzz::check(!read.error().problems.empty(), "a refusal says why");
  fuzz::resolve_any(*read, flatshard::config_form::accelerate_file, many);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string_view const text{reinterpret_cast<char const*>(data), size};
  accelerate(text, 1 + size % 8);
  auto const plain = flatshard::frontend::parse_yaml(text, "fuzz.yaml");
  auto const read = flatshard::frontend::parse_llamafactory(text, "fuzz.yaml");
  if (!plain || !read) {
    auto const& problems = plain ? read.error().problems : plain.error().problems;
    fuzz::check(!problems.empty(), "a refusal says why");
    fuzz::check(plain.has_value() || !read, "what is no YAML is no front-end file");
    return 0;
  }
  fuzz::resolve_any(*read, flatshard::config_form::llamafactory_file, 1 + size % 8);
  return 0;
}
