// SPDX-License-Identifier: Apache-2.0
/// A configuration text as values with their places: nodes with JSON Pointers, line and column; and the builder that
/// every reader of texts fills.
#pragma once

#include <flatshard/problem.hpp>
#include <flatshard/require.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One reference token of a JSON Pointer: `~` and `/` escaped.
[[nodiscard]] std::string pointer_token(std::string_view key);
/// The reference tokens of a JSON Pointer, unescaped; none for a text that is no pointer: one that does not begin with
/// `/` (an empty one names the whole document), or has a `~` without 0 or 1 behind it. Source: RFC 6901, section 3.
[[nodiscard]] std::optional<std::vector<std::string>> pointer_keys(std::string_view pointer);

class document;

/// A value in its document together with its JSON Pointer; absent values have a place too, that of their parent.
/// Does not own: the document must outlive it, unchanged.
class node {
 public:
  node() = default;
  node(document const& in, value const& of, std::string pointer)
      : in_{&in}, value_{&of}, pointer_{std::move(pointer)} {}
  [[nodiscard]] value const& operator*() const { return *value_; }
  [[nodiscard]] value const* operator->() const { return value_; }
  [[nodiscard]] bool present() const { return value_->present(); }
  /// The node of a key; of an absent key, or of a value that is no object: an absent node.
  [[nodiscard]] node operator[](std::string_view key) const;
  [[nodiscard]] node operator[](std::size_t index) const;
  /// The node of one of this object's members. Complexity: O(length of the pointer).
  [[nodiscard]] node operator[](object_member const& m) const {
    return {*in_, m.held, pointer_ + '/' + pointer_token(m.key)};
  }
  /// The JSON Pointer of this value, also of an absent one.
  [[nodiscard]] std::string const& pointer() const { return pointer_; }
  /// Where it stands; an absent value stands where its nearest present parent does.
  [[nodiscard]] place where() const;
  /// Of a key of an object: where the key itself stands.
  [[nodiscard]] place key_place(object_member const& m) const;
  /// The document that it stands in. A broken rule for a node of none.
  [[nodiscard]] document const& source() const {
    require(in_ != nullptr, "a node without a document has no source");
    return *in_;
  }

 private:
  document const* in_ = nullptr;
  value const* value_ = &absent_value();
  std::string pointer_;
  text_place parent_;           // of an absent node
  std::string parent_pointer_;  // of an absent node
};

/// A value that a program wrote into a document, by its JSON Pointer, and where the input stands that it comes from.
struct value_origin {
  std::string pointer;
  place where;
};

/// A text as a value: what it was read from, the text itself, and the root.
class document {
 public:
  document() = default;
  /// Built in code: no text, no lines.
  explicit document(value root, std::string file = {}) : file_{std::move(file)}, root_{std::move(root)} {}
  document(value root, std::string file, std::string text)
      : file_{std::move(file)}, text_{std::move(text)}, root_{std::move(root)} {}
  /// An edited copy of what `original` holds. Its values stand where those of `original` do, but for what a program
  /// wrote: a value of `written` and all below it stand where the input of the nearest one does.
  document(value root, document const& original, std::vector<value_origin> written = {})
      : file_{original.file_}, origins_{std::move(written)}, root_{std::move(root)} {
    origins_.insert(origins_.end(), original.origins_.begin(), original.origins_.end());
  }
  [[nodiscard]] std::string const& file() const { return file_; }
  [[nodiscard]] std::string_view text() const { return text_; }
  [[nodiscard]] value const& value_of_root() const { return root_; }
  [[nodiscard]] value& edit() { return root_; }
  /// Says where the input of an edited value stands; of all below it too.
  void came_from(value_origin origin) { origins_.push_back(std::move(origin)); }
  [[nodiscard]] node root() const { return {*this, root_, {}}; }
  [[nodiscard]] node operator[](std::string_view key) const { return root()[key]; }
  /// The node at a JSON Pointer (RFC 6901); absent if there is none, or the text is no pointer.
  [[nodiscard]] node at(std::string_view pointer) const;
  /// The bytes of a value as they stand in the text; of a value built in code: empty.
  [[nodiscard]] std::string_view spelling(value const& v) const {
    return v.at().end <= text_.size() ? std::string_view{text_}.substr(v.at().begin, v.at().end - v.at().begin)
                                      : std::string_view{};
  }
  /// The place of a value from its pointer and its position in the text.
  [[nodiscard]] place place_of(std::string_view pointer, text_place const& at) const;

 private:
  std::string file_, text_;
  std::vector<value_origin> origins_;
  value root_;
};

/// Line and column of a byte offset. Complexity: O(log lines) after O(text) once.
class line_table {
 public:
  explicit line_table(std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i)
      if (text[i] == '\n') starts_.push_back(i + 1);
  }
  [[nodiscard]] text_place operator()(std::size_t begin, std::size_t end) const {
    auto const after = std::upper_bound(starts_.begin(), starts_.end(), begin);
    return {static_cast<std::size_t>(after - starts_.begin()), begin - *(after - 1) + 1, begin, end};
  }

 private:
  std::vector<std::size_t> starts_{0};
};

