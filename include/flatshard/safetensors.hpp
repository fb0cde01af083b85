// SPDX-License-Identifier: Apache-2.0
/// safetensors files: the header read and checked by the rules V1 to V16 of docs/formats.md, the tensors by name.
///
///     auto model = open_safetensors("model.safetensors").value();  // bad_input lists what is wrong and where
///     auto const& header = model.header;
///     for (std::size_t i = 0; i < header.size(); ++i) print(header[i].name);  // in the order of the data
///     auto const i = header.find("model.norm.weight");
///     auto done = model.file.read_at(span, header.file_offset(*i));
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/file.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/json.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/safetensors_writer.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Largest header that is read by default. Source: safetensors@24b0b285:safetensors/src/tensor.rs:10.
inline constexpr std::size_t max_header_bytes = 100'000'000;
/// Most dimensions of a tensor in a file; a limit of ours.
inline constexpr std::size_t max_file_dims = 64;
/// Deepest nesting of a header.
inline constexpr std::size_t max_header_depth = 4;

/// How a header or index is read.
struct safetensors_limits {
  std::size_t header_bytes = max_header_bytes;  ///< below 2^31
  bool strict = false;  ///< also refuses white space before `{`, padding other than spaces, unknown keys, null metadata
};

/// One tensor of a file. The name lives as long as the header.
struct file_tensor {
  std::string_view name;
  dtype type{};
  std::vector<std::size_t> dims;
  bytes begin, end;  ///< relative to the data section
};

namespace detail {

/// Where a string stands in a header: its opening quote, its decoded length, and whether it has escapes.
struct header_key {
  std::uint32_t hash, at, length : 31, escaped : 1;
};
struct header_entry {
  std::uint64_t begin, end;
  std::uint32_t name_at, name_length : 31, name_escaped : 1, shape_at;
  dtype type;
};
struct name_slot {
  std::uint32_t hash, entry;
};

/// 32 bits of FNV-1a; equal hashes are told apart by the names. Complexity: O(text).
[[nodiscard]] constexpr std::uint32_t name_hash(std::string_view text) {
  auto const h = fnv(fnv_offset, text);
  return static_cast<std::uint32_t>(h ^ (h >> 32));
}

/// A plain decimal below 2^63: no sign, fraction or exponent.
[[nodiscard]] constexpr std::optional<std::uint64_t> plain_number(std::string_view spelling) {
  constexpr auto limit = std::uint64_t{1} << 63;
  std::uint64_t value = 0;
  for (char const c : spelling) {
    if (c < '0' || c > '9' || value >= limit / 10 + 1) return std::nullopt;
    value = value * 10 + static_cast<std::uint64_t>(c - '0');
    if (value >= limit) return std::nullopt;
  }
  return spelling.empty() ? std::nullopt : std::optional{value};
}

/// The text of a header with what was found in it. Memory: the text, 32 bytes a tensor and 8 for its name.
struct header_content {
  std::string text;
  std::string decoded;                                             // names that are spelled with escapes
  std::deque<std::pair<std::uint32_t, std::uint32_t>> decoded_at;  // quote in the text -> offset in `decoded`
  std::deque<header_entry> entries;
  std::vector<name_slot> by_name;
  std::size_t metadata_begin{}, metadata_end{};
  std::uint64_t file_size{};

  [[nodiscard]] std::string_view string_at(std::size_t at, std::size_t length, bool escaped) const {
    if (!escaped) return std::string_view{text}.substr(at + 1, length);
    auto const found = std::lower_bound(decoded_at.begin(), decoded_at.end(), at,
                                        [](auto const& x, std::size_t y) { return x.first < y; });
    return std::string_view{decoded}.substr(found->second, length);
  }
  [[nodiscard]] std::string_view name(header_entry const& e) const {
    return string_at(e.name_at, e.name_length, e.name_escaped);
  }
};

class header_reader;

/// What stands where the length of a header is expected: nothing, or a text, as in a page of an error or in the few
/// lines that Git leaves instead of a large file. Source: git-lfs's specification (a pointer begins with "version ").
inline std::string text_instead(std::span<std::byte const, 8> prefix) {
  std::string text;
  for (auto const b : prefix) {
    auto const c = std::to_integer<unsigned char>(b);
    if (c != '\n' && c != '\r' && c != '\t' && (c < 0x20 || c > 0x7e)) return {};
    text += static_cast<char>(c);
  }
  return text == "version " ? "; this is a pointer of Git LFS, `git lfs pull` brings the file"
                            : "; the file begins with the text " + shown(text) + ", so it is no safetensors file";
}

}  // namespace detail

