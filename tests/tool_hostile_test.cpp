// SPDX-License-Identifier: Apache-2.0
/// `flatshard explain` over texts that are as bad as the limits allow: memory stays bounded, errors decide the outcome.
#include "tier.hpp"
#include "tool_run.hpp"

#include <flatshard/config/findings.hpp>
#include <flatshard/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace tool_hostile_test {

using namespace tool_test;

namespace {

// A sanitizer takes several times the memory and looks for faults.
constexpr std::uint64_t most_bytes = std::uint64_t{sanitized ? 4096 : 256} << 20;
constexpr std::size_t many = flatshard::max_text_values - 10;

/// `count` members by their number, in braces.
std::string object_of(std::size_t count, std::function<std::string(std::string const&)> const& member) {
  std::string text = "{";
  for (std::size_t i = 0; i < count; ++i) text += (i == 0 ? "" : ",") + member(std::to_string(1'000'000 + i));
  return text + "}";
}
struct hostile {
  std::string_view what;
  std::string text;
  int code = 1;
  bool compared = false;  // by every profile, each of which holds its findings
};

std::vector<hostile> hostile_texts() {
  auto const padded = [](std::string const& i) { return "\"" + std::string(18, 'k') + i + "\""; };
  auto const autos = object_of(many, [&](auto const& i) { return padded(i) + ":\"auto\""; });
  auto const unknown = object_of(many, [&](auto const& i) { return padded(i) + ":1"; });
  std::string const digits(flatshard::max_text_bytes / 3 - 100, '9'), letters(flatshard::max_text_bytes - 100, 'x');
  std::string deep;
  for (int i = 0; i < 120; ++i) deep += "{\"" + std::string(130, 'k') + "\":";
  deep += object_of(50'000, [&](auto const& i) { return "\"" + i + "\":\"auto\""; }) + std::string(120, '}');
  std::string names = "[0";
  for (std::size_t i = 1; i < many; ++i) names += ",\"" + std::to_string(i) + "\"";
  return {
      {"auto at top level", autos},
      {"unknown keys", unknown},
      {"one key over and over", object_of(many, [](auto const&) { return std::string{"\"k\":1"}; })},
      {"every key twice", object_of(many / 2, [](auto const& i) { return "\"" + i + "\":1,\"" + i + "\":2"; })},
      {"auto in a section", "{\"zero_optimization\":" + autos + "}"},
      {"unknown keys in a section", "{\"zero_optimization\":" + unknown + "}"},
      {"a list of names", "{\"zero_optimization\":{\"leaf_module\":{\"classes\":" + names + "]}}}"},
      {"a long text", "{\"gradient_clipping\":\"" + letters + "\"}"},
      {"a long key", "{\"" + letters + "\":1}"},
      {"long numbers", "{\"train_batch_size\":" + digits + ",\"train_micro_batch_size_per_gpu\":" + digits + "}"},
      {"keys inside a value",
       "{\"train_micro_batch_size_per_gpu\":1,\"zero_optimization\":{\"stage\":3,\"zeropp_loco_param\":" +
           object_of(many - 10, [&](auto const& i) { return padded(i) + ":1"; }) + "}}",
       0, true},
      {"deep inside", deep},
      {"sections of LLaMA-Factory",
       "{\"dist_config\":" + object_of(many - 10, [&](auto const& i) { return padded(i) + ":\"1\""; }) + "}"},
      {"sections of accelerate", "{\"distributed_type\":\"FSDP\",\"fsdp_config\":" + autos + "}"},
  };
}

}  // namespace

TEST_CASE("no text costs more than 256 MiB, whatever is wrong in it") {
  folder const dir;
  for (auto const& h : hostile_texts()) {
    CAPTURE(h.what);
    REQUIRE(h.text.size() <= flatshard::max_text_bytes);
    spill(dir / "bad.json", h.text);
    bool const of_accelerate = h.what == "sections of accelerate";
    std::vector<std::vector<std::string>> all;
    if (!of_accelerate || long_tier()) all.push_back({"--json"});
    if (of_accelerate || long_tier()) all.push_back({"--profile", "accelerate", "--json"});
    if (h.compared) all.push_back({"--compare", "--json"});
    for (auto more : all) {
      auto const options = more.at(0) + more.at(more.size() / 2);
      CAPTURE(options);
      more.insert(more.begin(), {"explain", dir / "bad.json"});
      running program{more, {}};
      auto const [code, signal] = program.wait(std::chrono::seconds{300});
      CHECK(signal == 0);
      CHECK(code == h.code);
      CHECK(program.peak_bytes() < most_bytes);
    }
  }
}

TEST_CASE("--fix of many keys costs as little") {
  folder const dir;
  spill(dir / "many.json", "{\"zero_optimization\":{\"stage\":2},\"keys\":" + object_of(many - 20, [](auto const& i) {
                             return "\"" + i + "\":1";
                           }) + "}");
  running program{{"explain", dir / "many.json", "--fix", dir / "fixed.json"}, {}};
  auto const [code, signal] = program.wait(std::chrono::seconds{60});
  CHECK_MESSAGE(code == 0, program.err());
  CHECK(program.peak_bytes() < most_bytes);
}

TEST_CASE("problems of one kind are listed up to a hundred, then counted; errors decide all the same") {
  auto const keys = object_of(250, [](auto const& i) { return "\"k" + i + "\":1"; });
  auto const warned =
      run({"explain", "-", "--json"}, "{\"zero_optimization\":{\"stage\":3},\"a\":" + keys + "," + keys.substr(1));
  CHECK_MESSAGE(warned.code == 0, warned.err);
  auto const counted = [](std::string const& text, std::string_view code) {
    auto const d = flatshard::parse_json(text).value();
    std::size_t listed = 0;
    std::string last;
    for (auto const& p : d["problems"]->elements())
      if (p["code"].text() == code) {
        ++listed;
        last = p["detail"].text();
      }
    return std::to_string(listed) + ": " + last;
  };
  CHECK(counted(warned.out, "unknown-key") == "101: and 151 more of this kind");
  auto const refused = run({"explain", "-", "--json", "--profile", "deepspeed"},
                           "{\"train_micro_batch_size_per_gpu\":1,\"zero_optimization\":" + keys + "}");
  CHECK(refused.code == 1);
  CHECK(counted(refused.out, "extra-forbidden") == "101: and 150 more of this kind");
}

}  // namespace tool_hostile_test
