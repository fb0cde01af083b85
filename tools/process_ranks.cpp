// SPDX-License-Identifier: Apache-2.0
#include "process_ranks.hpp"

#include "report.hpp"

#include <flatshard/problem.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

namespace tool {
namespace {

using clock = std::chrono::steady_clock;

/// What goes through the pipe: a head, then `size` bytes.
enum class message : std::uint32_t { progress, report, error };
struct message_head {
  message kind;
  std::uint32_t size;
};
static_assert(std::is_trivially_copyable_v<rank_report>, "a report crosses a pipe as bytes");

/// All of `data` into a pipe; false when nobody reads.
bool send(int pipe, void const* data, std::size_t size) {
  auto const* next = static_cast<char const*>(data);
  while (size != 0) {
    auto const n = ::write(pipe, next, size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    next += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}
bool send(int pipe, message kind, void const* data, std::size_t size) {
  message_head const head{kind, static_cast<std::uint32_t>(size)};
  return send(pipe, &head, sizeof head) && send(pipe, data, size);
}

/// The life of a forked rank. Leaves without the parent's atexit handlers and buffers.
[[noreturn]] void be_rank(std::uint64_t rank, pid_t parent, int pipe, rank_work const& work) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(exit_input);  // it died before the line above
  std::string error;
  try {
    auto const report = work(rank, [pipe](std::uint64_t done) { send(pipe, message::progress, &done, sizeof done); });
    ::_exit(send(pipe, message::report, &report, sizeof report) ? exit_fine : exit_input);
  } catch (flatshard::bad_input const& e) {
    error = to_string(e.error);
  } catch (std::bad_alloc const&) {
    error = "out of memory while it loaded its part; with more ranks (--world) each needs less";
  } catch (std::exception const& e) {
    error = e.what();
  } catch (...) {
    error = "unknown exception";
  }
  send(pipe, message::error, error.data(), error.size());
  ::_exit(exit_input);
}

struct child {
  pid_t process = -1;
  int pipe = -1;
  std::string inbox;
  clock::time_point alive{};
  std::uint64_t progress{};
  std::optional<rank_report> report;
  std::optional<std::string> error;
  [[nodiscard]] bool finished() const { return report.has_value() || error.has_value(); }
};

/// All forked ranks; ends and reaps those that are left when it goes.
class family_of_ranks {
 public:
  explicit family_of_ranks(std::uint64_t world) : children_(world) {}
  family_of_ranks(family_of_ranks const&) = delete;
  family_of_ranks& operator=(family_of_ranks const&) = delete;
  ~family_of_ranks() { end(); }
  [[nodiscard]] std::vector<child>& children() { return children_; }

  void start(rank_work const& work) {
    auto const parent = ::getpid();
    std::fflush(nullptr);  // or every child would inherit, and could print, what is still buffered
    for (std::uint64_t r = 0; r < children_.size(); ++r) {
      std::array<int, 2> ends{};
      if (::pipe2(ends.data(), O_CLOEXEC) != 0)
        throw failure{fmt::format("cannot make a pipe for rank {}: {}", r, std::strerror(errno))};
      auto& c = children_[r];
      c.pipe = ends[0];
      c.process = ::fork();
      if (c.process < 0) {
        auto const why = errno;
        ::close(ends[1]);
        throw failure{fmt::format("cannot start a process for rank {}: {}", r,
                                  why == EAGAIN ? process_limit_reached : std::strerror(why))};
      }
      if (c.process == 0) {
        for (auto const& other : children_)
          if (other.pipe >= 0) ::close(other.pipe);
        be_rank(r, parent, ends[1], work);
      }
      ::close(ends[1]);
      ::fcntl(c.pipe, F_SETFL, O_NONBLOCK);
      c.alive = clock::now();
    }
  }
  /// Ends every process that is still there.
  void end() {
    for (auto& c : children_)
      if (c.process > 0) ::kill(c.process, SIGKILL);
    for (auto& c : children_) {
      if (c.process > 0) reap(c);
      if (c.pipe >= 0) ::close(std::exchange(c.pipe, -1));
    }
  }
  /// How the process ended, in words. Waits for it.
  static std::string reap(child& c) {
    int status = 0;
    pid_t got = 0;
    while ((got = ::waitpid(c.process, &status, 0)) < 0 && errno == EINTR) {
    }
    auto const process = std::exchange(c.process, -1);
    if (got < 0) return fmt::format("process {} cannot be waited for: {}", process, std::strerror(errno));
    if (WIFSIGNALED(status)) {
      auto const signal = WTERMSIG(status);
      return fmt::format("process {} was ended by signal {} ({}){}", process, signal, ::strsignal(signal),
                         signal == SIGKILL ? ", perhaps for want of memory" : "");
    }
    return fmt::format("process {} ended with exit status {}", process, WEXITSTATUS(status));
  }

 private:
  std::vector<child> children_;
};

/// Takes the whole messages out of the inbox.
void open_messages(child& c) {
  message_head head{};
  while (c.inbox.size() >= sizeof head) {
    std::memcpy(&head, c.inbox.data(), sizeof head);
    if (c.inbox.size() < sizeof head + head.size) return;
    auto const body = c.inbox.substr(sizeof head, head.size);
    c.inbox.erase(0, sizeof head + head.size);
    if (head.kind == message::progress && body.size() == sizeof c.progress) {
      std::memcpy(&c.progress, body.data(), sizeof c.progress);
    } else if (head.kind == message::report && body.size() == sizeof(rank_report)) {
      std::memcpy(&c.report.emplace(), body.data(), sizeof(rank_report));
    } else {
      c.error = body;
    }
  }
}

/// Throws `failure` where the limits of this process do not allow so many others, each with a pipe to it. The soft
/// limit of open files is raised to what is needed.
void check_limits(std::uint64_t world) {
  ::rlimit files{}, processes{};
  constexpr std::uint64_t open_besides = 16;  // streams, the checkpoint, the other end of one pipe
  auto const wanted = static_cast<::rlim_t>(world + open_besides);
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < wanted) {
    files.rlim_cur = std::min(wanted, files.rlim_max);
    if (files.rlim_cur < wanted || ::setrlimit(RLIMIT_NOFILE, &files) != 0)
      throw failure{
          fmt::format("{} ranks as processes need {} open files, the limit is {} (ulimit -Hn); with --threads they "
                      "share those of one, --rank R loads the part of one rank",
                      world, wanted, files.rlim_max)};
  }
  if (::geteuid() != 0 && ::getrlimit(RLIMIT_NPROC, &processes) == 0 && processes.rlim_cur <= world)
    throw failure{fmt::format("{} ranks are as many processes, this user may have {}: {}", world, processes.rlim_cur,
                              process_limit_reached)};
}

/// `rank 1` or `ranks 0, 1, 3`.
std::string naming(std::vector<std::uint64_t> const& ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
}

}  // namespace

std::vector<rank_report> run_processes(std::uint64_t world, rank_work const& work, std::chrono::nanoseconds silence,
                                       progress_sink const& seen) {
  // What ranks with the same fault need to say so, before those that are still at work are ended.
  constexpr std::chrono::milliseconds grace{500};
  auto const started = clock::now();
  check_limits(world);
  family_of_ranks family{world};
  family.start(work);
  auto& children = family.children();
  std::optional<clock::time_point> give_up;
  std::vector<::pollfd> waiting;
  std::vector<child*> who;
  while (true) {
    waiting.clear();
    who.clear();
    auto until = give_up.value_or(clock::time_point::max());
    for (auto& c : children)
      if (c.pipe >= 0) {
        waiting.push_back({c.pipe, POLLIN, 0});
        who.push_back(&c);
        if (!c.finished()) until = std::min(until, c.alive + silence);
      }
    auto const now = clock::now();
    if (waiting.empty() || (give_up && now >= *give_up)) break;
    if (now >= until) {
      for (auto& c : children)
        if (c.pipe >= 0 && !c.finished() && now >= c.alive + silence)
          c.error = fmt::format("no sign of life for {:g} s; process {} was ended",
                                std::chrono::duration<double>(silence).count(), c.process);
      give_up = now;
      continue;
    }
    auto const left = std::chrono::duration_cast<std::chrono::milliseconds>(until - now).count() + 1;
    if (::poll(waiting.data(), waiting.size(), static_cast<int>(std::min<std::int64_t>(left, 1000))) < 0 &&
        errno != EINTR)
      throw failure{fmt::format("cannot wait for the ranks: {}", std::strerror(errno))};
    for (std::size_t i = 0; i < waiting.size(); ++i) {
      if (waiting[i].revents == 0) continue;
      auto& c = *who[i];
      std::array<char, 4096> part{};
      ssize_t n = 0;
      while ((n = ::read(c.pipe, part.data(), part.size())) > 0)
        c.inbox.append(part.data(), static_cast<std::size_t>(n));
      bool const closed = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
      c.alive = clock::now();
      bool const reported = c.report.has_value();
      open_messages(c);
      if (c.report && !reported) c.report->arrived = std::chrono::duration<double>(c.alive - started).count();
      if (closed) {
        ::close(std::exchange(c.pipe, -1));
        auto const ending = family_of_ranks::reap(c);
        if (!c.finished()) c.error = ending + " before it reported";
      }
      if (c.error && !give_up) give_up = clock::now() + grace;
    }
    std::uint64_t done = 0;
    for (auto const& c : children) done += c.report ? c.report->bytes_read : c.progress;
    if (seen) seen(done);
  }
  family.end();

  std::vector<std::pair<std::string, std::vector<std::uint64_t>>> faults;  // in the order of their lowest ranks
  std::vector<rank_report> reports;
  std::size_t ended = 0;
  for (std::uint64_t r = 0; r < world; ++r) {
    auto& c = children[r];
    if (c.report) {
      reports.push_back(*c.report);
    } else if (!c.error) {
      ++ended;
    } else {
      auto const same = std::find_if(faults.begin(), faults.end(), [&](auto const& f) { return f.first == *c.error; });
      (same == faults.end() ? faults.emplace_back(*c.error, std::vector<std::uint64_t>{}) : *same).second.push_back(r);
    }
  }
  if (faults.empty()) return reports;
  std::string text;
  for (auto const& [what, ranks] : faults)
    text += fmt::format("{}{}: {}", text.empty() ? "" : "\n", naming(ranks), what);
  if (ended != 0)
    text += fmt::format("\nthe {} rank{} still at work {} ended", ended, ended == 1 ? "" : "s",
                        ended == 1 ? "was" : "were");
  throw failure{text};
}

std::uint64_t peak_resident() {
  std::uint64_t kibibytes = 0;
  if (auto* const status = std::fopen("/proc/self/status", "re"); status != nullptr) {
    std::array<char, 256> line{};
    while (std::fgets(line.data(), static_cast<int>(line.size()), status) != nullptr)
      if (std::string_view{line.data()}.starts_with("VmHWM:")) kibibytes = std::strtoull(line.data() + 6, nullptr, 10);
    std::fclose(status);
  }
  return kibibytes * 1024;
}

void reset_peak_resident() {
  if (auto const file = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC); file >= 0) {
    static_cast<void>(!::write(file, "5", 1));
    ::close(file);
  }
}

}  // namespace tool