/// A checked header. Moves keep names valid; lookups are O(log tensors) by hash; all reads are thread-safe.
class safetensors_header {
 public:
  /// Checks `text`, the N bytes after the length, of a file of `file_size` bytes. On failure the one problem is that of
  /// the first rule of docs/formats.md that is broken, with the tensor and the byte offset in the file.
  /// Complexity: O(text) and a sort of its tensors; memory: at most 4 times the text and 1 MiB, the text included.
  [[nodiscard]] static result<safetensors_header> parse(std::string text, bytes file_size, std::string const& file,
                                                        safetensors_limits const& limits = {});

  /// The number of tensors.
  [[nodiscard]] std::size_t size() const { return content_->entries.size(); }
  /// Tensor `i` in the order of the data. Complexity: O(dimensions).
  [[nodiscard]] file_tensor operator[](std::size_t i) const;
  /// The place of a tensor in that order.
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;
  [[nodiscard]] std::string_view name(std::size_t i) const { return content_->name(content_->entries[i]); }
  [[nodiscard]] dtype type(std::size_t i) const { return content_->entries[i].type; }
  /// Bytes of tensor `i`.
  [[nodiscard]] bytes data_size(std::size_t i) const { return {content_->entries[i].end - content_->entries[i].begin}; }
  /// Offset of tensor `i` in the file.
  [[nodiscard]] bytes file_offset(std::size_t i) const { return data_begin() + bytes{content_->entries[i].begin}; }
  /// Where the data section begins in the file.
  [[nodiscard]] bytes data_begin() const { return {8 + content_->text.size()}; }
  /// `__metadata__`, in the order of the text.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> metadata() const;
  /// A hash of the header's text and the file's size: what ranks compare. Complexity: O(header).
  [[nodiscard]] std::uint64_t hash() const {
    return detail::fnv(content_->file_size * 0x9E3779B97F4A7C15u, content_->text);
  }

 private:
  explicit safetensors_header(std::unique_ptr<detail::header_content const> content) : content_{std::move(content)} {}
  std::unique_ptr<detail::header_content const> content_;
};

/// An open file and its checked header.
struct safetensors_file {
  input_file file;
  safetensors_header header;
};

/// Opens a file and checks its header. Reads only the header. Rules V1 to V16 of docs/formats.md.
[[nodiscard]] inline result<safetensors_file> open_safetensors(std::filesystem::path const& path,
                                                               safetensors_limits const& limits = {}) {
  require(limits.header_bytes < std::size_t{1} << 31, "the limit of a header must be below 2^31 bytes");
  auto opened = input_file::open(path);
  if (!opened) return opened.error();
  auto& file = *opened;
  auto const bad = [&](errc code, std::string detail) {
    return detail::file_problem(code, file.path(), std::move(detail));
  };
  if (file.size() < bytes{8})
    return bad(errc::header_too_small,
               "a safetensors file has at least 8 bytes, this one has " + std::to_string(file.size().value));
  std::array<std::byte, 8> prefix{};
  if (auto read = file.read_at(prefix, {0}); !read) return read.error();
  std::uint64_t n = 0;
  for (std::size_t i = 0; i < 8; ++i) n |= std::to_integer<std::uint64_t>(prefix[i]) << (8 * i);
  if (n > limits.header_bytes)
    return bad(errc::header_too_large, "the header claims " + std::to_string(n) + " bytes, the limit is " +
                                           std::to_string(limits.header_bytes) + detail::text_instead(prefix));
  if (8 + n > file.size().value)
    return bad(errc::header_length, "the header claims " + std::to_string(n) +
                                        " bytes after the first 8, the file has " + std::to_string(file.size().value) +
                                        " in all");
  std::string text(n, '\0');
  if (auto read = file.read_at(std::as_writable_bytes(std::span{text}), {8}); !read) return read.error();
  auto header = safetensors_header::parse(std::move(text), file.size(), file.path(), limits);
  if (!header) return header.error();
  return safetensors_file{std::move(file), std::move(*header)};
}

