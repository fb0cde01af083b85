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
/// A word and its edit distance from the one that was asked for.
struct near_spelling {
  std::string_view word;  ///< empty: none is near
  std::size_t distance = 0;
};
/// The nearest of `known` that is nearer than `within`. Complexity: O(words * letters^2).
template <class Names>
[[nodiscard]] near_spelling nearest_spelling(std::string_view key, Names const& known, std::size_t within) {
  near_spelling best{{}, within};
  for (std::string_view const name : known)
    if (auto const d = edit_distance(key, name); d < best.distance) best = {name, d};
  return best;
}
/// A word is near where at most a third of its letters differ.
[[nodiscard]] constexpr std::size_t spelling_limit(std::string_view key) { return key.size() / 3 + 1; }
/// `; did you mean "x"?` for the nearest of `known`, else empty.
template <class Names>
[[nodiscard]] std::string did_you_mean(std::string_view key, Names const& known) {
  auto const best = nearest_spelling(key, known, spelling_limit(key));
  return best.word.empty() ? std::string{} : "; did you mean \"" + std::string{best.word} + "\"?";
}
/// So many problems of one code, level and moment are kept one by one, and problems with so many bytes of text in all,
/// the first of each kind always. What comes after is counted: one problem of that kind says how many more there are.
/// So a configuration that is nothing but mistakes costs no more than its own size.
inline constexpr std::size_t most_problems_of_a_kind = 100, most_problem_bytes = std::size_t{1} << 20;

/// Sentences are for people: what a configuration puts into one beyond so many bytes is left out.
inline constexpr std::size_t most_sentence_bytes = 4096;
/// A sentence, cut between two characters of its UTF-8 where it is longer than most_sentence_bytes, with its length.
[[nodiscard]] std::string sentence(std::string text);

/// Collects decisions and problems in upstream's order of evaluation.
class findings {
 public:
  std::vector<decision> decisions;
  std::vector<problem> problems;

  /// Adds a decision and returns it for more fields; the reference holds until the next one is added.
  decision& decide(std::string key, std::string value, std::string reason, std::string rule, place source) {
    decisions.push_back(
        {std::move(key), std::move(value), {}, sentence(std::move(reason)), std::move(rule), std::move(source)});
    return decisions.back();
  }
  /// What upstream refuses.
  void error(errc code, place where, std::string_view when, std::string detail, upstream_error const& upstream) {
    add({code, std::move(where), std::move(detail), severity::error, std::string{when}, to_string(upstream)});
  }
  /// What upstream accepts in silence and a reader should know.
  void warn(errc code, place where, std::string_view when, std::string detail, std::string upstream = {}) {
    add({code, std::move(where), std::move(detail), severity::warning, std::string{when}, std::move(upstream)});
  }
  void note(errc code, place where, std::string_view when, std::string detail) {
    add({code, std::move(where), std::move(detail), severity::note, std::string{when}, {}});
  }
  /// Any problem, as it is; one beyond most_problems_of_a_kind is counted.
  void add(problem p) {
    p.detail = sentence(std::move(p.detail));
    p.upstream = sentence(std::move(p.upstream));
    auto const number = std::max<std::size_t>(p.more, 1);
    if (p.level == severity::error) errors_ += number;
    auto kind = std::find_if(kinds_.begin(), kinds_.end(),
                             [&](auto const& k) { return k.code == p.code && k.level == p.level && k.when == p.when; });
    if (kind == kinds_.end()) kind = kinds_.insert(kind, {p.code, p.level, p.when, 0, 0, 0});
    auto const size = p.where.pointer.size() + p.detail.size() + p.upstream.size();
    bool const room = kind->kept < most_problems_of_a_kind && bytes_ + size <= most_problem_bytes;
    if (p.more == 0 && kind->more == 0 && (room || kind->kept == 0)) {
      ++kind->kept;
      bytes_ += size;
      problems.push_back(std::move(p));
      return;
    }
    if (kind->more == 0) {
      kind->counted_at = problems.size();
      problems.push_back({p.code, {std::move(p.where.file), {}, 0, 0}, {}, p.level, std::move(p.when), {}});
    }
    auto& counted = problems[kind->counted_at];
    counted.more = kind->more += number;
    counted.detail = "and " + std::to_string(counted.more) + " more of this kind";
  }
  /// did_you_mean for the first 200 keys of a configuration, so that a hostile one costs no more. `elsewhere(key,
  /// within)` says what is nearer than that in other sections, as words for a message; empty if nothing is.
  template <class Names>
  [[nodiscard]] std::string suggest(std::string_view key, Names const& known,
                                    std::string (*elsewhere)(std::string_view, std::size_t) = nullptr) {
    if (suggestions_++ >= 200) return {};
    if (elsewhere != nullptr) {
      auto const here = nearest_spelling(key, known, spelling_limit(key));
      if (auto other = elsewhere(key, here.distance); !other.empty()) return other;
    }
    return did_you_mean(key, known);
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
  /// The number of errors so far, those that are counted only included.
  [[nodiscard]] std::size_t errors() const { return errors_; }

 private:
  struct kind_of_problem {
    errc code{};
    severity level{};
    std::string when;
    std::size_t kept = 0, more = 0, counted_at = 0;
  };
  std::vector<kind_of_problem> kinds_;
  std::size_t suggestions_ = 0, errors_ = 0, bytes_ = 0;
};

/// Reports what is wrong with a file that a configuration names. One that could not be read stands at `where`, the
/// place of the name, with `said`, for instance `config_file is "ds/"`; all else stands in the file.
inline void report_named_file(std::vector<problem> const& problems, place const& where, std::string const& said,
                              std::string_view when, findings& out) {
  for (auto p : problems) {
    if (p.code == errc::file_unreadable) {
      p.where = where;
      p.detail = said + ": " + p.detail + "; name the file itself, one that can be read";
      p.when = when;
    }
    out.add(std::move(p));
  }
}

/// Reports every duplicate key below `at` as a warning: the last value counts upstream, in silence.
inline void report_duplicates(node const& at, findings& out);

// ---- definitions

inline std::string sentence(std::string text) {
  if (text.size() <= most_sentence_bytes) return text;
  auto end = most_sentence_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "... (" + std::to_string(text.size()) + " bytes)";
}

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
