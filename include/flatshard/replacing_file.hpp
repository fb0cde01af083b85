// SPDX-License-Identifier: Apache-2.0
/// Files that replace others only when complete, written by position.
///
///     replacing_file out{"weights.bin", {size}};                     // a temporary sibling
///     out.write_at(span, {offset});  out.commit();                   // fsync, rename, fsync of the directory
#pragma once

#include <flatshard/quantity.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace flatshard {
inline namespace v0 {

/// What the environment refused: the file, the operation and the system's reason. Thrown by what writes.
struct file_error : std::system_error {
  file_error(int reason, std::string const& operation, std::string const& path)
      : system_error{reason, std::generic_category(), operation + " of " + path} {}
};

namespace detail {

/// Owns one open file.
class descriptor {
 public:
  explicit descriptor(int number = -1) : number_{number} {}
  descriptor(descriptor&& other) noexcept : number_{std::exchange(other.number_, -1)} {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~descriptor() { close(); }
  [[nodiscard]] int number() const { return number_; }
  void close() {
    if (number_ >= 0) static_cast<void>(::close(std::exchange(number_, -1)));
  }

 private:
  int number_;
};

template <class Call>
auto retried(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// The name that `path` leads to if it is a link, also where nothing has it yet; else `path`. Throws `file_error`.
inline std::filesystem::path behind_links(std::filesystem::path path) {
  std::error_code unseen;  // what cannot be looked at is refused when it is written
  int links = 0;
  for (; std::filesystem::is_symlink(std::filesystem::symlink_status(path, unseen)); ++links) {
    if (links == 40) throw file_error{ELOOP, "resolution", path.string()};             // as many as Linux follows
    if (path.native().starts_with("/proc/") || path.native().starts_with("/dev/fd/"))  // /dev/stdout, too
      throw file_error{EEXIST, "replacement", path.string() + ", which is an open file and has no name here"};
    auto const next = std::filesystem::read_symlink(path, unseen);
    if (unseen) throw file_error{unseen.value(), "resolution", path.string()};
    path = path.parent_path() / next;
  }
  if (links == 0) return path;
  if (auto whole = std::filesystem::canonical(path, unseen); !unseen) return whole;  // without "/." and the like
  return path.has_filename() ? path : path.parent_path();                            // "name/" that is not there yet
}

}  // namespace detail

/// A file that appears under its name only when it is complete: written to a temporary sibling
/// (`NAME.tmp-PID-N`), then synchronised and renamed. Without `commit` nothing is left. What has the name already must
/// be a regular file: a device or a folder is never replaced. A link stays, and what it leads to is replaced, or made.
class replacing_file {
 public:
  /// Creates the temporary sibling with `size` bytes, all a hole. Throws `file_error`.
  replacing_file(std::filesystem::path const& path, bytes size) {
    std::error_code ignored;
    auto const there = std::filesystem::status(path, ignored);
    if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there))
      throw file_error{EEXIST, "replacement", path.string() + ", which is no regular file"};
    path_ = detail::behind_links(path);
    for (unsigned attempt = 0; file_.number() < 0; ++attempt) {
      temporary_ = path_;
      temporary_ += ".tmp-" + std::to_string(::getpid()) + '-' + std::to_string(attempt);
      file_ = detail::descriptor{
          detail::retried([&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); })};
      if (file_.number() < 0 && (errno != EEXIST || attempt > 10000)) {
        auto const why = errno;
        temporary_.clear();
        throw file_error{why, "creation", path_.string()};
      }
    }
    try {
      if (detail::retried([&] { return ::ftruncate(file_.number(), static_cast<off_t>(size.value)); }) != 0)
        throw file_error{errno, "sizing", temporary_.string()};
    } catch (...) {
      discard();
      throw;
    }
  }
  replacing_file(replacing_file&& other) noexcept
      : path_{std::move(other.path_)}, temporary_{std::exchange(other.temporary_, {})}, file_{std::move(other.file_)} {}
  replacing_file& operator=(replacing_file&&) = delete;
  ~replacing_file() { discard(); }

  /// Of the file that is replaced, behind links.
  [[nodiscard]] std::filesystem::path const& path() const { return path_; }

  /// Writes all of `data` from byte `at` on; interrupted and short writes are continued. Throws `file_error`.
  void write_at(std::span<std::byte const> data, bytes at) {
    constexpr std::size_t most = std::size_t{1} << 30;
    std::size_t done = 0;
    while (done < data.size()) {
      auto const part = std::min(data.size() - done, most);
      auto const put = detail::retried(
          [&] { return ::pwrite(file_.number(), data.data() + done, part, static_cast<off_t>(at.value + done)); });
      if (put < 0) throw file_error{errno, "writing", temporary_.string()};
      if (put == 0) throw file_error{ENOSPC, "writing", temporary_.string()};
      done += static_cast<std::size_t>(put);
    }
  }

  /// Makes the content durable and gives the file its name, in one step for every reader. Throws `file_error`; then
  /// the temporary file is removed and what had the name before is untouched.
  void commit() {
    try {
      if (detail::retried([&] { return ::fsync(file_.number()); }) != 0)
        throw file_error{errno, "fsync", temporary_.string()};
      if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw file_error{errno, "renaming", temporary_.string()};
    } catch (...) {
      discard();
      throw;
    }
    temporary_.clear();
    file_.close();
    auto const parent = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path{"."};
    detail::descriptor directory{
        detail::retried([&] { return ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); })};
    if (directory.number() < 0 || detail::retried([&] { return ::fsync(directory.number()); }) != 0)
      throw file_error{errno, "fsync", parent.string()};
  }

 private:
  void discard() noexcept {
    file_.close();
    if (!temporary_.empty()) static_cast<void>(::unlink(temporary_.c_str()));
    temporary_.clear();
  }
  std::filesystem::path path_, temporary_;
  detail::descriptor file_;
};

}  // namespace v0
}  // namespace flatshard