namespace detail {

/// Takes the events of one header and keeps the fault of the lowest rule, the first of its kind.
class header_reader {
 public:
  header_reader(header_content& content, bool strict) : content_{content}, strict_{strict} {}

  struct fault {
    int rule = 100;
    errc code{};
    std::string detail;
  };
  [[nodiscard]] fault const& found() const { return fault_; }

  bool object_begin(std::size_t at) {
    auto const here = levels_.empty() ? spot::none : levels_[levels_.size() - 1].where;
    auto next = spot::ignored;
    if (here == spot::none) {
      next = spot::root;
    } else if (here == spot::root && field_ == field::metadata) {
      next = spot::metadata;
      content_.metadata_begin = at;
    } else if (here == spot::root) {
      next = spot::entry;
      entry_ = {};
      entry_.name = name_;
    } else {
      value(kind::other, at);
    }
    return push(next);
  }
  bool object_end(std::size_t at) {
    auto const level = pop();
    if (level.where == spot::metadata) content_.metadata_end = at + 1;
    if (level.where == spot::entry) finish_entry();
    check_duplicates(level.first_key, level.where == spot::root);
    if (level.where != spot::root) keys_.resize(level.first_key);
    return true;
  }
  bool array_begin(std::size_t at) {
    auto const here = levels_.empty() ? spot::none : levels_[levels_.size() - 1].where;
    if (here == spot::entry && field_ == field::shape) {
      entry_.shape_at = at;
      entry_.shape_seen = true;
      return push(spot::shape);
    }
    if (here == spot::entry && field_ == field::offsets) {
      entry_.offsets_seen = true;
      return push(spot::offsets);
    }
    value(kind::other, at);
    return push(spot::ignored);
  }
  bool array_end(std::size_t) {
    static_cast<void>(pop());
    return true;
  }
  bool key(std::string_view text, std::size_t at) {
    auto& level = levels_[levels_.size() - 1];
    if (level.where == spot::entry) {
      field_ = text == "dtype"          ? field::type
               : text == "shape"        ? field::shape
               : text == "data_offsets" ? field::offsets
                                        : field::unknown;
      if (field_ != field::unknown) {
        auto const bit = 1u << static_cast<unsigned>(field_);
        if (entry_.fields & bit)
          report(7, errc::duplicate_key, at, [&] { return "the key " + shown(text) + " stands here twice"; });
        entry_.fields |= bit;
        return true;
      }
      if (strict_) report(9, errc::entry_shape, at, [&] { return "unknown key " + shown(text); });
    }
    auto const kept = keep(text, at);
    keys_.push_back(kept);
    if (level.where == spot::root) {
      field_ = text == "__metadata__" ? field::metadata : field::tensor;
      name_ = kept;
    }
    return true;
  }
  bool string(std::string_view text, std::size_t at) {
    auto const here = levels_.empty() ? spot::none : levels_[levels_.size() - 1].where;
    if (here == spot::metadata) return true;
    if (here != spot::entry || field_ != field::type) return value(kind::string, at);
    entry_.type_seen = true;
    entry_.type = dtype_of_file_name(text);
    if (entry_.type == dtype::none)
      report(11, errc::dtype_unknown, at, [&] { return "no element type is called " + shown(text); });
    return true;
  }
  bool number(std::string_view text, std::size_t at) {
    auto const here = levels_.empty() ? spot::none : levels_[levels_.size() - 1].where;
    if (here != spot::shape && here != spot::offsets) return value(kind::other, at);
    auto const parsed = plain_number(text);
    if (!parsed) {
      entry_.numbers_bad = true;
      return report(10, errc::number, at,
                    [&] { return "a whole number from 0 to 2^63 - 1 is expected, found " + shown(text); });
    }
    if (here == spot::offsets) {
      if (entry_.offset_count < 2) entry_.offsets[entry_.offset_count] = *parsed;
      ++entry_.offset_count;
    } else {
      ++entry_.dims;
      entry_.overflow |= entry_.dims > max_file_dims || __builtin_mul_overflow(entry_.numel, *parsed, &entry_.numel);
    }
    return true;
  }
  bool boolean(bool, std::size_t at) { return value(kind::other, at); }
  bool null(std::size_t at) { return value(kind::null, at); }

