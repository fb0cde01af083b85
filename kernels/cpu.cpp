// SPDX-License-Identifier: Apache-2.0
/// Chooses the instruction set once, splits large arrays over threads, and owns pages.
#include "cpu_run.hpp"
#include "cpu_table.hpp"

#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sys/mman.h>
#include <unistd.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

instruction_set detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  bool const f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  if (f16c && __builtin_cpu_supports("avx2")) {
    bool const wide =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return wide ? instruction_set::avx512 : instruction_set::avx2;
  }
#endif
  return instruction_set::generic;
}

instruction_set choose() {
  auto const best = detect();
  char const* const wish = std::getenv("FLATSHARD_CPU");
  if (wish == nullptr || *wish == '\0') return best;
  for (auto const level : {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
    if (wish != name(level)) continue;
    if (level > best)
      throw std::runtime_error{"FLATSHARD_CPU=" + std::string{wish} + ", but this CPU has " + std::string{name(best)} +
                               " at most"};
    return level;
  }
  throw std::runtime_error{"FLATSHARD_CPU=" + std::string{wish} + " is none of generic, avx2, avx512"};
}

constexpr std::size_t fetch_from = std::size_t{1} << 20;       // bytes from which inputs come from memory
constexpr std::size_t element_limit = std::size_t{1} << 59;    // the random bits count so far
constexpr std::size_t thread_share = std::size_t{256} * 1024;  // elements that are worth a thread
constexpr std::size_t piece = thread_share / 2;                // elements that a thread takes at once

/// Calls work(first, count) for pieces of n elements that begin on multiples of `piece`. Threads take them in turn, so
/// that one that starts late or runs slower does less; a single thread gets all at once.
template <class Work>
void share_out(std::size_t n, int threads, Work const& work) {
  auto extra = worthy_threads(n, {.threads = threads}) - 1;
  if (extra == 0) return work(0, n);
  std::atomic<std::size_t> next = 0;
  auto const take = [&] {
    for (std::size_t first; (first = next.fetch_add(piece, std::memory_order_relaxed)) < n;)
      work(first, std::min(piece, n - first));
  };
  std::vector<std::jthread> others;
  for (; extra > 0; --extra) others.emplace_back(take);
  take();
}

std::byte* at(void* p, std::size_t i, dtype t) { return static_cast<std::byte*>(p) + i * (bits(t) / 8); }
std::byte const* at(void const* p, std::size_t i, dtype t) {
  return static_cast<std::byte const*>(p) + i * (bits(t) / 8);
}

/// One share of a sum whose result has the wire's type: blocks in fp32 that fit the first cache, then rounded.
void sum_narrow(kernel_table const& t, void* out, dtype type, sum_loop add, sum_job const& job, std::size_t first,
                std::size_t n, unsigned how) {
  constexpr std::size_t block = 2048;
  constexpr std::size_t few = 256;
  alignas(64) std::array<float, block> wide;
  std::array<void const*, few> near_inputs;
  std::vector<void const*> many_inputs(job.ranks > few ? job.ranks : 0);
  auto** const in = job.ranks > few ? many_inputs.data() : near_inputs.data();
  auto part = job;
  part.in = in;
  for (std::size_t done = 0; done < n; done += block) {
    auto const count = std::min(block, n - done);
    for (std::size_t k = 0; k < job.ranks; ++k) in[k] = at(job.in[k], first + done, type);
    if (job.accumulate) loop_of(t, dtype::f32, type)(wide.data(), at(out, first + done, type), count, 0);
    add(wide.data(), part, count, how & prefetching);
    loop_of(t, type, dtype::f32)(at(out, first + done, type), wide.data(), count, how & streaming);
  }
}

}  // namespace

bytes last_level_cache() {
  static bytes const size = [] {
    for (int const index : {4, 3, 2}) {
      std::ifstream in{"/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size"};
      if (std::size_t kibibytes = 0; in >> kibibytes && kibibytes > 0) return bytes{kibibytes << 10};
    }
    for (int const level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE})
      if (auto const found = sysconf(level); found > 0) return bytes{static_cast<std::size_t>(found)};
    return bytes{std::size_t{32} << 20};
  }();
  return size;
}

