// SPDX-License-Identifier: Apache-2.0
/// LLaMA-Factory v1's batch: global batch = data-parallel ranks * micro batch * micro batches, in Python's arithmetic.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/llamafactory/mesh.hpp>
#include <flatshard/config/llamafactory/sections.hpp>
#include <flatshard/config/python_number.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The batch numbers as upstream keeps them.
struct front_end_batch {
  value micro_batch_size, global_batch_size, num_micro_batch;
};

/// Infers the global batch or the number of micro batches and decides all three. Nothing is refused again that follows
/// from a mesh that failed.
[[nodiscard]] inline front_end_batch decide_front_end_batch(node const& root, mesh_sizes const& mesh, findings& out);

// ---- definitions

namespace detail {

/// What upstream refuses in a batch: at which key, and its exception.
struct batch_refusal {
  errc code{};
  node at;
  std::string detail;
  upstream_error upstream;
};

/// What to do with a number that stands in quotes; nothing for other values.
inline std::string_view quotes_advice(value const& v) {
  std::int64_t n = 0;
  return v.is(value_kind::string) && parse_python_int(v.text(), n) != 1 ? "; write it without quotes" : "";
}

/// The micro batch alone, beside a global batch that was refused: torch's loader takes positive integers.
inline std::optional<batch_refusal> check_micro_batch(value const& micro_batch_size, node const& micro_at) {
  auto const micro = python_number_of(micro_batch_size);
  if (!micro || (!micro->floating && micro->whole > 0)) return std::nullopt;
  return batch_refusal{
      errc::bad_batch_size,
      micro_at,
      "micro_batch_size is " + python_text(micro_batch_size) + ", a positive integer is needed",
      {"ValueError", "torch",
       "batch_size should be a positive integer value, but got batch_size=" + python_text(micro_batch_size)}};
}

/// Fills what the file leaves open, as upstream does when it builds its loader; what it refuses otherwise.
inline std::vector<batch_refusal> complete_front_end_batch(front_end_batch& b, python_number dp, value const& dp_size,
                                                           node const& micro_at, node const& global_at) {
  auto const micro = python_number_of(b.micro_batch_size);
  if (b.global_batch_size.is(value_kind::null)) {
    bool const repeats = b.micro_batch_size.is(value_kind::string) || b.micro_batch_size.is(value_kind::array);
    if (micro)
      b.global_batch_size = to_value(multiply(dp, *micro));
    else if (!repeats)
      return {{errc::wrong_type,
               micro_at,
               "found " + to_json(b.micro_batch_size) + ", an integer is needed",
               {"TypeError", "llamafactory", "unsupported operand type(s) for *"}}};
    return {};
  }
  auto const global = python_number_of(b.global_batch_size);
  std::vector<batch_refusal> refusals;
  for (auto const* at : {&micro_at, &global_at})
    if (!(at == &micro_at ? micro : global))
      refusals.push_back({errc::wrong_type,
                          *at,
                          "found " + to_json(**at) + ", an integer is needed" + std::string{quotes_advice(**at)},
                          {"TypeError", "llamafactory", "unsupported operand type(s) for %"}});
  if (!refusals.empty()) return refusals;
  auto const unit = multiply(dp, *micro);
  if (unit.zero())
    return {{errc::division_by_zero,
             micro_at,
             "micro_batch_size is 0",
             {"ZeroDivisionError", "llamafactory", "integer modulo by zero"}}};
  if (!same_number(multiply(floor_divide(*global, unit), unit), *global)) {
    auto const sum = python_text(b.global_batch_size) + " % (" + python_text(dp_size) + " * " +
                     python_text(b.micro_batch_size) + ") != 0";
    return {{errc::batch_not_divisible,
             global_at,
             "global_batch_size must be a multiple of dp_size * micro_batch_size, found " + sum,
             {"ValueError", "llamafactory",
              "Global batch size must be divisible by DP size and micro batch size. Got " + sum}}};
  }
  b.num_micro_batch = to_value(floor_divide(floor_divide(*global, dp), *micro));
  return {};
}

/// The size that torch's loader gets: micro batch * micro batches, a positive integer.
inline std::optional<batch_refusal> check_loader_batch(front_end_batch const& b, node const& micro_at,
                                                       node const& global_at, findings& out) {
  auto const micro = python_number_of(b.micro_batch_size), steps = python_number_of(b.num_micro_batch);
  std::optional<python_number> size;
  if (micro && steps) size = multiply(*micro, *steps);
  bool const by_global =
      size && !micro->floating && micro->whole > 0 && global_at.present();  // what made it no positive number
  if (!size || size->floating || size->whole <= 0)
    return batch_refusal{errc::bad_batch_size,
                         by_global ? global_at : micro_at,
                         (by_global ? "global_batch_size is " + to_json(*global_at) + ": " : std::string{}) +
                             "micro_batch_size * num_micro_batch comes to " +
                             (size ? python_text(to_value(*size)) : to_json(b.micro_batch_size)) +
                             ", a positive integer is needed",
                         {"ValueError", "torch",
                          "batch_size should be a positive integer value, but got batch_size=" +
                              python_text(size ? to_value(*size) : b.micro_batch_size)}};
  if (!micro->positive())
    out.warn(errc::trap, micro_at.where(), at_train,
             "two negative sizes multiply to a positive one and pass upstream's check");
  return std::nullopt;
}

}  // namespace detail