  /// Everything after the walk: the order of the data, rules V15 and V16, the table of names.
  void finish(std::uint64_t data_size) {
    if (fault_.rule < 15) return;
    auto& entries = content_.entries;
    keys_.clear();
    keys_.shrink_to_fit();
    auto const earlier = [](header_entry const& a, header_entry const& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end != b.end ? a.end < b.end : a.name_at < b.name_at;
    };
    if (!std::is_sorted(entries.begin(), entries.end(), earlier)) std::sort(entries.begin(), entries.end(), earlier);
    std::uint64_t next = 0;
    for (auto const& e : entries) {
      if (e.begin != next) {
        name_ = {0, e.name_at, e.name_length, e.name_escaped};
        report(15, errc::hole_or_overlap, e.name_at, [&] {
          return "its data begin at " + std::to_string(e.begin) + ", those before it end at " + std::to_string(next);
        });
        return;
      }
      next = e.end;
    }
    if (next != data_size) {
      keep_fault(16, errc::data_size,
                 "the tensors need " + std::to_string(next) + " bytes after the header, the file has " +
                     std::to_string(data_size));
      return;
    }
    content_.by_name.reserve(entries.size());
    for (std::size_t i = 0; i < entries.size(); ++i)
      content_.by_name.push_back({name_hash(content_.name(entries[i])), static_cast<std::uint32_t>(i)});
    std::sort(content_.by_name.begin(), content_.by_name.end(),
              [](name_slot a, name_slot b) { return a.hash != b.hash ? a.hash < b.hash : a.entry < b.entry; });
  }

  /// Keeps the fault if its rule comes before the one that is kept.
  void keep_fault(int rule, errc code, std::string detail) {
    if (rule < fault_.rule) fault_ = {rule, code, std::move(detail)};
  }

 private:
  enum class spot : std::uint8_t { none, root, metadata, entry, shape, offsets, ignored };
  enum class field : std::uint8_t { tensor, metadata, type, shape, offsets, unknown };
  enum class kind : std::uint8_t { string, null, other };
  struct nesting {
    spot where;
    std::size_t first_key;
  };
  struct entry {
    header_key name{};
    unsigned fields = 0;
    bool type_seen = false, shape_seen = false, offsets_seen = false, numbers_bad = false, overflow = false;
    dtype type{};
    std::size_t shape_at = 0, dims = 0, offset_count = 0;
    std::uint64_t numel = 1;
    std::array<std::uint64_t, 2> offsets{};
  };

  bool push(spot where) {
    levels_.push_back({where, keys_.size()});
    return true;
  }
  nesting pop() {
    auto const last = levels_[levels_.size() - 1];
    levels_.pop_back();
    return last;
  }

  template <class Detail>
  bool report(int rule, errc code, std::size_t at, Detail detail) {
    if (rule >= 8 && rule < 15 && !content_.entries.empty()) std::deque<header_entry>{}.swap(content_.entries);
    if (rule < fault_.rule) {
      std::string text;
      if (name_.at != 0 && field_ != field::metadata)
        text = "tensor " + shown(content_.string_at(name_.at, name_.length, name_.escaped)) + ", ";
      keep_fault(rule, code, text + "byte " + std::to_string(8 + at) + ": " + detail());
    }
    return true;
  }

  /// A value that no rule has a use for at this place.
  bool value(kind k, std::size_t at) {
    auto const here = levels_.empty() ? spot::none : levels_[levels_.size() - 1].where;
    switch (here) {
      case spot::none: return report(5, errc::header_json, at, [] { return "the header must be one JSON object"; });
      case spot::root:
        if (field_ != field::metadata)
          return report(9, errc::entry_shape, at, [] { return "the entry of a tensor must be an object"; });
        if (k == kind::null && !strict_) return true;
        [[fallthrough]];
      case spot::metadata:
        return report(8, errc::metadata_type, at, [] { return "__metadata__ must map strings to strings"; });
      case spot::entry:
        if (field_ == field::unknown) return true;
        return report(9, errc::entry_shape, at, [&] {
          return field_ == field::type    ? "dtype must be a string"
                 : field_ == field::shape ? "shape must be an array"
                                          : "data_offsets must be an array";
        });
      case spot::shape:
      case spot::offsets:
        entry_.numbers_bad = true;
        return report(10, errc::number, at, [] { return "a whole number from 0 to 2^63 - 1 is expected"; });
      case spot::ignored: return true;
    }
    return true;
  }

