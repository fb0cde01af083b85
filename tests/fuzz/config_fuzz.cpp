// SPDX-License-Identifier: Apache-2.0
// Any bytes as a JSON configuration: problems, or a document that both profiles resolve, alike each time.
#include "resolve_any.hpp"

#include <cstdint>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string_view const text{reinterpret_cast<char const*>(data), size};
  auto const read = flatshard::parse_json(text, "fuzz");
  if (!read) {
    fuzz::check(!read.error().problems.empty(), "a refusal says why");
    return 0;
  }
  fuzz::check_round_trip(*read);
  using form = flatshard::config_form;
  for (auto const one : {form::deepspeed, form::accelerate_file, form::fully_shard_call})
    fuzz::resolve_any(*read, one, 1 + size % 8);
  return 0;
}
