// SPDX-License-Identifier: Apache-2.0
#include <flatshard/document.hpp>

#include <limits>
#include <string>

#include <doctest/doctest.h>

namespace document_test {

using namespace flatshard;

TEST_CASE("the eight kinds never collapse") {
  std::vector<value> const all{value{},    value{nullptr}, value{true},    value{1},
                               value{1.0}, value{"1"},     value::array(), value::object()};
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < all.size(); ++j) CHECK((all[i] == all[j]) == (i == j));
  for (std::size_t i = 0; i < all.size(); ++i) CHECK(all[i].kind() == static_cast<value_kind>(i));
}

TEST_CASE("truth, equality and identity are Python's") {
  for (auto const& v : {value{}, value{nullptr}, value{false}, value{0}, value{0.0}, value{-0.0}, value{""},
                        value::array(), value::object()})
    CHECK_FALSE(truthy(v));
  for (auto const& v :
       {value{true}, value{-1}, value{0.5}, value{"false"}, value{"0"}, value{std::numeric_limits<double>::quiet_NaN()},
        value::array({0}), value::object({{"a", nullptr}}), value::number("99999999999999999999")})
    CHECK(truthy(v));
  CHECK(equals(value{3}, 3));
  CHECK(equals(value{3.0}, 3));
  CHECK(equals(value{true}, 1));
  CHECK_FALSE(equals(value{"3"}, 3));
  CHECK_FALSE(equals(value{nullptr}, 0));
  CHECK(value{true}.is_true());
  CHECK_FALSE(value{1}.is_true());
  CHECK_FALSE(value{"true"}.is_true());
}

TEST_CASE("numbers keep their spelling and their range") {
  CHECK(value::number("4").is(value_kind::integer));
  CHECK(value::number("4.0").is(value_kind::floating));
  CHECK(value::number("1e2").number() == 100.0);
  CHECK(value::number("1e400").number() == std::numeric_limits<double>::infinity());
  CHECK(value::number("-1e99999999999999999999").number() == -std::numeric_limits<double>::infinity());
  CHECK(value::number("1e-400").number() == 0.0);
  CHECK(value::number("0e99999999999").number() == 0.0);
  CHECK(std::isnan(*value::number("NaN").number()));
  CHECK(value::number("9223372036854775807").integer() == std::numeric_limits<std::int64_t>::max());
  CHECK_FALSE(value::number("9223372036854775808").integer());
  CHECK(value::number("9223372036854775808").number() == 9223372036854775808.0);
  CHECK(value::number("123456789012345678901234567890").text() == "123456789012345678901234567890");
  CHECK_FALSE(value{4.0}.integer());
  CHECK(value{0.5}.text() == "0.5");
  CHECK(to_json(value{4.0}) == "4.0");
}

TEST_CASE("a document built in code: keys in order, places of absent values, pointers") {
  document const d{
      value::object({{"zero_optimization", value::object({{"stage", 3}})}, {"a/b~c", value::array({1, "x"})}}),
      "built"};
  CHECK(d["zero_optimization"]["stage"]->integer() == 3);
  CHECK(d["zero_optimization"]["stage"].pointer() == "/zero_optimization/stage");
  auto const missing = d["zero_optimization"]["offload_param"]["device"];
  CHECK_FALSE(missing.present());
  CHECK(missing.pointer() == "/zero_optimization/offload_param/device");
  CHECK(missing.where() == place{"built", "/zero_optimization", 0, 0});
  CHECK(d.at("/a~1b~0c/1")->text() == "x");
  CHECK(d.at("/a~1b~0c/2").present() == false);
  CHECK(d.at("")->is(value_kind::object));
  CHECK(to_json(*d.root()) == R"({"zero_optimization": {"stage": 3}, "a/b~c": [1, "x"]})");
}

TEST_CASE("JSON Pointers: what names a key, and what is none") {
  using keys = std::vector<std::string>;
  CHECK(pointer_keys("").value().empty());
  CHECK(pointer_keys("/").value() == keys{""});
  CHECK(pointer_keys("/a~1b/~0~01").value() == keys{"a/b", "~~1"});
  for (std::string_view const none : {"a", "~0", "/~", "/~2", "/a/b~", "/~~0"}) CHECK_FALSE(pointer_keys(none));
  document const d{value::object({{"~2", 1}, {"a", 2}})};
  CHECK_FALSE(d.at("/~2").present());
  CHECK_FALSE(d.at("a").present());
  CHECK(d.at("/~02").present());
}

TEST_CASE("an edited copy: what a program wrote stands where its input does") {
  auto root = value::object({{"a", value::object({{"b", 1}})}, {"c", 2}});
  root.place_at({4, 2, 0, 0});
  document const original{root, "f.json"};
  place const input{"f.yaml", "/section/b", 7, 3};
  document const copy{value::object({{"a", value::object({{"b", value::array({1})}, {"x", 1}})}, {"c", 2}}),
                      original,
                      {{"/a/b", input}, {"/new", {}}}};
  CHECK(copy.at("/a/b").where() == input);
  CHECK(copy.at("/a/b/0").where() == input);
  CHECK(copy["a"]["b"]["absent"].where() == input);
  CHECK(copy["a"].key_place(copy["a"]->members()[0]) == input);
  CHECK(copy.at("/a/x").where() == place{"f.json", "/a/x", 0, 0});
  CHECK(copy["new"].where() == place{"f.json", "", 0, 0});  // absent: its parent's
  document const again{copy.value_of_root(), copy};         // a copy of a copy
  CHECK(again.at("/a/b").where() == input);
  CHECK(&again["c"].source() == &again);
  CHECK_THROWS_AS((void)node{}.source(), broken_rule);
}

TEST_CASE("setting keeps positions, shadowing keeps earlier values") {
  auto v = value::object({{"a", 1}, {"b", 2}, {"a", 3}});
  CHECK(to_json(v) == R"({"a": 3, "b": 2})");
  REQUIRE(v.members()[0].shadowed.size() == 1);
  CHECK(v.members()[0].shadowed[0].held.integer() == 1);
  v.set({"c", "d", "e"}, "deep");
  v.set("b", nullptr);
  CHECK(to_json(v) == R"({"a": 3, "b": null, "c": {"d": {"e": "deep"}}})");
  v.erase("a");
  CHECK(to_json(v) == R"({"b": null, "c": {"d": {"e": "deep"}}})");
  CHECK(to_json(value{"\"\\\n\x01"}) == R"("\"\\\n\u0001")");
  // UTF-8 whatever the string holds: a lone surrogate reads back, other bytes have no spelling.
  CHECK(to_json(value{"\xC3\xA9\xED\xA0\x80\xED\xBF\xBF"}) == "\"\xC3\xA9\\ud800\\udfff\"");
  CHECK(to_json(value{"a\xFF\xE9\xED\xA0"}) == "\"a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");
}

TEST_CASE("deep values are a broken rule, not a crash") {
  auto v = value::array();
  CHECK_THROWS_AS(
      [&] {
        for (int i = 0; i < 1000; ++i) v = value::array({v});
      }(),
      broken_rule);
  CHECK(v.height() == max_nesting);
  auto deep = value::object();
  std::vector<std::string_view> const path(max_nesting + 1, "k");
  CHECK_THROWS_AS(deep.set(path, 1), broken_rule);
  CHECK_THROWS_AS(value{1}.push_back(2), broken_rule);
  CHECK_THROWS_AS(value::array().set("a", 2), broken_rule);
}

}  // namespace document_test
