// SPDX-License-Identifier: Apache-2.0
/// Writes safetensors files tensor by tensor, and the index of a checkpoint of several files.
///
///     safetensors_writer out{"model.safetensors", {{"w", dtype::bf16, {4096, 4096}}, {"b", dtype::bf16, {4096}}}};
///     out.write("w", first_part);  out.write("w", rest);     // each tensor in as many parts as you like, in any order
///     out.write("b", values);
///     out.commit();                                          // durable, then renamed; without it nothing is left
///     write_index("model.safetensors.index.json", {{"w", "model-00001-of-00002.safetensors"}, ...}, total);
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/file.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// A tensor as a file lists it.
struct tensor_spec {
  std::string name;
  dtype type{};
  std::vector<std::size_t> dims;
  friend bool operator==(tensor_spec const&, tensor_spec const&) = default;
};

/// Bytes of one tensor; a broken rule if its size overflows or is no whole number of bytes.
[[nodiscard]] inline bytes size_of(tensor_spec const& tensor) {
  std::size_t n = 1;
  for (auto const d : tensor.dims) n = checked_mul(n, d);
  return size_of(elements{n}, tensor.type);
}

/// In which order the data of the tensors stand in the file.
enum class tensor_order : std::uint8_t {
  official,  ///< falling dtype, then name, as the safetensors library does: wider types stand aligned
  given
};

struct safetensors_options {
  tensor_order order = tensor_order::official;
  std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}};  ///< `__metadata__`
  bool sparse = false;  ///< tensors need not be written: what is not written is a hole that reads as zero
};

/// The JSON header for `tensors` in this order, `{` first and padded with spaces so that the data start at a multiple
/// of 8; without the eight bytes of its length.
[[nodiscard]] std::string safetensors_header_text(std::span<tensor_spec const> tensors,
                                                  std::span<std::pair<std::string, std::string> const> metadata);

/// One safetensors file in the making. Not thread-safe. All members throw `file_error` when the system refuses; then,
/// and when destroyed without `commit`, the temporary file is removed and nothing is left that looks whole.
class safetensors_writer {
 public:
  /// Computes and writes the header, and reserves the size of the whole file. Memory: O(header).
  safetensors_writer(std::filesystem::path const& path, std::vector<tensor_spec> tensors,
                     safetensors_options options = {})
      : safetensors_writer{path, plan{std::move(tensors), options}, options.sparse} {}

  /// The tensors in the order of the file.
  [[nodiscard]] std::span<tensor_spec const> tensors() const { return plan_.tensors; }
  [[nodiscard]] bytes file_size() const { return {plan_.total}; }
  /// Sum of the tensors' bytes: what `total_size` of an index counts.
  [[nodiscard]] bytes data_size() const { return {plan_.total - plan_.data_begin}; }

  /// Appends `data` to what was written of the tensor `name`. Bytes are little-endian, row-major.
  void write(std::string_view name, std::span<std::byte const> data) {
    auto const found = plan_.index.find(name);
    require(found != plan_.index.end(), "the writer was not told of a tensor of this name");
    auto& cursor = plan_.cursors[found->second];
    require(data.size() <= cursor.end - cursor.next, "more bytes were written than the tensor has");
    file_.write_at(data, {cursor.next});
    cursor.next += data.size();
  }

  /// Makes the file durable and gives it its name. Every tensor must be complete, or the writer `sparse`.
  void commit() {
    if (!sparse_)
      for (auto const& cursor : plan_.cursors)
        require(cursor.next == cursor.end, "every tensor must be written whole before the file is committed");
    file_.commit();
  }

 private:
  struct extent_left {
    std::size_t next, end;
  };
  struct plan {
    plan(std::vector<tensor_spec> given, safetensors_options const& options);
    std::vector<tensor_spec> tensors;
    std::unordered_map<std::string_view, std::size_t> index;
    std::vector<extent_left> cursors;
    std::string header;
    std::size_t data_begin, total;
  };
  safetensors_writer(std::filesystem::path const& path, plan all, bool sparse)
      : plan_{std::move(all)}, file_{path, {plan_.total}}, sparse_{sparse} {
    std::array<std::byte, 8> length{};
    for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(plan_.header.size() >> (8 * i));
    file_.write_at(length, {0});
    file_.write_at(std::as_bytes(std::span{plan_.header}), {8});
    plan_.header = {};
  }

  plan plan_;
  replacing_file file_;
  bool sparse_;
};

/// Writes `model.safetensors.index.json`: which file of the same directory holds each tensor, and the sum of the
/// tensors' bytes. Replaces an older index only when complete. Throws `file_error`.
void write_index(std::filesystem::path const& path, std::vector<std::pair<std::string, std::string>> weight_map,
                 bytes total_size);

