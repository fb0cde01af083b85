// SPDX-License-Identifier: Apache-2.0
/// What kernels need beyond C++, by name: wide accesses, packed conversions, ordered flags, time. Each has its PTX for
/// nvcc and its plain meaning for a host compiler that runs device code in tests.
#pragma once

#include <flatshard/kernels/element.hpp>

#include <cstdint>

#include <cuda_runtime.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {

#if !defined(__CUDACC__)
/// Given by whoever runs device code on a host.
namespace on_host {
void* block_memory();         ///< the dynamic shared memory of the running block
void relax();                 ///< lets other threads run
std::uint64_t nanoseconds();  ///< a clock
}  // namespace on_host
#endif

namespace {

/// 16 bytes.
struct alignas(16) four_words {
  std::uint32_t w[4];
};

/// 16 bytes of memory that no one writes while the kernel runs, past the first cache.
__device__ inline four_words load_once(void const* p) {
  four_words x;
#if defined(__CUDACC__)
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
               : "l"(p));
#else
  x = *static_cast<four_words const*>(p);
#endif
  return x;
}
/// The same, before any later store: what no one writes may otherwise be read when it is needed, behind stores.
__device__ inline four_words load_ahead(void const* p) {
  four_words x;
#if defined(__CUDACC__)
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
               : "l"(p)
               : "memory");
#else
  x = *static_cast<four_words const*>(p);
#endif
  return x;
}
/// 16 bytes of memory that other ranks wrote before a barrier, or that the kernel itself writes.
__device__ inline four_words load_words(void const* p) {
  four_words x;
#if defined(__CUDACC__)
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
               : "l"(p)
               : "memory");
#else
  x = *static_cast<four_words const*>(p);
#endif
  return x;
}
__device__ inline void store_words(void* p, four_words const& x) {
#if defined(__CUDACC__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.w[0]), "r"(x.w[1]), "r"(x.w[2]), "r"(x.w[3])
               : "memory");
#else
  *static_cast<four_words*>(p) = x;
#endif
}

__device__ inline std::uint32_t bits_of(float x) {
#if defined(__CUDACC__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(std::uint32_t, x);
#endif
}
__device__ inline float of_bits(std::uint32_t b) {
#if defined(__CUDACC__)
  return __uint_as_float(b);
#else
  return __builtin_bit_cast(float, b);
#endif
}

/// Two conversions to nearest even, `low` in the low half; NaN becomes 0x7FFF.
__device__ inline std::uint32_t bf16_pair(float low, float high) {
#if defined(__CUDACC__)
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return element::bf16_of(bits_of(low)) | std::uint32_t{element::bf16_of(bits_of(high))} << 16;
#endif
}
__device__ inline std::uint32_t f16_pair(float low, float high) {
#if defined(__CUDACC__)
  std::uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return element::f16_of(bits_of(low)) | std::uint32_t{element::f16_of(bits_of(high))} << 16;
#endif
}
/// fp32 of an fp16; NaN becomes 0x7FFFFFFF whatever the hardware makes of it.
__device__ inline float of_f16(std::uint16_t h) {
#if defined(__CUDACC__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return (h & 0x7FFFu) > 0x7C00u ? of_bits(0x7FFFFFFFu) : x;
#else
  return of_bits(element::of_f16(h));
#endif
}

/// One rounding each, never fused.
__device__ inline float add(float a, float b) {
#if defined(__CUDACC__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
__device__ inline float multiply(float a, float b) {
#if defined(__CUDACC__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

/// What this thread wrote is seen before what it writes next, by every rank.
__device__ inline void fence() {
#if defined(__CUDACC__)
  __threadfence_system();
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
__device__ inline void store_release(std::uint32_t* p, std::uint32_t x) {
#if defined(__CUDACC__)
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
#else
  __atomic_store_n(p, x, __ATOMIC_RELEASE);
#endif
}
__device__ inline std::uint32_t load_acquire(std::uint32_t const* p) {
#if defined(__CUDACC__)
  std::uint32_t x;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
#else
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
#endif
}
/// True for the first caller.
__device__ inline bool claim(std::uint32_t* p) {
#if defined(__CUDACC__)
  return atomicExch(p, 1u) == 0;
#else
  return __atomic_exchange_n(p, 1u, __ATOMIC_ACQ_REL) == 0;
#endif
}
/// Adds a count that is read when the kernel has ended.
__device__ inline void add_to(std::uint64_t* p, std::uint64_t x) {
#if defined(__CUDACC__)
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
#else
  __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
#endif
}
__device__ inline std::uint64_t nanoseconds() {
#if defined(__CUDACC__)
  std::uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
#else
  return on_host::nanoseconds();
#endif
}
/// One turn of a loop that waits.
__device__ inline void relax() {
#if defined(__CUDACC__)
  __nanosleep(64);
#else
  on_host::relax();
#endif
}
/// The dynamic shared memory of the block.
template <class T>
__device__ inline T* block_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(on_host::block_memory());
#endif
}

}  // namespace
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
