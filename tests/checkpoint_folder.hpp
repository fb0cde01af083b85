// SPDX-License-Identifier: Apache-2.0
/// A folder for the files of one test, and checkpoints with values that a test can name.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/safetensors_writer.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <unistd.h>

/// Removed with all that is in it.
struct test_folder {
  std::filesystem::path path;
  explicit test_folder(std::string const& name)
      : path{std::filesystem::temp_directory_path() / ("flatshard-" + name + '-' + std::to_string(::getpid()))} {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  test_folder(test_folder const&) = delete;
  ~test_folder() { std::filesystem::remove_all(path); }
};

/// Byte `i` of tensor `name`: any bits, so also infinities, NaN and subnormals.
inline std::uint8_t test_byte(std::string const& name, std::size_t i) {
  std::uint64_t h = 0x9E3779B97F4A7C15u * (i + 1);
  for (char const c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  h ^= h >> 29;
  h *= 0xBF58476D1CE4E5B9u;
  return static_cast<std::uint8_t>(h >> 56);
}
inline std::vector<std::byte> test_bytes(flatshard::tensor_spec const& tensor) {
  std::vector<std::byte> out(flatshard::size_of(tensor).value);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(test_byte(tensor.name, i));
  return out;
}
/// A file with these tensors in this order.
inline void write_test_file(std::filesystem::path const& path, std::vector<flatshard::tensor_spec> const& tensors) {
  flatshard::safetensors_options options;
  options.order = flatshard::tensor_order::given;
  flatshard::safetensors_writer out{path, tensors, options};
  for (auto const& tensor : tensors) out.write(tensor.name, test_bytes(tensor));
  out.commit();
}