namespace detail {

/// Appends `text` as a JSON string; UTF-8 stays as it is.
inline void append_quoted(std::string& out, std::string_view text) {
  constexpr char const* hex = "0123456789abcdef";
  out += '"';
  for (char const c : text) {
    auto const byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (byte >= 0x20)
      out += c;
    else
      ((out += "\\u00") += hex[byte >> 4]) += hex[byte & 15];
  }
  out += '"';
}

/// The official writer's order of types, narrow to wide. Source:
/// safetensors@24b0b285:safetensors/src/tensor.rs:227-255, 811-892.
constexpr std::size_t official_rank(dtype t) {
  constexpr std::array order{dtype::boolean,     dtype::f4,      dtype::f6_e2m3, dtype::f6_e3m2, dtype::u8,
                             dtype::i8,          dtype::f8_e5m2, dtype::f8_e4m3, dtype::f8_e8m0, dtype::f8_e4m3fnuz,
                             dtype::f8_e5m2fnuz, dtype::i16,     dtype::u16,     dtype::f16,     dtype::bf16,
                             dtype::i32,         dtype::u32,     dtype::f32,     dtype::c64,     dtype::f64,
                             dtype::i64,         dtype::u64};
  return static_cast<std::size_t>(std::find(order.begin(), order.end(), t) - order.begin());
}

}  // namespace detail

inline std::string safetensors_header_text(std::span<tensor_spec const> tensors,
                                           std::span<std::pair<std::string, std::string> const> metadata) {
  std::string text = "{";
  auto const key = [&](std::string_view name) {
    if (text.back() != '{') text += ',';
    detail::append_quoted(text, name);
    text += ':';
  };
  if (!metadata.empty()) {
    key("__metadata__");
    text += '{';
    for (auto const& [name, value] : metadata) {
      key(name);
      detail::append_quoted(text, value);
    }
    text += '}';
  }
  std::size_t begin = 0;
  for (auto const& tensor : tensors) {
    require(tensor.name != "__metadata__", "a tensor cannot be called __metadata__");
    require(utf8_end(tensor.name) == tensor.name.size(), "a tensor's name must be UTF-8");
    require(tensor.type != dtype::none, "a tensor needs an element type");
    require(tensor.dims.size() <= 64, "a tensor in a file has at most 64 dimensions");
    key(tensor.name);
    (((text += "{\"dtype\":\"") += row(tensor.type).file_name) += "\",\"shape\":[");
    for (auto const d : tensor.dims) {
      if (text.back() != '[') text += ',';
      text += std::to_string(d);
    }
    auto const end = checked_add(begin, size_of(tensor).value);
    text += "],\"data_offsets\":[" + std::to_string(begin) + ',' + std::to_string(end) + "]}";
    begin = end;
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

inline safetensors_writer::plan::plan(std::vector<tensor_spec> given, safetensors_options const& options)
    : tensors{std::move(given)} {
  if (options.order == tensor_order::official)
    std::sort(tensors.begin(), tensors.end(), [](auto const& a, auto const& b) {
      auto const x = detail::official_rank(a.type), y = detail::official_rank(b.type);
      return x != y ? x > y : a.name < b.name;
    });
  header = safetensors_header_text(tensors, options.metadata);
  data_begin = 8 + header.size();
  auto next = data_begin;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    require(index.try_emplace(tensors[i].name, i).second, "two tensors of one file cannot have the same name");
    auto const end = checked_add(next, size_of(tensors[i]).value);
    cursors.push_back({next, end});
    next = end;
  }
  total = next;
}

inline void write_index(std::filesystem::path const& path, std::vector<std::pair<std::string, std::string>> weight_map,
                        bytes total_size) {
  std::sort(weight_map.begin(), weight_map.end());
  std::string text =
      "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total_size.value) + "\n  },\n  \"weight_map\": {";
  for (std::size_t i = 0; i < weight_map.size(); ++i) {
    require(i == 0 || weight_map[i].first != weight_map[i - 1].first, "an index lists each tensor once");
    text += i == 0 ? "\n    " : ",\n    ";
    detail::append_quoted(text, weight_map[i].first);
    text += ": ";
    detail::append_quoted(text, weight_map[i].second);
  }
  text += weight_map.empty() ? "}\n}\n" : "\n  }\n}\n";
  replacing_file file{path, {text.size()}};
  file.write_at(std::as_bytes(std::span{text}), {0});
  file.commit();
}

}  // namespace v0
}  // namespace flatshard
