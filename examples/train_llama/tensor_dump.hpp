// SPDX-License-Identifier: Apache-2.0
/// Tensors gathered in memory and written as one safetensors file.
#pragma once

#include "../../tools/noted_signals.hpp"
#include "rank_trainer.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/safetensors_writer.hpp>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace trainer {

[[nodiscard]] inline std::vector<std::size_t> dims_of(tensor const& t) {
  return {t.dims.sizes().begin(), t.dims.sizes().end()};
}

class tensor_dump {
 public:
  void add(std::string const& name, flatshard::dtype type, std::vector<std::size_t> dims,
           std::span<std::byte const> values) {
    specs_.push_back({name, type, std::move(dims)});
    data_.emplace_back(name, std::vector<std::byte>(values.begin(), values.end()));
  }
  template <class T>
  void add(std::string const& name, std::vector<std::size_t> dims, std::span<T const> values) {
    add(name, flatshard::dtype_of<T>, std::move(dims), std::as_bytes(values));
  }
  /// Adds `prefix` + name of every tensor of a copy. Collective; adds something on rank 0 alone.
  void add(std::string const& prefix, rank_trainer& rank, model_copy copy) {
    rank.whole_tensors(copy, [&](tensor const& t, flatshard::dtype type, std::span<std::byte const> values) {
      add(prefix + t.name, type, dims_of(t), values);
    });
  }
  void write(std::filesystem::path const& path) const {
    tool::noted_signals const noted;
    flatshard::safetensors_writer out{path, specs_};
    for (auto const& [name, raw] : data_) {
      tool::stop_if_interrupted();
      out.write(name, raw);
    }
    tool::stop_if_interrupted();
    out.commit();
  }

 private:
  std::vector<flatshard::tensor_spec> specs_;
  std::vector<std::pair<std::string, std::vector<std::byte>>> data_;
};

}  // namespace trainer
