// SPDX-License-Identifier: Apache-2.0
#include "frontend.hpp"

#include "yaml_text.hpp"

#include <flatshard/config/findings.hpp>
#include <flatshard/config/resolve.hpp>
#include <flatshard/hjson.hpp>
#include <flatshard/json.hpp>
#include <flatshard/safetensors_writer.hpp>
#include <flatshard/utf8.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(FLATSHARD_YAML)
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>
#endif

namespace flatshard::frontend {

namespace {

[[nodiscard]] problem yaml_problem(errc code, place where, std::string text, std::string upstream) {
  return {code,
          std::move(where),
          sentence(std::move(text)),
          severity::error,
          std::string{at_read},
          sentence(std::move(upstream))};
}

#if defined(FLATSHARD_YAML)

/// yaml-cpp's events, kept so that an alias can be played again.
struct yaml_event {
  enum class kind { scalar, alias, array, object, end } what;
  std::size_t at{};       // byte offset in the text that yaml-cpp reads
  std::string text, tag;  // of a scalar
  std::size_t anchor{};   // of a value with an anchor, or an alias
  bool flow = false;      // of an array or an object: written in brackets or braces
};

/// A limit of our own, which upstream does not have.
struct limit_passed : YAML::ParserException {
  using ParserException::ParserException;
};

class event_recorder : public YAML::EventHandler {
 public:
  std::vector<yaml_event> events;
  void OnDocumentStart(YAML::Mark const&) override {}
  void OnDocumentEnd() override {}
  void OnNull(YAML::Mark const& m, YAML::anchor_t a) override { add(yaml_event::kind::scalar, m, "", "?", a); }
  void OnAlias(YAML::Mark const& m, YAML::anchor_t a) override { add(yaml_event::kind::alias, m, "", "", a); }
  void OnScalar(YAML::Mark const& m, std::string const& tag, YAML::anchor_t a, std::string const& text) override {
    add(yaml_event::kind::scalar, m, utf8_of(text), tag, a);
  }
  void OnSequenceStart(YAML::Mark const& m, std::string const& tag, YAML::anchor_t a,
                       YAML::EmitterStyle::value style) override {
    add(yaml_event::kind::array, m, "", tag, a);
    events.back().flow = style == YAML::EmitterStyle::Flow;
  }
  void OnSequenceEnd() override { add(yaml_event::kind::end, YAML::Mark::null_mark(), "", "", 0); }
  void OnMapStart(YAML::Mark const& m, std::string const& tag, YAML::anchor_t a,
                  YAML::EmitterStyle::value style) override {
    add(yaml_event::kind::object, m, "", tag, a);
    events.back().flow = style == YAML::EmitterStyle::Flow;
  }
  void OnMapEnd() override { add(yaml_event::kind::end, YAML::Mark::null_mark(), "", "", 0); }
  void OnAnchor(YAML::Mark const& m, std::string const& name) override {
    if (!anchors_.insert(name).second)  // PyYAML's composer refuses it, yaml-cpp and YAML itself do not
      throw YAML::ParserException{m, "the anchor &" + name + " stands twice"};
  }

 private:
  void add(yaml_event::kind what, YAML::Mark const& m, std::string text, std::string tag, YAML::anchor_t anchor) {
    if (events.size() > 2 * max_text_values) throw limit_passed{m, to_string(text_limit::values)};
    if (what == yaml_event::kind::array || what == yaml_event::kind::object) ++depth_;
    if (what == yaml_event::kind::end) --depth_;
    if (depth_ > max_nesting) throw limit_passed{m, to_string(text_limit::nesting)};
    events.push_back({what, m.pos < 0 ? 0 : static_cast<std::size_t>(m.pos), std::move(text), std::move(tag),
                      static_cast<std::size_t>(anchor), false});
  }
  /// yaml-cpp makes of the escapes `\_` and `\N` a byte of Latin-1; here it becomes the character.
  [[nodiscard]] static std::string utf8_of(std::string_view text) {
    std::string out;
    for (auto good = flatshard::utf8_end(text); good != text.size(); good = flatshard::utf8_end(text)) {
      ((out += text.substr(0, good)) += '\xC2') += text[good];
      text.remove_prefix(good + 1);
    }
    return out += text;
  }
  std::size_t depth_ = 0;
  std::set<std::string> anchors_;
};

/// Builds values from recorded events: aliases played again, merge keys applied, duplicate keys refused or kept as the
/// reader has it.
class yaml_builder {
 public:
  yaml_builder(std::vector<yaml_event> const& events, std::string_view text, std::size_t skipped, std::string_view file,
               yaml_reader reader)
      : events_{events}, text_{text}, skipped_{skipped}, file_{file}, reader_{reader}, lines_{text} {}

