// SPDX-License-Identifier: Apache-2.0
/// Casts and packs on a GPU, the driver's copy of as many bytes and cub::DeviceTransform of the toolkit, in turns on
/// the same memory. Results are checked before they are timed. A sample is a graph of 20 calls between two events; the
/// copy comes first and last. Prints one line a call: row/side, seconds (the median of the samples), bytes read and
/// written. Without a device it says so in one line and ends with 77. The long tests compile it; no GPU has run it yet.
///
///     device_bench [ELEMENTS [SAMPLES]]
#include "device_stream.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cuda.hpp>
#include <flatshard/kernels/element.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>

#include <algorithm>
#include <bit>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cub/device/device_transform.cuh>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

using namespace flatshard;
using namespace flatshard::kernels;
using bench::device_stream;
using bench::must;

namespace {

template <class T>
class memory {
 public:
  explicit memory(std::size_t n) : n_{n} { must(cudaMalloc(&data_, n * sizeof(T)), "cudaMalloc"); }
  memory(std::vector<T> const& values) : memory{values.size()} {
    must(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  memory(memory const&) = delete;
  ~memory() { static_cast<void>(cudaFree(data_)); }
  [[nodiscard]] std::span<T> span() const { return {data_, n_}; }
  [[nodiscard]] std::byte* bytes() const { return reinterpret_cast<std::byte*>(data_); }
  /// What no result is.
  void poison() const { must(cudaMemset(data_, 0x7F, n_ * sizeof(T)), "cudaMemset"); }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> found(n_);
    must(cudaMemcpy(found.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return found;
  }

 private:
  T* data_{};
  std::size_t n_;
};

template <class T>
std::vector<T> some_values(std::size_t n, std::uint32_t seed) {
  std::vector<T> x(n);
  for (std::size_t i = 0; i < n; ++i) {
    auto const b = static_cast<std::uint32_t>(i) * 2654435761u + seed;
    x[i] = narrow<T>(static_cast<float>(static_cast<std::int32_t>(b)) * 0x1p-31f);
  }
  return x;
}
template <class T>
bool same(T a, T b) {
  if constexpr (std::same_as<T, float>)
    return a == b;
  else
    return a.bits == b.bits;
}

/// One way to do what a row does.
struct side {
  char const* name;
  std::function<void()> call;
};

/// 20 calls as one graph, so that the host's part is not measured.
class batch {
 public:
  static constexpr int calls = 20;
  batch(std::function<void()> const& call, cudaStream_t stream) {
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int i = 0; i < calls; ++i) call();
    cudaGraph_t graph{};
    must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    auto const status = cudaGraphInstantiate(&graph_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    must(status, "cudaGraphInstantiate");
  }
  batch(batch&& other) noexcept : graph_{std::exchange(other.graph_, nullptr)} {}
  ~batch() {
    if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(graph_));
  }
  void enqueue(cudaStream_t stream) const { must(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t graph_{};
};

class event {
 public:
  event() { must(cudaEventCreate(&event_), "cudaEventCreate"); }
  event(event const&) = delete;
  ~event() { static_cast<void>(cudaEventDestroy(event_)); }
  void record(cudaStream_t stream) const { must(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  [[nodiscard]] double seconds_since(event const& start) const {
    float milliseconds = 0;
    must(cudaEventSynchronize(event_), "cudaEventSynchronize");
    must(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_{};
};

/// Times the sides in turns and prints the medians.
void print_row(char const* name, std::size_t moved, std::vector<side> const& sides, int samples,
               device_stream const& stream) {
  std::vector<batch> batches;
  for (auto const& s : sides) {
    s.call();  // libraries may ask the device something on their first call, which a capture does not allow
    stream.wait();
    batches.emplace_back(s.call, stream);
    batches.back().enqueue(stream);
  }
  std::vector<std::vector<double>> seconds(sides.size());
  event const start, end;
  for (int i = 0; i < samples; ++i)
    for (std::size_t s = 0; s < sides.size(); ++s) {
      start.record(stream);
      batches[s].enqueue(stream);
      end.record(stream);
      seconds[s].push_back(end.seconds_since(start) / batch::calls);
    }
  for (std::size_t s = 0; s < sides.size(); ++s) {
    auto const middle = seconds[s].begin() + samples / 2;
    std::nth_element(seconds[s].begin(), middle, seconds[s].end());
    std::printf("%s/%s %.9f %zu\n", name, sides[s].name, *middle, moved);
  }
}

struct to_bf16 {
  __device__ __nv_bfloat16 operator()(float x) const { return __float2bfloat16_rn(x); }
};
struct to_f16 {
  __device__ __half operator()(float x) const { return __float2half_rn(x); }
};
struct of_bf16 {
  __device__ float operator()(__nv_bfloat16 x) const { return __bfloat162float(x); }
};

/// CUDA's own type of the same bits.
__nv_bfloat16* cuda_type(bf16* p) { return reinterpret_cast<__nv_bfloat16*>(p); }
__half* cuda_type(f16* p) { return reinterpret_cast<__half*>(p); }
float* cuda_type(float* p) { return p; }

/// The bytes that a row moves, half of them read and half written.
class copy_buffers {
 public:
  explicit copy_buffers(std::size_t moved) : in_{moved / 2}, out_{moved / 2} {}
  void copy(cudaStream_t stream) const {
    must(cudaMemcpyAsync(out_.span().data(), in_.span().data(), in_.span().size(), cudaMemcpyDeviceToDevice, stream),
         "cudaMemcpyAsync");
  }

 private:
  memory<std::byte> in_, out_;
};

template <class To, class From, class Operation>
void cast_row(char const* name, std::size_t n, int samples, device_stream const& stream) {
  auto const values = some_values<From>(n, 1);
  memory<From> const in{values};
  memory<To> const out{n};
  auto const ours = [&] { cast(out.span(), std::span<From const>{in.span()}, stream); };
  auto const cub = [&] {
    must(cub::DeviceTransform::Transform(cuda_type(in.span().data()), cuda_type(out.span().data()),
                                         static_cast<std::int64_t>(n), Operation{}, stream),
         "cub::DeviceTransform::Transform");
  };
  for (auto const& call : {std::function<void()>{ours}, std::function<void()>{cub}}) {
    out.poison();
    call();
    stream.wait();
    auto const found = out.values();
    for (std::size_t i = 0; i < n; ++i)
      if (!same(found[i], narrow<To>(widen(values[i])))) throw std::runtime_error{std::string{name} + ": wrong result"};
  }
  auto const moved = n * (sizeof(To) + sizeof(From));
  copy_buffers const buffers{moved};
  auto const copy = [&] { buffers.copy(stream); };
  print_row(name, moved, {{"copy", copy}, {"ours", ours}, {"cub", cub}, {"copy_again", copy}}, samples, stream);
}

void stochastic_row(std::size_t n, int samples, device_stream const& stream) {
  auto const values = some_values<float>(n, 1);
  memory<float> const in{values};
  memory<bf16> const out{n};
  random_stream const random{.seed = 1, .step = 2};
  auto const ours = [&] { cast(out.span(), std::span<float const>{in.span()}, random, {}, stream); };
  out.poison();
  ours();
  stream.wait();
  auto const found = out.values();
  for (std::size_t i = 0; i < n; i += 61)
    if (found[i].bits != element::bf16_stochastic(std::bit_cast<std::uint32_t>(values[i]), random, {0, i}))
      throw std::runtime_error{"stochastic: wrong result"};
  copy_buffers const buffers{6 * n};
  auto const copy = [&] { buffers.copy(stream); };
  print_row("stochastic", 6 * n, {{"copy", copy}, {"ours", ours}, {"copy_again", copy}}, samples, stream);
}

/// A layer of Llama-3-8B into a flat bf16 buffer by its table of tiles, and back.
template <class Tensor>
void pack_rows(char const* pack_name, char const* unpack_name, int samples, device_stream const& stream) {
  std::vector<parameter> const layer{{"q", {4096, 4096}},     {"k", {1024, 4096}},     {"v", {1024, 4096}},
                                     {"o", {4096, 4096}},     {"gate", {14336, 4096}}, {"up", {14336, 4096}},
                                     {"down", {4096, 14336}}, {"norm1", {4096}},       {"norm2", {4096}}};
  layout const unit{native{}, layer, world{8}};
  auto const table = make_tiles(gathered_runs(unit));
  memory<std::byte> const table_memory{workspace_size(table).value}, pointer_memory{layer.size() * sizeof(std::byte*)};
  auto const tiles = upload(table, table_memory.span(), stream);
  memory<bf16> const flat{unit.gathered().value};
  std::vector<std::vector<Tensor>> values;
  std::vector<std::unique_ptr<memory<Tensor>>> tensors;
  std::vector<std::byte*> pointers;
  for (std::size_t t = 0; t < unit.size(); ++t) {
    values.push_back(some_values<Tensor>(unit.place_at(t).numel, static_cast<std::uint32_t>(t)));
    tensors.push_back(std::make_unique<memory<Tensor>>(values.back()));
    pointers.push_back(tensors.back()->bytes());
  }
  auto const bases = upload(pointers, dtype_of<Tensor>, pointer_memory.span(), stream);
  buffer_ref const all{flat.bytes(), dtype::bf16, unit.gathered()};
  auto const packed = [&] { pack(all, bases, tiles, stream); };
  auto const unpacked = [&] { unpack(bases, all, tiles, stream); };
  flat.poison();
  packed();
  stream.wait();
  auto const found = flat.values();
  for (std::size_t t = 0; t < unit.size(); ++t)
    for (std::size_t i = 0; i < values[t].size(); i += 61)
      if (!same(found[unit.gathered(t, {i}).value], narrow<bf16>(widen(values[t][i]))))
        throw std::runtime_error{std::string{pack_name} + ": wrong result"};
  for (auto const& one : tensors) one->poison();
  unpacked();
  stream.wait();
  for (std::size_t t = 0; t < unit.size(); ++t) {
    auto const back = tensors[t]->values();
    for (std::size_t i = 0; i < back.size(); i += 61)
      if (!same(back[i], narrow<Tensor>(widen(narrow<bf16>(widen(values[t][i]))))))
        throw std::runtime_error{std::string{unpack_name} + ": wrong result"};
  }
  auto const moved = unit.real().value * (sizeof(bf16) + sizeof(Tensor));
  copy_buffers const buffers{moved};
  auto const copy = [&] { buffers.copy(stream); };
  print_row(pack_name, moved, {{"copy", copy}, {"ours", packed}, {"copy_again", copy}}, samples, stream);
  print_row(unpack_name, moved, {{"copy", copy}, {"ours", unpacked}, {"copy_again", copy}}, samples, stream);
}

/// What one call costs its host: 1000 casts of eight elements, enqueued.
void host_row(device_stream const& stream) {
  memory<float> const in{some_values<float>(8, 1)};
  memory<bf16> const out{8};
  constexpr int calls = 1000;
  std::vector<double> seconds;
  for (int i = 0; i < 21; ++i) {
    auto const start = std::chrono::steady_clock::now();
    for (int k = 0; k < calls; ++k) cast(out.span(), std::span<float const>{in.span()}, stream);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls);
    stream.wait();
  }
  std::nth_element(seconds.begin(), seconds.begin() + 10, seconds.end());
  std::printf("launch/ours %.9f 48\n", seconds[10]);
}

void measure(std::size_t n, int samples) {
  device_stream const stream;
  cast_row<bf16, float, to_bf16>("f32_to_bf16", n, samples, stream);
  cast_row<float, bf16, of_bf16>("bf16_to_f32", n, samples, stream);
  cast_row<f16, float, to_f16>("f32_to_f16", n, samples, stream);
  stochastic_row(n, samples, stream);
  pack_rows<float>("pack_f32_to_bf16", "unpack_bf16_to_f32", samples, stream);
  pack_rows<bf16>("pack_bf16", "unpack_bf16", samples, stream);
  host_row(stream);
}

}  // namespace

int main(int count, char** arguments) try {
  int devices = 0;
  auto status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess && devices == 0) status = cudaErrorNoDevice;
  if (status != cudaSuccess) return std::printf("SKIPPED: no CUDA device (%s)\n", cudaGetErrorName(status)), 77;
  auto const n = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : std::size_t{64} << 20;
  auto const samples = count > 2 ? std::atoi(arguments[2]) : 21;
  if (count > 3 || n == 0 || samples < 1) return std::fprintf(stderr, "usage: device_bench [ELEMENTS [SAMPLES]]\n"), 2;
  measure(n, samples);
  return 0;
} catch (std::exception const& e) {
  std::fprintf(stderr, "device_bench: %s\n", e.what());
  return 1;
}
