// SPDX-License-Identifier: Apache-2.0
#include "make_model.hpp"

#include "architectures.hpp"
#include "arguments.hpp"
#include "noted_signals.hpp"
#include "random_weights.hpp"
#include "report.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/initial_values.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/safetensors_writer.hpp>
#include <flatshard/unfinished_folder.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tool {
namespace {

namespace files = std::filesystem;
using flatshard::bf16;

struct model_request {
  std::string directory, architecture, size;
  std::uint64_t file_count = 1, seed = 0;
  bool sparse = false;
};

[[noreturn]] void fail(std::string_view what, files::path const& path) {
  throw failure{fmt::format("{} {}: {}", what, one_line(path.string()), std::strerror(errno))};
}

/// A new file, written at positions by several threads.
class new_file {
 public:
  explicit new_file(files::path path)
      : path_{std::move(path)}, descriptor_{::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)} {
    if (descriptor_ < 0) fail("cannot create", path_);
  }
  new_file(new_file const&) = delete;
  new_file& operator=(new_file const&) = delete;
  ~new_file() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  void resize(std::uint64_t size) {
    if (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0) fail("cannot size", path_);
  }
  void write_at(std::span<std::byte const> data, std::uint64_t at) const {
    while (!data.empty()) {
      auto const n = ::pwrite(descriptor_, data.data(), data.size(), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("cannot write", path_);
      data = data.subspan(static_cast<std::size_t>(n));
      at += static_cast<std::uint64_t>(n);
    }
  }
  void write_at(std::string_view text, std::uint64_t at) const { write_at(std::as_bytes(std::span{text}), at); }
  /// Some file systems report a full disk only here.
  void close() {
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot write", path_);
  }

 private:
  files::path path_;
  int descriptor_;
};

struct part {
  std::string file_name;
  std::vector<tensor_shape> tensors;
  std::string header;                ///< length and text of the safetensors header
  std::vector<std::uint64_t> begin;  ///< of each tensor, in the file
  std::uint64_t size{};
};

constexpr std::uint64_t element_bytes = 2;

/// Splits the tensors, in their order, into files of about equal size, none of them empty.
std::vector<part> parts_of(std::vector<tensor_shape> all, std::uint64_t count) {
  if (count > all.size())
    throw wrong_usage{fmt::format("--files {} is more than the {} tensors of this model", count, all.size())};
  std::uint64_t left = 0;
  for (auto const& t : all) left += t.numel();
  std::vector<part> parts(count);
  std::size_t next = 0;
  for (std::uint64_t p = 0; p < count; ++p) {
    auto& one = parts[p];
    one.file_name = count == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", p + 1, count);
    auto const share = left / (count - p);
    std::uint64_t taken = 0;
    auto const must_leave = count - p - 1;
    while (all.size() - next > must_leave) {
      auto const n = all[next].numel();
      // One more while the file comes nearer to its share with it than without it.
      if (must_leave != 0 && !one.tensors.empty() && taken + n / 2 > share) break;
      taken += n;
      one.tensors.push_back(std::move(all[next++]));
    }
    left -= taken;
    std::vector<flatshard::tensor_spec> entries;
    for (auto const& t : one.tensors) entries.push_back({t.name, flatshard::dtype::bf16, t.shape});
    std::array<std::pair<std::string, std::string>, 1> const metadata{{{"format", "pt"}}};
    auto const text = flatshard::safetensors_header_text(entries, metadata);
    auto const length = static_cast<std::uint64_t>(text.size());
    for (unsigned byte = 0; byte < 8; ++byte) one.header += static_cast<char>(length >> (8 * byte) & 0xFFu);
    one.header += text;
    auto begin = static_cast<std::uint64_t>(one.header.size());
    for (auto const& t : one.tensors) {
      one.begin.push_back(begin);
      begin += t.numel() * element_bytes;
    }
    one.size = begin;
  }
  return parts;
}

/// Fills all files with all cores; a failing or interrupted thread stops the others.
void write_weights(std::vector<part> const& parts, std::vector<std::unique_ptr<new_file>> const& outputs,
                   std::uint64_t seed, std::uint64_t total) {
  constexpr std::uint64_t chunk = std::uint64_t{1} << 20;  // elements: 2 MiB
  struct piece {
    std::size_t file, tensor;
    std::uint64_t begin, size;
  };
  std::vector<piece> pieces;
  for (std::size_t f = 0; f < parts.size(); ++f)
    for (std::size_t t = 0; t < parts[f].tensors.size(); ++t)
      for (std::uint64_t at = 0, n = parts[f].tensors[t].numel(); at < n; at += chunk)
        pieces.push_back({f, t, at, std::min(chunk, n - at)});
  auto const table = std::make_unique<normal_table>(0.02);
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stop{false};
  std::mutex guard;
  std::condition_variable finished;
  std::size_t running = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 16);
  std::exception_ptr first;
  auto const work = [&] {
    try {
      std::vector<bf16> buffer(static_cast<std::size_t>(chunk));
      for (auto i = next.fetch_add(1); i < pieces.size() && !stop && caught_signal == 0; i = next.fetch_add(1)) {
        auto const& p = pieces[i];
        auto const& tensor = parts[p.file].tensors[p.tensor];
        auto const out = std::span{buffer}.first(static_cast<std::size_t>(p.size));
        switch (tensor.holds) {
          case content::normal: fill_normal(out, flatshard::tensor_key(seed, tensor.name), p.begin, *table); break;
          case content::ones: std::fill(out.begin(), out.end(), flatshard::narrow<bf16>(1)); break;
          case content::zeros: std::fill(out.begin(), out.end(), bf16{}); break;
        }
        outputs[p.file]->write_at(std::as_bytes(out), parts[p.file].begin[p.tensor] + p.begin * element_bytes);
        done += p.size * element_bytes;
      }
    } catch (...) {
      std::scoped_lock const lock{guard};
      if (!first) first = std::current_exception();
      stop = true;
    }
    std::scoped_lock const lock{guard};
    --running;
    finished.notify_all();
  };
  {
    std::vector<std::jthread> threads;
    for (auto n = running; n != 0; --n) threads.emplace_back(work);
    progress bar{"writing weights", total};
    std::unique_lock lock{guard};
    while (running != 0) {
      bar.at(done);
      finished.wait_for(lock, std::chrono::milliseconds{100});
    }
  }
  if (first) std::rethrow_exception(first);
  stop_if_interrupted();
}

