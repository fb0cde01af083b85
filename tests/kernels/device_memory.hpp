// SPDX-License-Identifier: Apache-2.0
/// Streams and device memory of tests; every call checked.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/kernels/cuda.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace device_memory {

inline void must(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error{std::string{"test: "} + cudaGetErrorName(status)};
}

class test_stream {
 public:
  test_stream() { must(cudaStreamCreate(&stream_)); }
  test_stream(test_stream const&) = delete;
  ~test_stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  operator cudaStream_t() const { return stream_; }
  operator flatshard::kernels::stream_ref() const { return stream_; }
  void wait() const { must(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_{};
};

/// n elements of device memory, uninitialised.
template <class T>
class array {
 public:
  explicit array(std::size_t n) : size_{n} { must(cudaMalloc(&data_, n * sizeof(T))); }
  array(std::vector<T> const& values, test_stream const& stream) : array{values.size()} { put(values, stream); }
  array(array&& other) noexcept : data_{std::exchange(other.data_, nullptr)}, size_{other.size_} {}
  ~array() { static_cast<void>(cudaFree(data_)); }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::span<T> span() const { return {data_, size_}; }
  [[nodiscard]] std::span<T> part(std::size_t first, std::size_t n) const { return span().subspan(first, n); }
  void put(std::vector<T> const& values, test_stream const& stream) const {
    if (values.empty()) return;
    must(cudaMemcpyAsync(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream));
    stream.wait();
  }
  void fill(int byte, test_stream const& stream) const {
    if (size_ > 0) must(cudaMemsetAsync(data_, byte, size_ * sizeof(T), stream));
  }
  [[nodiscard]] std::vector<T> get(test_stream const& stream) const {
    std::vector<T> values(size_);
    if (size_ > 0) {
      must(cudaMemcpyAsync(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost, stream));
      stream.wait();
    }
    return values;
  }

 private:
  T* data_{};
  std::size_t size_;
};

template <class T>
flatshard::buffer_ref view(std::span<T> s) {
  return {reinterpret_cast<std::byte*>(const_cast<std::remove_const_t<T>*>(s.data())),
          flatshard::dtype_of<std::remove_const_t<T>>, flatshard::elements{s.size()}};
}
template <class T>
flatshard::buffer_ref view(std::vector<T> const& v) {
  return view(std::span<T const>{v});
}
template <class T>
flatshard::buffer_ref view(array<T> const& a) {
  return view(a.span());
}

/// Values of at most 4, of both signs, that T holds.
template <class T>
std::vector<T> moderate(std::size_t n, std::mt19937& random) {
  std::vector<T> out(n);
  for (auto& x : out) {
    auto const v = static_cast<float>(static_cast<std::int32_t>(random())) * 0x1p-29f;
    if constexpr (std::same_as<T, float>)
      x = v;
    else
      x = flatshard::narrow<T>(v);
  }
  return out;
}

/// Elements whose bits differ.
template <class T>
std::size_t differing(std::vector<T> const& a, std::vector<T> const& b) {
  if (a.size() != b.size()) return a.size() + b.size();
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < a.size(); ++i) wrong += std::memcmp(&a[i], &b[i], sizeof(T)) != 0;
  return wrong;
}

}  // namespace device_memory
