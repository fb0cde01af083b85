// SPDX-License-Identifier: Apache-2.0
/// A Hugging Face checkpoint of what was trained.
#pragma once

#include "../../tools/noted_signals.hpp"
#include "rank_trainer.hpp"
#include "tensor_dump.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/file.hpp>
#include <flatshard/json.hpp>
#include <flatshard/safetensors_writer.hpp>
#include <flatshard/unfinished_folder.hpp>
#include <flatshard/value.hpp>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace trainer {

/// Writes config.json as it was read, but for the dtype of the tensors beside it.
inline void write_config(std::filesystem::path const& path, flatshard::value config, flatshard::dtype type) {
  for (auto const* const key : {"dtype", "torch_dtype"})  // transformers 5 and 4
    if (config.has(key)) config.set(key, flatshard::torch_name(type).substr(std::string_view{"torch."}.size()));
  std::ofstream out{path, std::ios::binary};
  out << flatshard::to_json(config) << '\n';
  out.close();
  if (!out) throw flatshard::file_error{errno, "writing", path.string()};
}

/// Writes a Hugging Face checkpoint, in the dtype of the parameters' storage, unit by unit. The folder appears under
/// its name when it is complete; an error or a signal in between leaves nothing. Collective; rank 0 writes.
inline void save_checkpoint(std::filesystem::path const& to, flatshard::value const& config, unit_tables const& tables,
                            rank_trainer& rank, bool writes) {
  auto const type = rank.storage_type();
  std::optional<tool::noted_signals> noted;
  std::optional<flatshard::unfinished_folder> folder;
  std::optional<flatshard::safetensors_writer> out;
  if (writes) {
    std::vector<flatshard::tensor_spec> specs;
    for (auto const& unit : tables.tensors)
      for (auto const& t : unit) specs.push_back({t.name, type, dims_of(t)});
    noted.emplace();
    folder.emplace(to);
    write_config(folder->path() / "config.json", config, type);
    out.emplace(folder->path() / "model.safetensors", std::move(specs));
  }
  rank.whole_tensors(model_copy::storage, [&](tensor const& t, flatshard::dtype, std::span<std::byte const> values) {
    tool::stop_if_interrupted();
    out->write(t.name, values);
  });
  if (writes) {
    out->commit();
    tool::stop_if_interrupted();
    folder->finish();
  }
}

}  // namespace trainer