/// What every reader of texts fills, in the order of the text: keeps the limits of value.hpp, every duplicate, and the
/// place of each value. After the first call that returns false nothing more may be called.
class document_builder {
 public:
  document_builder(std::string_view text, std::string_view file) : lines_{text}, file_{file}, text_{text} {}
  bool begin(value_kind container, std::size_t at) {
    auto v = container == value_kind::array ? value::array() : value::object();
    v.place_at(lines_(at, at));
    if (++values_ > max_text_values) return false;
    open_.push_back({std::move(v), {}, {}, {}});
    return open_.size() <= max_nesting;
  }
  bool end(std::size_t end_at) {
    auto v = std::move(open_.back().container);
    path_bytes_ -= open_.back().key.size();
    open_.pop_back();
    auto at = v.at();
    at.end = end_at;
    v.place_at(at);
    place_value(std::move(v));
    return true;
  }
  bool key(std::string_view text, std::size_t begin, std::size_t end_at) {
    path_bytes_ += text.size();
    path_bytes_ -= open_.back().key.size();
    if (path_bytes_ > max_path_bytes) {
      too_long_ = true;
      open_.back().key_at = {};  // the problem stands at the object
      return false;
    }
    open_.back().key = text;
    open_.back().key_at = lines_(begin, end_at);
    return true;
  }
  bool scalar(value v, std::size_t begin, std::size_t end_at) {
    v.place_at(lines_(begin, end_at));
    place_value(std::move(v));
    return ++values_ <= max_text_values;
  }
  /// What stopped the reader: the limit that the text passes, if it passes one.
  [[nodiscard]] text_limit limit_passed() const {
    return values_ > max_text_values    ? text_limit::values
           : open_.size() > max_nesting ? text_limit::nesting
           : too_long_                  ? text_limit::keys
                                        : text_limit::none;
  }
  [[nodiscard]] place place_of(std::size_t at) const {
    auto const p = lines_(std::min(at, text_.size()), at);
    std::string pointer;
    for (auto const& f : open_)
      if (f.container.is(value_kind::array))
        pointer += '/' + std::to_string(f.container.elements().size());
      else if (f.key_at.line != 0)
        pointer += '/' + pointer_token(f.key);
    return {std::string{file_}, pointer, p.line, p.column};
  }
  /// The document; to be called once, when the text is at its end.
  [[nodiscard]] document finish() && { return {std::move(root_), std::string{file_}, std::string{text_}}; }

 private:
  struct frame {
    value container;
    std::string key;
    text_place key_at;
    std::unordered_map<std::string, std::size_t> positions;
  };
  void place_value(value v) {
    if (open_.empty()) {
      root_ = std::move(v);
      return;
    }
    auto& f = open_.back();
    if (f.container.is(value_kind::array)) {
      f.container.push_back(std::move(v));
      return;
    }
    auto const next = f.container.members().size();
    auto const position = f.positions.try_emplace(f.key, next).first->second;
    f.container.add_at(position, f.key, f.key_at, std::move(v));
  }
  line_table lines_;
  std::string_view file_, text_;
  std::vector<frame> open_;
  value root_;
  std::size_t values_ = 0, path_bytes_ = 0;
  bool too_long_ = false;
};

// ---- definitions

inline node node::operator[](std::string_view key) const {
  auto const& v = (*value_)[key];
  node child;
  child.in_ = in_;
  child.value_ = v.present() ? &v : &absent_value();
  child.pointer_ = pointer_ + '/' + pointer_token(key);
  if (!v.present()) {
    child.parent_ = value_->present() ? value_->at() : parent_;
    child.parent_pointer_ = value_->present() ? pointer_ : parent_pointer_;
  }
  return child;
}
inline node node::operator[](std::size_t index) const {
  auto child = (*this)[std::to_string(index)];
  if (value_->is(value_kind::array) && index < value_->elements().size()) child.value_ = &value_->elements()[index];
  return child;
}
inline place node::where() const {
  if (in_ == nullptr) return {};
  return value_->present() ? in_->place_of(pointer_, value_->at()) : in_->place_of(parent_pointer_, parent_);
}
inline place node::key_place(object_member const& m) const {
  auto const pointer = pointer_ + '/' + pointer_token(m.key);
  return in_ != nullptr ? in_->place_of(pointer, m.key_at) : place{{}, pointer, m.key_at.line, m.key_at.column};
}

inline place document::place_of(std::string_view pointer, text_place const& at) const {
  if (!origins_.empty())
    for (auto way = pointer;; way = way.substr(0, way.rfind('/'))) {
      auto const written =
          std::find_if(origins_.begin(), origins_.end(), [&](value_origin const& o) { return o.pointer == way; });
      if (written != origins_.end()) return written->where;
      if (way.empty()) break;
    }
  return {file_, std::string{pointer}, at.line, at.column};
}

inline node document::at(std::string_view pointer) const {
  auto const keys = pointer_keys(pointer);
  if (!keys) return {};
  auto here = root();
  for (auto const& key : *keys) {
    std::size_t index = 0;
    auto const parsed = std::from_chars(key.data(), key.data() + key.size(), index);
    bool const element =
        here->is(value_kind::array) && parsed.ec == std::errc{} && parsed.ptr == key.data() + key.size();
    here = element ? here[index] : here[key];
  }
  return here;
}

inline std::optional<std::vector<std::string>> pointer_keys(std::string_view pointer) {
  std::vector<std::string> keys;
  if (!pointer.empty() && pointer.front() != '/') return std::nullopt;
  for (std::size_t i = 0; i < pointer.size(); ++i) {
    auto const next = i + 1 < pointer.size() ? pointer[i + 1] : '\0';
    if (pointer[i] == '/') {
      keys.emplace_back();
    } else if (pointer[i] != '~') {
      keys.back() += pointer[i];
    } else if (next == '0' || next == '1') {
      keys.back() += next == '0' ? '~' : '/';
      ++i;
    } else {
      return std::nullopt;
    }
  }
  return keys;
}

inline std::string pointer_token(std::string_view key) {
  std::string token;
  for (auto const c : key) token += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return token;
}

}  // namespace v0
}  // namespace flatshard
