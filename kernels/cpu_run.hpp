// SPDX-License-Identifier: Apache-2.0
/// Casts and sums by dtype over plain pointers: what the public functions and the rank threads share.
#pragma once

#include "cpu_table.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/cpu.hpp>

#include <cstddef>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// out [n] of `to` from in [n] of `from`; equal types, and any others of whole bytes, are copied.
void run_cast(void* out, dtype to, void const* in, dtype from, std::size_t n, work_options const&);
/// bf16 out [n] from fp32 in [n], stochastically rounded; `first` is the place of the first element.
void run_stochastic_cast(void* out, float const* in, std::size_t n, random_stream const& random, element_origin first,
                         work_options const&);
/// out [n] of `to` from in [ranks][n] of `wire`; `to` is fp32 or `wire`. Allocates nothing for one thread and up to 256
/// ranks.
void run_sum(void* out, dtype to, void const* const* in, std::size_t ranks, dtype wire, std::size_t n,
             reduce_options const&, work_options const&);
/// The loops that these options allow on this CPU.
[[nodiscard]] kernel_table const& table(instruction_set at_most);
/// The cast between two types, or null.
[[nodiscard]] cast_loop loop_of(kernel_table const&, dtype to, dtype from);
/// How loops treat memory that is so large: `streaming`, `prefetching`.
[[nodiscard]] unsigned treatment(work_options const&, std::size_t out_bytes, std::size_t in_bytes);
/// How many threads n elements are worth, at most as many as the options allow.
[[nodiscard]] std::size_t worthy_threads(std::size_t n, work_options const&);
/// Whether outputs of so many bytes are better stored past the caches.
[[nodiscard]] bool exceeds_caches(std::size_t bytes);
/// How the parts of an output of so many bytes are stored.
[[nodiscard]] reuse hint(std::size_t bytes);

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