std::string_view name(instruction_set s) {
  switch (s) {
    case instruction_set::generic: return "generic";
    case instruction_set::avx2: return "avx2";
    case instruction_set::avx512: return "avx512";
  }
  return "";
}

instruction_set active_instruction_set() {
  static instruction_set const chosen = choose();
  return chosen;
}

bool supported(instruction_set s) { return s <= detect(); }

kernel_table const& table(instruction_set at_most) {
#if defined(__x86_64__)
  switch (std::min(at_most, active_instruction_set())) {
    case instruction_set::avx512: return avx512_kernels;
    case instruction_set::avx2: return avx2_kernels;
    case instruction_set::generic: break;
  }
#else
  static_cast<void>(at_most);
#endif
  return generic_kernels;
}

unsigned treatment(work_options const& o, std::size_t out_bytes, std::size_t in_bytes) {
  bool const past_caches = o.output == reuse::later || (o.output == reuse::automatic && exceeds_caches(out_bytes));
  return (past_caches ? streaming : 0u) | (out_bytes + in_bytes >= fetch_from ? prefetching : 0u);
}

cast_loop loop_of(kernel_table const& t, dtype to, dtype from) {
  auto const pair = [](dtype a, dtype b) { return static_cast<unsigned>(a) << 8 | static_cast<unsigned>(b); };
  switch (pair(to, from)) {
    case pair(dtype::bf16, dtype::f32): return t.f32_to_bf16;
    case pair(dtype::f16, dtype::f32): return t.f32_to_f16;
    case pair(dtype::f32, dtype::bf16): return t.bf16_to_f32;
    case pair(dtype::f32, dtype::f16): return t.f16_to_f32;
    case pair(dtype::f16, dtype::bf16): return t.bf16_to_f16;
    case pair(dtype::bf16, dtype::f16): return t.f16_to_bf16;
    default: return nullptr;
  }
}

std::size_t worthy_threads(std::size_t n, work_options const& o) {
  return std::clamp<std::size_t>(n / thread_share, 1, static_cast<std::size_t>(std::max(o.threads, 1)));
}

bool exceeds_caches(std::size_t bytes) { return bytes > last_level_cache().value / 2; }

reuse hint(std::size_t bytes) { return exceeds_caches(bytes) ? reuse::later : reuse::soon; }

void run_cast(void* out, dtype to, void const* in, dtype from, std::size_t n, work_options const& options) {
  if (n == 0) return;
  auto const& t = table(options.at_most);
  auto const out_bytes = size_of(elements{n}, to).value;
  auto const how = treatment(options, out_bytes, size_of(elements{n}, from).value);
  if (to == from) {
    return share_out(out_bytes, options.threads, [&](std::size_t first, std::size_t count) {
      t.copy(static_cast<std::byte*>(out) + first, static_cast<std::byte const*>(in) + first, count, how);
    });
  }
  auto const loop = loop_of(t, to, from);
  require(loop != nullptr, "a cast is between fp32, bf16 and fp16");
  share_out(n, options.threads,
            [&](std::size_t first, std::size_t count) { loop(at(out, first, to), at(in, first, from), count, how); });
}

