// SPDX-License-Identifier: Apache-2.0
/// The suite of the collectives over rank threads.
#include "kernels/collective_suite.hpp"
#include "tier.hpp"

#include <flatshard/kernels/threads.hpp>

namespace {

using namespace suite;

struct rank_threads {
  static constexpr bool names_lost = true;
  static constexpr int repeats = sanitized ? 10 : 40;
  static std::vector<std::size_t> worlds() {
    if (sanitized) return {1, 2, 5};
    return {1, 2, 3, 4, 5, 8};
  }
  template <class F>
  static outcome run(std::size_t ranks, deadline limit, F const& f) {
    outcome out(ranks);
    for (std::size_t r = 0; r < ranks; ++r) out[r].first = r;
    try {
      kernels::thread_group{world{ranks}, {.deadline = limit}}.run([&](kernels::thread_communicator& c) {
        host_rank<kernels::thread_communicator> rank{c};
        try {
          f(rank);
        } catch (std::exception const& e) {
          out[us(rank)].second = e.what();
          throw;
        }
      });
    } catch (std::exception const&) {
    }
    return out;
  }
};

}  // namespace

FLATSHARD_COLLECTIVE_SUITE(rank_threads);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE_TEMPLATE_INVOKE(wide, rank_threads);
#endif
