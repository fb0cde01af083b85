// SPDX-License-Identifier: Apache-2.0
/// The weights of a model on disk: one safetensors file, or several under an index, as one list of tensors.
///
///     auto model = open_checkpoint("model/").value();       // model.safetensors, else model.safetensors.index.json;
///                                                           // a path to either works too
///     if (auto const i = model.find("lm_head.weight")) print(model[*i].dims, model.type(*i));
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/file.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/safetensors.hpp>
#include <flatshard/safetensors_index.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// A model's files, open and checked. Copies share them; names live as long as any copy. Reads are thread-safe.
class checkpoint_files {
 public:
  /// The number of tensors.
  [[nodiscard]] std::size_t size() const { return content_->tensors.size(); }
  /// Tensor `i`: by file, then in the order of the data.
  [[nodiscard]] file_tensor operator[](std::size_t i) const { return header_of(i)[content_->tensors[i].entry]; }
  [[nodiscard]] std::string_view name(std::size_t i) const { return header_of(i).name(content_->tensors[i].entry); }
  [[nodiscard]] dtype type(std::size_t i) const { return header_of(i).type(content_->tensors[i].entry); }
  [[nodiscard]] bytes data_size(std::size_t i) const { return header_of(i).data_size(content_->tensors[i].entry); }
  /// The file of tensor `i`, as a number in `files()`, and where its data begin there.
  [[nodiscard]] std::size_t file_number(std::size_t i) const { return content_->tensors[i].file; }
  [[nodiscard]] bytes file_offset(std::size_t i) const { return header_of(i).file_offset(content_->tensors[i].entry); }
  /// The tensor of that name. Complexity: O(log size).
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;

  [[nodiscard]] std::vector<safetensors_file> const& files() const { return content_->files; }
  /// Where the files lie, and config.json beside them.
  [[nodiscard]] std::filesystem::path const& directory() const { return content_->directory; }
  /// Bytes of all tensors.
  [[nodiscard]] bytes data_size() const { return {content_->data_bytes}; }
  /// Bytes of all files.
  [[nodiscard]] bytes file_size() const;
  /// Bytes that opening it reads: the index, if there is one, and of each file the prefix and the header.
  [[nodiscard]] bytes header_size() const;
  /// What is odd but no error: a wrong total_size, tensors that the index does not list.
  [[nodiscard]] std::vector<problem> const& warnings() const { return content_->warnings; }
  /// A hash of all headers and file sizes: equal on ranks that see the same checkpoint.
  [[nodiscard]] std::uint64_t hash() const { return content_->hash; }
  /// `file_changed` with every file that was replaced or written since it was opened.
  [[nodiscard]] result<void> unchanged() const;

 private:
  struct location {
    std::uint32_t file, entry;
  };
  struct content {
    std::filesystem::path directory;
    std::vector<safetensors_file> files;
    std::vector<location> tensors;
    std::vector<detail::name_slot> by_name;
    std::vector<problem> warnings;
    std::uint64_t hash{};
    std::size_t data_bytes{}, index_bytes{};
  };
  [[nodiscard]] safetensors_header const& header_of(std::size_t i) const {
    return content_->files[content_->tensors[i].file].header;
  }
  explicit checkpoint_files(std::shared_ptr<content const> all) : content_{std::move(all)} {}
  static checkpoint_files finished(content all, std::optional<double> total_size = {}, std::string const& index = {});
  static result<checkpoint_files> indexed(std::filesystem::path const& path, safetensors_limits const& limits);
  friend result<checkpoint_files> open_checkpoint(std::filesystem::path const& path, safetensors_limits const& limits);

  std::shared_ptr<content const> content_;
};

/// Opens a checkpoint: a directory with `model.safetensors` (taken first) or `model.safetensors.index.json`, one
/// safetensors file, or an index file (its name ends in .json). Opens and checks each file once, reads no data. Lists
/// all that is wrong: bad paths, files that are missing with up to three tensors that need them, tensors that their
/// file lacks.
[[nodiscard]] result<checkpoint_files> open_checkpoint(std::filesystem::path const& path,
                                                       safetensors_limits const& limits = {});

