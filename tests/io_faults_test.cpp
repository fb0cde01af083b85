// SPDX-License-Identifier: Apache-2.0
// T11: the n-th call of each kind fails or is cut short, for n = 1, 2, ... until a run meets no fault. Interrupted and
// short transfers must not be seen; errors name file and operation, leave older files alone and leak nothing. The
// linker passes the calls of this program through the functions below (--wrap, see CMakeLists.txt).
#include "checkpoint_folder.hpp"

#include <flatshard/layouts/native.hpp>
#include <flatshard/segment_loader.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace flatshard;
namespace fs = std::filesystem;

namespace {

enum class call { none, pread, pwrite, fsync, rename, ftruncate };
enum class fault { interrupted, cut_short, io_error, no_space };

struct injector {
  call kind = call::none;
  fault how{};
  int left = 0;  // calls before the fault
  bool met = false;
  /// True if this call is the one that fails; errno is then set, or `size` cut.
  bool hit(call now, std::size_t* size = nullptr) {
    if (now != kind || left < 0 || left-- > 0) return false;
    met = true;
    if (how == fault::cut_short) {
      if (size != nullptr) *size = (*size + 1) / 2;
      return false;
    }
    errno = how == fault::interrupted ? EINTR : how == fault::io_error ? EIO : ENOSPC;
    return true;
  }
} injected;

}  // namespace

extern "C" {
ssize_t __real_pread(int, void*, std::size_t, off_t);
ssize_t __real_pwrite(int, void const*, std::size_t, off_t);
int __real_fsync(int);
int __real_rename(char const*, char const*);
int __real_ftruncate(int, off_t);
ssize_t __wrap_pread(int f, void* p, std::size_t n, off_t at) {
  return injected.hit(call::pread, &n) ? -1 : __real_pread(f, p, n, at);
}
ssize_t __wrap_pwrite(int f, void const* p, std::size_t n, off_t at) {
  return injected.hit(call::pwrite, &n) ? -1 : __real_pwrite(f, p, n, at);
}
int __wrap_fsync(int f) { return injected.hit(call::fsync) ? -1 : __real_fsync(f); }
int __wrap_rename(char const* from, char const* to) {
  return injected.hit(call::rename) ? -1 : __real_rename(from, to);
}
int __wrap_ftruncate(int f, off_t n) { return injected.hit(call::ftruncate) ? -1 : __real_ftruncate(f, n); }
}

namespace {

std::size_t entries(fs::path const& path) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator{path}, fs::directory_iterator{}));
}
std::string content(fs::path const& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}
/// Runs `attempt` with the fault at the first, second, ... call; returns how many calls there were.
int for_every_call(call kind, fault how, std::function<void(bool met)> const& after,
                   std::function<void()> const& attempt) {
  for (int n = 0;; ++n) {
    injected = {kind, how, n, false};
    attempt();
    auto const met = injected.met;
    injected.kind = call::none;
    after(met);
    if (!met) return n;
    REQUIRE(n < 1000);
  }
}

std::vector<tensor_spec> const tensors{{"a", dtype::bf16, {5000}}, {"b", dtype::bf16, {64, 3}}};

}  // namespace

TEST_CASE("a writer that meets a fault leaves the older file and nothing else") {
  test_folder here{"faults-write"};
  auto const path = here.path / "model.safetensors";
  write_test_file(path, tensors);
  auto const whole = content(path);
  auto const open_files = entries("/proc/self/fd");
  for (auto const kind : {call::pwrite, call::fsync, call::rename, call::ftruncate})
    for (auto const how : {fault::interrupted, fault::cut_short, fault::io_error, fault::no_space}) {
      if (how == fault::cut_short && kind != call::pwrite) continue;
      if (how == fault::interrupted && kind == call::rename) continue;  // rename is not interrupted
      bool failed = false;
      std::string text;
      std::ofstream{path} << "older";
      auto const calls = for_every_call(
          kind, how,
          [&](bool met) {
            CHECK(failed == (met && (how == fault::io_error || how == fault::no_space)));
            // after the rename only the directory is synchronised: then the new file is there, and whole
            auto const now = content(path);
            CHECK((failed ? now == "older" || now == whole : now == whole));
            if (failed && kind != call::fsync) CHECK(now == "older");
            CHECK(entries(here.path) == 1);
            CHECK(entries("/proc/self/fd") == open_files);
            if (failed) {
              CHECK(text.find(kind == call::pwrite   ? "writing"
                              : kind == call::fsync  ? "fsync"
                              : kind == call::rename ? "renaming"
                                                     : "sizing") != std::string::npos);
              CHECK(text.find(here.path.string()) != std::string::npos);
              CHECK(text.find(how == fault::io_error ? "Input/output" : "No space") != std::string::npos);
            }
            std::ofstream{path} << "older";
          },
          [&] {
            failed = false;
            try {
              write_test_file(path, tensors);
            } catch (file_error const& e) {
              failed = true;
              text = e.what();
            }
          });
      CHECK(calls >= 1);
    }
}

TEST_CASE("a reader that meets a fault reports it, or never saw it") {
  test_folder here{"faults-read"};
  auto const path = here.path / "model.safetensors";
  write_test_file(path, tensors);
  auto const unit = parameters({{"a", {5000}}, {"b", {64, 3}}});
  layout const l{native{}, unit, world{1}};
  load_options options;
  options.chunk = {4096};
  std::vector<float> clean(l.segment().value);
  auto const load = [&](std::vector<float>& to) -> result<load_report> {
    auto const from = open_checkpoint(here.path);
    if (!from) return from.error();
    return load_segment(*from, l, rank_at(0), {std::as_writable_bytes(std::span{to}), dtype::f32}, options);
  };
  REQUIRE(load(clean).has_value());
  auto const open_files = entries("/proc/self/fd");
  for (auto const how : {fault::interrupted, fault::cut_short, fault::io_error}) {
    std::vector<float> got(clean.size());
    std::vector<problem> problems;
    auto const calls = for_every_call(
        call::pread, how,
        [&](bool met) {
          CHECK(problems.empty() == !(met && how == fault::io_error));
          if (problems.empty()) {
            CHECK(std::memcmp(got.data(), clean.data(), clean.size() * sizeof(float)) == 0);
          } else {
            CHECK(problems.size() == 1);
            CHECK(problems[0].code == errc::io);
            CHECK(problems[0].where.file == path.string());
            CHECK(problems[0].detail.find("read at byte ") != std::string::npos);
          }
          CHECK(entries("/proc/self/fd") == open_files);
        },
        [&] {
          std::fill(got.begin(), got.end(), 7777.0f);
          auto const done = load(got);
          problems = done ? std::vector<problem>{} : done.error().problems;
        });
    CHECK(calls >= 4);
  }
}
