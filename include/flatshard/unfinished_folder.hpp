// SPDX-License-Identifier: Apache-2.0
/// A folder that appears under its name when everything in it is written, or not at all.
#pragma once

#include <flatshard/file.hpp>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace flatshard {
inline namespace v0 {

/// A folder under a temporary name beside its own (`NAME.tmp-PID`), with parents as needed; removed again with all that
/// is in it, like the parents that it made, unless it was finished. A link stays, and what it leads to is made.
class unfinished_folder {
 public:
  /// Makes the folder. Throws `file_error`.
  explicit unfinished_folder(std::filesystem::path const& target) : target_{target.lexically_normal()} {
    if (!target_.has_filename()) target_ = target_.parent_path();  // "name/"
    target_ = detail::behind_links(target_);
    path_ = target_;
    path_ += ".tmp-" + std::to_string(::getpid());
    std::vector<std::filesystem::path> missing{path_};
    std::error_code unseen;  // mkdir says what is wrong
    for (auto p = target_.parent_path(); !p.empty() && !std::filesystem::exists(p, unseen); p = p.parent_path())
      missing.push_back(p);
    made_.reserve(missing.size());
    for (; !missing.empty(); missing.pop_back()) {
      if (::mkdir(missing.back().c_str(), 0777) == 0) {
        made_.push_back(std::move(missing.back()));
      } else if (missing.size() == 1 || errno != EEXIST) {  // another process may make the same parent
        auto const why = errno;
        discard();
        throw file_error{why, "creation", missing.back().string()};
      }
    }
  }
  unfinished_folder(unfinished_folder const&) = delete;
  unfinished_folder& operator=(unfinished_folder const&) = delete;
  ~unfinished_folder() { discard(); }

  /// Where to write while the folder is not finished.
  [[nodiscard]] std::filesystem::path const& path() const { return path_; }
  /// Gives the folder its name, for good: the entries are synchronised before, the name after. An empty folder of that
  /// name is replaced; anything else that has it stays, and `file_error` is thrown.
  void finish() {
    synchronise(path_);
    if (::rename(path_.c_str(), target_.c_str()) != 0) throw file_error{errno, "naming", target_.string()};
    made_.clear();
    synchronise(target_.has_parent_path() ? target_.parent_path() : std::filesystem::path{"."});
  }

 private:
  /// Not every file system can synchronise a folder; those that cannot say EINVAL.
  static void synchronise(std::filesystem::path const& folder) {
    detail::descriptor const opened{
        detail::retried([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); })};
    if (opened.number() < 0) return;  // a folder may be written to and not read
    if (detail::retried([&] { return ::fsync(opened.number()); }) != 0 && errno != EINVAL)
      throw file_error{errno, "synchronisation", folder.string()};
  }
  void discard() noexcept {
    std::error_code ignored;
    if (!made_.empty() && made_.back() == path_) std::filesystem::remove_all(path_, ignored);
    for (; !made_.empty(); made_.pop_back()) ::rmdir(made_.back().c_str());  // parents that others use by now stay
  }
  std::filesystem::path target_, path_;
  std::vector<std::filesystem::path> made_;  // parents first
};

}  // namespace v0
}  // namespace flatshard
