// SPDX-License-Identifier: Apache-2.0
/// What the ranks of a group must have set alike, compared before their first call.
#pragma once

#include "nccl_call.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/nccl.hpp>
#include <flatshard/version.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <type_traits>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

/// What ranks compare before the first collective. Layouts and configurations, which they have later, are `agree`'s;
/// types and the order of sums are compared with the calls. 64 bytes, the version first, in every version, so that
/// ranks of different ones can tell.
struct nccl_setup {
  std::int32_t version = 3;
  std::int32_t library = FLATSHARD_VERSION_MAJOR * 10000 + FLATSHARD_VERSION_MINOR * 100 + FLATSHARD_VERSION_PATCH;
  std::int32_t compiled = NCCL_VERSION_CODE, running = 0;
  std::int32_t ranks = 0, self = 0;
  std::int32_t checked_every = 0, own_sums = 0;
  std::uint64_t workspace = 0;
  std::array<std::uint64_t, 3> later{};
};
static_assert(sizeof(nccl_setup) == 64);
static_assert(std::has_unique_object_representations_v<nccl_setup>);

/// Whether kernels of several communicators start on the device in the order in which the host made the calls. NCCL
/// reads the variable once, and puts what its own files of settings say of it into the environment when it is first
/// used. Source: NCCL 2.28.9, src/enqueue.cc:1396, src/misc/param.cc:53.
inline bool launch_order_binds() {
  auto const* const text = std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  return text != nullptr && std::strtoll(text, nullptr, 0) != 0;
}

/// Ranks compare the first call of each operation, and no other.
constexpr int first_calls = -1;
inline int environment_says() {
  auto const* const text = std::getenv("FLATSHARD_CHECKED_COLLECTIVES");
  return text == nullptr ? first_calls : std::max(0, std::atoi(text));
}

/// `2.28.9`, `0.1.0`. Source: NCCL_VERSION of nccl.h, from 2.9 on.
inline std::string spelled_version(int code) {
  return std::to_string(code / 10000) + '.' + std::to_string(code / 100 % 100) + '.' + std::to_string(code % 100);
}

/// Throws the same on every rank where the records of all ranks, in rank order, differ or say what cannot work.
inline void require_alike(std::span<nccl_setup const> all) {
  auto const as_it_is = [](auto n) { return std::to_string(n); };
  auto const differ = [&](char const* field, auto nccl_setup::*member, auto spelled) {
    for (std::size_t r = 1; r < all.size(); ++r)
      if (auto const a = all[0].*member, b = all[r].*member; a != b)
        raise(mismatch{field, {rank_at(0), rank_at(r)}, {spelled(a), spelled(b)}});
  };
  differ("version of the records", &nccl_setup::version, as_it_is);
  differ("version of flatshard", &nccl_setup::library, spelled_version);
  differ("version of NCCL that it was compiled with", &nccl_setup::compiled, spelled_version);
  differ("version of NCCL that is loaded", &nccl_setup::running, spelled_version);
  differ("number of ranks", &nccl_setup::ranks, as_it_is);
  for (std::size_t r = 0; r < all.size(); ++r)
    if (auto const said = static_cast<std::size_t>(all[r].self); said != r)
      raise(mismatch{"the number of rank " + std::to_string(r),
                     {rank_at(0), rank_at(r)},
                     {std::to_string(r), std::to_string(said)}});
  differ("how often calls are compared", &nccl_setup::checked_every, as_it_is);
  differ("a second communicator for sums", &nccl_setup::own_sums, as_it_is);
  differ("bytes of the workspace", &nccl_setup::workspace, as_it_is);
  // The same on every rank by now, so that every rank throws. Structures that reach the device carry no version.
  if (all[0].running != all[0].compiled)
    raise(nccl_error{ncclInvalidUsage, "NCCL " + spelled_version(all[0].running) +
                                           " is loaded, and flatshard was compiled with the headers of " +
                                           spelled_version(all[0].compiled) + ": these must be of one version"});
}

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
