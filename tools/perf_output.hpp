// SPDX-License-Identifier: Apache-2.0
/// The file of measurements: found to be writable before anything is measured, whole or not there afterwards.
#pragma once

#include "report.hpp"

#include <flatshard/quantity.hpp>
#include <flatshard/replacing_file.hpp>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

namespace perf {

/// The file, or what a link leads to, is replaced when `commit` has its text. What is there and is no regular file
/// (/dev/stdout, a pipe that someone reads) is written as it is, at its end. Throws `tool::failure` with the file and
/// the system's reason.
class output {
 public:
  explicit output(std::string path) : path_{std::move(path)} {
    try {
      flatshard::replacing_file const tried{path_, {0}};  // nothing is left of it, whatever ends this
      replaces_ = true;
      return;
    } catch (flatshard::file_error const& e) {
      if (e.code().value() != EEXIST) fail(e.code().value());  // what is there is no file that can be replaced
    }
    // A pipe without a reader is refused, not waited for.
    int const number = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (number < 0 || ::fcntl(number, F_SETFL, O_APPEND) != 0) fail(errno);
    device_.reset(::fdopen(number, "a"));
    if (device_ == nullptr) fail(errno);
  }

  void commit(std::string const& text) {
    if (replaces_) {
      try {
        flatshard::replacing_file file{path_, {0}};
        file.write_at(std::as_bytes(std::span{text}), {0});
        file.commit();
      } catch (flatshard::file_error const& e) {
        fail(e.code().value());
      }
    } else if (std::fwrite(text.data(), 1, text.size(), device_.get()) != text.size() ||
               std::fflush(device_.get()) != 0) {
      fail(errno);
    }
  }

 private:
  struct closing {
    void operator()(std::FILE* file) const { static_cast<void>(std::fclose(file)); }
  };
  [[noreturn]] void fail(int reason) const {
    throw tool::failure{
        fmt::format("{}: cannot be written: {}", tool::one_line(path_), std::generic_category().message(reason))};
  }
  std::string path_;
  bool replaces_ = false;  ///< a file, or what a link leads to
  std::unique_ptr<std::FILE, closing> device_;
};

}  // namespace perf