inline std::optional<std::size_t> checkpoint_files::find(std::string_view wanted) const {
  auto const hash = detail::name_hash(wanted);
  auto const& slots = content_->by_name;
  auto slot = std::lower_bound(slots.begin(), slots.end(), hash,
                               [](detail::name_slot a, std::uint32_t b) { return a.hash < b; });
  for (; slot != slots.end() && slot->hash == hash; ++slot)
    if (name(slot->entry) == wanted) return slot->entry;
  return std::nullopt;
}

inline bytes checkpoint_files::file_size() const {
  bytes sum;
  for (auto const& f : content_->files) sum += f.file.size();
  return sum;
}

inline bytes checkpoint_files::header_size() const {
  bytes sum{content_->index_bytes};
  for (auto const& f : content_->files) sum += f.header.data_begin();
  return sum;
}

inline result<void> checkpoint_files::unchanged() const {
  std::vector<problem> all;
  for (auto const& f : content_->files)
    if (auto same = f.file.unchanged(); !same) all.push_back(same.error().problems.front());
  if (!all.empty()) return config_error{std::move(all)};
  return {};
}

inline checkpoint_files checkpoint_files::finished(content all, std::optional<double> total_size,
                                                   std::string const& index) {
  all.hash = all.files.size();
  for (auto const& f : all.files) all.hash = (all.hash ^ f.header.hash()) * 0x9E3779B97F4A7C15u;
  auto shared = std::make_shared<content>(std::move(all));
  checkpoint_files out{shared};
  shared->by_name.reserve(out.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    shared->by_name.push_back({detail::name_hash(out.name(i)), static_cast<std::uint32_t>(i)});
    shared->data_bytes += out.data_size(i).value;
  }
  std::sort(shared->by_name.begin(), shared->by_name.end(), [](detail::name_slot a, detail::name_slot b) {
    return a.hash != b.hash ? a.hash < b.hash : a.entry < b.entry;
  });
  if (total_size && *total_size != static_cast<double>(shared->data_bytes)) {
    std::array<char, 32> said{};  // a double in its shortest form takes 24
    auto* const end = std::to_chars(said.data(), said.data() + said.size(), *total_size).ptr;
    auto odd = detail::file_problem(errc::total_size, index,
                                    "total_size is " + std::string(said.data(), end) + ", the tensors have " +
                                        std::to_string(shared->data_bytes) + " bytes")
                   .problems.front();
    odd.level = severity::warning;
    shared->warnings.push_back(std::move(odd));
  }
  return out;
}

