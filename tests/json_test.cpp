// SPDX-License-Identifier: Apache-2.0
#include <flatshard/json.hpp>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>

#include <doctest/doctest.h>
#include <sys/stat.h>

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

TEST_CASE("what is wrong with a text is said in our words") {
  CHECK(refused("{\"a\": tru}").detail.starts_with("not strict JSON: something else must stand here;"));
  CHECK(refused("{\"a\": 1").detail.starts_with("not strict JSON: the text ends too early;"));
  CHECK(refused("{} 1").detail.starts_with("not strict JSON: the value ends here, but the text goes on;"));
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

TEST_CASE("files: missing, a folder, a good one") {
  auto const missing = parse_file("no/such/file.json");
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().problems[0].code == errc::file_missing);
  CHECK(missing.error().problems[0].where.file == "no/such/file.json");
  auto const folder = parse_file(".");
  REQUIRE_FALSE(folder.has_value());
  CHECK(folder.error().problems[0].code == errc::file_unreadable);
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
