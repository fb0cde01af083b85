// SPDX-License-Identifier: Apache-2.0
/// Element types in one table, the storage types bf16 and f16, and the project's one rounding rule.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// An element type of a tensor. `none` says that there is no such buffer.
/// Source of the set: safetensors@24b0b285:safetensors/src/tensor.rs:811-892.
enum class dtype : std::uint8_t {
  none,
  f32,
  bf16,
  f16,
  f64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4,
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  c64
};

/// What the library knows of one element type.
struct dtype_row {
  dtype type;
  std::size_t bits;             ///< width of one element; some are 4 or 6 bits wide
  std::string_view name;        ///< ours, in configurations and messages
  std::string_view file_name;   ///< in a safetensors header
  std::string_view torch_name;  ///< as PyTorch prints it; empty where it has no such type
};

/// One row per enumerator, in enumerator order.
inline constexpr std::array<dtype_row, 23> dtype_table{{
    {dtype::none, 0, "none", "", ""},
    {dtype::f32, 32, "fp32", "F32", "torch.float32"},
    {dtype::bf16, 16, "bf16", "BF16", "torch.bfloat16"},
    {dtype::f16, 16, "fp16", "F16", "torch.float16"},
    {dtype::f64, 64, "fp64", "F64", "torch.float64"},
    {dtype::f8_e4m3, 8, "fp8_e4m3", "F8_E4M3", "torch.float8_e4m3fn"},
    {dtype::f8_e5m2, 8, "fp8_e5m2", "F8_E5M2", "torch.float8_e5m2"},
    {dtype::f8_e8m0, 8, "fp8_e8m0", "F8_E8M0", "torch.float8_e8m0fnu"},
    {dtype::f8_e4m3fnuz, 8, "fp8_e4m3fnuz", "F8_E4M3FNUZ", "torch.float8_e4m3fnuz"},
    {dtype::f8_e5m2fnuz, 8, "fp8_e5m2fnuz", "F8_E5M2FNUZ", "torch.float8_e5m2fnuz"},
    {dtype::f6_e2m3, 6, "fp6_e2m3", "F6_E2M3", ""},
    {dtype::f6_e3m2, 6, "fp6_e3m2", "F6_E3M2", ""},
    {dtype::f4, 4, "fp4", "F4", ""},
    {dtype::boolean, 8, "bool", "BOOL", "torch.bool"},
    {dtype::u8, 8, "uint8", "U8", "torch.uint8"},
    {dtype::i8, 8, "int8", "I8", "torch.int8"},
    {dtype::u16, 16, "uint16", "U16", "torch.uint16"},
    {dtype::i16, 16, "int16", "I16", "torch.int16"},
    {dtype::u32, 32, "uint32", "U32", "torch.uint32"},
    {dtype::i32, 32, "int32", "I32", "torch.int32"},
    {dtype::u64, 64, "uint64", "U64", "torch.uint64"},
    {dtype::i64, 64, "int64", "I64", "torch.int64"},
    {dtype::c64, 64, "complex64", "C64", "torch.complex64"},
}};

static_assert(
    [] {
      for (std::size_t i = 0; i < dtype_table.size(); ++i)
        if (dtype_table[i].type != static_cast<dtype>(i)) return false;
      return true;
    }(),
    "the table stands in enumerator order");

/// The row of one element type. Complexity: O(1), constexpr.
[[nodiscard]] constexpr dtype_row const& row(dtype t) { return dtype_table[static_cast<std::size_t>(t)]; }
/// Width of one element. Units: bits.
[[nodiscard]] constexpr std::size_t bits(dtype t) { return row(t).bits; }
/// Our name: `fp32`, `bf16`, ...
[[nodiscard]] constexpr std::string_view name(dtype t) { return row(t).name; }
/// PyTorch's name: `torch.float32`, `torch.bfloat16`, ...
[[nodiscard]] constexpr std::string_view torch_name(dtype t) { return row(t).torch_name; }

