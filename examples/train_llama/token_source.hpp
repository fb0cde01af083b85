// SPDX-License-Identifier: Apache-2.0
/// What is trained on: bytes of text files, or the rows of a safetensors file.
#pragma once

#include "refusal.hpp"
#include "stored_tensor.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/file.hpp>
#include <flatshard/problem.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace trainer {

/// Sequences of tokens by number. The same for every number of ranks.
class token_source {
 public:
  /// Bytes of the files, one after the other; sequences begin at places drawn from `seed`. Throws `bad_input`.
  [[nodiscard]] static token_source text(std::vector<std::string> const& files, std::uint64_t seed) {
    token_source source;
    source.seed_ = seed;
    for (auto const& name : files) {
      auto const opened = flatshard::input_file::open(name);
      auto const& in = opened.value();
      auto const before = source.text_.size();
      source.text_.resize(before + in.size().value);
      in.read_at(std::as_writable_bytes(std::span{source.text_}.subspan(before)), {}).value();
      source.files_ += (source.files_.empty() ? "" : ", ") + name;
    }
    return source;
  }
  /// The rows of the tensor `input_ids` (I64, [rows, tokens + 1]) of a safetensors file, again and again.
  [[nodiscard]] static token_source rows(std::string const& file) {
    token_source source;
    source.rows_ = read_tensor<std::int64_t>(file, "input_ids", flatshard::dtype::i64, 2);
    source.files_ = file;
    if (source.rows_.dims[0] == 0 || source.rows_.dims[1] < 2)
      refuse(flatshard::errc::shape_mismatch, file, "input_ids must have rows of at least two tokens");
    return source;
  }
  [[nodiscard]] bool is_text() const { return rows_.dims.empty(); }
  [[nodiscard]] std::size_t row_count() const { return is_text() ? 0 : rows_.dims[0]; }
  /// Tokens of a row that are inputs; one more follows as the last label.
  [[nodiscard]] std::size_t row_tokens() const { return is_text() ? 0 : rows_.dims[1] - 1; }

  /// Throws `bad_input` unless a model with this vocabulary can train on sequences of this length.
  void check(std::size_t vocabulary, std::size_t tokens) const {
    if (is_text()) {
      if (vocabulary < 256)
        refuse(flatshard::errc::model_config, files_,
               "text is trained on as bytes, which needs a vocabulary of at least 256; the model has " +
                   std::to_string(vocabulary));
      if (text_.size() < tokens + 1)
        refuse(flatshard::errc::out_of_range, files_,
               "the text has " + std::to_string(text_.size()) + " bytes, one sequence needs " +
                   std::to_string(tokens + 1));
      return;
    }
    if (tokens != row_tokens())
      refuse(flatshard::errc::shape_mismatch, files_,
             "the rows hold " + std::to_string(row_tokens()) + " tokens and a last label, --seq says " +
                 std::to_string(tokens));
    for (auto const id : rows_.values)
      if (id < 0 || static_cast<std::size_t>(id) >= vocabulary)
        refuse(flatshard::errc::out_of_range, files_,
               "token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocabulary));
  }
  /// Tokens of sequence number `n` of the whole training. Shape: [tokens + 1].
  void read(std::span<std::int64_t> out, std::uint64_t n) const {
    if (!is_text()) {
      auto const width = rows_.dims[1];
      std::copy_n(rows_.values.begin() + static_cast<std::ptrdiff_t>(n % rows_.dims[0] * width), out.size(),
                  out.begin());
      return;
    }
    auto const start = draw(n) % (text_.size() - out.size() + 1);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<unsigned char>(text_[start + i]);
  }

 private:
  /// Source: the mixing function of splitmix64 (Steele, Lea, Flood 2014), keyed by seed and number.
  [[nodiscard]] std::uint64_t draw(std::uint64_t n) const {
    auto x = seed_ * 0xD1342543DE82EF95u + (n + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  std::string text_, files_;
  stored_tensor<std::int64_t> rows_;
  std::uint64_t seed_ = 0;
};

}  // namespace trainer
