// SPDX-License-Identifier: Apache-2.0
/// What tests ask of the stand-in: faults to inject, and what the backend did wrong. Ranks are threads of one process,
/// or processes that have the environment variable NCCL_ON_HOST_FOLDER: an empty folder that all of them reach.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <nccl.h>

namespace nccl_on_host {

/// Communicators, streams, allocations and events that were not given back.
struct live {
  int communicators = 0, streams = 0, allocations = 0, events = 0;
};
live what_lives();
/// Gives back the streams and allocations that were not, as the end of a program does. Gives how many there were.
live end_program();
/// What NCCL only documents and this library enforces: breaches so far, and forgets them.
std::vector<std::string> breaches();

/// The n-th call of that function that this thread makes from now on fails. Gives whether the one asked for before did.
bool fail_call(std::string function, std::size_t n);
/// From its n-th collective on (from 1) this communicator hangs and reports `error`.
void inject(ncclComm_t comm, std::size_t n, ncclResult_t error);
/// The next communicator that this thread makes; null again afterwards.
ncclComm_t last_made();
/// The same of a split.
ncclComm_t last_split();
/// What this thread sends in its next collective has this byte changed, if it has so many.
void alter(std::size_t byte);
/// What ncclGetVersion tells this thread from now on; 0: the truth.
void pretend_version(int code);
/// Host memory that counts as device memory.
void expose(void const* start, std::size_t size);

}  // namespace nccl_on_host
