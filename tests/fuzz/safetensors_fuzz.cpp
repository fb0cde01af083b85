// SPDX-License-Identifier: Apache-2.0
// Any bytes as a header: an error, or a header whose tensors cover the data once. Input: 2 bytes size of the data,
// header.
#include <flatshard/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

void check(bool holds, char const* rule) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", rule);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace flatshard;
  if (size < 2) return 0;
  std::size_t const data_size = data[0] | std::size_t{data[1]} << 8;
  std::string const text{reinterpret_cast<char const*>(data + 2), size - 2};
  auto const parsed = safetensors_header::parse(text, {8 + text.size() + data_size}, "fuzz");
  safetensors_limits strict;
  strict.strict = true;
  if (safetensors_header::parse(text, {8 + text.size() + data_size}, "fuzz", strict))
    check(parsed.has_value(), "what is accepted strictly must be accepted");
  if (!parsed) {
    auto const problems = parsed.error().problems;
    check(problems.size() == 1 && problems[0].detail.size() < 600, "one problem with a short message");
    for (char const c : problems[0].detail) check(c >= 0x20 && c < 0x7F, "messages are printable");
    return 0;
  }
  std::size_t next = 0;
  for (std::size_t i = 0; i < parsed->size(); ++i) {
    auto const tensor = (*parsed)[i];
    std::size_t n = bits(tensor.type);
    for (auto const d : tensor.dims) n = d == 0 ? 0 : checked_mul(n, d);
    check(tensor.begin.value == next, "no hole, no overlap");
    check(n % 8 == 0 && tensor.end.value - tensor.begin.value == n / 8, "dtype and shape give the size");
    check(parsed->find(tensor.name) == i, "every tensor is found by its name");
    next = tensor.end.value;
  }
  check(next == data_size, "the data are covered");
  static_cast<void>(parsed->metadata());
  return 0;
}
