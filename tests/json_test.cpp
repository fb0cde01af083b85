// SPDX-License-Identifier: Apache-2.0
#include <flatshard/json.hpp>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

namespace json_test {

using namespace flatshard;

namespace {
problem refused(std::string_view text) {
  auto const read = parse_json(text, "f.json");
  REQUIRE_FALSE(read.has_value());
  REQUIRE(read.error().problems.size() == 1);
  auto const p = read.error().problems[0];
  CHECK(p.where.file == "f.json");
  CHECK(p.where.line > 0);
  CHECK(p.when == "read");
  return p;
}
}  // namespace

TEST_CASE("every value knows its pointer, line, column and bytes") {
  std::string const text = "{\r\n  \"a\": [1, 2.50, \"x\\\"y\"],\n  \"b\" : {\"c\": true, \"d\": null}\n}";
  auto const d = parse_json(text, "f.json").value();
  auto const at = [&](std::string_view pointer) { return d.at(pointer); };
  CHECK(at("/a/0").where() == place{"f.json", "/a/0", 2, 9});
  CHECK(at("/a/1").where() == place{"f.json", "/a/1", 2, 12});
  CHECK(at("/b/d").where() == place{"f.json", "/b/d", 3, 26});
  CHECK(at("/b/zz").where() == place{"f.json", "/b", 3, 9});
  CHECK(d.spelling(*at("/a/1")) == "2.50");
  CHECK(d.spelling(*at("/a/2")) == "\"x\\\"y\"");
  CHECK(d.spelling(*at("/b")) == "{\"c\": true, \"d\": null}");
  CHECK(d.spelling(*at("/a")) == "[1, 2.50, \"x\\\"y\"]");
  CHECK(d.spelling(*at("")) == text);
  CHECK(d.spelling(*at("/b/c")) == "true");
}

TEST_CASE("duplicates: the last value counts, the first position stays, all are kept with their places") {
  auto const d = parse_json("{\"b\": 1, \"a\": 2,\n \"b\": {\"x\": 1}, \"b\": 4}").value();
  CHECK(to_json(*d.root()) == R"({"b": 4, "a": 2})");
  auto const& b = d.root()->members()[0];
  REQUIRE(b.shadowed.size() == 2);
  CHECK(b.shadowed[0].held.integer() == 1);
  CHECK(b.shadowed[1].key_at.line == 2);
  CHECK(b.key_at.column == 17);
  CHECK(d.root().key_place(b).line == 2);
}

TEST_CASE("what Python's json accepts beyond RFC 8259") {
  auto const d =
      parse_json(R"({"n": NaN, "i": [Infinity,-Infinity], "s": "a\ud800b", "p": "\ud83d\ude00", "m": ")"
                 "\xEF\xB7\x90"
                 R"(NaN", "e": "\ufdd0d800", "k\udc00": 1e999999999999, "z": -0.0e-99999999, "tail": "here"})")
          .value();
  CHECK(std::isnan(*d["n"]->number()));
  CHECK(d.spelling(*d["n"]) == "NaN");
  CHECK(*d.at("/i/1")->number() == -std::numeric_limits<double>::infinity());
  CHECK(d.spelling(*d.at("/i/1")) == "-Infinity");
  CHECK(d["s"]->text() ==
        "a\xED\xA0\x80"
        "b");
  CHECK(d["p"]->text() == "\xF0\x9F\x98\x80");
  CHECK(d["m"]->text() == "\xEF\xB7\x90NaN");
  CHECK(d["e"]->text() ==
        "\xEF\xB7\x90"
        "d800");
  CHECK(*d["k\xED\xB0\x80"]->number() == std::numeric_limits<double>::infinity());
  CHECK(*d["z"]->number() == 0.0);
  CHECK(d.spelling(*d["tail"]) == "\"here\"");
}

TEST_CASE("bad texts: one clear problem with its place") {
  CHECK(refused("{\n \"a\": 4 # x\n}").where == place{"f.json", "/a", 2, 9});
  CHECK(refused("{\"a\": [1, 2,]}").where.column == 13);
  CHECK(refused("{NaN: 1}").where.column == 2);
  CHECK(refused("{\"a\": 1, -Infinity : 1}").where.column == 10);
  CHECK(refused("\xEF\xBB\xBF{}").detail.find("byte order mark") != std::string::npos);
  CHECK(refused("").where.line == 1);
  CHECK(refused("{\"a\": \"\xED\xA0\x80\"}").code == errc::json_syntax);
  CHECK(refused(std::string{"{\"a\":\0 1}", 9}).code == errc::json_syntax);
  for (auto const* bad : {"[NaN", "NaNx", "[1NaN]", "\"\\ud8", "\"\\u12\"", "[1e]", "[1e+]", "[--1]", "[1e5-55555]",
                          "{\"a\"NaN}", "-", "\"\\"})
    CHECK(refused(bad).code == errc::json_syntax);
}

