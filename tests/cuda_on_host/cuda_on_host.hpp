// SPDX-License-Identifier: Apache-2.0
/// What tests ask of the emulated device: schedules, failing calls, what it found wrong.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include <cuda_runtime.h>

namespace cuda_on_host {

/// Seeds the order in which threads run, from the next kernel on.
void schedule(std::uint64_t seed);
/// From the next kernel on threads pause at random at barriers and in loops that wait, for up to `most`, so that
/// streams come to each phase in any order; 0: they do not. Gives how many did since the last call.
std::size_t pauses(std::chrono::microseconds most);
/// The n-th call of the runtime from now on, counted from 1, returns `code` and does nothing else; 0: none.
void fail_call(std::size_t n, cudaError_t code);
/// Calls of the runtime so far, and how many of them were allocations.
std::size_t calls();
std::size_t allocations();
/// Blocks of the last kernel that was enqueued, and the multiprocessors that devices say they have.
std::size_t last_blocks();
inline constexpr int multiprocessors = 3;
/// How often this thread called operator new, outside the runtime.
std::size_t heap_allocations();
/// Bytes that are allocated now, streams that exist, and whether a call is still to fail.
std::size_t live_bytes();
std::size_t live_streams();
bool failure_is_due();
/// From now on kernels, and copies and fills on the device, are kept instead of run, as of streams that are captured in
/// a graph. Any other call fails with cudaErrorStreamCaptureUnsupported, and counts as a violation.
void begin_capture();
struct captured {
  std::size_t nodes = 0;
  std::function<void()> replay;  ///< enqueues them all, in order, each on its stream; as often as it is called
};
captured end_capture();
/// Runs a kernel of the test's own.
cudaError_t run(dim3 grid, unsigned threads, std::size_t shared, cudaStream_t stream, std::function<void()> thread);
/// A memory fault ends the program with exit status 86 and a line that says which thread of which block it was.
void catch_faults();
/// What kernels did wrong since the last call, or nothing: kernel threads that left a barrier, writes past an
/// allocation, ... Each also fails its stream with cudaErrorLaunchFailure.
std::string violations();

}  // namespace cuda_on_host
