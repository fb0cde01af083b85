// SPDX-License-Identifier: Apache-2.0
/// A configuration text as values with their places: nodes with JSON Pointers, line and column; and the builder that
/// every reader of texts fills.
#pragma once

#include <flatshard/problem.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One reference token of a JSON Pointer: `~` and `/` escaped.
[[nodiscard]] std::string pointer_token(std::string_view key);

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

 private:
  document const* in_ = nullptr;
  value const* value_ = &absent_value();
  std::string pointer_;
  text_place parent_;           // of an absent node
  std::string parent_pointer_;  // of an absent node
};

/// A text as a value: what it was read from, the text itself, and the root.
class document {
 public:
  document() = default;
  /// Built in code: no text, no lines.
  explicit document(value root, std::string file = {}) : file_{std::move(file)}, root_{std::move(root)} {}
  document(value root, std::string file, std::string text)
      : file_{std::move(file)}, text_{std::move(text)}, root_{std::move(root)} {}
  [[nodiscard]] std::string const& file() const { return file_; }
  [[nodiscard]] std::string_view text() const { return text_; }
  [[nodiscard]] value const& value_of_root() const { return root_; }
  [[nodiscard]] value& edit() { return root_; }
  [[nodiscard]] node root() const { return {*this, root_, {}}; }
  [[nodiscard]] node operator[](std::string_view key) const { return root()[key]; }
  /// The node at a JSON Pointer (RFC 6901); absent if there is none.
  [[nodiscard]] node at(std::string_view pointer) const;
  /// The bytes of a value as they stand in the text; of a value built in code: empty.
  [[nodiscard]] std::string_view spelling(value const& v) const {
    return v.at().end <= text_.size() ? std::string_view{text_}.substr(v.at().begin, v.at().end - v.at().begin)
                                      : std::string_view{};
  }

 private:
  std::string file_, text_;
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
  auto const& at = value_->present() ? value_->at() : parent_;
  return {in_ ? in_->file() : std::string{}, value_->present() ? pointer_ : parent_pointer_, at.line, at.column};
}
inline place node::key_place(object_member const& m) const {
  return {in_ ? in_->file() : std::string{}, pointer_ + '/' + pointer_token(m.key), m.key_at.line, m.key_at.column};
}

inline node document::at(std::string_view pointer) const {
  auto here = root();
  while (!pointer.empty() && pointer.front() == '/') {
    auto const next = std::min(pointer.find('/', 1), pointer.size());
    std::string key;
    for (std::size_t i = 1; i < next; ++i) {
      bool const escaped = pointer[i] == '~' && i + 1 < next;
      key += escaped ? (pointer[i + 1] == '1' ? '/' : '~') : pointer[i];
      i += escaped;
    }
    std::size_t index = 0;
    auto const parsed = std::from_chars(key.data(), key.data() + key.size(), index);
    bool const element =
        here->is(value_kind::array) && parsed.ec == std::errc{} && parsed.ptr == key.data() + key.size();
    here = element ? here[index] : here[key];
    pointer.remove_prefix(next);
  }
  return here;
}

inline std::string pointer_token(std::string_view key) {
  std::string token;
  for (auto const c : key) token += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return token;
}

}  // namespace v0
}  // namespace flatshard