TEST_CASE("a text that is not UTF-8 is told so, with the byte and its place, not blamed for its syntax") {
  for (std::string const bad : {"\xE9", "\xFF", "\xED\xA0\x80", "\xC3"})
    for (std::string const before : {"{\n  \"caf", "{\n  \"a\": ", "{\n  \"a\": 1"}) {
      auto const p = refused(before + bad + "\": 1}");
      CHECK(p.code == errc::json_syntax);
      CHECK(p.detail.starts_with("the text is not UTF-8: byte 0x"));
      CHECK(p.detail.find(" at offset " + std::to_string(before.size()) + ';') != std::string::npos);
      CHECK(p.where.line == 2);
      CHECK(p.where.column == before.size() - 1);
      CHECK(p.upstream.starts_with("UnicodeDecodeError"));
    }
  CHECK(refused("\xFF\xFE{\0}\0").detail.find("byte 0xff at offset 0;") != std::string::npos);  // UTF-16
}

TEST_CASE("a fault says what was found and what is allowed there, and stands at it") {
  struct row {
    std::string_view text;
    std::string said;
    std::size_t column;
  };
  constexpr std::string_view any = "a value (text in double quotes, a number, true, false, null, \"[\" or \"{\")";
  for (auto const& [text, said, column] :
       {row{"", "found the end of the text at the start, allowed: " + std::string{any}, 1},
        row{"{\"a\": 1, }", "found \"}\" after a comma, allowed: a key in double quotes", 10},
        row{"{\"a\": 1,", "found the end of the text after a comma, allowed: a key in double quotes", 9},
        row{"{a: 1}", "found \"a\" after \"{\", allowed: a key in double quotes or \"}\"", 2},
        row{"{'a': 1}", "found \"'\" after \"{\", allowed: a key in double quotes or \"}\"", 2},
        row{"{\"a\" 1}", "found \"1\" after a key, allowed: \":\"", 6},
        row{"{\"a\": }", "found \"}\" after a colon, allowed: " + std::string{any}, 7},
        row{"{\"a\": True}", "found \"True\" after a colon, allowed: " + std::string{any}, 7},
        row{"{\"a\": +5}", "found \"+\" after a colon, allowed: " + std::string{any}, 7},
        row{"{\"a\": tru}", "found \"tru\"", 0},
        row{"{\"a\": nul", "found \"nul\"", 0},
        row{"[1 2]", "found \"2\" after a value, allowed: \",\" or \"]\"", 4},
        row{"[1, 2,]", "found \"]\" after a comma, allowed: " + std::string{any}, 7},
        row{"[\"a\"", "found the end of the text after a value, allowed: \",\" or \"]\"", 5},
        row{"{\"a\": 1", "found the end of the text after a value, allowed: \",\" or \"}\"", 8},
        row{"{\"a\": 1]", "found \"]\" after a value, allowed: \",\" or \"}\"", 8},
        row{"{\"a\": {} \"b\": 2}", "found a double quote after a value, allowed: \",\" or \"}\"", 10},
        row{"{} 1", "found \"1\" after the value, allowed: the end of the text", 4},
        row{"[1e]", "found \"]\" in a number, allowed: a digit", 4},
        row{"-", "found the end of the text in a number, allowed: a digit", 2},
        row{"[1NaN]", "found \"NaN\" after a value", 3},
        row{"[\"a", "found the end of the text in a string, allowed: its closing quote", 4},
        row{"[\"a\tb\"]", "found the character U+0009 in a string, allowed: control characters as escapes, such as \\n",
            4},
        row{"[\"\\q\"]", "found \"q\" after a backslash, allowed: one of \" \\ / b f n r t u", 4},
        row{"[\"\\u12\"]", "found a double quote after \\u, allowed: four hexadecimal digits", 0},
        row{"[\xC2\xA0"
            "1]",
            "found the character U+00A0 after \"[\"", 2},
        row{"[\xE2\x80\x9C"
            "a]",
            "found the character U+201C after \"[\"", 2},
        row{"[\xF0\x9F\x98\x80]", "found the character U+1F600 after \"[\"", 2},
        row{"[1] # x", "found \"#\" after the value, allowed: the end of the text", 5}}) {
    auto const p = refused(text);
    auto const start = "not strict JSON: " + std::string{said};
    std::string const shown{text};
    CHECK_MESSAGE(p.detail.starts_with(start), shown, ": ", p.detail);
    bool const there = column == 0 || p.where.column == column;
    CHECK_MESSAGE(there, shown, " at ", p.where.column);
  }
  CHECK(refused(std::string{"[\0]", 3}).detail.find("found the character U+0000 after \"[\"") != std::string::npos);
  CHECK(refused("[" + std::string(1000, 'x') + "]").detail.size() < 400);
  // any beginning of a valid text is told what ends it
  std::string const whole = "{\"a\": [1.5e3, \"\\u00e9\\n\", true, null, {}, [[]]], \"b\": -0}";
  for (std::size_t n = 0; n < whole.size(); ++n) {
    auto const p = refused(std::string_view{whole}.substr(0, n));
    CHECK_MESSAGE(p.detail.starts_with("not strict JSON: found "), p.detail);
    CHECK_MESSAGE(p.where.column == n + 1, whole.substr(0, n), " at ", p.where.column);
  }
}

