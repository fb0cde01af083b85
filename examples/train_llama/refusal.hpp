// SPDX-License-Identifier: Apache-2.0
/// One problem of an input that ends the program.
#pragma once

#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <string>
#include <utility>

namespace trainer {

/// Throws `bad_input` with one problem at a place of a file.
[[noreturn]] inline void refuse(flatshard::errc code, flatshard::place where, std::string text) {
  flatshard::problem p;
  p.code = code;
  p.where = std::move(where);
  p.detail = std::move(text);
  flatshard::throw_bad_input(flatshard::config_error{std::move(p)});
}
/// The same about a file as a whole.
[[noreturn]] inline void refuse(flatshard::errc code, std::string const& file, std::string text) {
  refuse(code, flatshard::place{file, {}, 0, 0}, std::move(text));
}

}  // namespace trainer