  void finish_entry() {
    auto const& e = entry_;
    name_ = e.name;
    field_ = field::tensor;
    auto const at = e.name.at;
    if (!e.type_seen || !e.shape_seen || !e.offsets_seen) {
      report(9, errc::entry_shape, at, [&] {
        return std::string{"the entry needs "} + (!e.type_seen    ? "dtype (a string)"
                                                  : !e.shape_seen ? "shape (an array)"
                                                                  : "data_offsets (an array)");
      });
      return;
    }
    if (e.offset_count != 2 && !e.numbers_bad) {
      report(9, errc::entry_shape, at,
             [&] { return "data_offsets must hold two numbers, not " + std::to_string(e.offset_count); });
      return;
    }
    if (e.numbers_bad || e.type == dtype::none) return;
    if (e.overflow) {
      report(12, errc::overflow, at, [&] {
        return e.dims > max_file_dims ? "the shape has " + std::to_string(e.dims) + " dimensions, at most 64 are read"
                                      : std::string{"the product of the dimensions does not fit in 64 bits"};
      });
      return;
    }
    std::uint64_t total = 0;
    if (__builtin_mul_overflow(e.numel, std::uint64_t{bits(e.type)}, &total)) {
      report(13, errc::overflow, at, [] { return "the size in bits does not fit in 64 bits"; });
      return;
    }
    if (total % 8 != 0) {
      report(13, errc::not_byte_sized, at, [&] {
        return std::to_string(e.numel) + " elements of " + std::to_string(bits(e.type)) + " bits are no whole bytes";
      });
      return;
    }
    auto const [begin, end] = e.offsets;
    if (begin > end) {
      report(14, errc::offsets, at, [b = begin, x = end] {
        return "data_offsets must not fall: " + std::to_string(b) + " to " + std::to_string(x);
      });
      return;
    }
    if (end - begin != total / 8) {
      report(14, errc::size_mismatch, at, [&, b = begin, x = end] {
        return "dtype and shape need " + std::to_string(total / 8) + " bytes, data_offsets give " +
               std::to_string(x - b);
      });
      return;
    }
    if (fault_.rule < 15) return;
    content_.entries.push_back(
        {begin, end, e.name.at, e.name.length, e.name.escaped, static_cast<std::uint32_t>(e.shape_at), e.type});
  }

  header_key keep(std::string_view text, std::size_t at) {
    auto const plain = std::string_view{content_.text}.substr(at + 1, text.size()) == text &&
                       at + 1 + text.size() < content_.text.size() && content_.text[at + 1 + text.size()] == '"';
    if (!plain) {
      content_.decoded_at.emplace_back(static_cast<std::uint32_t>(at),
                                       static_cast<std::uint32_t>(content_.decoded.size()));
      content_.decoded += text;
    }
    return {name_hash(text), static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(text.size() & 0x7FFFFFFFu),
            !plain};
  }

  /// V7 for the keys from `first` on, which may be the `names` of tensors: sorted by hash, told apart by their text.
  void check_duplicates(std::size_t first, bool names) {
    if (keys_.size() - first < 2) return;
    auto const view = [&](header_key const& k) { return content_.string_at(k.at, k.length, k.escaped); };
    auto const begin = keys_.begin() + static_cast<std::ptrdiff_t>(first);
    std::sort(begin, keys_.end(), [&](header_key const& a, header_key const& b) {
      if (a.hash != b.hash) return a.hash < b.hash;
      auto const order = view(a).compare(view(b));
      return order != 0 ? order < 0 : a.at < b.at;
    });
    header_key const* second = nullptr;
    for (auto i = begin + 1; i != keys_.end(); ++i)
      if (i->hash == (i - 1)->hash && view(*i) == view(*(i - 1)) && (!second || i->at < second->at)) second = &*i;
    if (second == nullptr) return;
    if (names) {  // the tensor that was read last is another one
      name_ = *second;
      field_ = view(*second) == "__metadata__" ? field::metadata : field::tensor;
    }
    report(7, errc::duplicate_key, second->at,
           [&] { return "the key " + shown(view(*second)) + " stands here twice"; });
  }