  [[nodiscard]] std::optional<value> build() {
    std::size_t at = 0;
    auto v = read(at, 0);
    return fault_ ? std::nullopt : std::optional{std::move(v)};
  }
  [[nodiscard]] problem const& fault() const { return *fault_; }

 private:
  value fail(errc code, std::size_t event, std::string detail, std::string upstream) {
    if (!fault_) {
      auto const p = place_of(event);
      fault_ = yaml_problem(code, {std::string{file_}, {}, p.line, p.column}, std::move(detail), std::move(upstream));
    }
    return {};
  }
  [[nodiscard]] text_place place_of(std::size_t event) const {
    auto const begin = std::min(events_[event].at + skipped_, text_.size());
    auto const& e = events_[event];
    bool const plain = e.what == yaml_event::kind::scalar && text_.substr(begin, e.text.size()) == e.text;
    return lines_(begin, begin + (plain ? e.text.size() : 0));
  }
  value read(std::size_t& at, std::size_t depth) {
    auto const here = at++;
    auto const& e = events_[here];
    if (fault_) return {};
    if (++values_ > max_text_values)
      return fail(errc::yaml_syntax, here, to_string(text_limit::values) + ", our limit", "");
    if (depth >= max_nesting) return fail(errc::yaml_syntax, here, to_string(text_limit::nesting) + ", our limit", "");
    if (e.anchor != 0 && e.what != yaml_event::kind::alias) remember(e.anchor, here, false);
    value v;
    switch (e.what) {
      case yaml_event::kind::scalar:
        bytes_ += e.text.size();  // aliases count as often as they stand
        if (bytes_ > max_text_bytes)
          return fail(errc::yaml_syntax, here, to_string(text_limit::text) + " with its aliases, our limit", "");
        v = scalar(here);
        break;
      case yaml_event::kind::array:
        check_tag(here, "seq");
        v = array(at, here, depth);
        break;
      case yaml_event::kind::object:
        check_tag(here, "map");
        v = object(at, here, depth);
        break;
      case yaml_event::kind::alias: {
        if (e.anchor >= anchors_.size() || !anchors_[e.anchor].done)
          return fail(errc::yaml_syntax, here, "an alias stands inside the value that it names",
                      "ComposerError (yaml)");
        auto from = anchors_[e.anchor].event;
        return read(from, depth);
      }
      case yaml_event::kind::end: return {};
    }
    if (e.anchor != 0) remember(e.anchor, here, true);
    if (!fault_) v.place_at(place_of(here));
    return v;
  }
  void remember(std::size_t anchor, std::size_t event, bool done) {
    if (anchor >= anchors_.size()) anchors_.resize(anchor + 1);
    anchors_[anchor] = {event, done};
  }
  /// Refuses what its tag makes of a mapping or a sequence, where that is none: a failed constructor, or a Python value
  /// that no key takes and that is not modelled. Source: pyyaml@6.0.3:lib/yaml/constructor.py:67-147, 294-429.
  void check_tag(std::size_t here, std::string_view own) {
    auto const& tag = events_[here].tag;
    auto const type = yaml_type(tag);
    if (tag.empty() || tag == "?" || tag == "!" || type == own) return;
    bool const made = own == "map" ? type == "set" : type == "omap" || type == "pairs";
    auto const what = own == "map" ? "a mapping" : "a sequence";
    fail(errc::yaml_syntax, here,
         made ? "the tag " + tag + " makes of " + what + " a Python value that no key takes; leave it out (our limit)"
              : "the tag " + tag + " fits no " + (what + 2),
         made ? "" : "ConstructorError (yaml)");
  }
  value scalar(std::size_t here) {
    auto const& e = events_[here];
    if (e.tag == "?" || e.tag.empty() || has_lone_mark(here)) {
      if (e.text == "<<" || e.text == "=")
        return fail(errc::yaml_syntax, here, "the word " + e.text + " has a meaning of its own in YAML 1.1; quote it",
                    "ConstructorError (yaml): could not determine a constructor for the tag");
      return yaml_scalar(e.text, reader_);
    }
    if (e.tag == "!") return value{e.text};  // quoted
    auto const type = yaml_type(e.tag);
    if (type == "str") return value{e.text};
    auto const plain = yaml_scalar(e.text, reader_);
    if (type == "null") return nullptr;
    if (type == "bool" && plain.is(value_kind::boolean)) return plain;
    if (type == "int" && plain.is(value_kind::integer)) return plain;
    if (type == "float" && plain.is_number()) return value{*plain.number()};
    if (type == "binary" || type == "timestamp")
      return fail(errc::yaml_syntax, here,
                  "the tag " + e.tag + " makes a Python value that no key takes; leave it out (our limit)", "");
    return fail(errc::yaml_syntax, here, "the tag " + e.tag + " is not understood here", "ConstructorError (yaml)");
  }
  value array(std::size_t& at, std::size_t, std::size_t depth) {
    auto v = value::array();
    while (!fault_ && events_[at].what != yaml_event::kind::end) {
      if (is_nothing_before(at, ','))
        return fail(errc::yaml_syntax, at, "there is no element before the comma; write one, or ~",
                    "ParserError (yaml): did not find expected node content");
      auto element = read(at, depth + 1);
      if (fault_) return {};
      v.push_back(std::move(element));
    }
    ++at;
    return v;
  }
  value object(std::size_t& at, std::size_t here, std::size_t depth) {
    auto own = value::object();
    std::vector<value> merged;
    std::set<std::string> texts;
    std::unordered_map<std::string, std::size_t> positions;
    while (!fault_ && events_[at].what != yaml_event::kind::end) {
      auto const key_event = at;
      bool const merge_key = is_plain(key_event, "<<");
      if (is_nothing_before(key_event, ':') || is_nothing_before(key_event, ','))
        return fail(errc::yaml_syntax, key_event, "there is no key here; write one",
                    "ParserError (yaml): did not find expected key");
      bool const word = merge_key || is_plain(key_event, "=");  // a word of YAML 1.1 that may stand as a key
      auto const key = word ? value{events_[at++].text} : read(at, depth + 1);
      if (!events_[here].flow && !fault_ && !colon_after(key_event))
        return fail(errc::yaml_syntax, key_event, "a key has no \": \" after it on its line",
                    "ScannerError (yaml): could not find expected ':'");
      if (fault_) return {};
      if (key.is(value_kind::array) || key.is(value_kind::object))
        return fail(errc::yaml_syntax, key_event, "a key must be a scalar", "ConstructorError (yaml)");
      if (key.is(value_kind::null) && reader_ == yaml_reader::omegaconf)
        return fail(errc::wrong_type, key_event, "a key is null; quote the word, if it is one",
                    "KeyValidationError (omegaconf): Incompatible key type 'NoneType'");
      if (!events_[here].flow && stands_below(at, key_event))
        return fail(errc::yaml_syntax, at, "a value on a line of its own must stand further right than its key",
                    "ScannerError (yaml): could not find expected ':'");
      auto const key_bytes = key.text().size();
      path_bytes_ += key_bytes;
      if (path_bytes_ > max_path_bytes)
        return fail(errc::yaml_syntax, here, to_string(text_limit::keys) + ", our limit", "");
      auto v = read(at, depth + 1);
      path_bytes_ -= key_bytes;
      if (fault_) return {};
      if (merge_key) {
        if (v.is(value_kind::object))
          merged.push_back(std::move(v));
        else if (v.is(value_kind::array))  // of a list the first mapping wins
          for (auto i = v.elements().size(); i-- > 0;) merged.push_back(v.elements()[i]);
        else
          return fail(errc::yaml_syntax, key_event, "a merge key needs an object", "ConstructorError (yaml)");
        continue;
      }
      auto const name = key.is(value_kind::string) ? std::string{key.text()} : to_json(key);
      if (reader_ == yaml_reader::omegaconf && key.is(value_kind::string) && !texts.insert(name).second)
        return fail(errc::duplicate_keys, key_event, "the key \"" + name + "\" stands twice in one mapping; remove one",
                    "ConstructorError (omegaconf): found duplicate key " + name);
      auto const position = positions.try_emplace(name, own.members().size()).first->second;
      own.add_at(position, name, place_of(key_event), std::move(v));
    }
    ++at;
    if (merged.empty()) return own;
    std::unordered_map<std::string, std::size_t> places;
    std::vector<object_member> all;  // merged keys first, a later merge over an earlier one, own keys over all
    for (auto const& m : merged) {
      if (!m.is(value_kind::object))
        return fail(errc::yaml_syntax, here, "a merge key needs objects", "ConstructorError (yaml)");
      for (auto const& k : m.members()) put(all, places, k);
    }
    for (auto const& k : own.members()) put(all, places, k);
    auto whole = value::object();
    for (auto& k : all) whole.add_at(whole.members().size(), k.key, k.key_at, std::move(k.held));
    return whole;
  }
  /// The type that a tag of YAML itself names; of another tag: empty.
  [[nodiscard]] static std::string_view yaml_type(std::string_view tag) {
    constexpr std::string_view prefix = "tag:yaml.org,2002:";
    return tag.starts_with(prefix) ? tag.substr(prefix.size()) : std::string_view{};
  }
  /// Whether a scalar has the tag `!` alone, which says nothing to upstream; yaml-cpp gives it to quoted scalars too.
  [[nodiscard]] bool has_lone_mark(std::size_t event) const {
    auto const& e = events_[event];
    if (e.tag != "!") return false;
    constexpr std::string_view blank = " \t\r\n";
    auto at = std::min(e.at + skipped_, text_.size());
    while (at < text_.size() && text_[at] == '&')
      at = std::min(text_.find_first_not_of(blank, std::min(text_.find_first_of(blank, at), text_.size())),
                    text_.size());
    return at < text_.size() && text_[at] == '!';
  }
  [[nodiscard]] bool is_plain(std::size_t event, std::string_view word) const {
    auto const& e = events_[event];
    return e.what == yaml_event::kind::scalar && e.tag == "?" && e.text == word;
  }
  /// Whether yaml-cpp gives a null that the text does not spell, before `end`: a key that is missing, but not after
  /// `?`, or an element. Upstream wants something to stand there.
  [[nodiscard]] bool is_nothing_before(std::size_t event, char end) const {
    auto const at = std::min(events_[event].at + skipped_, text_.size());
    if (!is_plain(event, "") || at == text_.size() || text_[at] != end) return false;
    auto const before = text_.substr(0, at).find_last_not_of(" \t\n");
    return before == std::string_view::npos || text_[before] != '?';
  }
  /// Whether a value in brackets, braces or quotes stands on a later line than its key, no further right: yaml-cpp
  /// takes it, upstream takes it for a key. Not so behind the colon of a key after `?`, which has a line of its own.
  [[nodiscard]] bool stands_below(std::size_t event, std::size_t key) const {
    auto const& e = events_[event];
    auto const begin = std::min(e.at + skipped_, text_.size());
    auto const first = text_.substr(begin, 1);
    bool const quoted = e.what == yaml_event::kind::scalar && e.tag == "!" && (first == "'" || first == "\"");
    if (!e.flow && !quoted) return false;
    auto const before = text_.substr(0, begin).find_last_not_of(" \t");
    if (before != std::string_view::npos && text_[before] == ':') return false;
    auto const at = place_of(event), above = place_of(key);
    return at.line > above.line && at.column <= above.column;
  }
  /// yaml-cpp takes a lone word in a block mapping for a key; upstream wants its colon, on the same line. A key after
  /// `?` needs none.
  [[nodiscard]] bool colon_after(std::size_t event) const {
    auto const& e = events_[event];
    if (e.what != yaml_event::kind::scalar) return true;
    auto at = std::min(e.at + skipped_, text_.size());
    auto const before = text_.substr(0, at).find_last_not_of(' ');
    if (before != std::string_view::npos && text_[before] == '?') return true;
    auto const line_end = std::min(text_.find('\n', at), text_.size());
    while (at < line_end && (text_[at] == '&' || text_[at] == '!')) {
      at = std::min(text_.find(' ', at), line_end);
      at = std::min(text_.find_first_not_of(' ', at), line_end);
    }
    auto const word = e.text.empty() ? null_word(text_.substr(at)) : std::string_view{e.text};
    if (at < line_end && (text_[at] == '"' || text_[at] == '\'')) {
      auto const quote = text_[at];
      for (++at; at < line_end && (text_[at] != quote || (quote == '\'' && text_.substr(at, 2) == "''")); ++at)
        at += text_[at] == quote || (quote == '"' && text_[at] == '\\');
      ++at;
    } else {
      if (text_.substr(at, word.size()) != word) return false;
      at += word.size();
    }
    at = std::min(text_.find_first_not_of(" \t", std::min(at, line_end)), line_end);
    return at < line_end && text_[at] == ':';
  }
  /// The word that spells null where a text begins; yaml-cpp's event does not hold it.
  [[nodiscard]] static std::string_view null_word(std::string_view text) {
    for (std::string_view const word : {"~", "null", "Null", "NULL"})
      if (text.starts_with(word)) return word;
    return {};
  }
  /// Merged members by position, so that later ones replace earlier ones in place.
  static void put(std::vector<object_member>& into, std::unordered_map<std::string, std::size_t>& positions,
                  object_member const& m) {
    auto const [at, fresh] = positions.try_emplace(m.key, into.size());
    if (fresh)
      into.push_back(m);
    else
      into[at->second] = m;
  }

