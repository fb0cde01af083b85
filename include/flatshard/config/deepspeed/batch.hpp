// SPDX-License-Identifier: Apache-2.0
/// The batch triangle of DeepSpeed: train batch = micro batch * accumulation steps * world, in Python's arithmetic.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_number.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The three batch keys and the data-parallel world size; null or absent = not given. Numbers stay what they are
/// upstream: a float stays a float, a bool counts as 0 or 1.
struct batch_sizes {
  value train, micro, steps, world;
  friend bool operator==(batch_sizes const&, batch_sizes const&) = default;
};

/// The keys of the three sizes, and the size under the i-th of them.
inline constexpr std::array<std::string_view, 3> batch_keys{"train_batch_size", "train_micro_batch_size_per_gpu",
                                                            "gradient_accumulation_steps"};
[[nodiscard]] inline value const& part_of(batch_sizes const& s, std::size_t i) {
  return i == 0 ? s.train : i == 1 ? s.micro : s.steps;
}

/// What is wrong with three batch sizes.
struct batch_fault {
  errc code{};
  std::string_view kind;  ///< upstream's exception
  std::string message;    ///< upstream's words
};

/// The completed triangle, how it was inferred, and the first fault, if any.
struct batch_result {
  batch_sizes sizes;
  std::string trace;  ///< formula with numbers, `32 = 4 * 2 * 4`
  std::optional<batch_fault> fault;
};

/// Infers what is missing and checks the product. Source:
/// DeepSpeed@edaa7221:deepspeed/runtime/config.py:709-727,925-990. Products beyond 64 bits are compared as doubles.
[[nodiscard]] inline batch_result complete_batch(batch_sizes given);

/// The world size that DeepSpeed counts with: the communicator's, divided (as a float) by `sequence_parallel_size` if
/// the file has it and `divides_ranks`; 1 if the communicator is down.
[[nodiscard]] inline value batch_world(std::optional<std::size_t> communicator, value const& sequence_parallel_size);
/// False, with an error, where the ranks of a communicator cannot be divided by `size`, the file's
/// sequence_parallel_size. Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:725, which catches neither
/// ZeroDivisionError nor TypeError.
inline bool divides_ranks(std::optional<std::size_t> communicator, node const& size, std::string_view when,
                          findings& out);

/// Whether deepspeed.initialize makes a mesh of the file's data_parallel_size and sequence_parallel_size, whose first
/// dimension is then the world of the batch. Source: DeepSpeed@edaa7221:deepspeed/__init__.py:203-206.
[[nodiscard]] inline bool makes_mesh(node const& root, std::string_view when) {
  return when != at_load && root["data_parallel_size"].present() && root["sequence_parallel_size"].present();
}
/// The ranks of that mesh's first dimension; none, with an error, where the mesh does not fit `ranks`.
inline std::optional<std::int64_t> ranks_of_mesh(node const& root, std::size_t ranks, std::string_view when,
                                                 findings& out);

/// The ranks that DeepSpeed counts while the model is built: none under LLaMA-Factory, whose communicator is down then.
[[nodiscard]] inline std::optional<std::size_t> ranks_at_load(profile p, facts const& f) {
  return f.world_at_load || is_llamafactory(p) ? f.world_at_load : f.world;
}

/// The product that accelerate writes into the file before DeepSpeed sees it; none if a factor is no number.
[[nodiscard]] inline std::optional<value> batch_product(value const& micro, value const& steps, std::size_t world);

/// Reports the fault of a triangle, if it has one, at the key that a reader should change.
inline void report_batch_fault(batch_result const& result, node const& root, facts const& f, std::string_view when,
                               findings& out);
/// Warns where the file accumulates over other steps than the front end.
inline void check_accumulation(value const& in_file, value const& front_end, place const& where, findings& out);

/// Decides the three batch keys. `batch` at train time, none if it was refused; `loaded` while the
/// model is built, with partitioned loading.
inline void decide_batch(node const& root, std::optional<batch_result> const& batch,
                         std::optional<batch_sizes> const& loaded, profile p, findings& out);
/// Decides the world size of the batch; with partitioned loading also the one while the model is built.
inline void decide_batch_world(node const& root, std::optional<batch_result> const& batch, bool partitioned,
                               facts const& f, profile p, findings& out);

// ---- definitions

