// SPDX-License-Identifier: Apache-2.0
/// One tensor of a safetensors file, whole, in memory.
#pragma once

#include "refusal.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/safetensors.hpp>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trainer {

template <class T>
struct stored_tensor {
  std::vector<std::size_t> dims;
  std::vector<T> values;
};
/// Reads the tensor `name`, which must have the type `type` and `rank` dimensions. Throws `bad_input`.
template <class T>
[[nodiscard]] stored_tensor<T> read_tensor(std::filesystem::path const& path, std::string_view name,
                                           flatshard::dtype type, std::size_t rank) {
  auto const opened = flatshard::open_safetensors(path);
  auto const& from = opened.value();
  auto const found = from.header.find(name);
  if (!found) refuse(flatshard::errc::tensor_missing, path.string(), "there is no tensor " + std::string{name});
  auto const t = from.header[*found];
  if (t.type != type || t.dims.size() != rank)
    refuse(flatshard::errc::shape_mismatch, path.string(),
           std::string{name} + " must be " + std::string{flatshard::row(type).file_name} + " with " +
               std::to_string(rank) + " dimensions, found " + std::string{flatshard::row(t.type).file_name} + " with " +
               std::to_string(t.dims.size()));
  stored_tensor<T> tensor{t.dims, std::vector<T>(from.header.data_size(*found).value / sizeof(T))};
  from.file.read_at(std::as_writable_bytes(std::span{tensor.values}), from.header.file_offset(*found)).value();
  return tensor;
}

}  // namespace trainer