  header_content& content_;
  bool strict_;
  fault fault_;
  std::vector<nesting> levels_;
  std::deque<header_key> keys_;
  header_key name_{};
  field field_{};
  entry entry_;
};

/// Appends the members of one flat JSON object of strings.
struct string_pairs {
  std::vector<std::pair<std::string, std::string>> pairs;
  bool object_begin(std::size_t) { return true; }
  bool object_end(std::size_t) { return true; }
  bool array_begin(std::size_t) { return true; }
  bool array_end(std::size_t) { return true; }
  bool key(std::string_view text, std::size_t) {
    pairs.emplace_back(text, std::string{});
    return true;
  }
  bool string(std::string_view text, std::size_t) {
    if (!pairs.empty()) pairs.back().second = text;
    return true;
  }
  bool number(std::string_view, std::size_t) { return true; }
  bool boolean(bool, std::size_t) { return true; }
  bool null(std::size_t) { return true; }
};

}  // namespace detail

inline result<safetensors_header> safetensors_header::parse(std::string text, bytes file_size, std::string const& file,
                                                            safetensors_limits const& limits) {
  require(text.size() < std::size_t{1} << 31, "a header must be below 2^31 bytes");
  require(file_size.value >= 8 + text.size(), "a file must hold its header");
  auto content = std::make_unique<detail::header_content>();
  content->text = std::move(text);
  content->file_size = file_size.value;
  std::string_view const all = content->text;
  auto const failed = [&](errc code, std::string detail) {
    return detail::file_problem(code, file, std::move(detail));
  };
  if (auto const bad = utf8_end(all); bad != all.size())
    return failed(errc::header_utf8, "byte " + std::to_string(8 + bad) + ": the header is not UTF-8");
  detail::header_reader reader{*content, limits.strict};
  if (auto const end = walk_json(all, reader, max_header_depth); end.how != json_end::kind::whole)
    return failed(errc::header_json,
                  "byte " + std::to_string(8 + end.at) + ": " +
                      (end.how == json_end::kind::too_deep
                           ? "the header is nested deeper than " + std::to_string(max_header_depth) + " levels"
                           : "the header is not strict JSON: " + end.message));
  if (limits.strict && (all.front() != '{' || all[all.find_last_not_of(' ')] != '}'))
    reader.keep_fault(6, errc::header_json,
                      "byte 8: the header must begin with { and be padded with spaces alone (strict)");
  reader.finish(file_size.value - 8 - all.size());
  if (reader.found().rule < 100) return failed(reader.found().code, reader.found().detail);
  return safetensors_header{std::move(content)};
}

inline file_tensor safetensors_header::operator[](std::size_t i) const {
  auto const& e = content_->entries[i];
  file_tensor out{content_->name(e), e.type, {}, {e.begin}, {e.end}};
  std::string_view const text = content_->text;
  for (std::size_t at = e.shape_at + 1u; text[at] != ']'; ++at) {
    if (text[at] < '0' || text[at] > '9') continue;
    std::size_t value = 0;
    for (; text[at] >= '0' && text[at] <= '9'; ++at) value = value * 10 + static_cast<std::size_t>(text[at] - '0');
    out.dims.push_back(value);
    --at;
  }
  return out;
}

inline std::optional<std::size_t> safetensors_header::find(std::string_view wanted) const {
  auto const hash = detail::name_hash(wanted);
  auto const& slots = content_->by_name;
  auto slot = std::lower_bound(slots.begin(), slots.end(), hash,
                               [](detail::name_slot a, std::uint32_t b) { return a.hash < b; });
  for (; slot != slots.end() && slot->hash == hash; ++slot)
    if (name(slot->entry) == wanted) return slot->entry;
  return std::nullopt;
}

inline std::vector<std::pair<std::string, std::string>> safetensors_header::metadata() const {
  detail::string_pairs reader;
  auto const& c = *content_;
  static_cast<void>(
      walk_json(std::string_view{c.text}.substr(c.metadata_begin, c.metadata_end - c.metadata_begin), reader, 1));
  return std::move(reader.pairs);
}

}  // namespace v0
}  // namespace flatshard
