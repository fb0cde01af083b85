// SPDX-License-Identifier: Apache-2.0
/// What resolving finds: decisions with reason, rule and source, and problems with their moment and what upstream says.
#pragma once

#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One decided value. `upstream` says what upstream raises or prints for it; mostly "nothing, silent".
struct decision {
  std::string key;         ///< dotted path, for instance `zero_optimization.stage`
  std::string value;       ///< as printed, at train time
  std::string load_value;  ///< while the model is built, where that differs; else empty
  std::string reason;      ///< one sentence that names the deciding input
  std::string rule;        ///< id of docs/config.md, or `<profile>.<key>`
  place source;            ///< of the deciding value; of its parent if the value is absent
  std::string upstream = "nothing, silent";
  bool of_rank = false;  ///< depends on the rank that asks; not part of `resolution::hash`
};

/// An upstream exception: `ValueError (llamafactory): message`; without a message it ends at the parenthesis, without a
/// kind it is no exception.
struct upstream_error {
  std::string_view kind, raised_by;
  std::string message;
};
[[nodiscard]] inline std::string to_string(upstream_error const& e) {
  if (e.kind.empty()) return {};
  return std::string{e.kind} + " (" + std::string{e.raised_by} + ')' + (e.message.empty() ? "" : ": " + e.message);
}

/// Upstream's moments, as problems name them; at the start of training the configuration is read, and then the engine
/// is built from it.
inline constexpr std::string_view at_read = "read", at_load = "load", at_train = "train", at_engine = "engine start",
                                  at_first_step = "first step", at_load_and_train = "load, train";

/// ASCII letters in lower case, as Python's str.lower() gives them for the words that are compared here.
[[nodiscard]] inline std::string lower(std::string_view text) {
  std::string out{text};
  for (auto& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

/// A value as Python prints it: True, None, 'text', 4.0.
[[nodiscard]] std::string python_text(value const& v);
/// Changes of one letter (also swapped neighbours) between two words. Complexity: O(a * b).
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);
/// `; did you mean "x"?` for the nearest of `known` within a third of the letters, else empty.
template <class Names>
[[nodiscard]] std::string did_you_mean(std::string_view key, Names const& known) {
  std::string_view best;
  std::size_t distance = key.size() / 3 + 1;
  for (std::string_view const name : known)
    if (auto const d = edit_distance(key, name); d < distance) {
      distance = d;
      best = name;
    }
  return best.empty() ? std::string{} : "; did you mean \"" + std::string{best} + "\"?";
}
/// Collects decisions and problems in upstream's order of evaluation.
class findings {
 public:
  std::vector<decision> decisions;
  std::vector<problem> problems;

  /// Adds a decision and returns it for more fields; the reference holds until the next one is added.
  decision& decide(std::string key, std::string value, std::string reason, std::string rule, place source) {
    decisions.push_back({std::move(key), std::move(value), {}, std::move(reason), std::move(rule), std::move(source)});
    return decisions.back();
  }
  /// What upstream refuses.
  void error(errc code, place where, std::string_view when, std::string detail, upstream_error const& upstream) {
    problems.push_back(
        {code, std::move(where), std::move(detail), severity::error, std::string{when}, to_string(upstream)});
  }
  /// What upstream accepts in silence and a reader should know.
  void warn(errc code, place where, std::string_view when, std::string detail, std::string upstream = {}) {
    problems.push_back(
        {code, std::move(where), std::move(detail), severity::warning, std::string{when}, std::move(upstream)});
  }
  void note(errc code, place where, std::string_view when, std::string detail) {
    problems.push_back({code, std::move(where), std::move(detail), severity::note, std::string{when}, {}});
  }
  /// did_you_mean for the first 200 keys of a configuration, so that a hostile one costs no more.
  template <class Names>
  [[nodiscard]] std::string suggest(std::string_view key, Names const& known) {
    return suggestions_++ < 200 ? did_you_mean(key, known) : std::string{};
  }
  /// Whether a section was refused already because it is no object; if so, it is refused at `when` too.
  [[nodiscard]] bool refused_section(place const& where, std::string_view when) {
    for (auto& p : problems)
      if ((p.code == errc::section_not_object || p.code == errc::model_type) && p.level == severity::error &&
          p.where == where) {
        if (p.when == at_load && when == at_train) p.when = at_load_and_train;
        return true;
      }
    return false;
  }
  [[nodiscard]] bool failed() const { return failed_since(0); }
  /// Whether one of the problems from number `first` on is an error.
  [[nodiscard]] bool failed_since(std::size_t first) const {
    return std::any_of(problems.begin() + static_cast<std::ptrdiff_t>(first), problems.end(),
                       [](auto const& p) { return p.level == severity::error; });
  }

 private:
  std::size_t suggestions_ = 0;
};

/// Reports every duplicate key below `at` as a warning: the last value counts upstream, in silence.
inline void report_duplicates(node const& at, findings& out);

// ---- definitions

inline std::string python_text(value const& v) {
  switch (v.kind()) {
    case value_kind::absent:
    case value_kind::null: return "None";
    case value_kind::boolean: return v.is_true() ? "True" : "False";
    case value_kind::integer:
    case value_kind::floating: return std::string{v.text()};
    case value_kind::string: return std::string{v.text()};
    case value_kind::array:
    case value_kind::object: return to_json(v);
  }
  return {};
}

inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  if (a.size() > 128 || b.size() > 128) return 128;
  std::array<std::array<std::size_t, 130>, 3> rows{};
  for (std::size_t j = 0; j <= b.size(); ++j) rows[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    auto& row = rows[i % 3];
    auto const& above = rows[(i + 2) % 3];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], rows[(i + 1) % 3][j - 2] + 1);
    }
  }
  return rows[a.size() % 3][b.size()];
}

inline void report_duplicates(node const& at, findings& out) {
  for (auto const& m : at->members()) {
    if (!m.shadowed.empty()) {
      std::string lines;
      for (auto const& s : m.shadowed) lines += (lines.empty() ? "" : ", ") + std::to_string(s.key_at.line);
      out.warn(errc::duplicate_key_ignored, at.key_place(m), at_read,
               "the key \"" + m.key + "\" stands " + std::to_string(m.shadowed.size() + 1) + " times (also on line " +
                   lines + "); the last value counts; remove the others");
    }
    if (m.held.height() > 0) report_duplicates(at[m], out);
  }
  for (std::size_t i = 0; i < at->elements().size(); ++i) report_duplicates(at[i], out);
}

}  // namespace v0
}  // namespace flatshard
