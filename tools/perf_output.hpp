// SPDX-License-Identifier: Apache-2.0
/// The file of measurements: found to be writable before anything is measured, whole or not there afterwards.
#pragma once

#include "report.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

namespace perf {

/// Creates a sibling, FILE.unfinished, that `commit` fills and renames; what is there and is no regular file, or a link
/// (/dev/stdout), is written as it is. Throws `tool::failure` with the file and the system's reason.
class output {
 public:
  explicit output(std::string path) : path_{std::move(path)} {
    struct stat there {};
    bool const special = ::lstat(path_.c_str(), &there) == 0 && !S_ISREG(there.st_mode);
    if (!special) unfinished_ = path_ + ".unfinished";
    file_.reset(std::fopen(special ? path_.c_str() : unfinished_.c_str(), "w"));
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