namespace detail {
// Python's words for operands that do not go together.
inline std::string unsupported_operands(std::string_view operation, value_kind a, value_kind b) {
  return "unsupported operand type(s) for " + std::string{operation} + ": '" + std::string{python_name(a)} + "' and '" +
         std::string{python_name(b)} + "'";
}
inline std::string not_above_zero(value_kind v) {
  return "'>' not supported between instances of '" + std::string{python_name(v)} + "' and 'int'";
}
constexpr bool is_sequence(value_kind v) { return v == value_kind::string || v == value_kind::array; }
/// Empty for two numbers, and for a text or list times an int or bool, which Python repeats.
inline std::string refused_product(std::string_view operation, value_kind a, value_kind b) {
  auto const is_count = [](value_kind v) { return v == value_kind::integer || v == value_kind::boolean; };
  auto const is_number = [&](value_kind v) { return is_count(v) || v == value_kind::floating; };
  if (is_number(a) && is_number(b)) return {};
  if (!is_sequence(a) && !is_sequence(b)) return unsupported_operands(operation, a, b);
  auto const times = is_sequence(a) ? b : a;
  if (is_count(times)) return {};
  return "can't multiply sequence by non-int of type '" + std::string{python_name(times)} + "'";
}
}  // namespace detail

inline value batch_world(std::optional<std::size_t> communicator, value const& sequence_parallel_size) {
  if (!communicator) return 1;
  if (!sequence_parallel_size.present()) return static_cast<std::int64_t>(*communicator);
  auto const parts = python_number_of(sequence_parallel_size);
  if (!parts || parts->zero()) return static_cast<std::int64_t>(*communicator);  // divides_ranks refuses it
  return static_cast<double>(*communicator) / parts->as_real();
}

inline bool divides_ranks(std::optional<std::size_t> communicator, node const& size, std::string_view when,
                          findings& out) {
  if (!communicator || !size.present()) return true;
  auto const parts = python_number_of(*size);
  if (parts && !parts->zero()) return true;
  auto const said = parts ? (size->is(value_kind::floating) ? "float division by zero" : "division by zero")
                          : detail::unsupported_operands("/", value_kind::integer, size->kind());
  out.error(errc::wrong_type, size.where(), when,
            "found " + to_json(*size) + ", allowed: a number other than 0, by which the ranks are divided",
            {parts ? "ZeroDivisionError" : "TypeError", "deepspeed", said});
  return false;
}

inline std::optional<std::int64_t> ranks_of_mesh(node const& root, std::size_t ranks, std::string_view when,
                                                 findings& out) {
  auto const data = root["data_parallel_size"], sequence = root["sequence_parallel_size"];
  for (auto const& at : {data, sequence})
    if (!at->integer() || *at->integer() < 1 || *at->integer() > std::int64_t{1} << 31) {
      out.error(errc::wrong_type, at.where(), when, "found " + to_json(*at) + ", a number of ranks is needed",
                {"TypeError", "torch", ""});
      return std::nullopt;
    }
  auto const size = *data->integer() * *sequence->integer(), world = static_cast<std::int64_t>(ranks);
  auto const said = "data_parallel_size * sequence_parallel_size is " + std::to_string(size) + ", but there are " +
                    std::to_string(world) + " ranks";
  if (size > world) {
    out.error(errc::mesh_mismatch, data.where(), when, said,
              {"RuntimeError", "torch",
               "Mesh should not be bigger than default world size " + std::to_string(world) + ", but found " +
                   std::to_string(size) + " ranks!"});
    return std::nullopt;
  }
  if (size < world) out.warn(errc::mesh_mismatch, data.where(), when, said + ": some are in no mesh");
  return *data->integer();
}

