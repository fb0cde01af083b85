// SPDX-License-Identifier: Apache-2.0
#include "../tools/frontend.hpp"

#include "../tools/resolver.hpp"

#include <flatshard/config/accelerate/launch.hpp>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace frontend_test {

using namespace flatshard;
using frontend::parse_llamafactory;
using frontend::parse_yaml;
using frontend::yaml_scalar;

TEST_CASE("plain scalars follow YAML 1.1 with omegaconf's floats") {
  for (auto const* text : {"yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"})
    CHECK(yaml_scalar(text).is_true());
  for (auto const* text : {"no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"})
    CHECK(yaml_scalar(text).is_false());
  for (auto const* text : {"", "~", "null", "Null", "NULL"}) CHECK(yaml_scalar(text).is(value_kind::null));
  for (auto const* text : {"y", "n", "Y", "N", "tRUE", "nULL", "08", "0o17", "0.1.2", "2026-01-31", "1e", "+.5", ".5e3",
                           "0x", "+.nan", "_1", "1:60", "???"})
    CHECK_MESSAGE(yaml_scalar(text).is(value_kind::string), text);
  auto const integer = [](char const* text) { return yaml_scalar(text).integer(); };
  CHECK(integer("010") == 8);
  CHECK(integer("0x1F") == 31);
  CHECK(integer("0b11") == 3);
  CHECK(integer("1_000") == 1000);
  CHECK(integer("1:30") == 90);
  CHECK(integer("-1:30") == -90);
  CHECK(integer("+12") == 12);
  CHECK(integer("-0x10") == -16);
  CHECK(yaml_scalar("-0_").text() == "0");
  CHECK(yaml_scalar("99999999999999999999").text() == "99999999999999999999");
  auto const real = [](char const* text) {
    auto const v = yaml_scalar(text);
    REQUIRE_MESSAGE(v.is(value_kind::floating), text);
    return *v.number();
  };
  CHECK(real("2.0") == 2);
  CHECK(real(".5") == 0.5);
  CHECK(real("5.") == 5);
  CHECK(real("1.0e+3") == 1000);
  CHECK(real("1e3") == 1000);
  CHECK(real("1e-1") == 0.1);
  CHECK(real("1.5e3") == 1500);
  CHECK(real("1:30.5") == 90.5);
  CHECK(real("-.inf") < -1e308);
  CHECK(real(".nan") != real(".nan"));
}

TEST_CASE("PyYAML's own floats and dates") {
  auto const scalar = [](char const* text) { return yaml_scalar(text, frontend::yaml_reader::pyyaml); };
  for (auto const* text : {"1e3", "1e-1", "1.5e3", "1e+3", "5.e3", "y", "08"})
    CHECK_MESSAGE(scalar(text).is(value_kind::string), text);
  for (auto const* text : {"1.0e+3", "2.0", ".5", "5.", "1.5e-3", ".inf", "1:30.5"})
    CHECK_MESSAGE(scalar(text).is(value_kind::floating), text);
  CHECK(scalar("1_000").integer() == 1000);
  CHECK(scalar("no").is_false());
  CHECK(scalar("2026-01-31").text() == "2026-01-31");
  CHECK(scalar("2026-1-3").text() == "2026-1-3");  // a date alone needs two digits
  CHECK(scalar("2026-1-3 4:05:06").text() == "2026-01-03 04:05:06");
  CHECK(scalar("2001-12-14t21:59:43.10-05:00").text() == "2001-12-14 21:59:43.100000-05:00");
  CHECK(scalar("2001-12-14 21:59:43.10 -5").text() == "2001-12-14 21:59:43.100000-05:00");
  CHECK(scalar("2001-12-15T02:59:43.1Z").text() == "2001-12-15 02:59:43.100000+00:00");
  CHECK(yaml_scalar("2001-12-15T02:59:43.1Z").text() == "2001-12-15T02:59:43.1Z");
}

#if defined(FLATSHARD_YAML)

namespace {
std::string json(std::string_view text) { return to_json(parse_llamafactory(text, "t.yaml").value().value_of_root()); }
problem refused(std::string_view text) {
  auto const read = parse_llamafactory(text, "t.yaml");
  REQUIRE_MESSAGE(!read.has_value(), text);
  CHECK(read.error().problems[0].where.file == "t.yaml");
  return read.error().problems[0];
}
}  // namespace