  struct anchored {
    std::size_t event = 0;
    bool done = false;
  };
  std::vector<yaml_event> const& events_;
  std::string_view text_;
  std::size_t skipped_;
  std::string_view file_;
  yaml_reader reader_;
  line_table lines_;
  std::vector<anchored> anchors_;
  std::size_t values_ = 0, bytes_ = 0, path_bytes_ = 0;
  std::optional<problem> fault_;
};

#endif

}  // namespace

result<document> parse_yaml(std::string_view given, std::string_view file, yaml_reader reader) {
  auto const refused = [&](errc code, std::string_view in, std::size_t at, std::string detail, std::string upstream) {
    auto const p = line_table{in}(std::min(at, in.size()), at);
    return config_error{
        yaml_problem(code, {std::string{file}, {}, p.line, p.column}, std::move(detail), std::move(upstream))};
  };
  if (given.size() > max_text_bytes)
    return refused(errc::yaml_syntax, given, 0, to_string(text_limit::text) + ", our limit", "");
#if defined(FLATSHARD_YAML)
  if (auto const fault = scan_characters(given)) {
    auto const before = with_line_feeds(given.substr(0, fault->at));
    return refused(errc::yaml_syntax, before, before.size(), fault->detail, fault->upstream);
  }
  auto text = with_line_feeds(given);
  if (auto const fault = scan_yaml(text, reader))
    return refused(errc::yaml_syntax, text, fault->at, fault->detail, fault->upstream);
  auto const skipped = byte_order_mark(text);
  auto const body = std::string_view{text}.substr(skipped);
  std::istringstream in{std::string{body}};
  event_recorder recorder;
  try {
    YAML::Parser parser{in};
    parser.HandleNextDocument(recorder);
    auto const first = recorder.events.size();
    if (parser.HandleNextDocument(recorder))
      return refused(errc::yaml_syntax, text, first < recorder.events.size() ? recorder.events[first].at + skipped : 0,
                     "the text holds more than one document",
                     "ComposerError (yaml): expected a single document in the stream");
  } catch (limit_passed const& e) {
    return refused(errc::yaml_syntax, text, static_cast<std::size_t>(std::max(e.mark.pos, 0)) + skipped,
                   e.msg + ", our limit", "");
  } catch (YAML::Exception const& e) {
    return refused(errc::yaml_syntax, text, e.mark.pos < 0 ? 0 : static_cast<std::size_t>(e.mark.pos) + skipped,
                   "this is no YAML; yaml-cpp, which reads it, says: " + e.msg, "ParserError (yaml)");
  }
  bool const nothing = recorder.events.empty() || (recorder.events.size() == 1 && recorder.events[0].text.empty());
  if (nothing && body.find("---") == std::string_view::npos &&
      (body.starts_with("...") || body.find("\n...") != std::string_view::npos))
    return refused(errc::yaml_syntax, text, skipped, "the text ends a document that it never begins",
                   "ParserError (yaml): did not find expected node content");
  auto const blank = reader == yaml_reader::omegaconf ? value::object() : value{nullptr};
  if (recorder.events.empty()) return document{blank, std::string{file}, std::move(text)};
  yaml_builder builder{recorder.events, text, skipped, file, reader};
  auto root = builder.build();
  if (!root) return config_error{builder.fault()};
  if (root->is(value_kind::null)) root = blank;
  return document{std::move(*root), std::string{file}, std::move(text)};
#else
  static_cast<void>(reader);
  return refused(errc::yaml_syntax, given, 0,
                 "this program was built without yaml-cpp and cannot read YAML; install libyaml-cpp-dev and rebuild",
                 "");
#endif
}

result<document> parse_llamafactory(std::string_view text, std::string_view file,
                                    std::span<std::string const> overrides) {
  auto read = parse_yaml(text, file);
  if (!read) return read;
  auto config = *std::move(read);
  if (config.value_of_root().is(value_kind::string)) {  // omegaconf takes a lone word for a key
    auto const& word = config.value_of_root();
    auto keys = value::object(), nothing = value{nullptr};
    keys.place_at(word.at());
    nothing.place_at(word.at());
    keys.add_at(0, word.text(), word.at(), std::move(nothing));
    config.edit() = std::move(keys);
  }
  for (auto const& one : overrides) {
    auto const equals_at = one.find('=');
    auto to = value{nullptr};
    if (equals_at != std::string::npos) {
      auto const parsed = parse_yaml(std::string_view{one}.substr(equals_at + 1), "override " + one);
      if (!parsed) return parsed.error();
      bool const nothing = one.find_first_not_of(' ', equals_at + 1) == std::string::npos;
      to = nothing ? value{nullptr} : parsed->value_of_root();
    }
    if (auto const refusal = apply_override(config, std::string_view{one}.substr(0, equals_at), std::move(to)))
      return config_error{*refusal};
  }
  expand_json_sections(config, [](std::string_view json) -> std::optional<value> {
    auto const parsed = parse_json(json);
    return parsed ? std::optional{parsed->value_of_root()} : std::nullopt;
  });
  return config;
}

result<document> parse_accelerate(std::string_view text, std::string_view file) {
  return file.ends_with(".json") ? parse_json(text, file) : parse_yaml(text, file, yaml_reader::pyyaml);
}

result<document> parse_configuration(std::string_view text, std::string_view file,
                                     std::span<std::string const> overrides, profile front_end) {
  if (front_end == profile::deepspeed) return parse_hjson(text, file);  // whatever the file's name
  if (!file.ends_with(".yaml") && !file.ends_with(".yml")) {
    auto json = parse_json(text, file);
    if (json) return json;
    auto const yaml = parse_yaml(text, file);
    if (!yaml || !yaml->value_of_root().is(value_kind::object) ||
        text.find_first_not_of(" \t\r\n") == std::string::npos ||
        yaml->root()["zero_optimization"].present())  // DeepSpeed's own, which is JSON alone
      return json;
    auto refused = json.error();
    refused.problems.front().detail += "; as YAML the text can be read: give the file a name that ends in .yaml";
    return refused;
  }
  if (front_end == profile::accelerate) return parse_accelerate(text, file);
  return parse_llamafactory(text, file, overrides);
}

result<document> read_configuration(std::string const& path, std::span<std::string const> overrides,
                                    profile front_end) {
  auto text = read_text(path);
  if (!text) return text.error();
  return parse_configuration(*text, path, overrides, front_end);
}

void read_named_files(document const& config, facts& f) {
  auto const folder_of = std::filesystem::path{config.file()}.parent_path();
  auto const beside = [&](std::string const& path) {
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) return path;
    auto const other = folder_of / path;
    return std::filesystem::exists(other, ignored) ? other.string() : path;
  };
  auto const folders = [&](std::string const& path) -> std::string {  // in which `beside` looks
    if (std::filesystem::path{path}.is_absolute()) return {};
    return "the working folder" + (folder_of.empty() ? "" : " and in " + to_json(value{utf8_text(folder_of.string())}));
  };
  for (auto const& path : {config_file_of(config), accelerate_config_file_of(config, f)}) {
    if (path.empty() || f.file(path)) continue;
    auto read = parse_file(beside(path));
    if (read) {
      f.files.push_back({path, *std::move(read), {}});
      continue;
    }
    auto refused = read.error().problems;
    for (auto& p : refused) p.where.file = sentence(std::move(p.where.file));  // no file has a name that long
    named_file missing{path, {}, std::move(refused)};
    if (missing.problems.front().code == errc::file_missing) {
      missing.looked_in = folders(path);
      missing.problems.front().detail += looked_for(&missing);
    }
    f.files.push_back(std::move(missing));
  }
  if (auto const folder = checkpoint_folder_of(config); !folder.empty() && !f.file(folder)) {
    std::error_code ignored;
    if (std::filesystem::exists(folder, ignored)) f.files.push_back({folder, {}, {}});
  }
}

}  // namespace flatshard::frontend