inline batch_result complete_batch(batch_sizes given) {
  batch_result out{std::move(given), {}, std::nullopt};
  auto &train = out.sizes.train, &micro = out.sizes.micro, &steps = out.sizes.steps;
  auto const& world = out.sizes.world;
  auto const fail = [&](errc code, std::string_view kind, std::string message) {
    out.fault = batch_fault{code, kind, std::move(message)};
    return out;
  };
  auto const is_given = [](value const& v) { return v.present() && !v.is(value_kind::null); };
  auto const no_number = [&](std::string words) { return fail(errc::wrong_type, "TypeError", std::move(words)); };
  auto const divide = [&](value const& a, value const& b, std::string_view operation) -> std::optional<value> {
    auto const x = python_number_of(a), y = python_number_of(b);
    if (!x || !y)
      static_cast<void>(no_number(detail::unsupported_operands(operation, a.kind(), b.kind())));
    else if (y->zero())
      static_cast<void>(fail(errc::division_by_zero, "ZeroDivisionError", "integer division or modulo by zero"));
    else
      return to_value(floor_divide(*x, *y));
    return std::nullopt;
  };
  // tb // a, then //= b
  auto const divided_twice = [&](value const& a, value const& b, value& into) {
    auto const once = divide(train, a, "//");
    auto const twice = once ? divide(*once, b, "//=") : std::nullopt;
    if (twice) into = *twice;
    return twice.has_value();
  };
  // a * b, then *= world; a text or list that is repeated fails when it is compared
  auto const multiplied = [&](value const& a, value const& b, value& into) {
    auto const x = python_number_of(a), y = python_number_of(b), z = python_number_of(world);
    if (x && y && z) {
      into = to_value(multiply(multiply(*x, *y), *z));
    } else {
      auto words = detail::refused_product("*", a.kind(), b.kind());
      if (words.empty())
        words = detail::refused_product("*=", detail::is_sequence(a.kind()) ? a.kind() : b.kind(), world.kind());
      if (words.empty()) words = detail::not_above_zero(detail::is_sequence(a.kind()) ? a.kind() : b.kind());
      static_cast<void>(no_number(std::move(words)));
    }
    return !out.fault;
  };
  auto const t = is_given(train), m = is_given(micro), s = is_given(steps);
  auto const text = [](value const& v) { return python_text(v); };
  if (t && m && s) {
  } else if (t && m) {
    if (!divided_twice(micro, world, steps)) return out;
    out.trace = "gradient_accumulation_steps = " + text(train) + " // " + text(micro) + " // " + text(world) + " = " +
                text(steps) + "; ";
  } else if (t && s) {
    if (!divided_twice(world, steps, micro)) return out;
    out.trace = "train_micro_batch_size_per_gpu = " + text(train) + " // " + text(world) + " // " + text(steps) +
                " = " + text(micro) + "; ";
  } else if (m && s) {
    if (!multiplied(micro, steps, train)) return out;
    out.trace =
        "train_batch_size = " + text(micro) + " * " + text(steps) + " * " + text(world) + " = " + text(train) + "; ";
  } else if (t) {
    steps = 1;
    auto const of_rank = divide(train, world, "//");
    if (!of_rank) return out;
    micro = *of_rank;
    out.trace = "gradient_accumulation_steps = 1, train_micro_batch_size_per_gpu = " + text(train) + " // " +
                text(world) + " = " + text(micro) + "; ";
  } else if (m) {
    steps = 1;
    if (!multiplied(micro, steps, train)) return out;
    out.trace = "gradient_accumulation_steps = 1, train_batch_size = " + text(micro) + " * " + text(world) + " = " +
                text(train) + "; ";
  } else {
    return fail(errc::batch_missing, "AssertionError",
                "Either train_batch_size or train_micro_batch_size_per_gpu needs to be provided");
  }
  struct check {
    value const& size;
    errc code;
    std::string_view words;
  };
  for (auto const& c : {check{train, errc::train_batch_not_positive, "Train batch size: "},
                        check{micro, errc::micro_batch_not_positive, "Micro batch size per gpu: "},
                        check{steps, errc::accumulation_not_positive, "Gradient accumulation steps: "}}) {
    auto const n = python_number_of(c.size);
    if (!n) return no_number(detail::not_above_zero(c.size.kind()));
    if (!n->positive())
      return fail(c.code, "AssertionError", std::string{c.words} + text(c.size) + " has to be greater than 0");
  }
  auto const product = multiply(multiply(*python_number_of(micro), *python_number_of(steps)), *python_number_of(world));
  auto const sum = text(micro) + " * " + text(steps) + " * " + text(world);
  bool const holds = same_number(*python_number_of(train), product);
  out.trace += text(train) + (holds ? " = " : " != ") + sum;
  if (!holds)
    return fail(errc::batch_product_mismatch, "AssertionError",
                "Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * "
                "gradient_acc_step * world_size " +
                    text(train) + " != " + sum);
  return out;
}

inline std::optional<value> batch_product(value const& micro, value const& steps, std::size_t world) {
  auto const m = python_number_of(micro), s = python_number_of(steps);
  if (!m || !s) return std::nullopt;
  return to_value(multiply(multiply(*m, *s), {false, static_cast<std::int64_t>(world), 0}));
}

