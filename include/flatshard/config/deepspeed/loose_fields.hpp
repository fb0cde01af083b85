// SPDX-License-Identifier: Apache-2.0
/// Field types of DeepSpeed's sections whose content upstream hardly looks at: any value, any list, one of some words.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Any value at all.
struct any_value {
  value content{nullptr};
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, any_value& to) {
  to.content = v;
  return std::nullopt;
}
[[nodiscard]] inline value to_value(any_value const& a) { return a.content; }

/// A list of anything.
struct any_list {
  value content = value::array();
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, any_list& to) {
  if (!v.is(value_kind::array)) return misfit{errc::list_type, "a list"};
  to.content = v;
  return std::nullopt;
}
[[nodiscard]] inline value to_value(any_list const& l) { return l.content; }

/// The same where upstream wants a tuple, which a list becomes.
struct any_tuple {
  value content = value::array();
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, any_tuple& to) {
  if (!v.is(value_kind::array)) return misfit{errc::tuple_type, "a list"};
  to.content = v;
  return std::nullopt;
}
[[nodiscard]] inline value to_value(any_tuple const& t) { return t.content; }

/// A dtype of torch, which no configuration text can hold: only its absence fits.
struct torch_object {
  std::string text{};
};
[[nodiscard]] inline std::optional<misfit> coerce(value const&, torch_object const&) {
  return misfit{errc::instance_of, "nothing: only a program can pass a torch.dtype",
                "Input should be an instance of dtype"};
}
[[nodiscard]] inline value to_value(torch_object const& o) { return o.text; }

/// Words of a list for a message: `"a", "b" or "c"`.
template <std::size_t N>
[[nodiscard]] std::string one_of(std::array<std::string_view, N> const& words, std::string_view quote) {
  std::string text;
  for (std::size_t i = 0; i < N; ++i)
    text.append(i == 0 ? "" : i + 1 == N ? " or " : ", ").append(quote).append(words[i]).append(quote);
  return text;
}

/// How the weights of `weight_quantization` are quantised.
struct quantization_type {
  static constexpr std::array<std::string_view, 2> words{"asymmetric", "symmetric"};
  std::string word = "symmetric";
};
/// What computes the cross entropy under tensor parallelism.
struct cross_entropy_backend {
  static constexpr std::array<std::string_view, 2> words{"torch", "liger"};
  std::string word = "torch";
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, quantization_type& to) {
  auto const& words = quantization_type::words;
  if (!v.is(value_kind::string) || std::find(words.begin(), words.end(), v.text()) == words.end())
    return misfit{errc::enum_value, one_of(words, "\""), "Input should be " + one_of(words, "'")};
  to.word = v.text();
  return std::nullopt;
}
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, cross_entropy_backend& to) {
  auto const& words = cross_entropy_backend::words;
  if (!v.is(value_kind::string) || std::find(words.begin(), words.end(), v.text()) == words.end())
    return misfit{errc::literal_error, one_of(words, "\""), "Input should be " + one_of(words, "'")};
  to.word = v.text();
  return std::nullopt;
}
[[nodiscard]] inline value to_value(quantization_type const& t) { return t.word; }
[[nodiscard]] inline value to_value(cross_entropy_backend const& b) { return b.word; }

/// Optimisations that DeepCompile composes.
struct compile_passes {
  static constexpr std::array<std::string_view, 4> words{"z1", "z3", "autosp", "autotp"};
  std::vector<std::string> names{};
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, compile_passes& to) {
  if (!v.is(value_kind::array)) return misfit{errc::list_type, "a list of " + one_of(compile_passes::words, "\"")};
  for (auto const& e : v.elements()) to.names.emplace_back(e.text());
  return std::nullopt;
}
[[nodiscard]] inline std::optional<misfit> misfit_of_element(value const& e, compile_passes const&) {
  auto const& words = compile_passes::words;
  if (e.is(value_kind::string) && std::find(words.begin(), words.end(), e.text()) != words.end()) return std::nullopt;
  return misfit{errc::literal_error, one_of(words, "\""), "Input should be " + one_of(words, "'")};
}
[[nodiscard]] inline value to_value(compile_passes const& p) {
  auto list = value::array();
  for (auto const& n : p.names) list.push_back(n);
  return list;
}

}  // namespace v0
}  // namespace flatshard