inline result<checkpoint_files> checkpoint_files::indexed(std::filesystem::path const& path,
                                                          safetensors_limits const& limits) {
  auto index = open_index(path, limits);
  if (!index) return index.error();
  content all;
  all.directory = path.parent_path();
  all.index_bytes = index->text_bytes.value;
  std::vector<problem> problems;
  auto const add = [&](std::vector<problem>& to, errc code, std::string const& file, std::string detail,
                       severity level = severity::error) {
    auto one = detail::file_problem(code, file, std::move(detail)).problems.front();
    one.level = level;
    to.push_back(std::move(one));
  };
  std::vector<std::vector<std::uint32_t>> needed_by(index->files.size());
  for (std::uint32_t t = 0; t < index->tensors.size(); ++t) needed_by[index->tensors[t].second].push_back(t);
  for (std::uint32_t f = 0; f < index->files.size(); ++f) {
    auto opened = open_safetensors(all.directory / index->files[f], limits);
    if (!opened) {
      auto const error = opened.error();  // a copy
      for (auto one : error.problems) {
        if (one.code == errc::file_missing) {
          one.detail += ", needed by ";
          for (std::size_t k = 0; k < needed_by[f].size() && k < 3; ++k)
            one.detail += (k == 0 ? "" : ", ") + shown(index->tensors[needed_by[f][k]].first);
          if (needed_by[f].size() > 3) one.detail += " and " + std::to_string(needed_by[f].size() - 3) + " more";
        }
        problems.push_back(std::move(one));
      }
      continue;
    }
    auto const& header = opened->header;
    std::vector<std::uint32_t> listed;
    for (auto const t : needed_by[f]) {
      auto const& name = index->tensors[t].first;
      if (auto const entry = header.find(name))
        listed.push_back(static_cast<std::uint32_t>(*entry));
      else
        add(problems, errc::tensor_missing, opened->file.path(),
            "the index puts tensor " + shown(name) + " in this file, which lacks it");
    }
    std::sort(listed.begin(), listed.end());
    auto const number = static_cast<std::uint32_t>(all.files.size());
    for (std::size_t entry = 0, k = 0; entry < header.size(); ++entry) {
      if (k < listed.size() && listed[k] == entry) {
        all.tensors.push_back({number, listed[k++]});
      } else {
        add(limits.strict ? problems : all.warnings, errc::tensor_unexpected, opened->file.path(),
            "the file holds tensor " + shown(header.name(entry)) + ", which the index does not list",
            limits.strict ? severity::error : severity::warning);
      }
    }
    all.files.push_back(std::move(*opened));
  }
  if (!problems.empty()) return config_error{std::move(problems)};
  return finished(std::move(all), index->total_size, path.string());
}

namespace detail {

/// What a directory without a checkpoint holds that may be meant: `; it holds "adapter_model.safetensors", ...`.
inline std::string instead(std::filesystem::path const& directory) {
  std::error_code error;
  std::vector<std::string> names;
  bool pickled = false;
  for (std::filesystem::directory_iterator entry{directory, error}, end; !error && entry != end;
       entry.increment(error)) {
    auto const& file = entry->path();
    if (file.extension() == ".safetensors") names.push_back(file.filename().string());
    pickled |= file.filename() == "pytorch_model.bin" || file.filename() == "pytorch_model.bin.index.json";
  }
  if (names.empty()) return pickled ? "; convert its pytorch_model.bin to safetensors" : "";
  auto const first = shown(*std::min_element(names.begin(), names.end()));
  return names.size() == 1 ? "; it holds " + first + ", whose own path is taken too"
                           : "; it holds " + std::to_string(names.size()) + " safetensors files, the first " + first +
                                 ", without the index that says which tensor is where";
}

}  // namespace detail

inline result<checkpoint_files> open_checkpoint(std::filesystem::path const& path, safetensors_limits const& limits) {
  namespace fs = std::filesystem;
  std::error_code error;
  auto chosen = path;
  if (fs::is_directory(path, error)) {
    auto const there = [&](fs::path const& file) {  // also a link to nothing, which opening tells
      return fs::exists(fs::symlink_status(file, error));
    };
    chosen = path / "model.safetensors";
    if (!fs::exists(chosen, error)) {
      if (error == std::errc::permission_denied)
        return detail::file_problem(errc::io, path.string(), detail::denied(chosen));
      if (auto const index = path / "model.safetensors.index.json"; there(index)) {
        chosen = index;
      } else if (!there(chosen)) {
        return detail::file_problem(
            errc::file_missing, path.string(),
            "the directory holds neither model.safetensors nor model.safetensors.index.json" + detail::instead(path));
      }
    }
  }
  if (chosen.extension() == ".json") return checkpoint_files::indexed(chosen, limits);
  auto one = open_safetensors(chosen, limits);
  if (!one) return one.error();
  checkpoint_files::content all;
  all.directory = chosen.parent_path();
  for (std::uint32_t i = 0; i < one->header.size(); ++i) all.tensors.push_back({0, i});
  all.files.push_back(std::move(*one));
  return checkpoint_files::finished(std::move(all));
}

}  // namespace v0
}  // namespace flatshard