/// The type that a safetensors header calls `file_name` (case-sensitive); `none` if there is no such type.
[[nodiscard]] constexpr dtype dtype_of_file_name(std::string_view file_name) {
  if (file_name.empty()) return dtype::none;
  for (auto const& r : dtype_table)
    if (r.file_name == file_name) return r.type;
  return dtype::none;
}

/// Storage of a bfloat16: bits only, no arithmetic. Sums are made in fp32.
struct bf16 {
  std::uint16_t bits{};
  friend constexpr bool operator==(bf16, bf16) = default;  ///< compares bits, so NaN equals itself and -0 is not 0
};
/// Storage of an IEEE binary16: bits only, no arithmetic.
struct f16 {
  std::uint16_t bits{};
  friend constexpr bool operator==(f16, f16) = default;
};

/// The dtype of a C++ element type.
template <class T>
inline constexpr dtype dtype_of = dtype::none;
template <>
inline constexpr dtype dtype_of<float> = dtype::f32;
template <>
inline constexpr dtype dtype_of<double> = dtype::f64;
template <>
inline constexpr dtype dtype_of<bf16> = dtype::bf16;
template <>
inline constexpr dtype dtype_of<f16> = dtype::f16;

/// The floating element types that the library casts between: float, bf16, f16.
template <class T>
concept CastElement = std::same_as<T, float> || std::same_as<T, bf16> || std::same_as<T, f16>;

/// fp32 from bf16: exact, NaN payloads and signs kept.
[[nodiscard]] constexpr float widen(bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

/// fp32 from fp16: exact, subnormals normalised, any NaN becomes 0x7FFFFFFF.
[[nodiscard]] constexpr float widen(f16 x) {
  std::uint32_t const sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  std::uint32_t const exponent = (x.bits >> 10) & 0x1Fu;
  std::uint32_t fraction = x.bits & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(fraction ? 0x7FFFFFFFu : sign | 0x7F800000u);
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  if (fraction == 0) return std::bit_cast<float>(sign);
  auto const shift = static_cast<std::uint32_t>(std::countl_zero(fraction)) - 21;  // bring the leading one to bit 10
  fraction = (fraction << shift) & 0x3FFu;
  return std::bit_cast<float>(sign | ((113 - shift) << 23) | (fraction << 13));
}
/// fp32 from fp32: the same bits.
[[nodiscard]] constexpr float widen(float x) { return x; }

/// The nearest `To` to `x`, ties to even; every NaN becomes 0x7FFF; subnormals are kept; overflow gives infinity.
/// One rule for every backend of the library; its bits agree with CUDA 13's `__float2bfloat16_rn` and `__float2half_rn`
/// on all 2^32 inputs. Complexity: O(1), constexpr.
template <CastElement To>
[[nodiscard]] constexpr To narrow(float x) {
  if constexpr (std::same_as<To, float>) {
    return x;
  } else {
    auto const b = std::bit_cast<std::uint32_t>(x);
    auto const a = b & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return {0x7FFF};
    if constexpr (std::same_as<To, bf16>) {
      return {static_cast<std::uint16_t>((b + 0x7FFFu + ((b >> 16) & 1u)) >> 16)};
    } else {
      auto const sign = static_cast<std::uint16_t>((b >> 16) & 0x8000u);
      auto const with_sign = [sign](std::uint32_t magnitude) {
        return f16{static_cast<std::uint16_t>(sign | magnitude)};
      };
      if (a >= 0x477FF000u) return with_sign(0x7C00u);  // 65520 and above
      if (a >= 0x38800000u) return with_sign((a - 0x38000000u + 0xFFFu + ((a >> 13) & 1u)) >> 13);
      if (a <= 0x33000000u) return with_sign(0);  // 2^-25 and below
      auto const k = 126u - (a >> 23);            // subnormal: the significand divided by 2^k, nearest even
      auto const m = (a & 0x7FFFFFu) | 0x800000u;
      auto const half = std::uint32_t{1} << (k - 1);
      return with_sign((m + half - 1u + ((m >> k) & 1u)) >> k);
    }
  }
}

}  // namespace v0
}  // namespace flatshard
