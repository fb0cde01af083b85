// SPDX-License-Identifier: Apache-2.0
// Loading a checkpoint into process ranks, against one process that reads the file once with 8 MiB preads into fresh
// memory. FLATSHARD_BENCH_BYTES=2000000000 for the size of the promise (default 128 MB; the folder is TMPDIR).
// Every load is checked against the file before it is timed. Ranks run at once; the time is that of the slowest.
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/segment_loader.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace flatshard;
namespace fs = std::filesystem;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// A line of /proc/self/status. Units: bytes.
std::size_t status(std::string const& key) {
  std::ifstream in{"/proc/self/status"};
  std::string word;
  while (in >> word)
    if (word == key) {
      std::size_t kib = 0;
      in >> kib;
      return kib << 10;
    }
  return 0;
}

/// A Llama-shaped bf16 checkpoint of about the wanted size, removed at the end.
struct checkpoint {
  fs::path path = fs::temp_directory_path() / ("flatshard-bench-" + std::to_string(::getpid()));
  std::size_t size = 0;
  checkpoint() {
    fs::create_directories(path);
    auto const* wanted_text = std::getenv("FLATSHARD_BENCH_BYTES");
    auto const wanted = wanted_text ? std::strtoull(wanted_text, nullptr, 10) : 128'000'000ull;
    std::size_t const layers = 16, head = 8000;
    std::size_t h = 64;  // 12 h^2 a layer and two tables of 8000 rows
    while (2 * (layers * 12 * (h + 64) * (h + 64) + 2 * head * (h + 64)) <= wanted) h += 64;
    std::vector<tensor_spec> tensors{{"model.embed_tokens.weight", dtype::bf16, {head, h}},
                                     {"lm_head.weight", dtype::bf16, {head, h}},
                                     {"model.norm.weight", dtype::bf16, {h}}};
    for (std::size_t l = 0; l < layers; ++l) {
      auto const in = "model.layers." + std::to_string(l) + '.';
      for (auto const* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
        tensors.push_back({in + "self_attn." + name + ".weight", dtype::bf16, {h, h}});
      tensors.push_back({in + "mlp.gate_proj.weight", dtype::bf16, {8 * h / 3, h}});
      tensors.push_back({in + "mlp.up_proj.weight", dtype::bf16, {8 * h / 3, h}});
      tensors.push_back({in + "mlp.down_proj.weight", dtype::bf16, {h, 8 * h / 3}});
      for (auto const* name : {"input_layernorm", "post_attention_layernorm"})
        tensors.push_back({in + name + ".weight", dtype::bf16, {h}});
    }
    safetensors_writer out{path / "model.safetensors", tensors};
    std::vector<std::uint16_t> block(1 << 20);
    std::uint64_t state = 1;
    for (auto const& t : out.tensors())
      for (std::size_t left = flatshard::size_of(t).value; left > 0;) {
        for (auto& x : block) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          x = static_cast<std::uint16_t>(0x3C00u | (state >> 54) | (state >> 40 & 0x8000u));
        }
        auto const part = std::min(left, 2 * block.size());
        out.write(t.name, std::as_bytes(std::span{block}).first(part));
        left -= part;
      }
    out.commit();
    size = fs::file_size(path / "model.safetensors");
  }
  ~checkpoint() { fs::remove_all(path); }
};
checkpoint const* model = nullptr;

struct vector_cast {
  template <class To, class From>
  requires requires(std::span<To> out, std::span<From const> in) { kernels::cast(out, in); }
  void operator()(std::span<To> out, std::span<From const> in) const {
    kernels::cast(out, in, {.output = kernels::reuse::later});
  }
};

struct outcome {
  double begin, end;
  std::size_t read, shard, baseline, peak, requests;
  bool right;
};