TEST_CASE("limits: deep, long and many end in an error") {
  auto const nested = [](std::size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  CHECK(parse_json(nested(max_nesting)).has_value());
  CHECK(refused(nested(max_nesting + 1)).detail.find("256 deep") != std::string::npos);
  CHECK(refused(std::string(1'000'000, '[')).detail.find("256 deep") != std::string::npos);
  std::string many = "[0";
  for (std::size_t i = 0; i < max_text_values; ++i) many += ",0";
  CHECK(refused(many + "]").detail.find("100000 values") != std::string::npos);
  CHECK(refused(std::string(max_text_bytes + 1, ' ')).detail.find("4 MiB") != std::string::npos);
  std::string keys = "{\"k0\":0";  // no quadratic time
  for (std::size_t i = 1; i + 1 < max_text_values; ++i) keys += ",\"k" + std::to_string(i) + "\":0";
  CHECK(parse_json(keys + "}").value().root()->members().size() == max_text_values - 1);
  // long keys on the way to one value, but not side by side
  std::string const key(max_path_bytes / 2, 'k');
  CHECK(parse_json("{\"" + key + "\": {\"" + key + "\": {}}, \"a\": {\"" + key + "\": 1}}").has_value());
  auto const way = refused("{\"" + key + "\": {\"" + key + "\": {\"a\": 1}}}");
  CHECK(way.detail.find("16 KiB together, our limit") != std::string::npos);
  CHECK(way.where.pointer == '/' + key + '/' + key);
}

TEST_CASE("a folder that may not be entered is named, with what to do") {
  namespace files = std::filesystem;
  auto const outer = files::temp_directory_path() / "flatshard_json_test_closed", closed = outer / "model";
  files::remove_all(outer);
  files::create_directories(closed);
  files::permissions(outer, files::perms::all);
  auto const file = closed / "config.json";
  std::ofstream{file} << "{}";
  // a superuser may enter everywhere: another user looks
  bool const super = ::geteuid() == 0;
  auto const detail_of = [&](files::path const& path) {
    if (super) REQUIRE(::seteuid(65534) == 0);
    auto const read = parse_file(path.string());
    if (super) REQUIRE(::seteuid(0) == 0);
    return read ? std::string{"it was read"} : read.error().problems[0].detail;
  };
  files::permissions(file, files::perms::none);
  CHECK(detail_of(file) ==
        "the file cannot be read: open: Permission denied; give this user the right to read it (chmod +r)");
  files::permissions(closed, files::perms::none);
  CHECK(detail_of(file) == "the file cannot be read: open: Permission denied: the folder \"" + closed.string() +
                               "\" may not be entered; give this user the right to (chmod +x), or choose another");
  files::permissions(closed, files::perms::all);
  files::remove_all(outer);
}

TEST_CASE("files: missing, a folder, a good one") {
  auto const missing = parse_file("no/such/file.json");
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().problems[0].code == errc::file_missing);
  CHECK(missing.error().problems[0].where.file == "no/such/file.json");
  if (std::filesystem::exists("/proc/self/comm")) {  // a regular file whose size is 0, and which is not empty
    CHECK(std::filesystem::file_size("/proc/self/comm") == 0);
    CHECK(read_text("/proc/self/comm").value().ends_with('\n'));
    CHECK(read_text("/proc/self/comm").value().size() > 1);
  }
  auto const folder = parse_file(".");
  REQUIRE_FALSE(folder.has_value());
  CHECK(folder.error().problems[0].code == errc::file_unreadable);
  CHECK(folder.error().problems[0].upstream == "IsADirectoryError (builtins): [Errno 21] Is a directory: '.'");
  auto const fifo = std::string{"json_test.fifo"};  // nobody writes to it: opening it as a stream would wait for ever
  std::remove(fifo.c_str());
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  auto const stream = parse_file(fifo);
  std::remove(fifo.c_str());
  REQUIRE_FALSE(stream.has_value());
  CHECK(stream.error().problems[0].code == errc::file_unreadable);
  CHECK(stream.error().problems[0].detail.find("FIFO") != std::string::npos);
  CHECK_THROWS_AS((void)parse_file("no/such/file.json").value(), bad_input);
  auto const path = std::string{"json_test.tmp"};
  std::ofstream{path} << "{\"a\": 1}";
  CHECK(parse_file(path).value()["a"].where() == place{path, "/a", 1, 7});
  std::remove(path.c_str());
}

}  // namespace json_test