void write_text(files::path const& path, std::string_view text) {
  new_file file{path};
  file.write_at(text, 0);
  file.close();
}

void make(model_request const& r) {
  auto const started = std::chrono::steady_clock::now();
  auto const shape = architecture(r.architecture, r.size.empty() ? 0 : *parse_size(r.size));
  auto const parts = parts_of(tensors(shape), r.file_count);
  std::uint64_t parameters = 0, file_bytes = 0;
  for (auto const& p : parts) {
    file_bytes += p.size;
    for (auto const& t : p.tensors) parameters += t.numel();
  }

  auto target = files::path{r.directory}.lexically_normal();
  if (!target.has_filename()) target = target.parent_path();
  if (target.empty()) throw failure{"the target directory has no name"};
  if (files::exists(files::symlink_status(target)))
    throw failure{fmt::format("{} exists already; nothing was changed", one_line(target.string()))};
  auto const parent = target.has_parent_path() ? target.parent_path() : files::path{"."};
  std::error_code error;
  if (!files::exists(parent, error)) {
    errno = error ? error.value() : ENOENT;
    fail("cannot create a directory in", parent);
  }
  if (auto const space = files::space(parent, error); !error && !r.sparse && space.available < file_bytes)
    throw failure{fmt::format("{} has {} free, the model takes {}", one_line(parent.string()), human(space.available),
                              human(file_bytes))};

  flatshard::unfinished_folder directory{target};
  std::vector<std::unique_ptr<new_file>> outputs;
  for (auto const& p : parts) {
    outputs.push_back(std::make_unique<new_file>(directory.path() / p.file_name));
    outputs.back()->resize(p.size);
  }
  if (!r.sparse) write_weights(parts, outputs, r.seed, parameters * element_bytes);
  // Headers after the weights and config.json last: a run that was killed leaves nothing that reads as a model.
  for (std::size_t f = 0; f < parts.size(); ++f) {
    outputs[f]->write_at(parts[f].header, 0);
    outputs[f]->close();
  }
  if (parts.size() > 1) {
    std::vector<std::pair<std::string, std::string>> map;
    for (auto const& p : parts)
      for (auto const& t : p.tensors) map.emplace_back(t.name, p.file_name);
    flatshard::write_index(directory.path() / "model.safetensors.index.json", std::move(map),
                           {parameters * element_bytes});
  }
  write_text(directory.path() / "config.json", config_text(shape));
  stop_if_interrupted();
  directory.finish();

  auto const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  auto report =
      fmt::format("{}: {}, {} parameters in {} file{}, {} ({} bytes){}, {:.2f} s\n", one_line(target.string()),
                  r.architecture, grouped(parameters), parts.size(), parts.size() == 1 ? "" : "s", human(file_bytes),
                  grouped(file_bytes), r.sparse ? " of holes" : fmt::format(", seed {}", r.seed), seconds);
  report +=
      fmt::format("  hidden {}, intermediate {}, {} layers, {} heads, {} kv heads, head_dim {}, vocabulary {}{}\n",
                  shape.hidden, shape.intermediate, shape.layers, shape.heads, shape.kv_heads, shape.head_dim,
                  shape.vocabulary, shape.tied ? ", tied" : "");
  print_report_of(one_line(target.string()), report);
}

}  // namespace

void add_make_model(CLI::App& app, int& code) {
  auto const r = std::make_shared<model_request>();
  auto* const command = app.add_subcommand("make-model", "Write a checkpoint of given shapes with random bf16 weights");
  command->add_option("DIR", r->directory, "Directory to make; must not exist")
      ->required()
      ->check(not_empty())
      ->type_name("");
  auto const names = architecture_names();
  auto const known =
      CLI::Validator{[names](std::string& text) -> std::string {
                       if (std::find(names.begin(), names.end(), text) != names.end()) return {};
                       return fmt::format("no such architecture: '{}'; known: {}", text, fmt::join(names, ", "));
                     },
                     "", "architecture"};
  command->add_option("--arch", r->architecture, fmt::format("One of {}", fmt::join(names, ", ")))
      ->required()
      ->check(known)
      ->type_name("NAME");
  command
      ->add_option("--size", r->size,
                   "Of llama, qwen2, qwen3: the checkpoint fits into it and fills 95 % of it or more "
                   "(K, M, G, T: powers of 1024; KB, MB, ...: of 1000; default 2G)")
      ->check(model_size())
      ->type_name("SIZE");
  command->add_option("--files", r->file_count, "Number of safetensors files; several get an index (default 1)")
      ->check(whole_number(1, 99999))
      ->type_name("N");
  command->add_option("--seed", r->seed, "Seed of the weights (default 0)")
      ->check(whole_number(0, UINT64_MAX))
      ->type_name("S");
  command->add_flag("--sparse", r->sparse, "Headers over holes: right in shape and size, all values 0, no disk space");
  command->callback([r, &code] {
    try {
      noted_signals const noted;
      make(*r);
      code = exit_fine;
    } catch (interrupted const&) {
      end_by_signal("flatshard");
    }
  });
}

}  // namespace tool