inline front_end_batch decide_front_end_batch(node const& root, mesh_sizes const& mesh, findings& out) {
  auto const micro_at = root["micro_batch_size"], global_at = root["global_batch_size"];
  front_end_batch b{micro_at.present() ? *micro_at : value{1}, global_at.present() ? *global_at : value{nullptr}, 1};
  std::vector<detail::batch_refusal> refusals;
  auto const dp = python_number_of(mesh.dp_size);
  if (dp) {
    refusals = detail::complete_front_end_batch(b, *dp, mesh.dp_size, micro_at, global_at);
    auto const at_micro = [&](auto const& r) { return r.at.pointer() == micro_at.pointer(); };
    auto const& strategy = *root["batching_strategy"];  // the dynamic ones load samples one by one
    bool const one_by_one = strategy.is_text("dynamic_batching") || strategy.is_text("dynamic_padding_free");
    if (refusals.empty() && !one_by_one) {
      if (auto refusal = detail::check_loader_batch(b, micro_at, global_at, out))
        refusals.push_back(std::move(*refusal));
    } else if (!one_by_one && std::none_of(refusals.begin(), refusals.end(), at_micro)) {
      if (auto refusal = detail::check_micro_batch(b.micro_batch_size, micro_at))
        refusals.push_back(std::move(*refusal));
    }
    if (!mesh.failed)
      for (auto& r : refusals) out.error(r.code, r.at.where(), at_train, std::move(r.detail), r.upstream);
  }
  bool const refused = !dp || !refusals.empty();
  out.decide("micro_batch_size", python_text(b.micro_batch_size), llamafactory_said(micro_at, "micro_batch_size"),
             llamafactory_rule("micro_batch_size"), micro_at.where());
  bool const global_open = refused && b.global_batch_size.is(value_kind::null);
  out.decide("global_batch_size", global_open ? "refused" : python_text(b.global_batch_size),
             global_at->is(value_kind::null) || !global_at.present()
                 ? "dp_size * micro_batch_size"
                 : llamafactory_said(global_at, "global_batch_size"),
             llamafactory_rule("global_batch_size"), global_at.where());
  out.decide("num_micro_batch", refused ? "refused" : python_text(b.num_micro_batch),
             refused ? "the batch is refused" : "global_batch_size // dp_size // micro_batch_size",
             llamafactory_rule("num_micro_batch"), global_at.where());
  return b;
}

}  // namespace v0
}  // namespace flatshard
