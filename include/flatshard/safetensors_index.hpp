// SPDX-License-Identifier: Apache-2.0
/// model.safetensors.index.json: which file of a checkpoint holds each tensor.
///
///     auto index = open_index("model.safetensors.index.json").value();
///     for (auto const& [name, file] : index.tensors) print(name, index.files[file]);
#pragma once

#include <flatshard/file.hpp>
#include <flatshard/json.hpp>
#include <flatshard/safetensors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// What an index says. Files are names in the index's own directory.
struct checkpoint_index {
  std::vector<std::string> files;                              ///< each once, in order of first appearance
  std::vector<std::pair<std::string, std::uint32_t>> tensors;  ///< name and number in `files`, sorted by name
  std::optional<double> total_size;                            ///< of `metadata`, however it is spelled
  bytes text_bytes;                                            ///< of the index itself
};

/// Reads the text of an index. Lists every problem: duplicate keys, values that are no strings, file names that are
/// empty, absolute, or hold `..`, a separator, a backslash or NUL (`path`). Complexity: O(text) and a sort of the
/// names.
[[nodiscard]] result<checkpoint_index> parse_index(std::string_view text, std::string const& file);

/// Opens and reads an index file.
[[nodiscard]] inline result<checkpoint_index> open_index(std::filesystem::path const& path,
                                                         safetensors_limits const& limits = {}) {
  auto opened = input_file::open(path);
  if (!opened) return opened.error();
  auto const size = opened->size().value;
  if (size > limits.header_bytes)
    return detail::file_problem(
        errc::header_too_large, opened->path(),
        "the index has " + std::to_string(size) + " bytes, the limit is " + std::to_string(limits.header_bytes));
  std::string text(size, '\0');
  if (auto read = opened->read_at(std::as_writable_bytes(std::span{text}), {0}); !read) return read.error();
  return parse_index(text, opened->path());
}

namespace detail {

/// Takes the events of an index.
class index_reader {
 public:
  index_reader(std::string_view text, std::string const& file) : text_{text}, file_{file} {}
  std::vector<problem> problems;
  checkpoint_index index;
  bool has_map = false;

  bool object_begin(std::size_t at) {
    auto const depth = levels_.size();
    if (depth == 1 && top_ == "weight_map") has_map = true;
    if (depth >= 2 && levels_[1].map) wrong(at, "the file of a tensor must be a string");
    levels_.push_back({{}, depth == 1 && top_ == "weight_map", depth == 1 && top_ == "metadata"});
    return true;
  }
  bool object_end(std::size_t) {
    auto& keys = levels_[levels_.size() - 1].keys;
    std::sort(keys.begin(), keys.end());
    for (std::size_t i = 1; i < keys.size(); ++i)
      if (keys[i].first == keys[i - 1].first)
        add(errc::duplicate_key, keys[i].second, "the key " + shown(keys[i].first) + " stands here twice");
    levels_.pop_back();
    return true;
  }
  bool array_begin(std::size_t at) {
    other(at);
    levels_.push_back({});
    return true;
  }
  bool array_end(std::size_t) {
    levels_.pop_back();
    return true;
  }
  bool key(std::string_view text, std::size_t at) {
    levels_[levels_.size() - 1].keys.emplace_back(text, at);
    if (levels_.size() == 1) top_ = text;
    key_ = text;
    return true;
  }
  bool string(std::string_view name, std::size_t at) {
    if (!in_map()) return other(at);
    if (name.empty() || name.find_first_of(std::string_view{"/\\\0", 3}) != std::string_view::npos ||
        name.find("..") != std::string_view::npos) {
      add(errc::path, at,
          "tensor " + shown(key_) + ": the file " + shown(name) + " must be a plain name in the index's own directory");
      return true;
    }
    auto const number = static_cast<std::uint32_t>(index.files.size());
    auto const [found, fresh] = numbers_.try_emplace(std::string{name}, number);
    if (fresh) index.files.emplace_back(name);
    index.tensors.emplace_back(key_, found->second);
    return true;
  }
  bool number(std::string_view spelling, std::size_t at) {
    if (levels_.size() == 2 && levels_[1].metadata && key_ == "total_size") {
      index.total_size = std::strtod(std::string{spelling}.c_str(), nullptr);
      return true;
    }
    return other(at);
  }
  bool boolean(bool, std::size_t at) { return other(at); }
  bool null(std::size_t at) { return other(at); }

  void add(errc code, std::size_t at, std::string detail) {
    problem one;
    one.code = code;
    one.where.file = file_;
    auto const before = text_.substr(0, at);
    one.where.line = 1 + static_cast<std::size_t>(std::count(before.begin(), before.end(), '\n'));
    one.where.column = at - (before.rfind('\n') + 1) + 1;
    one.detail = std::move(detail);
    if (problems.size() < most_problems) problems.push_back(std::move(one));
  }

 private:
  static constexpr std::size_t most_problems = 1000;  // each costs a count of lines
  struct level {
    std::vector<std::pair<std::string, std::size_t>> keys;
    bool map = false, metadata = false;
  };
  [[nodiscard]] bool in_map() const { return levels_.size() == 2 && levels_[1].map; }
  void wrong(std::size_t at, char const* what) { add(errc::entry_shape, at, what); }
  bool other(std::size_t at) {
    if (levels_.empty()) wrong(at, "an index must be one JSON object");
    if (levels_.size() == 1 && top_ == "weight_map") {
      has_map = true;
      wrong(at, "weight_map must be an object");
    }
    if (in_map()) wrong(at, "the file of a tensor must be a string");
    return true;
  }

  std::string_view text_;
  std::string const& file_;
  std::vector<level> levels_;
  std::string top_, key_;
  std::map<std::string, std::uint32_t, std::less<>> numbers_;
};

}  // namespace detail

inline result<checkpoint_index> parse_index(std::string_view text, std::string const& file) {
  detail::index_reader reader{text, file};
  if (auto const end = walk_json(text, reader); end.how != json_end::kind::whole) {
    reader.problems.clear();
    reader.add(errc::json_syntax, end.at, "the index is not strict JSON: " + end.message);
    return config_error{std::move(reader.problems)};
  }
  if (!reader.has_map && reader.problems.empty())
    reader.add(errc::entry_shape, 0, "an index must have an object weight_map");
  if (!reader.problems.empty()) return config_error{std::move(reader.problems)};
  std::sort(reader.index.tensors.begin(), reader.index.tensors.end());
  reader.index.text_bytes = bytes{text.size()};
  return std::move(reader.index);
}

}  // namespace v0
}  // namespace flatshard
