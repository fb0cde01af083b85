// SPDX-License-Identifier: Apache-2.0
/// Files by position: regular files read in whole ranges, and files that replace others only when complete.
///
///     auto in = input_file::open("model.safetensors").value();       // never blocks on a FIFO, refuses directories
///     auto done = in.read_at(span, {offset});                        // the whole range or a problem
#pragma once

#include <flatshard/quantity.hpp>
#include <flatshard/replacing_file.hpp>  // IWYU pragma: export
#include <flatshard/result.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace flatshard {
inline namespace v0 {

/// What identifies the content of a file without reading it.
struct file_stamp {
  std::uint64_t device{}, inode{}, size{};
  std::int64_t seconds{}, nanoseconds{};  ///< last modification
  friend bool operator==(file_stamp const&, file_stamp const&) = default;
};

/// A name from a file as it may be printed: ASCII, everything else escaped, shortened in the middle to about 90 bytes.
[[nodiscard]] inline std::string shown(std::string_view name) {
  constexpr std::size_t head = 56, tail = 28;
  auto const escaped = [](std::string_view text) {
    constexpr char const* hex = "0123456789abcdef";
    std::string out;
    for (char const c : text) {
      auto const byte = static_cast<unsigned char>(c);
      if (byte == '\\' || byte == '"')
        (out += '\\') += c;
      else if (byte >= 0x20 && byte < 0x7F)
        out += c;
      else
        ((out += "\\x") += hex[byte >> 4]) += hex[byte & 15];
    }
    return out;
  };
  if (name.size() <= head + tail + 8) return '"' + escaped(name) + '"';
  return '"' + escaped(name.substr(0, head)) + "\"...\"" + escaped(name.substr(name.size() - tail)) + "\" (" +
         std::to_string(name.size()) + " bytes)";
}

namespace detail {

inline file_stamp stamp_of(struct stat const& s) {
  return {static_cast<std::uint64_t>(s.st_dev), static_cast<std::uint64_t>(s.st_ino),
          static_cast<std::uint64_t>(s.st_size), static_cast<std::int64_t>(s.st_mtim.tv_sec),
          static_cast<std::int64_t>(s.st_mtim.tv_nsec)};
}
inline config_error file_problem(errc code, std::string const& path, std::string detail) {
  problem one;
  one.code = code;
  one.where.file = path;
  one.detail = std::move(detail);
  return config_error{std::move(one)};
}
inline std::string reason(int number) { return std::generic_category().message(number); }
/// What ENOENT means for a file: no such name, or a link to none, as caches of models are full of.
inline std::string missing(std::filesystem::path const& path) {
  std::error_code none;
  auto const target = std::filesystem::read_symlink(path, none);
  return none ? "there is no such file" : "this is a link to " + shown(target.string()) + ", which is not there";
}
/// What EACCES means for a file: the first folder on the way that may not be entered, else the file itself; and what to
/// do.
inline std::string denied(std::filesystem::path const& path) {
  std::filesystem::path way;
  for (auto const& part : path.parent_path()) {
    way /= part;
    if (::faccessat(AT_FDCWD, way.c_str(), X_OK, AT_EACCESS) != 0)
      return reason(EACCES) + ": the folder " + shown(way.string()) +
             " may not be entered; give this user the right to (chmod +x), or choose another";
  }
  return reason(EACCES) + "; give this user the right to read it (chmod +r)";
}

}  // namespace detail

/// A regular file open for reading. Reads are positional: any number of threads may read at once.
class input_file {
 public:
  /// Opens `path`. A FIFO, directory or device is `file_type` and never blocks; no such file is `file_missing`.
  [[nodiscard]] static result<input_file> open(std::filesystem::path const& path) {
    auto const text = path.string();
    detail::descriptor file{
        detail::retried([&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY); })};
    if (file.number() < 0) {
      auto const why = errno;
      if (why == ENOENT || why == ENOTDIR) return detail::file_problem(errc::file_missing, text, detail::missing(path));
      if (why == ENXIO) return detail::file_problem(errc::file_type, text, "this is not a regular file");
      return detail::file_problem(errc::io, text,
                                  "open: " + (why == EACCES ? detail::denied(path) : detail::reason(why)));
    }
    struct stat s {};
    if (::fstat(file.number(), &s) != 0) return detail::file_problem(errc::io, text, "fstat: " + detail::reason(errno));
    if (!S_ISREG(s.st_mode))
      return detail::file_problem(errc::file_type, text,
                                  std::string{S_ISDIR(s.st_mode)    ? "this is a directory"
                                              : S_ISFIFO(s.st_mode) ? "this is a FIFO"
                                                                    : "this is a device or socket"} +
                                      ", a regular file is expected");
    return input_file{std::move(file), text, detail::stamp_of(s)};
  }

  [[nodiscard]] std::string const& path() const { return path_; }
  /// Size when opened.
  [[nodiscard]] bytes size() const { return {static_cast<std::size_t>(stamp_.size)}; }
  /// Identity and age when opened.
  [[nodiscard]] file_stamp const& stamp() const { return stamp_; }

  /// Fills `out` from byte `at` on. Interrupted calls are repeated, short reads continued; the end of the file before
  /// `out` is full is `short_read`. Thread-safe.
  [[nodiscard]] result<void> read_at(std::span<std::byte> out, bytes at) const {
    constexpr std::size_t most = std::size_t{1} << 30;  // one call transfers less than 2^31 bytes
    std::size_t done = 0;
    while (done < out.size()) {
      auto const part = std::min(out.size() - done, most);
      auto const got = detail::retried(
          [&] { return ::pread(file_.number(), out.data() + done, part, static_cast<off_t>(at.value + done)); });
      if (got < 0)
        return detail::file_problem(errc::io, path_,
                                    "read at byte " + std::to_string(at.value + done) + ": " + detail::reason(errno));
      if (got == 0)
        return detail::file_problem(errc::short_read, path_,
                                    "the file ends at byte " + std::to_string(at.value + done) + ", " +
                                        std::to_string(out.size() - done) + " bytes of a read are missing");
      done += static_cast<std::size_t>(got);
    }
    return {};
  }

  /// All bytes, but at most `most`; also of a file that holds more than its size says, as those of /proc do.
  [[nodiscard]] result<std::string> read_to_end(bytes most) const {
    std::string out;
    for (;;) {
      auto const done = out.size();
      out.resize(std::min<std::size_t>(done + 65536, most.value));
      if (out.size() == done) return out;
      auto const got = detail::retried(
          [&] { return ::pread(file_.number(), out.data() + done, out.size() - done, static_cast<off_t>(done)); });
      if (got < 0)
        return detail::file_problem(errc::io, path_,
                                    "read at byte " + std::to_string(done) + ": " + detail::reason(errno));
      out.resize(done + static_cast<std::size_t>(got));
      if (got == 0) return out;
    }
  }

  /// Tells the system that a range is read soon; nothing waits, nothing can fail.
  void will_read(bytes at, bytes size) const {
    static_cast<void>(::posix_fadvise(file_.number(), static_cast<off_t>(at.value), static_cast<off_t>(size.value),
                                      POSIX_FADV_WILLNEED));
  }

  /// Whether `path()` still names this file with the same size and age; `file_changed` if not.
  [[nodiscard]] result<void> unchanged() const {
    struct stat named {
    }, open{};
    if (::fstat(file_.number(), &open) != 0 || ::stat(path_.c_str(), &named) != 0)
      return detail::file_problem(errc::file_changed, path_,
                                  "the file is gone while it was read: " + detail::reason(errno));
    auto const now = detail::stamp_of(named);
    if (now != stamp_ || detail::stamp_of(open) != stamp_)
      return detail::file_problem(errc::file_changed, path_,
                                  std::string{"the file was "} + (now.inode != stamp_.inode ? "replaced" : "changed") +
                                      " while it was read (" + std::to_string(stamp_.size) + " bytes before, " +
                                      std::to_string(now.size) + " now)");
    return {};
  }

 private:
  input_file(detail::descriptor file, std::string path, file_stamp stamp)
      : file_{std::move(file)}, path_{std::move(path)}, stamp_{stamp} {}
  detail::descriptor file_;
  std::string path_;
  file_stamp stamp_;
};

}  // namespace v0
}  // namespace flatshard
