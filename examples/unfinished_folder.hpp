// SPDX-License-Identifier: Apache-2.0
/// A folder that gets its name when it is complete; a failure or a signal in between leaves nothing behind.
#pragma once

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

namespace llama {

/// The last signal that `signals_noted` held back; 0 = none.
inline std::atomic<int> caught_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler writes it");

/// While it lives, SIGINT, SIGTERM and SIGHUP are noted instead of ending the process; the second one ends it.
class signals_noted {
 public:
  signals_noted() {
    struct sigaction noted {};
    noted.sa_handler = [](int signal) { caught_signal.store(signal); };
    noted.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
    for (std::size_t i = 0; i < which.size(); ++i) {
      ::sigaction(which[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(which[i], &noted, nullptr);
    }
  }
  signals_noted(signals_noted const&) = delete;
  signals_noted& operator=(signals_noted const&) = delete;
  ~signals_noted() {
    for (std::size_t i = 0; i < which.size(); ++i) ::sigaction(which[i], &before_[i], nullptr);
  }

 private:
  static constexpr std::array which{SIGINT, SIGTERM, SIGHUP};
  std::array<struct sigaction, 3> before_{};
};

/// Thrown where a noted signal is heeded.
struct interrupted {};
inline void stop_if_interrupted() {
  if (caught_signal != 0) throw interrupted{};
}

/// The folder under a temporary name beside its own, with parents as needed; removed again, like the parents that it
/// made, unless it was finished.
class unfinished_folder {
 public:
  /// Throws `std::filesystem::filesystem_error`.
  explicit unfinished_folder(std::filesystem::path const& target) : target_{target.lexically_normal()} {
    if (!target_.has_filename()) target_ = target_.parent_path();  // "name/"
    path_ = target_;
    path_ += ".partial-" + std::to_string(::getpid());
    std::vector<std::filesystem::path> missing{path_};
    for (auto p = target_.parent_path(); !p.empty() && !std::filesystem::exists(p); p = p.parent_path())
      missing.push_back(p);
    try {
      for (; !missing.empty(); missing.pop_back()) {
        if (::mkdir(missing.back().c_str(), 0777) == 0) {
          made_.push_back(missing.back());
        } else if (missing.size() == 1 || errno != EEXIST) {  // another process may make the same parent
          throw std::filesystem::filesystem_error{"cannot create folder", missing.back(),
                                                  std::error_code{errno, std::generic_category()}};
        }
      }
    } catch (...) {
      discard();
      throw;
    }
  }
  unfinished_folder(unfinished_folder const&) = delete;
  unfinished_folder& operator=(unfinished_folder const&) = delete;
  ~unfinished_folder() { discard(); }
  [[nodiscard]] std::filesystem::path const& path() const { return path_; }
  /// Gives the folder its name; an empty folder of that name is replaced. Throws
  /// `std::filesystem::filesystem_error`.
  void finish() {
    std::filesystem::rename(path_, target_);
    made_.clear();
  }

 private:
  void discard() noexcept {
    std::error_code ignored;
    if (!made_.empty() && made_.back() == path_) std::filesystem::remove_all(path_, ignored);
    for (; !made_.empty(); made_.pop_back()) ::rmdir(made_.back().c_str());  // parents that others use by now stay
  }
  std::filesystem::path target_, path_;
  std::vector<std::filesystem::path> made_;  // parents first
};

}  // namespace llama