namespace {

count_loop counter_of(kernel_table const& t, dtype to, dtype from) {
  if (from == dtype::f32 && to == dtype::bf16) return t.f32_beyond_bf16;
  if (from == dtype::f32 && to == dtype::f16) return t.f32_beyond_f16;
  if (from == dtype::bf16 && to == dtype::f16) return t.bf16_beyond_f16;
  return nullptr;
}

std::uint64_t run_counting_cast(void* out, dtype to, void const* in, dtype from, std::size_t n,
                                work_options const& options) {
  auto const& t = table(options.at_most);
  auto const count = counter_of(t, to, from);
  require(count != nullptr, "a cast that counts goes from fp32 to bf16 or fp16, or from bf16 to fp16");
  if (n == 0) return 0;
  auto const loop = loop_of(t, to, from);
  auto const how = treatment(options, size_of(elements{n}, to).value, size_of(elements{n}, from).value);
  constexpr std::size_t block = 16 * 1024;  // read again while the second cache holds it
  std::atomic<std::uint64_t> all = 0;
  share_out(n, options.threads, [&](std::size_t first, std::size_t length) {
    std::uint64_t found = 0;
    for (std::size_t done = 0; done < length; done += block) {
      auto const part = std::min(block, length - done);
      auto const* const source = at(in, first + done, from);
      found += count(source, part);
      loop(at(out, first + done, to), source, part, how & streaming);
    }
    all.fetch_add(found, std::memory_order_relaxed);
  });
  return all;
}

}  // namespace

void run_stochastic_cast(void* out, float const* in, std::size_t n, random_stream const& random, element_origin first,
                         work_options const& options) {
  if (n == 0) return;
  require(checked_add(first.element, n) <= element_limit, "an element of a random stream has an index below 2^59");
  auto const loop = table(options.at_most).f32_to_bf16_stochastic;
  auto const how = treatment(options, size_of(elements{n}, dtype::bf16).value, size_of(elements{n}, dtype::f32).value);
  share_out(n, options.threads, [&](std::size_t begin, std::size_t count) {
    loop(at(out, begin, dtype::bf16), in + begin, count, {random, {first.tensor, first.element + begin}}, how);
  });
}

void run_sum(void* out, dtype to, void const* const* in, std::size_t ranks, dtype wire, std::size_t n,
             reduce_options const& options, work_options const& work) {
  if (n == 0) return;
  auto const& t = table(work.at_most);
  auto const add = wire == dtype::bf16 ? t.sum_bf16 : wire == dtype::f16 ? t.sum_f16 : t.sum_f32;
  auto const how = treatment(work, size_of(elements{n}, to).value, size_of(elements{n}, wire).value * ranks);
  share_out(n, work.threads, [&](std::size_t first, std::size_t count) {
    sum_job job{in, ranks, options.scale, options.accumulate, options.order == sum_order::pairwise};
    if (to != dtype::f32) return sum_narrow(t, out, to, add, job, first, count, how);
    std::vector<void const*> moved;
    if (first > 0) {
      for (std::size_t k = 0; k < ranks; ++k) moved.push_back(at(in[k], first, wire));
      job.in = moved.data();
    }
    add(static_cast<float*>(out) + first, job, count, how);
  });
}

namespace {

template <class To, class From>
void checked_cast(std::span<To> out, std::span<From const> in, work_options const& options) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  run_cast(out.data(), dtype_of<To>, in.data(), dtype_of<From>, in.size(), options);
}

template <class To, class From>
std::uint64_t checked_counting_cast(std::span<To> out, std::span<From const> in, work_options const& options) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  return run_counting_cast(out.data(), dtype_of<To>, in.data(), dtype_of<From>, in.size(), options);
}

/// Two buffers of a cast.
void check_buffers(buffer_ref out, buffer_ref in) {
  require(out.count == in.count, "a cast writes as many elements as it reads");
  for (auto const& b : {out, in})
    require(bits(b.type) < 16 || reinterpret_cast<std::uintptr_t>(b.data) % (bits(b.type) / 8) == 0,
            "a buffer must be aligned for its element type");
}

template <class Out, class In>
void checked_sum(std::span<Out> out, std::span<std::span<In const> const> in, reduce_options const& options,
                 work_options const& work) {
  require(!in.empty(), "a sum needs at least one buffer");
  std::vector<void const*> pointers;
  for (auto const& one : in) {
    require(one.size() == out.size(), "a sum adds buffers of the size of its result");
    pointers.push_back(one.data());
  }
  run_sum(out.data(), dtype_of<Out>, pointers.data(), pointers.size(), dtype_of<In>, out.size(), options, work);
}

}  // namespace

