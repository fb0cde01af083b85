// SPDX-License-Identifier: Apache-2.0
// Any bytes as an index: problems, or tensors that each name a plain file, once.
#include <flatshard/safetensors_index.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string const text{reinterpret_cast<char const*>(data), size};
  auto const parsed = flatshard::parse_index(text, "fuzz");
  auto const check = [](bool holds, char const* rule) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", rule);
    std::abort();
  };
  if (!parsed) {
    check(!parsed.error().problems.empty(), "a refusal says why");
    return 0;
  }
  for (auto const& file : parsed->files)
    check(!file.empty() && file.find_first_of(std::string{"/\\\0", 3}) == std::string::npos &&
              file.find("..") == std::string::npos,
          "files are plain names");
  for (std::size_t i = 0; i < parsed->tensors.size(); ++i) {
    check(parsed->tensors[i].second < parsed->files.size(), "every tensor has a file");
    check(i == 0 || parsed->tensors[i - 1].first < parsed->tensors[i].first, "every tensor is listed once, sorted");
  }
  return 0;
}