TEST_CASE("values have lines, columns and bytes") {
  auto const d = parse_yaml(
                     "\xEF\xBB\xBF"
                     "a: 1\nb:\n  - x\n  - \"y\"\nc: {d: null}\n",
                     "t.yaml")
                     .value();
  CHECK(d.at("/b/1").where() == place{"t.yaml", "/b/1", 4, 5});
  CHECK(d.at("/c/d").where() == place{"t.yaml", "/c/d", 5, 8});
  CHECK(d.spelling(*d.at("/b/0")) == "x");
  CHECK(d["zz"].where().pointer.empty());
  CHECK(d.root().key_place(d.root()->members()[1]).line == 2);
}

TEST_CASE("structures: quoting, tags, anchors, merges, JSON text, empty texts") {
  CHECK(json("a: 'no'\nb: !!str 5\nc: \"1e3\"\nd: !!float 3\n") == R"({"a": "no", "b": "5", "c": "1e3", "d": 3.0})");
  CHECK(json("a: &x {p: 1, q: [y, n]}\nb: *x\n") ==
        R"({"a": {"p": 1, "q": ["y", "n"]}, "b": {"p": 1, "q": ["y", "n"]}})");
  CHECK(json("a:\n  <<: {p: 1, q: 2}\n  p: 3\n") == R"({"a": {"p": 3, "q": 2}})");
  CHECK(json("a:\n  <<: [{p: 1}, {p: 2, q: 3}]\n") == R"({"a": {"p": 1, "q": 3}})");
  CHECK(json("{\"a\": {\"b\": [1, 2.0, null]}}") == R"({"a": {"b": [1, 2.0, null]}})");
  CHECK(json("") == "{}");
  CHECK(json("# nothing\n") == "{}");
  CHECK(json("word") == R"({"word": null})");
  auto const word = parse_llamafactory("# c\n hello\n", "t.yaml").value();  // omegaconf takes it for a key
  CHECK(decide(word, profile::llamafactory, {.world = 2}).problems.at(0).where == place{"t.yaml", "/hello", 2, 2});
  CHECK(json("a: ${b}\nc: ???\n") == R"({"a": "${b}", "c": "???"})");
  CHECK(json("a:\t1\nb: {\tc: 2}\n") == R"({"a": 1, "b": {"c": 2}})");
}

TEST_CASE("faults of the text") {
  CHECK(refused("a: 1\nb: 2\na: 3\n").code == errc::duplicate_keys);
  CHECK(refused("a: 1\nb: 2\na: 3\n").where.line == 3);
  for (auto const* text :
       {"a:\n\tb: 1\n", "-\tx\n- \ty\n", "a: \"x\n", "a: 'x\n", "a: {b: 1\n", "a: *x\n", "a: 1\n---\nb: 2\n",
        "a: b: c\n", "a:1\nb: 2\n", "a: <<\n", "a: @x\n", "a: `x\n", "a: !foo x\n", "a: [1\nb: 2\n", "...\n"})
    CHECK_MESSAGE(refused(text).code == errc::yaml_syntax, text);
  CHECK(refused("a: &x [*x]\n").code == errc::yaml_syntax);
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 9; ++i) {
    auto const last = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + last;
    for (int j = 0; j < 9; ++j) bomb += "," + last;
    bomb += "]\n";
  }
  CHECK(refused(bomb).detail.find("100000 values") != std::string::npos);
  std::string many = "a: &a " + std::string(max_text_bytes / 8, 'x') + "\nb: [*a";  // few values, many bytes
  for (int i = 0; i < 8; ++i) many += ",*a";
  CHECK(refused(many + "]\n").detail.find("4 MiB with its aliases") != std::string::npos);
  auto const nested = [](std::size_t levels) {  // a key of YAML has at most 1024 bytes
    std::string text;
    for (std::size_t i = 0; i < levels; ++i) text += std::string(i, ' ') + std::string(1000, 'k') + ":\n";
    return text + std::string(levels, ' ') + "a: 1\n";
  };
  CHECK(parse_yaml(nested(max_path_bytes / 1000), "f.yaml").has_value());
  CHECK(refused(nested(max_path_bytes / 1000 + 1)).detail.find("16 KiB together") != std::string::npos);
  CHECK(refused(std::string(10000, '[')).code == errc::yaml_syntax);
  CHECK(refused("a: " + std::string(300, '[') + std::string(300, ']')).code == errc::yaml_syntax);
}

