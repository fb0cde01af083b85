// SPDX-License-Identifier: Apache-2.0
// usage: constant_cases SAMPLE FILE...: writes a source whose static_asserts are the cases of files of
// tests/golden/layouts, each layout with its shapes and its world known when compiled. SAMPLE: how many cases of a
// file, evenly chosen; 0 for all. That the source compiles is the test.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include <boost/json.hpp>

namespace js = boost::json;

namespace {

std::string text(js::value const& v) { return js::serialize(v); }

/// A list of numbers and lists as it stands, in braces.
std::string braces(js::value const& v) {
  auto const* list = v.if_array();
  if (list == nullptr) return v.is_null() ? "std::nullopt" : text(v);
  std::string out = "{";
  for (auto const& one : *list) out += (out.size() > 1 ? ", " : "") + braces(one);
  return out + "}";
}

std::string table(js::array const& shapes) {
  std::string out;
  for (auto const& shape : shapes) out += (out.empty() ? "" : ", ") + ("{\"t\", " + braces(shape)) + "}";
  return "parameters({" + out + "})";
}

std::string policy(std::string_view layout, js::object const& one) {
  auto const& options = one.at("options").as_object();
  auto const option = [&](char const* name) { return text(options.at(name)); };
  if (layout == "native") return "native_of(" + option("tensor_align") + ", " + option("segment_align") + ")";
  if (layout == "ds_zero3") return "zero3{}";
  if (layout == "ds_hpz") return "hpz_of(" + text(one.at("world")) + ")";
  if (layout == "ds_zero12") return "zero12_of(" + option("round_robin") + ")";
  if (layout == "fsdp1") return "fsdp1_of(" + option("use_orig_params") + ", " + option("element_bytes") + ")";
  if (layout == "fsdp2") return "fsdp2{}";
  if (layout == "megatron_production") return "megatron{}";
  if (layout == "megatron_experimental") return "experimental()";
  if (layout != "ragged") throw std::runtime_error{"no policy for " + std::string{layout}};
  auto const& units = options.at("units").as_array();
  auto const ranks = std::to_string(units.size());
  return "ragged<" + ranks + ">{std::array<std::size_t, " + ranks + ">" + braces(units) + ", " + option("prefix_dims") +
         "}";
}

void write(std::string_view layout, js::object const& one) {
  auto const& expect = one.at("expect").as_object();
  auto const id = text(one.at("id"));
  auto name = std::string{one.at("id").as_string()};
  std::replace(name.begin(), name.end(), '/', '_');
  auto const world = text(layout == "ds_hpz" ? one.at("options").at("hpz") : one.at("world"));
  auto const unit = table(one.at("shapes").as_array());
  auto const built = "layout{" + policy(layout, one) + ", " + unit + ", world<" + world + ">{}}";
  auto const* error = expect.if_contains("error");
  if (error != nullptr && error->as_string() != "upstream_rejects") {
    std::printf("constexpr auto %s = [] { return %s.size(); };\nstatic_assert(refused(%s), %s);\n", name.c_str(),
                built.c_str(), name.c_str(), id.c_str());
    return;
  }
  std::printf("constexpr %s;\n", ("layout " + name + built.substr(6)).c_str());
  auto const check = [&](std::string const& what) {
    std::printf("static_assert(%s, %s);\n", what.c_str(), id.c_str());
  };
  if (error != nullptr) {  // legal here
    check("owned_by_all(" + name + ") == " + name + ".real().value");
    return;
  }
  auto const* segment = expect.if_contains("segment");
  auto const segments =
      segment != nullptr ? "{{" + text(*segment) + ", " + world + "}}" : braces(expect.at("segments"));
  std::string tensors;
  for (auto const& t : expect.at("tensors").as_array())
    tensors += (tensors.empty() ? "{" : ", {") + text(t.at("numel")) + ", " + braces(t.at("sizes")) + ", " +
               braces(t.at("local")) + "}";
  check("first_difference(" + name + ", {" + text(expect.at("gathered")) + ", " + text(expect.at("real")) + ", " +
        segments + ", " + braces(expect.at("padding")) + ", {" + tensors + "}, " + braces(expect.at("samples")) + ", " +
        braces(expect.at("pads")) + "}) == difference::none");
  if (auto const* hash = expect.if_contains("hash")) {
    auto const expected = " == 0x" + std::string{hash->as_string()};
    check("map_hash(" + name + ")" + expected);
    if (expect.at("gathered").to_number<std::size_t>() <= 512) check("position_hash(" + name + ")" + expected);
  }
  if (auto const* starts = expect.if_contains("flat_offsets"))
    check("has_starts(" + name + ", " + braces(*starts) + ")");
  if (auto const* slots = expect.if_contains("slots")) check("has_slots(" + name + ", " + braces(*slots) + ")");
  if (auto const* slots = expect.if_contains("primary_slots"))
    check("has_slots(layout{zero3{}, " + unit + ", world<" + text(one.at("world")) + ">{}}, " + braces(*slots) + ")");
  if (auto const* rows = expect.if_contains("rows")) check("has_rows(" + name + ", " + braces(*rows) + ")");
  if (auto const* slots = expect.if_contains("post_forward_slot"))
    check("keeps(" + name + ", " + text(one.at("options").at("post_forward")) + ", " + braces(*slots) + ", " +
          braces(expect.at("post_forward_real")) + ")");
  if (auto const* groups = expect.if_contains("sub_groups")) {
    std::string list;
    for (auto const& g : groups->as_array())
      list += (list.empty() ? "{" : ", {") + text(g.at(0)) + ", " + text(g.at(1)) + ", {" + text(g.at(2)) + "}}";
    check("has_sub_groups(" + name + ", " + text(one.at("options").at("sub_group_size")) + ", {" + list + "})");
  }
  if (auto const* chunk = expect.if_contains("chunk"))
    check(name + ".policy().quantum(" + unit + ").value == " + text(*chunk));
  if (auto const* numel = expect.if_contains("flat_numel")) check("flat_numel(" + name + ").value == " + text(*numel));
  if (auto const* order = expect.if_contains("order"))
    check("has_order(" +
          (layout == "ds_zero12" ? "group_order(" + name + ")" : name + ".policy().tensor_order(" + unit + ")") + ", " +
          braces(*order) + ")");
}

/// A rule of one tensor: what each rank has of it, or that the layout refuses it.
void write_llmc(js::object const& one) {
  auto const& in = one.at("in");
  auto const built =
      "layout{llmc{}, parameters({{\"t\", {" + text(in.at("elements")) + "}}}), world<" + text(in.at("world")) + ">{}}";
  auto const& expect = one.at("expect");
  auto const check = expect.is_array() ? "has_ranges(" + built + ", " + braces(expect) + ")"
                                       : "refused([] { return " + built + ".size(); })";
  std::printf("static_assert(%s, %s);\n", check.c_str(), text(one.at("id")).c_str());
}

/// Totals of one layer, whose experts are a group of their own in Megatron-FSDP.
void write_totals(js::object const& one, std::size_t number) {
  auto const listed = [](js::array const& shapes) {
    js::array all;
    for (auto const& s : shapes) {
      auto const* repeated = s.if_object();  // {"repeat": k, "shapes": [...]}
      for (std::int64_t k = repeated != nullptr ? repeated->at("repeat").as_int64() : 1; k > 0; --k) {
        if (repeated == nullptr) {
          all.push_back(s);
        } else {
          for (auto const& each : repeated->at("shapes").as_array()) all.push_back(each);
        }
      }
    }
    return all;
  };
  auto const dense = listed(one.at("shapes").as_array()), experts = listed(one.at("expert_shapes").as_array());
  auto all = dense;
  all.insert(all.end(), experts.begin(), experts.end());
  auto const world = text(one.at("world"));
  std::printf("namespace totals_%zu {\nconstexpr auto all = %s;\nconstexpr auto dense = %s;\n", number,
              table(all).c_str(), table(dense).c_str());
  if (!experts.empty()) std::printf("constexpr auto experts = %s;\n", table(experts).c_str());
  for (auto const& [name, policy, groups] :
       {std::tuple{"ds_zero3", "zero3{}", 1}, std::tuple{"ds_zero12", "zero12{}", 1},
        std::tuple{"fsdp1_bf16_use_orig_params", "fsdp1{}", 1}, std::tuple{"fsdp2", "fsdp2{}", 1},
        std::tuple{"megatron_production", "megatron{}", 2}, std::tuple{"megatron_experimental", "experimental()", 2},
        std::tuple{"native_8_128", "native{}", 1}}) {
    auto const total = [&, policy = policy](char const* unit) {
      return "layout{" + std::string{policy} + ", " + unit + ", world<" + world + ">{}}.gathered().value";
    };
    auto const sum = groups == 1       ? total("all")
                     : experts.empty() ? total("dense")
                                       : total("dense") + " + " + total("experts");
    std::printf("static_assert(%s == %s, %s);\n", sum.c_str(), text(one.at("gathered_elements").at(name)).c_str(),
                text(one.at("id")).c_str());
  }
  std::printf("}\n");
}

/// The cases of a file that are layouts: of the rules one is.
js::array cases_of(js::value const& file) {
  js::array all;
  for (auto const& one : file.at("cases").as_array()) {
    auto const* rule = one.as_object().if_contains("rule");
    if (rule == nullptr || *rule == "llmc_shard") all.push_back(one);
  }
  return all;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error{"usage: constant_cases SAMPLE FILE..."};
  char* end = nullptr;
  std::size_t const sample = std::strtoull(arguments[1], &end, 10);
  if (end == arguments[1] || *end != '\0') throw std::runtime_error{"SAMPLE is a number of cases, 0 for all"};
  std::printf("#include \"constant_case.hpp\"\n\nusing namespace constant_case;\n\n");
  for (int i = 2; i < count; ++i) {
    std::ifstream in{arguments[i], std::ios::binary};
    if (!in) throw std::runtime_error{std::string{"cannot read "} + arguments[i]};
    std::string const whole{std::istreambuf_iterator<char>{in}, {}};
    auto const file = js::parse(whole);
    std::string const layout{file.at("layout").as_string()};
    auto const cases = cases_of(file);
    if (cases.empty()) throw std::runtime_error{layout + ": no case"};
    auto const chosen = sample == 0 ? cases.size() : std::min(sample, cases.size());
    for (std::size_t k = 0; k < chosen; ++k) {
      auto const& one = cases[k * cases.size() / chosen].as_object();
      if (layout == "rules") {
        write_llmc(one);
      } else if (layout == "padding_table") {
        write_totals(one, k);
      } else {
        write(layout, one);
      }
    }
    std::fprintf(stderr, "golden %s: %zu of %zu cases as constant expressions\n", layout.c_str(), chosen, cases.size());
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
} catch (std::exception const& e) {
  std::fprintf(stderr, "constant_cases: %s\n", e.what());
  return 1;
}
