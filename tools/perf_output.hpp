// SPDX-License-Identifier: Apache-2.0
/// The file of measurements: found to be writable before anything is measured, whole or not there afterwards.
#pragma once

#include "report.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

namespace perf {

/// Creates a sibling of the file, or of what a link leads to, `.unfinished`, that `commit` fills and renames; only a
/// signal leaves it there. What is there and is no regular file (/dev/stdout, a pipe that someone reads) is written as
/// it is, at its end. Throws `tool::failure` with the file and the system's reason.
class output {
 public:
  explicit output(std::string path) : path_{std::move(path)} {
    struct stat there {};
    std::error_code none;
    auto const target = std::filesystem::canonical(path_, none).string();
    bool const regular = none || (::stat(path_.c_str(), &there) == 0 && S_ISREG(there.st_mode));
    if (!regular || path_.starts_with("/dev/") || path_.starts_with("/proc/")) {
      // A pipe without a reader is refused, not waited for.
      int const number = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
      if (number >= 0 && ::fcntl(number, F_SETFL, O_APPEND) == 0) file_.reset(::fdopen(number, "a"));
    } else {
      if (!none) path_ = target;
      unfinished_ = path_ + ".unfinished";
      file_.reset(std::fopen(unfinished_.c_str(), "w"));
    }
    if (file_ == nullptr) {
      unfinished_.clear();
      fail();
    }
  }
  output(output&& other) noexcept
      : path_{std::move(other.path_)},
        unfinished_{std::exchange(other.unfinished_, {})},
        file_{std::move(other.file_)} {}
  output& operator=(output&&) = delete;
  ~output() {
    if (!unfinished_.empty()) static_cast<void>(::unlink(unfinished_.c_str()));
  }

  void commit(std::string const& text) {
    bool const written = std::fwrite(text.data(), 1, text.size(), file_.get()) == text.size();
    if (std::fflush(file_.get()) != 0 || !written) fail();
    if (unfinished_.empty()) return;
    if (std::rename(unfinished_.c_str(), path_.c_str()) != 0) fail();
    unfinished_.clear();
  }

 private:
  struct closing {
    void operator()(std::FILE* file) const { static_cast<void>(std::fclose(file)); }
  };
  [[noreturn]] void fail() const {
    throw tool::failure{fmt::format("{}: cannot be written: {}", tool::one_line(path_), std::strerror(errno))};
  }
  std::string path_, unfinished_;
  std::unique_ptr<std::FILE, closing> file_;
};

}  // namespace perf
