// SPDX-License-Identifier: Apache-2.0
// The key tables of docs/config.md are what the field tables of the sections say. FLATSHARD_PRINT_KEYS=1 prints them.
#include <flatshard/config/sixteen_bit_sections.hpp>
#include <flatshard/config/zero_section.hpp>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

#include <doctest/doctest.h>

using namespace flatshard;

namespace {

std::string quoted(std::string const& text) { return '`' + text + '`'; }
std::string bound(double x) { return to_json(value{static_cast<std::int64_t>(x)}); }

std::string type_of(bool) { return "bool"; }
std::string type_of(std::int64_t) { return "int"; }
std::string type_of(double) { return "float"; }
std::string type_of(std::string const&) { return "string"; }
std::string type_of(zero_stage) { return "0 to 3"; }
std::string type_of(offload_device) { return "none, cpu or nvme"; }
std::string type_of(selection_strategy const&) { return "auto, step or epoch"; }
std::string type_of(auto_or_int const&) { return "auto or int"; }
std::string type_of(name_list const&) { return "strings"; }
std::string type_of(any_object const&) { return "object"; }
template <Section S>
std::string type_of(S const&) {
  return "section";
}
template <class T>
std::string type_of(std::optional<T> const&) {
  return type_of(T{}) + " or null";
}

std::string default_of(bool b) { return b ? "true" : "false"; }
std::string default_of(std::int64_t n) { return std::to_string(n); }
std::string default_of(double x) { return to_json(value{x}); }
std::string default_of(std::string const& s) { return s; }
std::string default_of(zero_stage s) { return std::to_string(s.number); }
std::string default_of(offload_device d) { return std::string{name(d)}; }
std::string default_of(selection_strategy const& s) { return s.word; }
std::string default_of(auto_or_int const& n) { return n.steps ? std::to_string(*n.steps) : "auto"; }
std::string default_of(name_list const& l) {
  return l.names.empty() ? "none" : std::to_string(l.names.size()) + " classes";
}
std::string default_of(any_object const&) { return "{}"; }
template <Section S>
std::string default_of(S const&) {
  return "its defaults";
}
template <class T>
std::string default_of(std::optional<T> const& held) {
  return held ? default_of(*held) : "null";
}

std::string limits_of(range r) {
  bool const low = r.least > -std::numeric_limits<double>::infinity();
  bool const high = r.most < std::numeric_limits<double>::infinity();
  return low && high ? bound(r.least) + " to " + bound(r.most) : low ? "at least " + bound(r.least) : "";
}

template <Section S>
void print_section(std::ostream& out, std::string_view title) {
  out << "\n### `" << title << "`\n\n| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n";
  S const held;
  for_each_row<S>([&](auto const& row) {
    auto key = quoted(std::string{row.key});
    if (!row.also.empty()) key += ", " + quoted(std::string{row.also});
    out << "| " << key << " | " << type_of(held.*(row.member)) << " | " << default_of(held.*(row.member)) << " | "
        << limits_of(row.limits) << " | " << (row.state == key_state::deprecated ? "deprecated: " : "") << row.doc
        << " |\n";
  });
}

std::string tables() {
  std::ostringstream out;
  print_section<zero_section>(out, "zero_optimization");
  print_section<offload_param_section>(out, "zero_optimization.offload_param");
  print_section<offload_optimizer_section>(out, "zero_optimization.offload_optimizer");
  print_section<zenflow_section>(out, "zero_optimization.zenflow");
  print_section<leaf_module_section>(out, "zero_optimization.leaf_module");
  print_section<bf16_section>(out, "bf16");
  print_section<fp16_section>(out, "fp16");
  out << '\n';
  return out.str();
}

}  // namespace

TEST_CASE("the key tables of docs/config.md are those of the field tables") {
  auto const made = tables();
  if (std::getenv("FLATSHARD_PRINT_KEYS") != nullptr) std::cout << made;
  std::ifstream file{FLATSHARD_DOCS "/config.md"};
  REQUIRE(file);
  std::string const page{std::istreambuf_iterator<char>{file}, {}};
  constexpr std::string_view begin = "<!-- keys: made from the field tables, see tests/key_table_test.cpp -->\n";
  constexpr std::string_view end = "<!-- end of keys -->";
  auto const from = page.find(begin), to = page.find(end);
  REQUIRE(from != std::string::npos);
  REQUIRE(to != std::string::npos);
  auto const written = page.substr(from + begin.size(), to - from - begin.size());
  CHECK_MESSAGE(written == made, "run with FLATSHARD_PRINT_KEYS=1 and put the output between the marks");
}
