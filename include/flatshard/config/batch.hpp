// SPDX-License-Identifier: Apache-2.0
/// The batch triangle of DeepSpeed: train batch = micro batch * accumulation steps * world, in Python's arithmetic.
#pragma once

#include <flatshard/config/findings.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The three batch keys and the data-parallel world size; null or absent = not given. Numbers stay what they are
/// upstream: a float stays a float, a bool counts as 0 or 1.
struct batch_sizes {
  value train, micro, steps, world;
  friend bool operator==(batch_sizes const&, batch_sizes const&) = default;
};

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
/// the file has it; 1 if the communicator is down or the division fails.
[[nodiscard]] inline value batch_world(std::optional<std::size_t> communicator, value const& sequence_parallel_size);

// ---- definitions

/// A Python number: int or float.
struct python_number {
  bool floating{};
  std::int64_t whole{};
  double real{};
  [[nodiscard]] double as_real() const { return floating ? real : static_cast<double>(whole); }
  [[nodiscard]] bool positive() const { return floating ? real > 0 : whole > 0; }
  [[nodiscard]] bool zero() const { return floating ? real == 0 : whole == 0; }
};
/// The number that a value is in arithmetic: int, float or bool; of a larger int its double.
[[nodiscard]] inline std::optional<python_number> python_number_of(value const& v) {
  if (v.is(value_kind::boolean)) return python_number{false, v.is_true(), 0};
  if (auto const i = v.integer()) return python_number{false, *i, 0};
  if (auto const x = v.number()) return python_number{true, 0, *x};
  return std::nullopt;
}
[[nodiscard]] inline value to_value(python_number n) { return n.floating ? value{n.real} : value{n.whole}; }
[[nodiscard]] inline python_number multiply(python_number a, python_number b) {
  std::int64_t product = 0;
  if (!a.floating && !b.floating && !__builtin_mul_overflow(a.whole, b.whole, &product)) return {false, product, 0};
  return {true, 0, a.as_real() * b.as_real()};
}
/// Python's `//`; the divisor is not zero.
[[nodiscard]] inline python_number floor_divide(python_number a, python_number b) {
  if (!a.floating && !b.floating) {
    if (b.whole == -1) return multiply(a, b);
    auto const quotient = a.whole / b.whole;
    return {false, quotient - (a.whole % b.whole != 0 && (a.whole < 0) != (b.whole < 0)), 0};
  }
  auto const x = a.as_real(), y = b.as_real();
  auto remainder = std::fmod(x, y);
  auto quotient = (x - remainder) / y;
  if (remainder != 0 && (y < 0) != (remainder < 0)) quotient -= 1;
  auto whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return {true, 0, quotient == 0 ? std::copysign(0.0, x / y) : whole};
}
[[nodiscard]] inline bool same_number(python_number a, python_number b) {
  return !a.floating && !b.floating ? a.whole == b.whole : a.as_real() == b.as_real();
}

inline value batch_world(std::optional<std::size_t> communicator, value const& sequence_parallel_size) {
  if (!communicator) return 1;
  if (!sequence_parallel_size.present()) return static_cast<std::int64_t>(*communicator);
  auto const parts = python_number_of(sequence_parallel_size);
  if (!parts || parts->zero()) return 1;  // upstream catches its own exception and goes on with 1
  return static_cast<double>(*communicator) / parts->as_real();
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
  auto const no_number = [&](value const& v, std::string_view operation) {
    return fail(errc::wrong_type, "TypeError",
                "'" + std::string{operation} + "' is not supported for '" + std::string{python_name(v.kind())} + "'");
  };
  struct quotient {
    std::optional<value> of;
    bool zero = false;
  };
  auto const divide = [](value const& a, value const& b) -> quotient {
    auto const x = python_number_of(a), y = python_number_of(b);
    if (!x || !y) return {};
    if (y->zero()) return {{}, true};
    return {to_value(floor_divide(*x, *y))};
  };
  // tb // a // b; the first operand that is no number is the fault
  auto const divided_twice = [&](value const& a, value const& b, value& into) {
    auto const once = divide(train, a);
    auto const twice = once.of ? divide(*once.of, b) : quotient{};
    if (once.zero || twice.zero) {
      out.fault = batch_fault{errc::division_by_zero, "ZeroDivisionError", "integer division or modulo by zero"};
    } else if (!twice.of) {
      auto const& culprit = !python_number_of(train) ? train : !python_number_of(a) ? a : b;
      static_cast<void>(no_number(culprit, "//"));
    } else {
      into = *twice.of;
    }
    return !out.fault;
  };
  auto const multiplied = [&](value const& a, value const& b, value& into) {
    auto const x = python_number_of(a), y = python_number_of(b), z = python_number_of(world);
    if (!x || !y || !z) {
      static_cast<void>(no_number(!x ? a : b, ">"));  // a repeated text or list fails in the comparison
    } else {
      into = to_value(multiply(multiply(*x, *y), *z));
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
    if (!divided_twice(world, steps, micro)) return out;
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
    if (!n) return no_number(c.size, ">");
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

}  // namespace v0
}  // namespace flatshard
