// SPDX-License-Identifier: Apache-2.0
/// Decoder-only models of the Llama family (Llama, Qwen2, Qwen3): the sizes that config.json gives, tensors, matrix
/// products, forward and backward of one sequence. Nothing here knows of ranks or shards.
#pragma once

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/require.hpp>
#include <flatshard/result.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numbers>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(FLATSHARD_ONEDNN)
#include <array>
#include <map>
#include <unordered_map>

#include <dnnl.hpp>
#include <omp.h>
#endif

namespace llama {

// ---- memory of one rank ---------------------------------------------------------------------------------------------
// It counts itself: how many bytes live now, and the most that ever lived at once.

/// Bytes that live now and at the peak. One thread uses a ledger; it outlives its buffers.
class ledger {
 public:
  void grow(std::size_t bytes) { peak_ = std::max(peak_, now_ += bytes); }
  void shrink(std::size_t bytes) { now_ -= bytes; }
  [[nodiscard]] std::size_t now() const { return now_; }
  [[nodiscard]] std::size_t peak() const { return peak_; }

 private:
  std::size_t now_ = 0, peak_ = 0;
};

/// `size` elements, zero at first, counted in a ledger. Movable, not copyable.
template <class T>
class buffer {
 public:
  buffer() = default;
  buffer(ledger& l, std::size_t size) : ledger_{&l}, data_{std::make_unique<T[]>(size)}, size_{size} {
    ledger_->grow(size_ * sizeof(T));
  }
  buffer(buffer&& other) noexcept { swap(other); }
  buffer& operator=(buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~buffer() {
    if (ledger_ != nullptr) ledger_->shrink(size_ * sizeof(T));
  }
  [[nodiscard]] T* data() { return data_.get(); }
  [[nodiscard]] T const* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  void swap(buffer& other) noexcept {
    std::swap(ledger_, other.ledger_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  ledger* ledger_ = nullptr;
  std::unique_ptr<T[]> data_;
  std::size_t size_ = 0;
};

// ---- matrix products ------------------------------------------------------------------------------------------------
// fp32 or bf16 inputs with fp32 sums: oneDNN where the build has it, else blocked loops of our own.

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

/// Which code computes products. Each gives the same bits every time; the two differ in the last ones.
enum class matmul_backend { loops, onednn };
[[nodiscard]] constexpr std::string_view name(matmul_backend b) {
  return b == matmul_backend::onednn ? "oneDNN" : "loops";
}
#if defined(FLATSHARD_ONEDNN)
inline constexpr bool has_onednn = true;
#else
inline constexpr bool has_onednn = false;
#endif
/// What FLATSHARD_MATMUL asks for, `loops` or `onednn`; unset or empty: oneDNN if it was built in. Throws `bad_input`
/// if it asks for anything else, or for what this build lacks. Reads the environment: call it once, at start.
[[nodiscard]] inline matmul_backend chosen_backend() {
  auto const* const set = std::getenv("FLATSHARD_MATMUL");
  std::string_view const asked = set != nullptr ? set : "";
  if (asked == "loops") return matmul_backend::loops;
  if (asked.empty()) return has_onednn ? matmul_backend::onednn : matmul_backend::loops;
  if (asked == "onednn" && has_onednn) return matmul_backend::onednn;
  flatshard::problem p;
  p.code = flatshard::errc::other;
  p.where.file = "FLATSHARD_MATMUL";
  p.detail = asked == "onednn" ? "onednn is asked for, but this build has no oneDNN; use loops, or unset the variable"
                               : "it must be loops or onednn, found " + std::string{asked};
  flatshard::throw_bad_input(flatshard::config_error{std::move(p)});
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

/// The products of one rank: one thread, and memory and compiled kernels kept from call to call.
class matrix_products {
 public:
  explicit matrix_products(matmul_backend backend) : backend_{backend} {
#if defined(FLATSHARD_ONEDNN)
    if (backend_ == matmul_backend::onednn) omp_set_num_threads(1);  // of the calling thread: one thread a rank
#else
    flatshard::require(backend == matmul_backend::loops, "this build has no oneDNN");
#endif
  }

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
#endif
  matmul_backend backend_;
  detail::tile_kernel tile_ = detail::best_tile();
  std::vector<float> left_, right_;  // packed strips of the loops
};

using flatshard::narrow;
using flatshard::widen;

/// The sizes and switches of one model; `read_model` takes them from config.json.
struct model_shape {
  std::string type;  ///< llama, qwen2, qwen3
  std::size_t hidden{}, intermediate{}, layers{}, heads{}, kv_heads{}, head_dim{}, vocabulary{};
  float epsilon = 1e-6f;
  bool tied = false;      ///< the head is the embedding table
  bool qkv_bias = false;  ///< q, k, v have a bias
  bool o_bias = false, mlp_bias = false;
  bool qk_norm = false;  ///< a norm on every head of q and k
  double rope_theta = 1e4;
  bool rope_scaled = false;  ///< llama3 scaling with the four numbers below
  double rope_factor = 1, rope_low = 1, rope_high = 4, rope_original = 8192;
};

// ---- tensors -------------------------------------------------------------------------------------------------------

/// The tensors of a decoder layer, in the order of the checkpoints' modules.
// clang-format off
enum layer_tensor : std::size_t {
  q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, o_weight, o_bias, q_norm, k_norm,
  gate_weight, gate_bias, up_weight, up_bias, down_weight, down_bias, input_norm, post_norm,
  layer_tensor_count
};
// clang-format on
/// The tensors of the root unit; a tied model has no `head_weight` of its own.
enum root_tensor : std::size_t { embed_weight, final_norm, head_weight, root_tensor_count };

/// One tensor of a unit: its name in a checkpoint, its shape, its slot in the enumerations above.
struct tensor {
  std::string name;
  flatshard::shape dims;
  std::size_t slot{};
};

/// What layer `i` of the model holds; absent biases and norms are not listed.
[[nodiscard]] inline std::vector<tensor> layer_tensors(model_shape const& m, std::size_t i) {
  std::vector<tensor> list;
  auto const add = [&](bool present, std::size_t slot, std::string_view name, flatshard::shape dims) {
    if (present) list.push_back({"model.layers." + std::to_string(i) + '.' + std::string{name}, dims, slot});
  };
  auto const q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  add(true, q_weight, "self_attn.q_proj.weight", {q, m.hidden});
  add(m.qkv_bias, q_bias, "self_attn.q_proj.bias", {q});
  add(true, k_weight, "self_attn.k_proj.weight", {kv, m.hidden});
  add(m.qkv_bias, k_bias, "self_attn.k_proj.bias", {kv});
  add(true, v_weight, "self_attn.v_proj.weight", {kv, m.hidden});
  add(m.qkv_bias, v_bias, "self_attn.v_proj.bias", {kv});
  add(true, o_weight, "self_attn.o_proj.weight", {m.hidden, q});
  add(m.o_bias, o_bias, "self_attn.o_proj.bias", {m.hidden});
  add(m.qk_norm, q_norm, "self_attn.q_norm.weight", {m.head_dim});
  add(m.qk_norm, k_norm, "self_attn.k_norm.weight", {m.head_dim});
  add(true, gate_weight, "mlp.gate_proj.weight", {m.intermediate, m.hidden});
  add(m.mlp_bias, gate_bias, "mlp.gate_proj.bias", {m.intermediate});
  add(true, up_weight, "mlp.up_proj.weight", {m.intermediate, m.hidden});
  add(m.mlp_bias, up_bias, "mlp.up_proj.bias", {m.intermediate});
  add(true, down_weight, "mlp.down_proj.weight", {m.hidden, m.intermediate});
  add(m.mlp_bias, down_bias, "mlp.down_proj.bias", {m.hidden});
  add(true, input_norm, "input_layernorm.weight", {m.hidden});
  add(true, post_norm, "post_attention_layernorm.weight", {m.hidden});
  return list;
}
/// What stands outside the layers.
[[nodiscard]] inline std::vector<tensor> root_tensors(model_shape const& m) {
  std::vector<tensor> list{{"model.embed_tokens.weight", {m.vocabulary, m.hidden}, embed_weight},
                           {"model.norm.weight", {m.hidden}, final_norm}};
  if (!m.tied) list.push_back({"lm_head.weight", {m.vocabulary, m.hidden}, head_weight});
  return list;
}

/// Pointers to the tensors of one unit by slot; null = the model has no such tensor.
template <class T>
using tensor_pointers = std::array<T*, layer_tensor_count>;

// ---- arithmetic ----------------------------------------------------------------------------------------------------
// `A` is the compute type, float or bf16. Every result of an operation is rounded to it; sums are made in fp32.

/// e^x, within two units in the last place; between the smallest normal number and 2^127. Branch-free, so that loops
/// over it are vectorised. Source: Cody-Waite reduction and the polynomial of the Cephes library's expf.
[[nodiscard]] inline float exponential(float x) {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = std::min(std::max(x, -87.0f), 88.0f);
  float const n = (x * std::numbers::log2e_v<float> + shift) - shift;
  float const r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  return y * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
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

// ---- the model -----------------------------------------------------------------------------------------------------

/// What the backward pass of one layer needs of its forward pass, for one sequence. The scores are not kept: the
/// backward pass computes them again from q and k, which gives the same bits.
template <class A>
struct layer_memory {
  buffer<A> h1, q, k, v, q_raw, k_raw, mixed, x2, h2, gate, up;
  buffer<float> inverse1, inverse2, inverse_q, inverse_k;

  layer_memory(model_shape const& m, std::size_t tokens, ledger& l)
      : h1{l, tokens * m.hidden},
        q{l, tokens * m.heads * m.head_dim},
        k{l, tokens * m.kv_heads * m.head_dim},
        v{l, k.size()},
        q_raw{l, m.qk_norm ? q.size() : 0},
        k_raw{l, m.qk_norm ? k.size() : 0},
        mixed{l, q.size()},
        x2{l, h1.size()},
        h2{l, h1.size()},
        gate{l, tokens * m.intermediate},
        up{l, gate.size()},
        inverse1{l, tokens},
        inverse2{l, tokens},
        inverse_q{l, m.qk_norm ? tokens * m.heads : 0},
        inverse_k{l, m.qk_norm ? tokens * m.kv_heads : 0} {}
};

/// What the root's gradient needs, kept from the head to the end of the backward pass, for one sequence.
template <class A>
struct head_memory {
  buffer<A> h, logits;  ///< [tokens, hidden], [tokens, vocabulary]; logits become their gradient
  buffer<float> norm_gradient;
  head_memory(model_shape const& m, std::size_t tokens, ledger& l)
      : h{l, tokens * m.hidden}, logits{l, tokens * m.vocabulary}, norm_gradient{l, m.hidden} {}
};

/// Forward and backward of single sequences of `tokens` tokens, with the scratch memory of one rank. Gradients are fp32
/// and written, not added: those of one sequence. The loss is the sum over the positions.
template <class A>
class sequence_model {
 public:
  sequence_model(model_shape const& m, std::size_t tokens, matrix_products& products, ledger& l)
      : m_{m},
        t_{tokens},
        multiply_{products},
        rotary_{m, tokens},
        wide1_{l, tokens * m.intermediate},
        wide2_{l, tokens * m.intermediate},
        row1_{l, tokens * std::max(m.hidden, m.heads * m.head_dim)},
        row2_{l, row1_.size()},
        dq_{l, tokens * m.heads * m.head_dim},
        dk_{l, tokens * m.kv_heads * m.head_dim},
        dv_{l, dk_.size()},
        scores_{l, tokens * tokens},
        rounded_{l, tokens * tokens},
        head_part_{l, tokens * m.head_dim},
        probabilities_{l, tokens * tokens},
        dk_sum_{l, tokens * m.head_dim},
        dv_sum_{l, tokens * m.head_dim},
        inverse_{l, tokens} {}

  /// x = the rows of the table that the tokens name.
  void embed(A* x, A const* table, std::span<std::int64_t const> ids) const {
    for (std::size_t t = 0; t < t_; ++t) std::copy_n(table + row_of(ids[t]) * m_.hidden, m_.hidden, x + t * m_.hidden);
  }

  /// y = one decoder layer of x, or, without y, only what the backward pass needs. Shapes: [tokens, hidden].
  void layer_forward(A* y, A const* x, tensor_pointers<A const> const& w, layer_memory<A>& kept) {
    auto const q = m_.heads * m_.head_dim, kv = m_.kv_heads * m_.head_dim, h = m_.hidden, wide = m_.intermediate;
    norm_forward(kept.h1.data(), kept.inverse1.data(), x, w[input_norm], t_, h, m_.epsilon);
    auto* const q_out = m_.qk_norm ? kept.q_raw.data() : kept.q.data();
    auto* const k_out = m_.qk_norm ? kept.k_raw.data() : kept.k.data();
    linear(q_out, q, kept.h1.data(), h, w[q_weight], w[q_bias]);
    linear(k_out, kv, kept.h1.data(), h, w[k_weight], w[k_bias]);
    linear(kept.v.data(), kv, kept.h1.data(), h, w[v_weight], w[v_bias]);
    if (m_.qk_norm) {
      norm_forward(kept.q.data(), kept.inverse_q.data(), q_out, w[q_norm], t_ * m_.heads, m_.head_dim, m_.epsilon);
      norm_forward(kept.k.data(), kept.inverse_k.data(), k_out, w[k_norm], t_ * m_.kv_heads, m_.head_dim, m_.epsilon);
    }
    rotary_.turn(kept.q.data(), t_, m_.heads, false);
    rotary_.turn(kept.k.data(), t_, m_.kv_heads, false);
    for (std::size_t i = 0; i < m_.heads; ++i) {
      softmax_of_scores(kept, i);
      multiply_(head(kept.mixed, m_.heads, i), read(rounded_, t_, t_), head_const(kept.v, m_.kv_heads, i / group()));
    }
    linear(row1_.data(), h, kept.mixed.data(), q, w[o_weight], w[o_bias]);
    add(kept.x2.data(), x, row1_.data(), t_ * h);
    norm_forward(kept.h2.data(), kept.inverse2.data(), kept.x2.data(), w[post_norm], t_, h, m_.epsilon);
    linear(kept.gate.data(), wide, kept.h2.data(), h, w[gate_weight], w[gate_bias]);
    linear(kept.up.data(), wide, kept.h2.data(), h, w[up_weight], w[up_bias]);
    if (y == nullptr) return;
    gated_forward(wide1_.data(), kept.gate.data(), kept.up.data(), t_ * wide);
    linear(row1_.data(), h, wide1_.data(), wide, w[down_weight], w[down_bias]);
    add(y, kept.x2.data(), row1_.data(), t_ * h);
  }

  /// dx, the gradient of the layer's output, becomes that of its input x; g gets the gradients of the weights.
  void layer_backward(A* dx, A const* x, tensor_pointers<A const> const& w, layer_memory<A> const& kept,
                      tensor_pointers<float> const& g) {
    auto const q = m_.heads * m_.head_dim, kv = m_.kv_heads * m_.head_dim, h = m_.hidden, wide = m_.intermediate;
    gated_forward(wide2_.data(), kept.gate.data(), kept.up.data(), t_ * wide);
    linear_backward(wide1_.data(), g[down_weight], g[down_bias], dx, h, wide2_.data(), wide, w[down_weight]);
    gated_backward(wide1_.data(), wide2_.data(), kept.gate.data(), kept.up.data(), t_ * wide);
    linear_backward(row1_.data(), g[gate_weight], g[gate_bias], wide1_.data(), wide, kept.h2.data(), h, w[gate_weight]);
    linear_backward(row2_.data(), g[up_weight], g[up_bias], wide2_.data(), wide, kept.h2.data(), h, w[up_weight]);
    add(row1_.data(), row1_.data(), row2_.data(), t_ * h);
    std::fill_n(g[post_norm], h, 0.0f);
    norm_backward(row1_.data(), g[post_norm], row1_.data(), kept.x2.data(), w[post_norm], kept.inverse2.data(), t_, h);
    add(dx, dx, row1_.data(), t_ * h);

    linear_backward(row1_.data(), g[o_weight], g[o_bias], dx, h, kept.mixed.data(), q, w[o_weight]);
    attention_backward(row1_.data(), kept);
    rotary_.turn(dq_.data(), t_, m_.heads, true);
    rotary_.turn(dk_.data(), t_, m_.kv_heads, true);
    if (m_.qk_norm) {
      std::fill_n(g[q_norm], m_.head_dim, 0.0f);
      std::fill_n(g[k_norm], m_.head_dim, 0.0f);
      norm_backward(dq_.data(), g[q_norm], dq_.data(), kept.q_raw.data(), w[q_norm], kept.inverse_q.data(),
                    t_ * m_.heads, m_.head_dim);
      norm_backward(dk_.data(), g[k_norm], dk_.data(), kept.k_raw.data(), w[k_norm], kept.inverse_k.data(),
                    t_ * m_.kv_heads, m_.head_dim);
    }
    linear_backward(row1_.data(), g[q_weight], g[q_bias], dq_.data(), q, kept.h1.data(), h, w[q_weight]);
    linear_backward(row2_.data(), g[k_weight], g[k_bias], dk_.data(), kv, kept.h1.data(), h, w[k_weight]);
    add(row1_.data(), row1_.data(), row2_.data(), t_ * h);
    linear_backward(row2_.data(), g[v_weight], g[v_bias], dv_.data(), kv, kept.h1.data(), h, w[v_weight]);
    add(row1_.data(), row1_.data(), row2_.data(), t_ * h);
    std::fill_n(g[input_norm], h, 0.0f);
    norm_backward(row1_.data(), g[input_norm], row1_.data(), x, w[input_norm], kept.inverse1.data(), t_, h);
    add(dx, dx, row1_.data(), t_ * h);
  }

  /// The final norm and the head: kept.logits of the last layer's output x.
  void head_forward(A const* x, tensor_pointers<A const> const& w, head_memory<A>& kept) {
    norm_forward(kept.h.data(), inverse_.data(), x, w[final_norm], t_, m_.hidden, m_.epsilon);
    linear(kept.logits.data(), m_.vocabulary, kept.h.data(), m_.hidden, head_of(w), nullptr);
  }
  /// The summed cross-entropy of kept.logits, which become their gradient; x becomes the gradient of x.
  /// Call it after `head_forward` of the same sequence.
  [[nodiscard]] double head_backward(A* x, tensor_pointers<A const> const& w, head_memory<A>& kept,
                                     std::span<std::int64_t const> labels) {
    double loss = 0;
    auto const v = m_.vocabulary;
    for (std::size_t t = 0; t < t_; ++t) {
      auto* const z = kept.logits.data() + t * v;
      auto const label = row_of(labels[t]);
      float largest = widen(z[0]);
      for (std::size_t i = 1; i < v; ++i) largest = std::max(largest, widen(z[i]));
      auto const total = sum_of(v, [=](std::size_t i) { return exponential(widen(z[i]) - largest); });
      loss += static_cast<double>(std::log(total) + (largest - widen(z[label])));
      auto const of_label = exponential(widen(z[label]) - largest) / total - 1.0f;
      for (std::size_t i = 0; i < v; ++i) z[i] = narrow<A>(exponential(widen(z[i]) - largest) / total);
      z[label] = narrow<A>(of_label);
    }
    multiply_(matrix<A>{row1_.data(), t_, m_.hidden}, read(kept.logits, t_, v),
              matrix<A const>{head_of(w), v, m_.hidden});
    std::fill_n(kept.norm_gradient.data(), m_.hidden, 0.0f);
    norm_backward(row2_.data(), kept.norm_gradient.data(), row1_.data(), x, w[final_norm], inverse_.data(), t_,
                  m_.hidden);
    std::copy_n(row2_.data(), t_ * m_.hidden, x);
    return loss;
  }
  /// The root's gradients of one sequence: head, final norm, and the rows of the embedding in token order from dx, the
  /// gradient of the embedded tokens. A tied table gets the head's part first.
  void root_backward(A const* dx, std::span<std::int64_t const> ids, head_memory<A> const& kept,
                     tensor_pointers<float> const& g) {
    if (!m_.tied) std::fill_n(g[embed_weight], m_.vocabulary * m_.hidden, 0.0f);
    auto* const of_head = m_.tied ? g[embed_weight] : g[head_weight];
    multiply_(matrix<float>{of_head, m_.vocabulary, m_.hidden}, transposed(read(kept.logits, t_, m_.vocabulary)),
              read(kept.h, t_, m_.hidden));
    std::copy_n(kept.norm_gradient.data(), m_.hidden, g[final_norm]);
    for (std::size_t t = 0; t < t_; ++t) {
      auto* const row = g[embed_weight] + row_of(ids[t]) * m_.hidden;
      for (std::size_t i = 0; i < m_.hidden; ++i) row[i] += widen(dx[t * m_.hidden + i]);
    }
  }

 private:
  [[nodiscard]] std::size_t row_of(std::int64_t id) const {
    flatshard::require(id >= 0 && static_cast<std::size_t>(id) < m_.vocabulary, "a token must be in the vocabulary");
    return static_cast<std::size_t>(id);
  }
  [[nodiscard]] std::size_t group() const { return m_.heads / m_.kv_heads; }
  [[nodiscard]] A const* head_of(tensor_pointers<A const> const& w) const {
    return m_.tied ? w[embed_weight] : w[head_weight];
  }
  template <class T>
  [[nodiscard]] static matrix<T const> read(buffer<T> const& b, std::size_t rows, std::size_t columns) {
    return {b.data(), rows, columns};
  }
  /// Head i of a [tokens, heads * head_dim] matrix: [tokens, head_dim].
  [[nodiscard]] matrix<A> head(buffer<A>& b, std::size_t heads, std::size_t i) const {
    return {b.data() + i * m_.head_dim, t_, m_.head_dim, heads * m_.head_dim};
  }
  [[nodiscard]] matrix<A const> head_const(buffer<A> const& b, std::size_t heads, std::size_t i) const {
    return {b.data() + i * m_.head_dim, t_, m_.head_dim, heads * m_.head_dim};
  }

  /// y [tokens, out] = x [tokens, in] weight^T + bias.
  void linear(A* y, std::size_t out, A const* x, std::size_t in, A const* weight, A const* bias) {
    multiply_(matrix<A>{y, t_, out}, matrix<A const>{x, t_, in}, transposed(matrix<A const>{weight, out, in}), bias);
  }
  /// dx = dy weight, dw = dy^T x, db = the sum of dy's rows.
  void linear_backward(A* dx, float* dw, float* db, A const* dy, std::size_t out, A const* x, std::size_t in,
                       A const* weight) {
    matrix<A const> const upper{dy, t_, out};
    multiply_(matrix<float>{dw, out, in}, transposed(upper), matrix<A const>{x, t_, in});
    multiply_(matrix<A>{dx, t_, in}, upper, matrix<A const>{weight, out, in});
    if (db == nullptr) return;
    std::fill_n(db, out, 0.0f);
    bias_backward(db, dy, t_, out);
  }

  /// probabilities_ [tokens, tokens] = the causal softmax of head i in fp32, rounded_ = the same in the compute type.
  void softmax_of_scores(layer_memory<A> const& kept, std::size_t i) {
    auto const scale = scale_of_scores();
    multiply_(matrix<A>{scores_.data(), t_, t_}, head_const(kept.q, m_.heads, i),
              transposed(head_const(kept.k, m_.kv_heads, i / group())));
    for (std::size_t t = 0; t < t_; ++t) {
      auto const* const s = scores_.data() + t * t_;
      auto* const p = probabilities_.data() + t * t_;
      auto* const r = rounded_.data() + t * t_;
      auto const seen = t + 1;  // a query sees itself and what stands before it
      for (std::size_t j = 0; j < seen; ++j) p[j] = widen(narrow<A>(widen(s[j]) * scale));
      auto const largest = *std::max_element(p, p + seen);
      for (std::size_t j = 0; j < seen; ++j) p[j] = exponential(p[j] - largest);
      auto const total = sum_of(seen, [p](std::size_t j) { return p[j]; });
      for (std::size_t j = 0; j < seen; ++j) r[j] = narrow<A>(p[j] = p[j] / total);
      std::fill(p + seen, p + t_, 0.0f);
      std::fill(r + seen, r + t_, A{});
    }
  }
  [[nodiscard]] float scale_of_scores() const {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(m_.head_dim)));
  }

  /// dq_, dk_, dv_ from the gradient of the mixed heads; a key and value head sums over its query heads.
  void attention_backward(A const* d_mixed, layer_memory<A> const& kept) {
    auto const scale = scale_of_scores();
    auto const d = m_.head_dim;
    for (std::size_t pair = 0; pair < m_.kv_heads; ++pair) {
      std::fill_n(dk_sum_.data(), t_ * d, 0.0f);
      std::fill_n(dv_sum_.data(), t_ * d, 0.0f);
      for (std::size_t i = pair * group(); i < (pair + 1) * group(); ++i) {
        softmax_of_scores(kept, i);
        matrix<A const> const upper{d_mixed + i * d, t_, d, m_.heads * d};
        multiply_(matrix<A>{head_part_.data(), t_, d}, transposed(read(rounded_, t_, t_)), upper);
        for (std::size_t j = 0; j < t_ * d; ++j) dv_sum_.data()[j] += widen(head_part_.data()[j]);
        multiply_(matrix<A>{scores_.data(), t_, t_}, upper, transposed(head_const(kept.v, m_.kv_heads, pair)));
        for (std::size_t t = 0; t < t_; ++t) {
          auto* const s = scores_.data() + t * t_;
          auto const* const p = probabilities_.data() + t * t_;
          auto const seen = t + 1;
          auto const inner = sum_of(seen, [=](std::size_t j) { return widen(s[j]) * p[j]; });
          for (std::size_t j = 0; j < seen; ++j)
            s[j] = narrow<A>(widen(narrow<A>(p[j] * (widen(s[j]) - inner))) * scale);
          std::fill(s + seen, s + t_, A{});
        }
        multiply_(head(dq_, m_.heads, i), read(scores_, t_, t_), head_const(kept.k, m_.kv_heads, pair));
        multiply_(matrix<A>{head_part_.data(), t_, d}, transposed(read(scores_, t_, t_)),
                  head_const(kept.q, m_.heads, i));
        for (std::size_t j = 0; j < t_ * d; ++j) dk_sum_.data()[j] += widen(head_part_.data()[j]);
      }
      auto const dk = head(dk_, m_.kv_heads, pair), dv = head(dv_, m_.kv_heads, pair);
      for (std::size_t t = 0; t < t_; ++t)
        for (std::size_t j = 0; j < d; ++j) {
          dk.data[t * dk.row_step + j] = narrow<A>(dk_sum_.data()[t * d + j]);
          dv.data[t * dv.row_step + j] = narrow<A>(dv_sum_.data()[t * d + j]);
        }
    }
  }

  model_shape const& m_;
  std::size_t t_;
  matrix_products& multiply_;
  rotary<A> rotary_;
  buffer<A> wide1_, wide2_, row1_, row2_, dq_, dk_, dv_, scores_, rounded_, head_part_;
  buffer<float> probabilities_, dk_sum_, dv_sum_, inverse_;
};

// ---- the model of a config.json -------------------------------------------------------------------------------------
// As transformers 4 or 5 writes it.

namespace detail {

/// Reads single keys and keeps what is wrong with them.
class config_reader {
 public:
  explicit config_reader(flatshard::document const& d) : root_{d.root()} {}

  void refuse(flatshard::node const& n, std::string text) {
    flatshard::problem p;
    p.code = flatshard::errc::model_config;
    p.where = n.where();
    p.detail = std::move(text);
    problems_.push_back(std::move(p));
  }
  /// An integer of at least 1; `otherwise` where the key is absent or null, if there is such a default.
  std::size_t size(std::string_view key, std::optional<std::size_t> otherwise = {}) {
    auto const n = root_[key];
    if (missing(n) && otherwise) return *otherwise;
    auto const i = n->integer();
    if (i && *i >= 1 && *i <= std::numeric_limits<std::int32_t>::max()) return static_cast<std::size_t>(*i);
    refuse(n, std::string{key} + " must be an integer from 1 to 2147483647, found " + found(n));
    return 1;
  }
  double number(flatshard::node const& n, std::string_view key, double low) {
    auto const x = n->is_number() ? n->number() : std::nullopt;
    if (x && *x > low && std::isfinite(*x)) return *x;
    refuse(n, std::string{key} + " must be a number above " + std::to_string(low) + ", found " + found(n));
    return 1.0;
  }
  bool flag(std::string_view key, bool otherwise) {
    auto const n = root_[key];
    if (missing(n)) return otherwise;
    if (!n->is_true() && !n->is_false()) refuse(n, std::string{key} + " must be true or false, found " + found(n));
    return n->is_true();
  }
  [[nodiscard]] static bool missing(flatshard::node const& n) {
    return !n.present() || n->is(flatshard::value_kind::null);
  }
  [[nodiscard]] static std::string found(flatshard::node const& n) {
    return n.present() ? flatshard::to_json(*n) : "no such key";
  }
  [[nodiscard]] flatshard::node operator[](std::string_view key) const { return root_[key]; }
  std::vector<flatshard::problem>& problems() { return problems_; }

 private:
  flatshard::node root_;
  std::vector<flatshard::problem> problems_;
};

inline void read_rope(config_reader& read, model_shape& m) {
  auto const current = read["rope_parameters"];                             // transformers 5: everything in one object
  auto const scaling = current.present() ? current : read["rope_scaling"];  // transformers 4: scaling alone, or null
  auto const theta = current.present() ? current["rope_theta"] : read["rope_theta"];
  if (!config_reader::missing(theta)) m.rope_theta = read.number(theta, "rope_theta", 0);
  if (config_reader::missing(scaling)) return;
  if (!scaling->is(flatshard::value_kind::object))
    return read.refuse(scaling, "the rope settings must be an object, found " + config_reader::found(scaling));
  auto const type = scaling["rope_type"].present() ? scaling["rope_type"] : scaling["type"];
  if (type->is_text("default") || config_reader::missing(type)) return;
  if (!type->is_text("llama3"))
    return read.refuse(type, "rope_type must be default or llama3, found " + config_reader::found(type));
  m.rope_scaled = true;
  m.rope_factor = read.number(scaling["factor"], "factor", 0);
  m.rope_low = read.number(scaling["low_freq_factor"], "low_freq_factor", 0);
  m.rope_high = read.number(scaling["high_freq_factor"], "high_freq_factor", 0);
  m.rope_original = read.number(scaling["original_max_position_embeddings"], "original_max_position_embeddings", 0);
  if (m.rope_high <= m.rope_low) read.refuse(scaling, "high_freq_factor must be larger than low_freq_factor");
}

}  // namespace detail

/// The model that a config.json describes, or everything in it that this trainer cannot use.
[[nodiscard]] inline flatshard::result<model_shape> read_model(flatshard::document const& d) {
  detail::config_reader read{d};
  if (!d.root()->is(flatshard::value_kind::object)) {
    read.refuse(d.root(), "a model's config.json must be an object");
    return flatshard::config_error{std::move(read.problems())};
  }
  model_shape m;
  auto const type = read["model_type"];
  m.type = std::string{type->text()};
  if (!type->is_text("llama") && !type->is_text("qwen2") && !type->is_text("qwen3"))
    read.refuse(type, "model_type must be llama, qwen2 or qwen3, found " + detail::config_reader::found(type));
  m.hidden = read.size("hidden_size");
  m.intermediate = read.size("intermediate_size");
  m.layers = read.size("num_hidden_layers");
  m.vocabulary = read.size("vocab_size");
  m.heads = read.size("num_attention_heads");
  m.kv_heads = read.size("num_key_value_heads", m.heads);
  auto const given_head = !detail::config_reader::missing(read["head_dim"]);
  m.head_dim = read.size("head_dim", m.type == "qwen3" ? 128 : std::max<std::size_t>(m.hidden / m.heads, 1));
  m.epsilon = static_cast<float>(read.number(read["rms_norm_eps"], "rms_norm_eps", 0));
  m.tied = read.flag("tie_word_embeddings", false);
  auto const bias = read.flag("attention_bias", false);  // qwen2 has no such key: q, k, v always have a bias, o never
  m.qkv_bias = m.type == "qwen2" || bias;
  m.o_bias = m.type != "qwen2" && bias;
  m.mlp_bias = m.type == "llama" && read.flag("mlp_bias", false);
  m.qk_norm = m.type == "qwen3";
  detail::read_rope(read, m);
  if (m.heads % m.kv_heads != 0)
    read.refuse(read["num_key_value_heads"], "num_attention_heads must be a multiple of num_key_value_heads");
  if (!given_head && m.type != "qwen3" && m.hidden % m.heads != 0)
    read.refuse(read["num_attention_heads"], "without head_dim, hidden_size must be a multiple of num_attention_heads");
  if (m.head_dim % 2 != 0) read.refuse(read["head_dim"], "head_dim must be even: rotary embeddings turn pairs");
  auto const activation = read["hidden_act"];
  if (!detail::config_reader::missing(activation) && !activation->is_text("silu"))
    read.refuse(activation, "hidden_act must be silu, found " + detail::config_reader::found(activation));
  if (read.flag("use_sliding_window", false))
    read.refuse(read["use_sliding_window"], "sliding-window attention is not part of this trainer");
  if (!read.problems().empty()) return flatshard::config_error{std::move(read.problems())};
  return m;
}

/// Refuses sizes that the checkpoint cannot have: more layers than it has tensors, or a tensor with more elements than
/// it has bytes. So a wrong config.json cannot make a training ask for any amount of memory.
[[nodiscard]] inline flatshard::result<void> check_sizes(flatshard::document const& d, model_shape const& m,
                                                         flatshard::checkpoint_files const& from) {
  detail::config_reader read{d};
  auto const in_checkpoint = ", but the checkpoint has " + std::to_string(from.size()) + " tensors of " +
                             std::to_string(from.data_size().value) + " bytes in all";
  if (m.layers > from.size())
    read.refuse(read["num_hidden_layers"], "num_hidden_layers is " + std::to_string(m.layers) + in_checkpoint);
  for (auto const& list : {root_tensors(m), layer_tensors(m, 0)})
    for (auto const& t : list) {
      double count = 1;  // a product of hostile sizes need not fit 64 bits
      for (auto const n : t.dims.sizes()) count *= static_cast<double>(n);
      if (count <= static_cast<double>(from.data_size().value)) continue;
      std::string dims;
      for (auto const n : t.dims.sizes()) dims += (dims.empty() ? "" : ", ") + std::to_string(n);
      read.refuse(d.root(), "these sizes make " + t.name + " [" + dims + ']' + in_checkpoint);
    }
  if (!read.problems().empty()) return flatshard::config_error{std::move(read.problems())};
  return {};
}

}  // namespace llama
