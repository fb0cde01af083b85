// SPDX-License-Identifier: Apache-2.0
/// Problems of an input: one that ends the program, and warnings.
#pragma once

#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <string>
#include <utility>
#include <vector>

namespace trainer {

/// What is wrong or passed over at a place of a file.
[[nodiscard]] inline flatshard::problem problem_at(flatshard::errc code, flatshard::place where, std::string text,
                                                   flatshard::severity level) {
  flatshard::problem p;
  p.code = code;
  p.where = std::move(where);
  p.detail = std::move(text);
  p.level = level;
  return p;
}
/// Throws `bad_input` with one problem at a place of a file.
[[noreturn]] inline void refuse(flatshard::errc code, flatshard::place where, std::string text) {
  flatshard::throw_bad_input(
      flatshard::config_error{problem_at(code, std::move(where), std::move(text), flatshard::severity::error)});
}
/// The same about a file as a whole.
[[noreturn]] inline void refuse(flatshard::errc code, std::string const& file, std::string text) {
  refuse(code, flatshard::place{file, {}, 0, 0}, std::move(text));
}

/// Errors of one input, which are told together.
class refusals {
 public:
  void add(flatshard::errc code, flatshard::place where, std::string text) {
    all_.push_back(problem_at(code, std::move(where), std::move(text), flatshard::severity::error));
  }
  /// Throws `bad_input` with all of them, if there are any.
  void check() {
    if (!all_.empty()) flatshard::throw_bad_input(flatshard::config_error{std::move(all_)});
  }

 private:
  std::vector<flatshard::problem> all_;
};

}  // namespace trainer
