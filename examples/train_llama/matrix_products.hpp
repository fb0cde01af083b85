// SPDX-License-Identifier: Apache-2.0
/// Matrix products with fp32 or bf16 inputs and fp32 sums.
#pragma once

#include "matmul_backend.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#if defined(FLATSHARD_ONEDNN)
#include <map>
#include <unordered_map>

#include <dnnl.hpp>
#include <omp.h>
#endif

namespace llama {

using flatshard::bf16;

/// A matrix in someone else's memory. Element (i, j) lies at data[i * row_step + j * column_step].
template <class T>
struct matrix {
  T* data{};
  std::size_t rows{}, columns{}, row_step{}, column_step = 1;
  matrix(T* values, std::size_t m, std::size_t n) : matrix{values, m, n, n} {}
  matrix(T* values, std::size_t m, std::size_t n, std::size_t next_row, std::size_t next_column = 1)
      : data{values}, rows{m}, columns{n}, row_step{next_row}, column_step{next_column} {}
  /// A matrix that may be written is also one that may be read.
  template <class U>
  requires std::same_as<T, U const> matrix(matrix<U> const& other)  // NOLINT: the silent direction
      : matrix{other.data, other.rows, other.columns, other.row_step, other.column_step} {}
};
template <class T>
[[nodiscard]] matrix<T> transposed(matrix<T> a) {
  return {a.data, a.columns, a.rows, a.column_step, a.row_step};
}

namespace detail {

// The loops: y is computed in tiles of `Rows` x 16 with one fp32 accumulator an element, k ascending, each product and
// each sum rounded: the order of a plain loop, so the result does not depend on the tile or the instruction set.
using lanes = float __attribute__((vector_size(64)));  // lowered to what the instruction set has

template <std::size_t Rows>
[[gnu::always_inline]] inline void tile(float* y, float const* a, float const* b, std::size_t depth) {
  lanes sum[Rows] = {};
  for (std::size_t k = 0; k < depth; ++k) {
    lanes column;
    std::memcpy(&column, b + 16 * k, sizeof column);
    for (std::size_t i = 0; i < Rows; ++i) sum[i] += a[Rows * k + i] * column;
  }
  std::memcpy(y, sum, sizeof sum);
}
using tile_function = void (*)(float*, float const*, float const*, std::size_t);
struct tile_kernel {
  tile_function run;
  std::size_t rows;
};
inline void plain_tile(float* y, float const* a, float const* b, std::size_t depth) { tile<3>(y, a, b, depth); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] inline void avx2_tile(float* y, float const* a, float const* b, std::size_t depth) {
  tile<6>(y, a, b, depth);
}
[[gnu::target("avx512f")]] inline void avx512_tile(float* y, float const* a, float const* b, std::size_t depth) {
  tile<12>(y, a, b, depth);
}
[[nodiscard]] inline tile_kernel best_tile() {
  if (__builtin_cpu_supports("avx512f")) return {avx512_tile, 12};
  if (__builtin_cpu_supports("avx2")) return {avx2_tile, 6};
  return {plain_tile, 3};
}
#else
[[nodiscard]] inline tile_kernel best_tile() { return {plain_tile, 3}; }
#endif

}  // namespace detail

/// Whether oneDNN multiplies matrices of this type on this processor: of bf16 2.6 does from AVX-512 on.
[[nodiscard]] inline bool onednn_multiplies([[maybe_unused]] flatshard::dtype t) {
#if defined(FLATSHARD_ONEDNN)
  if (t != flatshard::dtype::bf16) return true;
  try {
    dnnl::memory::desc const square{{16, 16}, dnnl::memory::data_type::bf16, {16, 1}};
    dnnl::matmul::primitive_desc const product{dnnl::matmul::desc{square, square, square},
                                               dnnl::engine{dnnl::engine::kind::cpu, 0}};
    return true;
  } catch (dnnl::error const&) {
    return false;
  }
#else
  return false;
#endif
}
/// What computes the products of a run whose compute type is `t`: what is asked for, else oneDNN where it can. Throws
/// `bad_input` if oneDNN is asked for where it cannot.
[[nodiscard]] inline matmul_backend backend_for(std::optional<matmul_backend> asked, flatshard::dtype t) {
  bool const able = onednn_multiplies(t);
  if (!asked) return able ? matmul_backend::onednn : matmul_backend::loops;
  if (*asked == matmul_backend::onednn && !able)
    refuse_backend("onednn is asked for, but it multiplies no " + std::string{flatshard::name(t)} +
                   " on this processor; use loops, or unset the variable");
  return *asked;
}

/// The products of one rank: one thread, and memory and compiled kernels kept from call to call.
class matrix_products {
 public:
#if defined(FLATSHARD_ONEDNN)
  explicit matrix_products(matmul_backend backend) : backend_{backend} {
    if (backend_ == matmul_backend::onednn) omp_set_num_threads(1);  // of the calling thread: one thread a rank
  }
#else
  explicit matrix_products(matmul_backend backend) {
    flatshard::require(backend == matmul_backend::loops, "this build has no oneDNN");
  }
#endif

  /// y = a b, plus `bias` [columns of y] on every row where it is given; sums in fp32, rounded once to the type of y.
  /// Shapes: y [m, n], a [m, k], b [k, n]; y's rows are contiguous and y overlaps nothing. m, n, k may be 0.
  template <class Out, class In>
  void operator()(matrix<Out> y, matrix<In const> a, matrix<In const> b,
                  std::type_identity_t<In> const* bias = nullptr) {
    flatshard::require(y.rows == a.rows && y.columns == b.columns && a.columns == b.rows && y.column_step == 1,
                       "the shapes of a matrix product must fit");
    if (y.rows == 0 || y.columns == 0) return;
#if defined(FLATSHARD_ONEDNN)
    if (backend_ == matmul_backend::onednn && a.columns != 0) return with_onednn(y, a, b, bias);
#endif
    with_loops(y, a, b, bias);
  }

