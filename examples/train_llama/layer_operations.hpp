// SPDX-License-Identifier: Apache-2.0
/// The arithmetic of a decoder layer beside its matrix products. `A` is the compute type, float or bf16. Every result
/// of an operation is rounded to it; sums are made in fp32.
#pragma once

#include "model_shape.hpp"

#include <flatshard/dtype.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <vector>

namespace llama {

using flatshard::narrow;
using flatshard::widen;

/// e^x, within two units in the last place; between the smallest normal number and 2^127; NaN of NaN. Branch-free, so
/// that loops over it are vectorised. Source: Cody-Waite reduction and the polynomial of the Cephes library's expf.
[[nodiscard]] inline float exponential(float x) {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = std::min(std::max(x, -87.0f), 88.0f);
  float const shifted = x * std::numbers::log2e_v<float> + shift;
  float const n = shifted - shift;
  float const r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // n as an integer is in the lowest bits, without a conversion, which NaN has none of.
  return y * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(shift) + 127)
                                  << 23);
}
/// The sum of f(0) ... f(n-1) in fp32, as sixteen interleaved partial sums: a fixed order that can be vectorised.
template <class F>
[[nodiscard]] float sum_of(std::size_t n, F&& f) {
  std::array<float, 16> part{};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (std::size_t j = 0; j < 16; ++j) part[j] += f(i + j);
  for (std::size_t j = 0; i + j < n; ++j) part[j] += f(i + j);
  for (std::size_t width = 8; width > 0; width /= 2)
    for (std::size_t j = 0; j < width; ++j) part[j] += part[j + width];
  return part[0];
}

/// y = w * (x / sqrt(mean(x^2) + epsilon)) on every row; the quotient is rounded before the product.
/// Shapes: x, y [rows, n], w [n], inverse [rows] (1 / sqrt(...), kept for the backward pass).
template <class A>
void norm_forward(A* y, float* inverse, A const* x, A const* w, std::size_t rows, std::size_t n, float epsilon) {
  for (std::size_t r = 0; r < rows; ++r, x += n, y += n) {
    auto const squares = sum_of(n, [x](std::size_t i) { return widen(x[i]) * widen(x[i]); });
    auto const scale = inverse[r] = 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon);
    for (std::size_t i = 0; i < n; ++i) y[i] = narrow<A>(widen(w[i]) * widen(narrow<A>(widen(x[i]) * scale)));
  }
}
/// dx from dy, and dw += the weight's gradient. dx may be dy.
template <class A>
void norm_backward(A* dx, float* dw, A const* dy, A const* x, A const* w, float const* inverse, std::size_t rows,
                   std::size_t n) {
  for (std::size_t r = 0; r < rows; ++r, x += n, dy += n, dx += n) {
    auto const scale = inverse[r];
    for (std::size_t i = 0; i < n; ++i) dw[i] += widen(dy[i]) * widen(narrow<A>(widen(x[i]) * scale));
    auto const inner = [=](std::size_t i) { return widen(narrow<A>(widen(dy[i]) * widen(w[i]))); };
    auto const mean =
        sum_of(n, [=](std::size_t i) { return inner(i) * (widen(x[i]) * scale); }) / static_cast<float>(n);
    for (std::size_t i = 0; i < n; ++i) dx[i] = narrow<A>(scale * (inner(i) - widen(x[i]) * scale * mean));
  }
}

/// y = a + b, rounded.
template <class A>
void add(A* y, A const* a, A const* b, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = narrow<A>(widen(a[i]) + widen(b[i]));
}
/// db += the sum over the rows of dy.
template <class A>
void bias_backward(float* db, A const* dy, std::size_t rows, std::size_t n) {
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < n; ++i) db[i] += widen(dy[r * n + i]);
}

[[nodiscard]] inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }
/// y = silu(gate) * up; both results are rounded.
template <class A>
void gated_forward(A* y, A const* gate, A const* up, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    auto const g = widen(gate[i]);
    y[i] = narrow<A>(widen(narrow<A>(g * logistic(g))) * widen(up[i]));
  }
}
/// dy becomes the gradient of gate, dup that of up.
template <class A>
void gated_backward(A* dy, A* dup, A const* gate, A const* up, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    auto const g = widen(gate[i]), s = logistic(g), d = widen(dy[i]);
    dup[i] = narrow<A>(d * widen(narrow<A>(g * s)));
    dy[i] = narrow<A>(widen(narrow<A>(d * widen(up[i]))) * (s * (1.0f + g * (1.0f - s))));
  }
}

/// Rotary embedding tables: cos and sin of position * frequency, computed in fp32 and rounded to the compute type.
template <class A>
struct rotary {
  std::size_t half{};
  std::vector<A> cosine, sine;  // [positions, half]

  rotary(model_shape const& m, std::size_t positions)
      : half{m.head_dim / 2}, cosine(positions * half), sine(positions * half) {
    for (std::size_t j = 0; j < half; ++j) {
      auto const f = frequency(m, j);
      for (std::size_t t = 0; t < positions; ++t) {
        auto const angle = static_cast<float>(t) * f;
        cosine[t * half + j] = narrow<A>(std::cos(angle));
        sine[t * half + j] = narrow<A>(std::sin(angle));
      }
    }
  }
  [[nodiscard]] static float frequency(model_shape const& m, std::size_t j) {
    auto const f = 1.0 / std::pow(m.rope_theta, 2.0 * static_cast<double>(j) / static_cast<double>(m.head_dim));
    if (!m.rope_scaled) return static_cast<float>(f);
    auto const turns = m.rope_original * f / (2.0 * std::numbers::pi);
    if (turns > m.rope_high) return static_cast<float>(f);
    if (turns < m.rope_low) return static_cast<float>(f / m.rope_factor);
    auto const s = (turns - m.rope_low) / (m.rope_high - m.rope_low);
    return static_cast<float>((1.0 - s) * f / m.rope_factor + s * f);
  }
  /// Turns every head of x [rows, heads * 2 half] in place, back if `inverse`. Both products and their sum are rounded.
  void turn(A* x, std::size_t rows, std::size_t heads, bool inverse) const {
    for (std::size_t t = 0; t < rows; ++t) {
      auto const *const c = cosine.data() + t * half, *const s = sine.data() + t * half;
      for (std::size_t h = 0; h < heads; ++h, x += 2 * half)
        for (std::size_t j = 0; j < half; ++j) {
          auto const product = [](A a, float b) { return widen(narrow<A>(widen(a) * b)); };
          auto const first = x[j], second = x[j + half];
          auto const sn = inverse ? -widen(s[j]) : widen(s[j]);
          x[j] = narrow<A>(product(first, widen(c[j])) - product(second, sn));
          x[j + half] = narrow<A>(product(second, widen(c[j])) + product(first, sn));
        }
    }
  }
};

}  // namespace llama
