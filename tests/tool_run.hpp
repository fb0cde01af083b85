// SPDX-License-Identifier: Apache-2.0
/// Runs the program `flatshard` and keeps what it said; folders that vanish; checkpoints read without the library's
/// reader.
#pragma once

#include <flatshard/json.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace tool_test {

namespace files = std::filesystem;

/// A new folder, removed with everything in it.
class folder {
 public:
  folder() {
    auto text = (files::temp_directory_path() / "flatshard-test-XXXXXX").string();
    if (::mkdtemp(text.data()) == nullptr) throw std::runtime_error{"mkdtemp failed"};
    path_ = text;
  }
  folder(folder const&) = delete;
  folder& operator=(folder const&) = delete;
  ~folder() {
    std::error_code ignored;
    files::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string operator/(std::string_view name) const { return (path_ / name).string(); }
  [[nodiscard]] files::path const& path() const { return path_; }
  /// The names in the folder, sorted.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (auto const& entry : files::directory_iterator{path_}) all.push_back(entry.path().filename().string());
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  files::path path_;
};

[[nodiscard]] inline std::string slurp(files::path const& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}
inline void spill(files::path const& path, std::string_view text) {
  std::ofstream out{path, std::ios::binary};
  out << text;
}

/// What a program may use; 0 = as much as this process. With `processes` it runs as another user if this one is root,
/// whom no such limit binds.
struct limits {
  std::uint64_t address_space = 0, open_files = 0, processes = 0;
};

/// A started program with its three streams in files.
class running {
 public:
  running(std::vector<std::string> arguments, std::string_view input, limits const& most = {}) {
    spill(streams_ / "in", input);
    arguments.insert(arguments.begin(), FLATSHARD_TOOL);
    std::vector<char*> words;
    for (auto& a : arguments) words.push_back(a.data());
    words.push_back(nullptr);
    auto const in = streams_ / "in", out = streams_ / "out", err = streams_ / "err";
    auto const program = ::open(words[0], O_RDONLY);  // also where the other user may not enter its folder
    process_ = ::fork();
    if (process_ == 0) {
      ::dup2(::open(in.c_str(), O_RDONLY), 0);
      ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), 1);
      ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), 2);
      auto const limit = [](auto resource, std::uint64_t n) {
        ::rlimit const both{n, n};
        if (n != 0 && ::setrlimit(resource, &both) != 0) ::_exit(126);
      };
      limit(RLIMIT_AS, most.address_space);
      limit(RLIMIT_NOFILE, most.open_files);
      limit(RLIMIT_NPROC, most.processes);
      if (most.processes != 0 && ::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(126);
      ::fexecve(program, words.data(), ::environ);
      ::_exit(127);
    }
    ::close(program);
  }
  [[nodiscard]] pid_t process() const { return process_; }
  /// Waits for the end: {exit code, signal}; ends the program and throws after `limit`.
  std::pair<int, int> wait(std::chrono::seconds limit) {
    auto const until = std::chrono::steady_clock::now() + limit;
    int status = 0;
    ::rusage used{};
    while (::wait4(process_, &status, WNOHANG, &used) == 0) {
      if (std::chrono::steady_clock::now() > until) {
        ::kill(process_, SIGKILL);
        ::waitpid(process_, &status, 0);
        throw std::runtime_error{"the program did not end in time"};
      }
      std::this_thread::sleep_for(std::chrono::milliseconds{2});
    }
    peak_bytes_ = static_cast<std::uint64_t>(used.ru_maxrss) * 1024;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0};
  }
  /// The most memory that it held (VmHWM), once it has ended.
  [[nodiscard]] std::uint64_t peak_bytes() const { return peak_bytes_; }
  [[nodiscard]] std::string out() const { return slurp(streams_ / "out"); }
  [[nodiscard]] std::string err() const { return slurp(streams_ / "err"); }

 private:
  folder streams_;
  pid_t process_;
  std::uint64_t peak_bytes_ = 0;
};

struct outcome {
  int code, signal;
  std::string out, err;
  [[nodiscard]] bool says(std::string_view text) const { return err.find(text) != std::string::npos; }
};
inline outcome run(std::vector<std::string> arguments, std::string_view input = {}, limits const& most = {}) {
  running program{std::move(arguments), input, most};
  auto const [code, signal] = program.wait(std::chrono::seconds{60});
  return {code, signal, program.out(), program.err()};
}

/// One tensor of a file as the header lists it, with its bytes.
struct stored_tensor {
  std::string type;
  std::vector<std::int64_t> shape;
  std::string data;
  friend bool operator==(stored_tensor const&, stored_tensor const&) = default;
};
/// A safetensors file by the format's own words: length, header, data.
inline std::map<std::string, stored_tensor> read_tensors(files::path const& path, bool with_data = true) {
  std::ifstream in{path, std::ios::binary};
  std::uint64_t length = 0;
  in.read(reinterpret_cast<char*>(&length), 8);
  std::string header(length, ' ');
  in.read(header.data(), static_cast<std::streamsize>(length));
  auto const parsed = flatshard::parse_json(header).value();
  std::map<std::string, stored_tensor> all;
  for (auto const& m : parsed.value_of_root().members()) {
    if (m.key == "__metadata__") continue;
    auto& t = all[m.key];
    t.type = m.held["dtype"].text();
    for (auto const& d : m.held["shape"].elements()) t.shape.push_back(d.integer().value());
    auto const at = m.held["data_offsets"].elements();
    if (with_data) {
      t.data.resize(static_cast<std::size_t>(at[1].integer().value() - at[0].integer().value()));
      in.seekg(static_cast<std::streamoff>(8 + length) + at[0].integer().value());
      in.read(t.data.data(), static_cast<std::streamsize>(t.data.size()));
      if (!in) throw std::runtime_error{"short file"};
    }
  }
  return all;
}
/// All tensors of a checkpoint directory, through the index if there is one.
inline std::map<std::string, stored_tensor> read_checkpoint(files::path const& directory, bool with_data = true) {
  auto const index = directory / "model.safetensors.index.json";
  if (!files::exists(index)) return read_tensors(directory / "model.safetensors", with_data);
  std::map<std::string, std::map<std::string, stored_tensor>> parts;
  std::map<std::string, stored_tensor> all;
  auto const parsed = flatshard::parse_file(index.string()).value();
  for (auto const& m : parsed["weight_map"]->members()) {
    auto const file = std::string{m.held.text()};
    if (!parts.contains(file)) parts[file] = read_tensors(directory / file, with_data);
    all[m.key] = parts[file].at(m.key);
  }
  return all;
}
inline std::uint64_t elements_of(std::map<std::string, stored_tensor> const& all) {
  std::uint64_t n = 0;
  for (auto const& [name, t] : all) {
    std::uint64_t one = 1;
    for (auto const d : t.shape) one *= static_cast<std::uint64_t>(d);
    n += one;
  }
  return n;
}
/// Bytes of all files of a directory.
inline std::uint64_t bytes_in(files::path const& directory) {
  std::uint64_t n = 0;
  for (auto const& entry : files::directory_iterator{directory}) n += entry.file_size();
  return n;
}

}  // namespace tool_test
