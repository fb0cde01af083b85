// SPDX-License-Identifier: Apache-2.0
// Any bytes as a JSON configuration, and as DeepSpeed's own hjson: problems, or a document that every profile resolves,
// alike each time.
#include "resolve_any.hpp"

#include <flatshard/hjson.hpp>

#include <cstdint>
#include <string_view>

namespace {

/// What hjson reads is what JSON says of it once it is written, and every strict text is hjson too, but for repeated
/// keys and numbers that hjson changes.
void read_hjson(std::string_view text) {
  using namespace flatshard;
  for (auto const source : {hjson_source::file, hjson_source::base64}) {
    auto const read = parse_hjson(text, "fuzz", source);
    if (!read) {
      fuzz::check(!read.error().problems.empty(), "a refusal says why");
      for (auto const& p : read.error().problems) fuzz::check(!p.detail.empty(), "a problem has words");
      continue;
    }
    fuzz::check_round_trip(*read);
    if (source == hjson_source::file) fuzz::resolve_any(*read, config_form::deepspeed, 1 + text.size() % 8);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string_view const text{reinterpret_cast<char const*>(data), size};
  read_hjson(text);
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
