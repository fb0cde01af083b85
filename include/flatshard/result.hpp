// SPDX-License-Identifier: Apache-2.0
/// result<T>: what the readers of text and files return, a value or every problem of the input.
#pragma once

#include <flatshard/problem.hpp>

#include <boost/assert/source_location.hpp>
#include <boost/system/result.hpp>

namespace flatshard {
inline namespace v0 {

/// A value, or the problems of the input. Use `has_value`, `bool`, `*`, `->`, `value`, `error` and nothing else, so
/// that the alias can become `std::expected`. `value()` throws `bad_input` with every problem.
template <class T>
using result = boost::system::result<T, config_error>;

/// Found by Boost.System when `value()` is called on a failed result.
[[noreturn]] inline void throw_exception_from_error(config_error const& e, boost::source_location const&) {
  throw_bad_input(e);
}

}  // namespace v0
}  // namespace flatshard
