// SPDX-License-Identifier: Apache-2.0
#include "perf_threads.hpp"

#include "perf_memory.hpp"

#include <flatshard/kernels/cpu.hpp>

#include <chrono>
#include <cstddef>
#include <vector>

namespace perf {

void measure_threads(request const& asked, table& table) {
  auto const ranks = static_cast<std::size_t>(asked.ranks);
  if (auto const why = too_large(asked, room_on_host(ranks))) throw tool::failure{*why};
  std::vector<int> processors(ranks, -1);
  flatshard::kernels::thread_group const group{flatshard::world{ranks},
                                               {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  group.run([&](flatshard::kernels::thread_communicator& comm) {
    auto const self = index(comm.self());
    bool const first = self == 0;
    processors[self] = asked.pin ? pin(self, ranks) : held();
    comm.barrier({});
    if (first)
      table.begin({.ranks = ranks,
                   .held = holding_of(processors),
                   .pinned = asked.pin,
                   .path = one_path(ranks, "the ranks' own buffers")});
    measure(comm, asked, on_host{}, {}, [&](row const& r) {
      if (first) table.add(r);
    });
  });
}

}  // namespace perf