 private:
  template <class Out, class In>
  void with_loops(matrix<Out> y, matrix<In const> a, matrix<In const> b, In const* bias) {
    auto const depth = a.columns;
    auto const [run, tile_rows] = tile_;
    auto const most = std::clamp<std::size_t>((std::size_t{1} << 17) / std::max<std::size_t>(depth, 1), 1, 512);
    auto const block = std::min((most + tile_rows - 1) / tile_rows, (y.rows + tile_rows - 1) / tile_rows) * tile_rows;
    left_.resize(block * depth);
    right_.resize(16 * depth);
    alignas(64) float out[12 * 16];
    for (std::size_t i0 = 0; i0 < y.rows; i0 += block) {
      auto const rows = std::min(block, y.rows - i0);
      for (std::size_t i = 0; i < rows; i += tile_rows)
        pack(left_.data() + i * depth, tile_rows, a.data + (i0 + i) * a.row_step, a.row_step, a.column_step,
             std::min(tile_rows, rows - i), depth);
      for (std::size_t j0 = 0; j0 < y.columns; j0 += 16) {
        auto const columns = std::min<std::size_t>(16, y.columns - j0);
        pack(right_.data(), 16, b.data + j0 * b.column_step, b.column_step, b.row_step, columns, depth);
        for (std::size_t i = 0; i < rows; i += tile_rows) {
          run(out, left_.data() + i * depth, right_.data(), depth);
          for (std::size_t p = 0; p < std::min(tile_rows, rows - i); ++p)
            for (std::size_t q = 0; q < columns; ++q)
              y.data[(i0 + i + p) * y.row_step + j0 + q] = flatshard::narrow<Out>(
                  bias != nullptr ? out[16 * p + q] + flatshard::widen(bias[j0 + q]) : out[16 * p + q]);
        }
      }
    }
  }

  /// to[k * width + i] = from[i * step + k * along], zero for i >= count: a strip of `width` rows, widened.
  template <class In>
  static void pack(float* to, std::size_t width, In const* from, std::size_t step, std::size_t along, std::size_t count,
                   std::size_t depth) {
    if (count < width) std::fill_n(to, width * depth, 0.0f);
    if (step == 1) {
      for (std::size_t k = 0; k < depth; ++k)
        for (std::size_t i = 0; i < count; ++i) to[k * width + i] = flatshard::widen(from[k * along + i]);
    } else {
      for (std::size_t i = 0; i < count; ++i)
        for (std::size_t k = 0; k < depth; ++k) to[k * width + i] = flatshard::widen(from[i * step + k * along]);
    }
  }

#if defined(FLATSHARD_ONEDNN)
  template <class Out, class In>
  void with_onednn(matrix<Out> y, matrix<In const> a, matrix<In const> b, In const* bias) {
    using shape = std::array<std::size_t, 12>;
    shape const key{y.rows,     y.columns,     a.columns,   y.row_step, a.row_step,      a.column_step,
                    b.row_step, b.column_step, sizeof(Out), sizeof(In), bias != nullptr, 0};
    auto found = compiled_.find(key);
    if (found == compiled_.end()) {
      auto const described = [](auto const& m) {
        auto const size = [](std::size_t n) { return static_cast<dnnl::memory::dim>(n); };
        using T = std::remove_const_t<std::remove_pointer_t<decltype(m.data)>>;
        return dnnl::memory::desc{
            {size(m.rows), size(m.columns)}, type_of<T>(), {size(m.row_step), size(m.column_step)}};
      };
      auto const bias_row = bias != nullptr ? described(matrix<In const>{bias, 1, y.columns}) : dnnl::memory::desc{};
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      auto const operation = bias != nullptr ? dnnl::matmul::desc{described(a), described(b), bias_row, described(y)}
                                             : dnnl::matmul::desc{described(a), described(b), described(y)};
      dnnl::matmul::primitive_desc const how{operation, attributes, engine_};
      found = compiled_.emplace(key, compiled{how, dnnl::matmul{how}}).first;
    }
    auto const& [how, product] = found->second;
    if (auto const needed = how.scratchpad_desc().get_size(); needed > scratch_.size() * sizeof(lines)) {
      scratch_.resize((needed + sizeof(lines) - 1) / sizeof(lines));
    }
    auto const bound = [&](dnnl::memory::desc const& d, void const* data) {
      return dnnl::memory{d, engine_, const_cast<void*>(data)};  // oneDNN has no memory that is only read
    };
    std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, bound(how.src_desc(), a.data)},
        {DNNL_ARG_WEIGHTS, bound(how.weights_desc(), b.data)},
        {DNNL_ARG_DST, bound(how.dst_desc(), y.data)},
        {DNNL_ARG_SCRATCHPAD, bound(how.scratchpad_desc(), scratch_.data())}};
    if (bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, bound(how.bias_desc(), bias));
    product.execute(stream_, arguments);
    stream_.wait();
  }
  template <class T>
  static constexpr dnnl::memory::data_type type_of() {
    return std::same_as<T, bf16> ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  }

  struct compiled {
    dnnl::matmul::primitive_desc how;
    dnnl::matmul product;
  };
  struct alignas(64) lines {
    std::byte bytes[64];
  };
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::map<std::array<std::size_t, 12>, compiled> compiled_;
  std::vector<lines> scratch_;
  matmul_backend backend_;
#endif
  detail::tile_kernel tile_ = detail::best_tile();
  std::vector<float> left_, right_;  // packed strips of the loops
};

}  // namespace llama
