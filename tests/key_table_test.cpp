// SPDX-License-Identifier: Apache-2.0
// The key tables of docs/config.md are what the field tables of the sections say. FLATSHARD_PRINT_KEYS=1 prints them.
#include <flatshard/config/deepspeed/sixteen_bit_sections.hpp>
#include <flatshard/config/deepspeed/validated_sections.hpp>
#include <flatshard/config/deepspeed/zero_section.hpp>

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

namespace key_table_test {

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
std::string type_of(plain_text const&) { return "string"; }
std::string type_of(loss_scale_value) { return "float"; }
std::string type_of(scale_count) { return "int"; }
std::string type_of(auto_or_int const&) { return "auto or int"; }
std::string type_of(name_list const&) { return "strings"; }
std::string type_of(any_object const&) { return "object"; }
std::string type_of(any_value const&) { return "anything"; }
std::string type_of(any_list const&) { return "list"; }
std::string type_of(any_tuple const&) { return "list"; }
std::string type_of(torch_object const&) { return "torch.dtype, in code only"; }
std::string type_of(quantization_type const&) { return "symmetric or asymmetric"; }
std::string type_of(cross_entropy_backend const&) { return "torch or liger"; }
std::string type_of(compile_passes const&) { return "list of z1, z3, autosp, autotp"; }
template <Section S>
std::string type_of(S const&) {
  return "section";
}
template <class T>
std::string type_of(std::optional<T> const&) {
  return type_of(T{}) + " or null";
}

template <class T>
std::string default_of(T const& held) {
  auto const made = to_value(held);
  return made.is(value_kind::string) ? std::string{made.text()} : to_json(made);
}
std::string default_of(name_list const& l) {
  return l.names.empty() ? "none" : std::to_string(l.names.size()) + " classes";
}
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
  if (low && high)
    return (r.above_least ? "between " : "") + bound(r.least) + (r.above_least ? " and " : " to ") + bound(r.most);
  return low ? (r.above_least ? "above " : "at least ") + bound(r.least) : "";
}

/// The bounds of a row with those of a later release, and the release that a key comes with.
template <class Row>
std::string limits_of_row(Row const& row) {
  auto text = limits_of(row.limits);
  auto const from = [&](version_number r) { return "from " + to_string(r); };
  if (row.later.since != version_number{})
    text += (text.empty() ? "" : "; ") + from(row.later.since) + ' ' + limits_of(row.later.limits);
  if (row.since != version_number{}) text += (text.empty() ? "" : "; ") + from(row.since);
  return text;
}

template <Section S>
void print_section(std::ostream& out, std::string_view title) {
  out << "\n### `" << title << "`\n\n| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n";
  S const held;
  for_each_row<S>([&](auto const& row) {
    auto key = quoted(std::string{row.key});
    if (!row.also.empty()) key += ", " + quoted(std::string{row.also});
    out << "| " << key << " | " << type_of(held.*(row.member)) << " | " << default_of(held.*(row.member)) << " | "
        << limits_of_row(row) << " | " << (row.state == key_state::deprecated ? "deprecated: " : "") << row.doc
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
  print_section<comms_logger_section>(out, "comms_logger");
  print_section<tensorboard_section>(out, "tensorboard, csv_monitor");
  print_section<comet_section>(out, "comet");
  print_section<wandb_section>(out, "wandb");
  print_section<hybrid_engine_section>(out, "hybrid_engine");
  print_section<compile_section>(out, "compile");
  print_section<tensor_parallel_section>(out, "tensor_parallel");
  print_section<tensor_parallel_ranks>(out, "tensor_parallel.tp");
  print_section<weight_quantization_section>(out, "weight_quantization");
  print_section<throughput_timer_section>(out, "timers.throughput");
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

}  // namespace key_table_test
