// SPDX-License-Identifier: Apache-2.0
/// The process group: created once, backend by device; whoever finds one adopts it, but LLaMA-Factory's own start.
#pragma once

#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The communication backend of a device. Complexity: O(1), constexpr.
[[nodiscard]] constexpr std::string_view backend_of(device_kind d) {
  return d == device_kind::cuda ? "nccl" : d == device_kind::npu ? "hccl" : "gloo";
}

/// Decides the process group of LLaMA-Factory v1: its launcher makes one, and fails if there is one already; without a
/// launcher there is none, and variables of MPI alone start nothing. An absent timeout is upstream's default. Source:
/// docs/config.md, process group.
inline void decide_process_group(profile p, facts const& f, value const& given_timeout, place const& timeout_at,
                                 findings& out, resolved_policies& policies) {
  auto const timeout = given_timeout.present() ? given_timeout : value{18000};
  auto& group = policies.process_group;
  place const launcher{{}, {}, 0, 0};
  if (f.group) {
    group = {process_group_policy::origin::adopted, f.group->backend, f.group->timeout_seconds};
    out.decide("process_group", "adopted", "a process group exists; there is only one, so its backend and timeout stay",
               rule_of(p, "process_group"), launcher);
    if (f.world)
      out.error(
          errc::process_group_exists, launcher, at_load,
          "a process group exists before LLaMA-Factory starts its own; create it after, or let LLaMA-Factory do it",
          {"ValueError", "llamafactory", "trying to initialize the default process group twice!"});
  } else if (f.world) {
    group.how = process_group_policy::origin::created;
    group.backend = backend_of(f.device);
    auto const seconds = timeout.number();
    bool const whole = seconds && *seconds >= 0 && *seconds < 9e15;
    group.timeout_seconds = whole ? static_cast<std::int64_t>(*seconds) : 0;
    if (!whole || timeout.is(value_kind::boolean))
      out.warn(errc::wrong_type, timeout_at, at_load,
               "the timeout of the process group is " + to_json(timeout) +
                   ", a number of seconds that is not negative is needed; its value goes to torch unchecked");
    out.decide("process_group", "created", "started by a launcher with " + std::to_string(*f.world) + " ranks",
               rule_of(p, "process_group"), launcher);
  } else {
    constexpr std::array<std::string_view, 6> mpi{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE",     "PMIX_RANK",
                                                  "MPI_LOCALNRANKS",      "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK"};
    std::string_view seen;
    for (auto const name : mpi)
      if (f.variable(name)) seen = name;
    out.decide("process_group", "none", "no launcher (RANK is not set): one process, no group",
               rule_of(p, "process_group"), launcher);
    if (!seen.empty())
      out.warn(
          errc::mpi_starts_nothing, launcher, at_load,
          "the environment has " + std::string{seen} +
              " but no RANK; MPI's variables alone start nothing: every process trains alone; start with a launcher");
    return;
  }
  out.decide("process_group.backend", group.backend,
             f.group ? "of the group that exists"
                     : "the device is " + std::string{f.device == device_kind::cuda  ? "CUDA"
                                                      : f.device == device_kind::npu ? "an NPU"
                                                                                     : "neither CUDA nor an NPU"},
             rule_of(p, "process_group.backend"), launcher);
  out.decide("process_group.timeout", f.group ? std::to_string(group.timeout_seconds) : to_json(timeout),
             f.group ? "of the group that exists"
                     : (reads_older_llamafactory(f.upstream) ? "timeout is " : "dist_timeout is ") +
                           (given_timeout.present() ? to_json(given_timeout) : absent_default(llamafactory_version)) +
                           ", in seconds",
             rule_of(p, "dist_timeout"), timeout_at);
}

/// Decides the process group of accelerate and of what runs on it: one that exists is adopted; else DeepSpeed makes one
/// when a launcher started the process. Source: accelerate@16cb6eb8:src/accelerate/state.py:211-215.
inline void decide_adopted_process_group(profile p, facts const& f, findings& out, resolved_policies& policies) {
  auto& group = policies.process_group;
  using origin = process_group_policy::origin;
  if (f.group)
    group = {origin::adopted, f.group->backend, f.group->timeout_seconds};
  else if (f.world)
    group = {origin::created, std::string{backend_of(f.device)}, 0};
  auto const how = f.group ? "adopted" : f.world ? "created" : "none";
  out.decide("process_group", how,
             f.group   ? "a process group exists; there is only one, so its backend and timeout stay"
             : f.world ? "started by a launcher with " + std::to_string(*f.world) + " ranks"
                       : std::string{"no launcher: one process, no group"},
             rule_of(p, "process_group"), {});
  if (group.how == origin::none) return;
  out.decide("process_group.backend", group.backend, f.group ? "of the group that exists" : "by the device",
             rule_of(p, "process_group.backend"), {});
}

}  // namespace v0
}  // namespace flatshard