// Source: pyyaml@6.0.3:lib/yaml/constructor.py:67-147, 426-429; both readers are safe loaders.
TEST_CASE("a tag on a mapping or a sequence is its own, or refused with its place") {
  for (auto const* const text : {"a: !!map {b: 1}\nc: !!seq [1]\n", "a: ! {b: 1}\nc: ! [1]\n",
                                 "a: !<tag:yaml.org,2002:map>\n  b: 1\nc: &x !!seq\n- 1\n"})
    CHECK_MESSAGE(json(text) == R"({"a": {"b": 1}, "c": [1]})", text);
  CHECK(json("a: ! 1\nb: ! 'no'\nc: &x ! on\nd: 'on'\n") == R"({"a": 1, "b": false, "c": true, "d": "on"})");
  for (auto const* const text : {"a: !foo {b: 1}\n", "a: !foo [1]\n", "a: !foo\n  b: 1\n", "a: !!seq {b: 1}\n",
                                 "a: !!map [1]\n", "a: !!str {b: 1}\n", "a: !!python/object/apply:os.system [ls]\n",
                                 "a: !!python/tuple [1]\n", "b: &x !foo {a: 1}\n", "a: !!map x\n", "b: [!foo {}]\n"})
    for (auto const reader : {frontend::yaml_reader::omegaconf, frontend::yaml_reader::pyyaml}) {
      auto const read = parse_yaml(text, "t.yaml", reader);
      REQUIRE_MESSAGE(!read.has_value(), text);
      auto const refusal = read.error();
      CHECK(refusal.problems[0].code == errc::yaml_syntax);
      CHECK(refusal.problems[0].detail.starts_with("the tag "));
      CHECK(refusal.problems[0].upstream == "ConstructorError (yaml)");
      CHECK(refusal.problems[0].where.line == 1);
    }
  CHECK(refused("!foo\na: 1\n").detail == "the tag !foo fits no mapping");
  CHECK(refused("a: 1\nb: !!seq {}\n").where == place{"t.yaml", {}, 2, 4});
  for (auto const* const text : {"a: !!set {b, c}\n", "a: !!omap [b: 1]\n", "a: !!pairs [b: 1]\n", "a: !!binary aGk=\n",
                                 "a: !!timestamp 2026-01-31\n"}) {  // PyYAML reads these
    CHECK_MESSAGE(refused(text).detail.ends_with("(our limit)"), text);
    CHECK(refused(text).upstream.empty());
  }
}

// Source: pyyaml@6.0.3 reads {None: 4}; omegaconf@2.4.0 makes no configuration of it.
TEST_CASE("a key that is null, however it is spelled") {
  for (std::string const key : {"~", "null", "Null", "NULL", "? ~\n", "&x ~", "!!null x", "{null", "b: {~"}) {
    auto const text = key + ": 4" + (key.find('{') == std::string::npos ? "\n" : "}\n");
    auto const held = to_json(frontend::parse_accelerate(text, "c.yaml").value().value_of_root());
    CHECK(held == (key.starts_with("b") ? R"({"b": {"null": 4}})" : R"({"null": 4})"));
    CHECK_MESSAGE(refused(text).code == errc::wrong_type, text);
    CHECK(refused(text).detail.starts_with("a key is null"));
    CHECK(refused(text).upstream.starts_with("KeyValidationError (omegaconf)"));
  }
  CHECK(refused("a: 1\nnull: 2\n").where.line == 2);
  CHECK(refused("'null': 1\n!!str null: 3\n").code == errc::duplicate_keys);
  CHECK(json("'null': 1\n\"~\": 2\n") == R"({"null": 1, "~": 2})");
  CHECK(json("=: 1\n") == R"({"=": 1})");  // a value that is = is refused, a key is not
  CHECK(refused("a: 1\nnull\n").detail.starts_with("a key has no "));
}

