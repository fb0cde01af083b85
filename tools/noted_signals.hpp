// SPDX-License-Identifier: Apache-2.0
/// Signals that a program notes while it writes something whole: it ends when nothing unfinished is left.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string_view>

namespace tool {

/// The first signal that `noted_signals` held back; 0 = none. One a program: a signal handler writes it.
inline std::atomic<int> caught_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler writes it");

/// While it lives, the signals by which people, shells, `timeout` and limits end a process are noted instead. Many send
/// the same one twice at once (`timeout`: to the process and to its group), so those that follow within `patience` of
/// the first change nothing; a later one ends the process at once, whatever is left then. Those that the process
/// ignores stay ignored.
class noted_signals {
 public:
  explicit noted_signals(std::chrono::nanoseconds patience = std::chrono::seconds{2}) {
    patience_.store(patience.count());
    struct sigaction noted {};
    noted.sa_handler = &note;
    noted.sa_flags = SA_RESTART;
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
  /// What is noted.
  static constexpr std::array which{SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU};

 private:
  /// The handler: several threads may be in it at once.
  static void note(int signal) {
    std::timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    auto const now = std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
    std::int64_t first = 0;
    if (first_at_.compare_exchange_strong(first, now)) {
      caught_signal.store(signal);
    } else if (now - first >= patience_) {
      std::signal(signal, SIG_DFL);
      ::raise(signal);  // once this handler has returned
    }
  }
  inline static std::atomic<std::int64_t> first_at_{0};  ///< nanoseconds; 0 = no signal was noted
  inline static std::atomic<std::int64_t> patience_{0};
  static_assert(std::atomic<std::int64_t>::is_always_lock_free, "a signal handler writes it");
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