/// Runs one function in `w` processes at once.
std::vector<outcome> in_processes(std::size_t w, std::function<outcome(std::size_t)> const& rank_main) {
  auto* const shared = static_cast<outcome*>(
      ::mmap(nullptr, w * sizeof(outcome), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  int start[2];
  if (shared == MAP_FAILED || ::pipe(start) != 0) std::abort();
  std::vector<pid_t> children;
  for (std::size_t r = 0; r < w; ++r) {
    auto const child = ::fork();
    if (child == 0) {
      char go;
      ::close(start[1]);
      static_cast<void>(!::read(start[0], &go, 1));  // until the parent closes its end
      shared[r] = rank_main(r);
      ::_exit(0);
    }
    children.push_back(child);
  }
  ::close(start[0]);
  ::usleep(20000);
  ::close(start[1]);
  for (auto const child : children) {
    int how = 0;
    if (::waitpid(child, &how, 0) != child || how != 0) std::abort();
  }
  std::vector<outcome> all(shared, shared + w);
  ::munmap(shared, w * sizeof(outcome));
  return all;
}

/// Loads everything on rank `r` of `w`; with `check`, compares each piece with the file.
template <class Policy>
outcome load_rank(std::size_t r, std::size_t w, dtype storage, load_mode mode, bool check) {
  outcome out{};
  out.baseline = status("VmHWM:");
  out.begin = now();
  auto const from = open_checkpoint(model->path).value();
  auto const units = model_units(from, "llama").value();
  std::vector<listed_layout<Policy>> layouts;
  for (auto const& unit : units) layouts.emplace_back(Policy{}, std::span{unit.parameters}, world{w});
  bytes total;
  for (auto const& l : layouts) total += flatshard::size_of(l.segment(), storage);
  kernels::page_buffer memory{total, kernels::page_size::large};
  std::vector<segment_job<listed_layout<Policy>>> jobs;
  std::size_t at = 0;
  for (auto const& l : layouts) {
    auto const n = flatshard::size_of(l.segment(), storage).value;
    jobs.push_back({&l, rank_at(r), {memory.span().subspan(at, n), storage}});
    at += n;
  }
  load_options options;
  options.mode = mode;
  auto const report = load_segments(from, jobs, options, vector_cast{}).value();
  out.end = now();
  out.read = report.bytes_read.value;
  out.requests = report.requests;
  out.shard = total.value;
  out.peak = status("VmHWM:");
  out.right = true;
  if (check)
    for (std::size_t u = 0; u < jobs.size(); ++u)
      for (auto const& piece : layouts[u].pieces(rank_at(r))) {
        auto const i = *from.find(units[u].parameters[piece.tensor].name);
        std::vector<bf16> file(piece.size().value);
        auto const data = std::as_writable_bytes(std::span{file});
        if (!from.files()[0].file.read_at(data, from.file_offset(i) + bytes{2 * piece.begin.value})) out.right = false;
        auto const* const segment = jobs[u].to.storage.data();
        for (std::size_t k = 0; k < file.size() && out.right; ++k) {
          if (storage == dtype::bf16) {
            out.right = std::memcmp(segment + 2 * (piece.local.value + k), &file[k], 2) == 0;
          } else {
            auto const wide = widen(file[k]);
            out.right = std::memcmp(segment + 4 * (piece.local.value + k), &wide, 4) == 0;
          }
        }
      }
  return out;
}

void set(benchmark::State& state, std::vector<outcome> const& ranks) {
  double begin = ranks[0].begin, end = ranks[0].end;
  std::size_t read = 0, over = 0, requests = 0;
  for (auto const& r : ranks) {
    begin = std::min(begin, r.begin);
    end = std::max(end, r.end);
    read += r.read;
    requests += r.requests;
    over = std::max(over, r.peak - std::min(r.peak, r.baseline + r.shard));
  }
  state.SetIterationTime(end - begin);
  state.counters["file_MB"] = static_cast<double>(model->size) / 1e6;
  state.counters["read/file"] = static_cast<double>(read) / static_cast<double>(model->size);
  state.counters["requests"] = static_cast<double>(requests);
  state.counters["over_shard_MiB"] = static_cast<double>(over) / (1 << 20);
}

void read_once(benchmark::State& state) {
  for (auto _ : state)
    set(state, in_processes(1, [](std::size_t) {
          outcome out{};
          out.baseline = status("VmHWM:");
          out.begin = now();
          auto const file = input_file::open(model->path / "model.safetensors").value();
          auto* const memory = static_cast<std::byte*>(std::malloc(model->size));
          for (std::size_t at = 0; at < model->size; at += 8 << 20) {
            auto const part = std::min<std::size_t>(8 << 20, model->size - at);
            if (!file.read_at({memory + at, part}, {at})) std::abort();
          }
          benchmark::DoNotOptimize(memory);
          out.end = now();
          out.read = out.shard = model->size;
          out.requests = (model->size >> 23) + 1;
          out.peak = status("VmHWM:");
          return out;
        }));
  state.SetBytesProcessed(static_cast<std::int64_t>(model->size) * state.iterations());
}

template <class Policy>
void load(benchmark::State& state, std::size_t w, dtype storage, load_mode mode) {
  for (auto const& r :
       in_processes(w, [&](std::size_t rank) { return load_rank<Policy>(rank, w, storage, mode, true); }))
    if (!r.right) return state.SkipWithError("a rank loaded other values than the file has");
  for (auto _ : state)
    set(state, in_processes(w, [&](std::size_t rank) { return load_rank<Policy>(rank, w, storage, mode, false); }));
  state.SetBytesProcessed(static_cast<std::int64_t>(model->size) * state.iterations());
}

}  // namespace

int main(int argc, char** argv) {
  checkpoint const made;
  model = &made;
  auto const add = [](char const* name, auto f) {
    benchmark::RegisterBenchmark(name, f)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(1)
        ->Repetitions(5)
        ->ReportAggregatesOnly(true);
  };
  auto const ranges = load_mode::ranges;
  add("read_once/8MiB", read_once);
  add("load/zero3/4/bf16", [=](auto& s) { load<zero3>(s, 4, dtype::bf16, ranges); });
  add("load/native/4/bf16", [=](auto& s) { load<native>(s, 4, dtype::bf16, ranges); });
  add("load/fsdp2/4/bf16_to_fp32", [=](auto& s) { load<fsdp2>(s, 4, dtype::f32, ranges); });
  add("load/native/4/bf16_to_fp32", [=](auto& s) { load<native>(s, 4, dtype::f32, ranges); });
  add("load/zero3/4/bf16/whole", [=](auto& s) { load<zero3>(s, 4, dtype::bf16, load_mode::whole); });
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
