// SPDX-License-Identifier: Apache-2.0
/// Signals that a program notes while it writes something whole: it ends when nothing unfinished is left.
#pragma once

#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <string_view>

namespace tool {

/// The last signal that `noted_signals` held back; 0 = none. One a program: a signal handler writes it.
inline std::atomic<int> caught_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler writes it");

/// While it lives, SIGINT, SIGTERM, SIGHUP and SIGQUIT are noted instead of ending the process; the second
/// one of a kind ends it. Those that the process ignores stay ignored.
class noted_signals {
 public:
  noted_signals() {
    struct sigaction noted {};
    noted.sa_handler = [](int signal) { caught_signal.store(signal); };
    noted.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
    for (std::size_t i = 0; i < which.size(); ++i) {
      ::sigaction(which[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(which[i], &noted, nullptr);
    }
  }
  noted_signals(noted_signals const&) = delete;
  noted_signals& operator=(noted_signals const&) = delete;
  ~noted_signals() {
    for (std::size_t i = 0; i < which.size(); ++i) ::sigaction(which[i], &before_[i], nullptr);
  }

 private:
  static constexpr std::array which{SIGINT, SIGTERM, SIGHUP, SIGQUIT};
  std::array<struct sigaction, which.size()> before_{};
};

/// Thrown where a noted signal is heeded.
struct interrupted {};
inline void stop_if_interrupted() {
  if (caught_signal != 0) throw interrupted{};
}
/// Where `interrupted` has arrived and nothing unfinished is left: says so, and ends as the signal would have.
inline void end_by_signal(std::string_view program) {
  std::fprintf(stderr, "%.*s: interrupted; nothing unfinished was left behind\n", static_cast<int>(program.size()),
               program.data());
  std::fflush(nullptr);
  ::raise(caught_signal);
}

/// From now on a write beyond the limit of file sizes (ulimit -f) fails with EFBIG, like any other that the system
/// refuses, instead of ending the process in the middle.
inline void fail_large_writes() { std::signal(SIGXFSZ, SIG_IGN); }

}  // namespace tool