inline void report_batch_fault(batch_result const& result, node const& root, facts const& f, std::string_view when,
                               findings& out) {
  if (!result.fault) return;
  auto text = result.fault->message;
  std::string_view trace = result.trace;
  if (trace.ends_with("; ")) trace.remove_suffix(2);  // the sum was not reached
  if (!trace.empty()) text += " (" + std::string{trace} + ")";
  std::string_view key = root["train_batch_size"].present() ? "train_batch_size" : "train_micro_batch_size_per_gpu";
  std::string no_numbers;
  for (std::size_t i = 0; i < batch_keys.size(); ++i) {
    auto const& given = part_of(result.sizes, i);
    if (!given.present() || given.is(value_kind::null) || python_number_of(given)) continue;
    if (no_numbers.empty()) key = batch_keys[i];
    no_numbers += (no_numbers.empty() ? "" : ", ") + std::string{batch_keys[i]} + " " + to_json(given);
  }
  bool const of_product = result.fault->code == errc::batch_product_mismatch;
  if (of_product && when == at_load && f.world.value_or(1) > 1 && equals(result.sizes.world, 1))
    text +=
        "; while the model is built DeepSpeed counts 1 rank, because its communicator is not up: give only "
        "train_micro_batch_size_per_gpu and gradient_accumulation_steps, or \"auto\", and no train_batch_size";
  else if (!no_numbers.empty())
    text += "; found " + no_numbers + ", allowed: numbers, as nothing replaces the text here";
  else if (result.fault->code == errc::batch_missing)
    text += "; write train_batch_size or train_micro_batch_size_per_gpu as a number";
  else
    text += "; the product must hold: write matching numbers, or \"auto\" where a front end fills it";
  out.error(result.fault->code, root[key].where(), when, std::move(text),
            {result.fault->kind, "deepspeed", result.fault->message});
}

inline void check_accumulation(value const& in_file, value const& front_end, place const& where, findings& out) {
  auto const a = python_number_of(in_file), b = python_number_of(front_end);
  if (a && b ? same_number(*a, *b) : in_file == front_end) return;
  out.warn(errc::accumulation_mismatch, where, at_train,
           "the file accumulates over " + python_text(in_file) + " steps, the front end over " +
               python_text(front_end) + "; the file wins; write \"auto\"",
           "a warning (accelerate): Gradient accumulation steps mismatch");
}

inline void decide_batch(node const& root, std::optional<batch_result> const& batch,
                         std::optional<batch_sizes> const& loaded, profile p, findings& out) {
  auto const part = [](batch_sizes const& s, std::size_t i) { return python_text(part_of(s, i)); };
  for (std::size_t i = 0; i < batch_keys.size(); ++i) {
    auto const at = root[batch_keys[i]];
    auto reason = !at.present()         ? std::string{"absent"}
                  : at->is_text("auto") ? std::string{"\"auto\""}
                                        : std::string{batch_keys[i]} + " is " + to_json(*at);
    if (p == profile::deepspeed)
      reason += !at.present() || at->is(value_kind::null) ? ", inferred from the others" : "";
    else if (!at.present() && i == 2)
      reason += ", accelerate's default 1";
    else if (at->is_text("auto") || (i == 1 && is_llamafactory(p) && (!at.present() || at->is(value_kind::null))))
      reason += ", filled by the front end";
    if (batch) reason += "; " + batch->trace;
    auto& d = out.decide(std::string{batch_keys[i]}, batch ? part(batch->sizes, i) : "refused", std::move(reason),
                         rule_of(p, batch_keys[i]), at.where());
    if (!loaded) continue;
    auto load_value = part(*loaded, i);
    if (load_value != d.value) d.load_value = std::move(load_value);
  }
}

inline void decide_batch_world(node const& root, std::optional<batch_result> const& batch, bool partitioned,
                               facts const& f, profile p, findings& out) {
  auto const at = root["sequence_parallel_size"];
  auto& d =
      out.decide("batch.world_size", batch ? python_text(batch->sizes.world) : std::to_string(f.world.value_or(1)),
                 makes_mesh(root, at_train) ? "data_parallel_size, the first dimension of DeepSpeed's mesh"
                 : at.present()             ? "the ranks of the launcher divided by sequence_parallel_size"
                 : f.world                  ? "the ranks of the launcher"
                                            : "no launcher: one process",
                 rule_of(p, "batch.world_size"), at.where());
  if (!partitioned) return;
  auto load_world = python_text(batch_world(ranks_at_load(p, f), *at));
  if (load_world == d.value) return;
  d.load_value = std::move(load_world);
  d.reason += "; while the model is built DeepSpeed's communicator is down and it counts 1";
}

}  // namespace v0
}  // namespace flatshard
