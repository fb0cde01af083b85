// SPDX-License-Identifier: Apache-2.0
/// The yardstick of loading: one process reads files once, with 8 MiB positioned reads, into fresh memory.
///
///     read_once [--large-pages] FILE...       prints seconds, bytes, bytes per second
#include <flatshard/file.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <new>
#include <span>
#include <string_view>

#include <sys/mman.h>

int main(int count, char** arguments) try {
  bool large = false;
  std::size_t total = 0;
  auto const started = std::chrono::steady_clock::now();
  for (int i = 1; i < count; ++i) {
    if (std::string_view{arguments[i]} == "--large-pages") {
      large = true;
      continue;
    }
    auto const file = flatshard::input_file::open(arguments[i]).value();
    auto const size = file.size().value;
    auto* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc{};
    ::madvise(memory, size, large ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    std::span const all{static_cast<std::byte*>(memory), size};
    constexpr std::size_t part = std::size_t{8} << 20;
    for (std::size_t at = 0; at < size; at += part)
      file.read_at(all.subspan(at, std::min(part, size - at)), {at}).value();
    total += size;
  }
  auto const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  std::printf("%.4f s  %zu bytes  %.2f GB/s\n", seconds, total, static_cast<double>(total) / seconds / 1e9);
  return total == 0 ? 2 : 0;
} catch (std::exception const& e) {
  std::fprintf(stderr, "read_once: %s\n", e.what());
  return 1;
}