void cast(std::span<bf16> out, std::span<float const> in, work_options o) { checked_cast(out, in, o); }
void cast(std::span<f16> out, std::span<float const> in, work_options o) { checked_cast(out, in, o); }
void cast(std::span<float> out, std::span<bf16 const> in, work_options o) { checked_cast(out, in, o); }
void cast(std::span<float> out, std::span<f16 const> in, work_options o) { checked_cast(out, in, o); }
void cast(std::span<f16> out, std::span<bf16 const> in, work_options o) { checked_cast(out, in, o); }
void cast(std::span<bf16> out, std::span<f16 const> in, work_options o) { checked_cast(out, in, o); }

void cast(std::span<bf16> out, std::span<float const> in, random_stream const& random, element_origin first,
          work_options o) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  run_stochastic_cast(out.data(), in.data(), in.size(), random, first, o);
}

void cast(std::span<bf16> out, std::span<float const> in, std::uint64_t& not_finite, work_options o) {
  not_finite += checked_counting_cast(out, in, o);
}
void cast(std::span<f16> out, std::span<float const> in, std::uint64_t& not_finite, work_options o) {
  not_finite += checked_counting_cast(out, in, o);
}
void cast(std::span<f16> out, std::span<bf16 const> in, std::uint64_t& not_finite, work_options o) {
  not_finite += checked_counting_cast(out, in, o);
}
void cast(buffer_ref out, buffer_ref in, std::uint64_t& not_finite, work_options o) {
  check_buffers(out, in);
  not_finite += run_counting_cast(out.data, out.type, in.data, in.type, in.count.value, o);
}

void cast(buffer_ref out, buffer_ref in, work_options o) {
  check_buffers(out, in);
  if (out.type == in.type) return copy_bytes(flatshard::detail::raw(out), flatshard::detail::raw(in), o);
  run_cast(out.data, out.type, in.data, in.type, in.count.value, o);
}

void copy_bytes(std::span<std::byte> out, std::span<std::byte const> in, work_options o) {
  require(out.size() == in.size(), "a copy writes as many bytes as it reads");
  run_cast(out.data(), dtype::u8, in.data(), dtype::u8, in.size(), o);
}

void sum(std::span<float> out, std::span<std::span<float const> const> in, reduce_options o, work_options w) {
  checked_sum(out, in, o, w);
}
void sum(std::span<float> out, std::span<std::span<bf16 const> const> in, reduce_options o, work_options w) {
  checked_sum(out, in, o, w);
}
void sum(std::span<float> out, std::span<std::span<f16 const> const> in, reduce_options o, work_options w) {
  checked_sum(out, in, o, w);
}
void sum(std::span<bf16> out, std::span<std::span<bf16 const> const> in, reduce_options o, work_options w) {
  checked_sum(out, in, o, w);
}
void sum(std::span<f16> out, std::span<std::span<f16 const> const> in, reduce_options o, work_options w) {
  checked_sum(out, in, o, w);
}

double sum_of_squares(std::span<float const> in, work_options o) {
  return table(o.at_most).sum_of_squares(in.data(), in.size());
}

namespace {
constexpr std::size_t large_page = std::size_t{2} << 20;
}

page_buffer::page_buffer(bytes size, page_size pages) {
  if (size.value == 0) return;
  auto const page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  auto const length = round_up(size.value, page);
  auto const reserved = checked_add(length, large_page);
  void* const found = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc{};
  auto* const begin = static_cast<std::byte*>(found);
  auto const head = (large_page - reinterpret_cast<std::uintptr_t>(begin) % large_page) % large_page;
  if (head > 0) munmap(begin, head);
  munmap(begin + head + length, reserved - head - length);
  start_ = begin + head;
  size_ = size.value;
#if defined(MADV_HUGEPAGE)
  if (pages == page_size::large) static_cast<void>(madvise(start_, length, MADV_HUGEPAGE));  // a wish, not a need
#else
  static_cast<void>(pages);
#endif
}

page_buffer::~page_buffer() {
  if (start_ != nullptr) munmap(start_, round_up(size_, static_cast<std::size_t>(sysconf(_SC_PAGESIZE))));
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