// Source: pyyaml@6.0.3:lib/yaml/scanner.py:752-785, 1311-1342 and libyaml@0.2.5:src/scanner.c, which omegaconf reads
// with.
TEST_CASE("tabs: accelerate's reader takes them in quotes, comments and block scalars alone") {
  for (auto const* const text : {"a: 1\t\n", "a: 1\t# c\n", "a:\t1\n", "a\t: 1\n", "a: {b: 1,\tc: 2}\n", "a: x\ty\n"}) {
    auto const strict = frontend::parse_accelerate(text, "c.yaml");
    REQUIRE_MESSAGE(!strict.has_value(), text);
    auto const refusal = strict.error();
    CHECK(refusal.problems[0].detail == "a tab stands outside of quotes; use spaces");
    CHECK(refusal.problems[0].upstream == "ScannerError (yaml): found character that cannot start any token");
    CHECK(refusal.problems[0].where.column == 1 + std::string{text}.find('\t'));
    CHECK_MESSAGE(parse_yaml(text, "t.yaml").has_value(), text);
  }
  CHECK(json("micro_batch_size: 1\t# c\n") == R"({"micro_batch_size": 1})");
  for (auto const* const text :
       {"a: \"\t\"\n", "a: '\t'\n", "# \t\na: 1 # \t\n", "a: |\n  x\ty\n", "\xEF\xBB\xBF# \t\na: 1\n"})
    CHECK_MESSAGE(frontend::parse_accelerate(text, "c.yaml").has_value(), text);
  for (auto const* const text : {"\ta: 1\n", "a: 1\n\t\n", "a:\n- \t- x\n", "\xEF\xBB\xBF\ta: 1\n"})
    for (auto const reader : {frontend::yaml_reader::omegaconf, frontend::yaml_reader::pyyaml})
      CHECK_FALSE_MESSAGE(parse_yaml(text, "t.yaml", reader).has_value(), text);
}

// Source: pyyaml@6.0.3:lib/yaml/scanner.py:1416-1435.
TEST_CASE("every line break of YAML 1.1 ends a line and a comment") {
  for (std::string const end : {"\n", "\r\n", "\r", "\xC2\x85", "\xE2\x80\xA8", "\xE2\x80\xA9"}) {
    CHECK(json("a: x" + end + "b: # c" + end + "  - 1" + end + "  - [2," + end + "3]" + end + "c:" + end) ==
          R"({"a": "x", "b": [1, [2, 3]], "c": null})");
    CHECK(parse_yaml("a: x" + end + "b:" + end + "  c: 3", "t.yaml").value().at("/b/c").where() ==
          place{"t.yaml", "/b/c", 3, 6});
    CHECK(refused("a: 1" + end + "a: 2" + end).where.line == 2);
    CHECK(refused("a: 1" + end + "b: [" + end).where.line >= 2);
  }
  CHECK(refused("a: 1\rb: \x01\r").where == place{"t.yaml", {}, 2, 4});
  CHECK(json("a: 'x\r  y'\nb: \"x\xC2\x85y\"\nc: \"x\xE2\x80\xA8y\"\n") ==
        "{\"a\": \"x y\", \"b\": \"x y\", \"c\": \"x\xE2\x80\xA8y\"}");
  CHECK(json("a: |\r  x\r  y\r") == R"({"a": "x\ny\n"})");
  auto const d = parse_yaml("a: yes\r\nb: no\r\n", "t.yaml").value();
  CHECK(d.spelling(*d["b"]) == "no");
}

TEST_CASE(
    "what yaml-cpp takes and upstream does not: missing keys and elements, escapes, directives, values below keys") {
  auto const says = [](std::string_view text) {
    CHECK_FALSE_MESSAGE(frontend::parse_accelerate(text, "c.yaml").has_value(), text);
    return refused(text);
  };
  for (auto const* const text : {": v\n", "a: 1\n: v\n", "a: {: v}\n", "a: {b: 1, : v}\n", "a: {b: 1,, c: 2}\n"})
    CHECK_MESSAGE(says(text).detail.starts_with("there is no key here"), text);
  for (auto const* const text : {"a: [,]\n", "a: [b,,c]\n", "a: [ , b]\n"})
    CHECK_MESSAGE(says(text).detail.starts_with("there is no element before the comma"), text);
  CHECK(json("a: [b, ]\nc: {d: , e: 1, }\nf:\n  - \n  - 1\n") ==
        R"({"a": ["b"], "c": {"d": null, "e": 1}, "f": [null, 1]})");
  CHECK(json("? a\n: v\n") == R"({"a": "v"})");
  for (auto const* const text : {"a: \"\\'\"\n", "a: \"x\\q\"\n", "\"\\'\": 1\n", "a: \"\\d\"\n"}) {
    CHECK_MESSAGE(says(text).detail.starts_with("a backslash stands before"), text);
    CHECK(says(text).upstream == "ScannerError (yaml): found unknown escape character");
  }
  CHECK(json("a: \"\\x41\\u00e9\\/\\_\\\\\\\"\\t\\\n  b\"\nc: '\\q'\n") ==
        "{\"a\": \"A\xC3\xA9/\xC2\xA0\\\\\\\"\\tb\", \"c\": \"\\\\q\"}");
  for (auto const* const text : {"a:\n[b]\n", "a:\n{b: 1}\n", "a:\n  b:\n  [1]\n"})
    CHECK_MESSAGE(says(text).detail.starts_with("a value on a line of its own"), text);
  CHECK(json("a:\n [b]\nc: [\nd\n]\ne:\n- [f]\n") == R"({"a": ["b"], "c": ["d"], "e": [["f"]]})");
  for (auto const* const text : {"? a\n: [b]\n", "? \"a\"\n: ['b']\n", "x:\n  ? a\n  : {b: 1}\n", "? a\n: \"b\"\n",
                                 "m:\n|\n  b\n", "a:\n\"b\":\n'c': 1\n"})
    CHECK_MESSAGE(parse_yaml(text, "t.yaml").has_value(), text);
  for (auto const* const text :
       {"--- {\"a\tb\": 'x'}\n", "--- {a: '[b', c: 'd'}\n", "--- \"x\ty\"\n", "---\na: 1\n", "---"})
    CHECK_MESSAGE(parse_yaml(text, "t.yaml", frontend::yaml_reader::pyyaml).has_value(), text);
  CHECK(json("a: {b: &x}\nc: x, 'tis\nd: [&y]\n") == R"({"a": {"b": null}, "c": "x, 'tis", "d": [null]})");
  CHECK(says("--- \"x\n").detail == "a quote is never closed");
  for (auto const* const text : {"a: 1\n%b\n", "a:\n%x\n", "%YAML 1.1\na: 1\n", "%x: 1\n", "%YAML 1.1\n# c\n"})
    CHECK_MESSAGE(says(text).upstream.starts_with("ParserError (yaml)"), text);
  CHECK(json("%YAML 1.1\n# c\n---\na: 1\n") == R"({"a": 1})");
}

TEST_CASE("bytes that are no UTF-8 and control characters are errors with their place, wherever they stand") {
  for (std::string const bad : {"\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF5\x80\x80\x80", "\xC3"})
    for (std::string const before : {"a: 1\nb: x", "a: 1\n# ", "a: 1\nb: \"", "a: 1\nb"}) {
      auto const p = refused(before + bad);
      CHECK(p.code == errc::yaml_syntax);
      CHECK(p.detail.starts_with("the text is not UTF-8: byte 0x"));
      CHECK(p.detail.find(" at offset " + std::to_string(before.size()) + ';') != std::string::npos);
      CHECK(p.where.line == 2);
      CHECK(p.upstream.starts_with("UnicodeDecodeError"));
    }
  // Source: PyYAML's readers, which refuse these and no other characters.
  for (auto const& bad :
       {std::string(1, '\0'), std::string{"\x01"}, std::string{"\x0B"}, std::string{"\x1B"}, std::string{"\x7F"},
        std::string{"\xC2\x80"}, std::string{"\xC2\x9F"}, std::string{"\xEF\xBF\xBE"}, std::string{"\xEF\xBF\xBF"}})
    for (std::string const before : {"a: x", "# "})
      CHECK(refused(before + bad + "y\n").detail == "a control character, which YAML does not have");
  CHECK(refused(std::string{"a: \x01\n\xFF"}).where == place{"t.yaml", {}, 1, 4});  // the first of two
  for (auto const* const good : {"\xC2\xA0", "\xEF\xBB\xBF", "\xEF\xBF\xBD", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF"})
    CHECK(json(std::string{"a: x"} + good + "y\n") == std::string{"{\"a\": \"x"} + good + "y\"}");
}

TEST_CASE("YAML text in a file whose name says JSON: the error names the remedy") {
  auto const said = [](std::string const& text) {
    std::ofstream{"frontend_test.json"} << text;
    auto const read = frontend::read_configuration("frontend_test.json");
    std::remove("frontend_test.json");
    REQUIRE_MESSAGE(!read.has_value(), text);
    REQUIRE(read.error().problems.size() == 1);
    CHECK(read.error().problems[0].code == errc::json_syntax);
    return read.error().problems[0].detail;
  };
  auto const hint = "give the file a name that ends in .yaml";
  for (auto const* const yaml : {"dist_config:\n  name: fsdp2\n", "# x\na: 1\n", "{a: 1, b: [no]}", "a: 1"})
    CHECK_MESSAGE(said(yaml).find(hint) != std::string::npos, yaml);
  for (auto const* const neither : {"", " \n", "{", "{\"a\": 1", "word", "a: [1", "\xFF: 1",
                                  "{\"zero_optimization\": {\"stage\": 3},}"})
    CHECK_MESSAGE(said(neither).find(hint) == std::string::npos, neither);
}

TEST_CASE("our own limits are given no upstream exception") {
  std::string many = "a: [1";
  for (int i = 0; i < 1'000'001; ++i) many += ",1";
  many += "]\n";
  for (auto const& text :
       {"a: " + std::string(300, '[') + std::string(300, ']'), many, "a: 1\n" + std::string((16u << 20) + 1, '\n')}) {
    auto const p = refused(text);
    CHECK_MESSAGE(p.detail.find("our limit") != std::string::npos, p.detail);
    CHECK_MESSAGE(p.upstream.empty(), p.upstream);
  }
  CHECK(refused("a: [1").upstream.find("(yaml)") != std::string::npos);
}

TEST_CASE("what a text puts into a sentence beyond 4096 bytes is left out, however long a tag or an anchor is") {
  std::string const word(300'000, 'x');
  for (auto const& text :
       {"a: !<" + word + "> 1\n", "a: !" + word + " {}\n", "a: !" + word + " [1]\n",
        "%TAG !e! " + word + "\n---\na: !e!x 1\n", "a: &" + word + " 1\nb: &" + word + " 2\n", "a: *" + word + "\n"}) {
    auto const p = refused(text);
    CHECK_MESSAGE(p.detail.size() < 4300, p.detail.substr(0, 100));
    CHECK(p.upstream.size() < 4300);
  }
  CHECK(refused("a: !" + word + " 1\n").detail.find("bytes") != std::string::npos);  // their number is told
}

TEST_CASE("a micro batch below 1 beside a global batch that is no number: both are reported") {
  auto const d =
      parse_llamafactory("micro_batch_size: -1\nglobal_batch_size: x\ndist_config:\n  name: fsdp2\n", "t.yaml").value();
  auto const r = decide(d, profile::llamafactory, {.world = 2});
  REQUIRE(r.problems.size() == 2);
  CHECK(r.problems[0].where == place{"t.yaml", "/global_batch_size", 2, 20});
  CHECK(r.problems[0].detail == "found \"x\", an integer is needed");
  CHECK(r.problems[1].where == place{"t.yaml", "/micro_batch_size", 1, 19});
}

TEST_CASE("overrides win over the file; paths through scalars make objects, through arrays are refused") {
  auto const with = [](std::vector<std::string> const& overrides) {
    return parse_llamafactory("a: 1\nb: {c: 2}\nl: [1]\n", "t.yaml", overrides);
  };
  CHECK(to_json(with({"b.c=yes", "a=1e3"}).value().value_of_root()) == R"({"a": 1000.0, "b": {"c": true}, "l": [1]})");
  CHECK(to_json(with({"a.x.y={z: 1}", "n"}).value().value_of_root()) ==
        R"({"a": {"x": {"y": {"z": 1}}}, "b": {"c": 2}, "l": [1], "n": null})");
  CHECK(to_json(with({"b={d: 3}"}).value().value_of_root()) == R"({"a": 1, "b": {"c": 2, "d": 3}, "l": [1]})");
  CHECK(to_json(with({"--a=2"}).value().value_of_root()) == R"({"a": 1, "b": {"c": 2}, "l": [1], "--a": 2})");
  for (auto const* bad : {"l.x=1", "b=[1]"}) {
    auto const read = with({bad});
    REQUIRE_FALSE(read.has_value());
    CHECK(read.error().problems[0].code == errc::root_not_object);
    CHECK(read.error().problems[0].upstream.starts_with("TypeError (omegaconf)"));
  }
  CHECK_FALSE(with({"a={"}).has_value());
}

TEST_CASE("a section given as JSON text; a file and the file that it names") {
  CHECK(json("dist_config: '{\"name\": \"fsdp2\"}'\n") == R"({"dist_config": {"name": "fsdp2"}})");
  CHECK(json("dist_config: '{name}'\n") == R"({"dist_config": "{name}"})");
  std::ofstream{"frontend_test.yaml"} << "dist_config:\n  name: deepspeed\n  config_file: frontend_test.json\n";
  std::ofstream{"frontend_test.json"} << "{\"zero_optimization\": {\"stage\": 3}}";
  auto const d = frontend::read_configuration("frontend_test.yaml").value();
  facts f{.world = 2, .hidden_size = 8};
  frontend::read_named_files(d, f);
  REQUIRE(f.files.size() == 1);
  auto const r = decide(d, profile::llamafactory, f);
  CHECK_FALSE(r.has_errors());
  CHECK(r.policies.load.partitioned);
  std::remove("frontend_test.json");
  facts g{.world = 2};
  frontend::read_named_files(d, g);
  CHECK(decide(d, profile::llamafactory, g).has_errors());
  std::remove("frontend_test.yaml");
  CHECK_FALSE(frontend::read_configuration("no_such.yaml").has_value());
}

// Source: Python's open(), which LLaMA-Factory hands the value to (v1/plugins/model_plugins/deepspeed_utils.py:86-88).
TEST_CASE("a config_file that is no path is refused as Python's open() refuses it") {
  auto const first = [](std::string const& written) {
    auto const d =
        parse_llamafactory("dist_config:\n  name: deepspeed\n  config_file: " + written + "\n", "t.yaml").value();
    facts f{.world = 2};
    frontend::read_named_files(d, f);
    auto const r = decide(d, profile::llamafactory, f);
    for (auto const& p : r.problems)
      if (p.level == severity::error) return p;
    return problem{};
  };
  for (auto const& [written, type] : std::vector<std::pair<std::string, std::string>>{
           {"[a]", "list"}, {"{a: 1}", "dict"}, {"1.5", "float"}, {".nan", "float"}}) {
    auto const p = first(written);
    CHECK(p.code == errc::wrong_type);
    CHECK_MESSAGE(p.detail.ends_with(", the path of a file is needed"), p.detail);
    CHECK(p.where.line == 3);
    CHECK(p.upstream == "TypeError (llamafactory): expected str, bytes or os.PathLike object, not " + type);
  }
  CHECK(first("7").upstream.empty());  // a file descriptor to Python
  CHECK(first("'7'").code == errc::wrong_type);  // digits in a section become a number
  CHECK(first("a.json").code == errc::named_file_missing);
}

TEST_CASE("a named file that is missing: the message says in which folders it was looked for") {
  auto const first = [](std::string_view text, std::string const& file, profile p) {
    auto const d =
        (p == profile::accelerate ? frontend::parse_accelerate(text, file) : parse_llamafactory(text, file)).value();
    facts f{.world = 2};
    frontend::read_named_files(d, f);
    return decide(d, p, f).problems.at(0).detail;
  };
  std::string const text = "dist_config:\n  name: deepspeed\n  config_file: ";
  CHECK(first(text + "no.json\n", "conf/x/t.yaml", profile::llamafactory) ==
        "the file \"no.json\" does not exist, looked for in the working folder and in \"conf/x\"");
  for (auto const* const file : {"t.yaml", "<stdin>"})
    CHECK(first(text + "no.json\n", file, profile::llamafactory) ==
          "the file \"no.json\" does not exist, looked for in the working folder");
  CHECK(first(text + "/no/no.json\n", "conf/t.yaml", profile::llamafactory) ==
        "the file \"/no/no.json\" does not exist");
  CHECK(first("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  deepspeed_config_file: no.json\n",
              "conf/t.yaml", profile::accelerate)
            .ends_with("there is no such file, looked for in the working folder and in \"conf\""));
}

TEST_CASE("accelerate's file: PyYAML's words, the last of duplicate keys, no empty file, JSON by its name") {
  auto const read = [](std::string_view text) { return frontend::parse_accelerate(text, "c.yaml").value(); };
  auto const twice = read("a: 1\nb: 2\na: 3\n");
  CHECK(to_json(twice.value_of_root()) == R"({"a": 3, "b": 2})");
  CHECK(twice.value_of_root().members()[0].shadowed.size() == 1);
  CHECK(twice["a"].where() == place{"c.yaml", "/a", 3, 4});
  CHECK(read("").value_of_root().is(value_kind::null));
  CHECK(read("# only this\n").value_of_root().is(value_kind::null));
  CHECK(to_json(read("a: &x {p: 1}\nb:\n  <<: *x\n  p: 2\n").value_of_root()) == R"({"a": {"p": 1}, "b": {"p": 2}})");
  auto const dates = read("a: 2026-01-31\nb: '2026-01-31'\nc: !!str 2026-01-31\nd: 08\n");
  CHECK(is_date(dates, *dates["a"]));
  for (auto const key : {"b", "c", "d", "e"}) CHECK_FALSE(is_date(dates, *dates[key]));
  CHECK_FALSE(frontend::parse_accelerate("a:\n\t- 1\n", "c.yaml").has_value());
  CHECK_FALSE(frontend::parse_accelerate("a: 1", "c.json").has_value());
  CHECK_FALSE(frontend::parse_accelerate("a: &x 1\nb: &x 2\n", "c.yaml").has_value());
  CHECK(frontend::parse_accelerate("{\"a\": 1}", "c.json").has_value());
  auto const precision =
      decide(read("distributed_type: FSDP\nnum_processes: 2\nmixed_precision: 2026-01-31\n"), profile::accelerate);
  CHECK(precision.problems.at(0).upstream ==
        "AttributeError (accelerate): 'datetime.date' object has no attribute 'lower'");
  auto const warned =
      decide(read("distributed_type: 'NO'\ndistributed_type: FSDP\nnum_processes: 2\n"), profile::accelerate);
  CHECK(warned.problems.at(0).code == errc::duplicate_key_ignored);
}

// Source: accelerate@16cb6eb8:src/accelerate/utils/dataclasses.py, FullyShardedDataParallelPlugin.__post_init__.
TEST_CASE("an FSDP version that accelerate does not know: what it raises is reshard_after_forward's") {
  auto const raised = [](std::string const& reshard) {
    auto const text = "distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_version: 3\n" +
                      (reshard.empty() ? "" : "  fsdp_reshard_after_forward: " + reshard + "\n");
    auto const r = decide(frontend::parse_accelerate(text, "c.yaml").value(), profile::accelerate);
    for (auto const& p : r.problems)
      if (p.code == errc::unknown_name) {
        CHECK(p.where.pointer == "/fsdp_config/fsdp_version");
        CHECK(p.level == severity::error);
        return p.upstream;
      }
    return std::string{"accepted"};
  };
  CHECK(raised("") == "KeyError (accelerate): 'TRUE'");
  CHECK(raised("true") == "KeyError (accelerate): 'TRUE'");
  CHECK(raised("false") == "KeyError (accelerate): 'FALSE'");
  CHECK(raised("bogus") == "KeyError (accelerate): 'BOGUS'");
  CHECK(raised("9") == "ValueError (accelerate): 9 is not a valid ShardingStrategy");
  for (auto const* const strategy : {"FULL_SHARD", "no_shard", "2"}) CHECK(raised(strategy).empty());
}

#endif

}  // namespace frontend_test
