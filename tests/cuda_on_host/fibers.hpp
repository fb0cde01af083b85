// SPDX-License-Identifier: Apache-2.0
/// The threads of a grid as fibers of one worker: run in a shuffled order, one at a time, until they wait or end.
#pragma once

#include <chrono>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime.h>
#include <ucontext.h>

namespace cuda_on_host {

/// One grid.
struct grid_job {
  dim3 grid, block;
  std::size_t shared{};
  bool cooperative = false;
  std::function<void()> thread;
};

/// Runs grids, one after the other, on the thread that calls it. Fibers are kept for the next grid.
class grid_runner {
 public:
  explicit grid_runner(std::uint64_t seed) : random_{seed} {}
  grid_runner(grid_runner const&) = delete;
  ~grid_runner();
  /// For the next grid; threads pause for up to `most`.
  void seed(std::uint64_t s, std::chrono::microseconds most) {
    random_.seed(s);
    most_pause_ = most;
    pauses_ = 0;
  }
  [[nodiscard]] std::size_t pauses() const { return pauses_; }
  /// Gives what the threads did wrong, or nothing.
  std::string run(grid_job const& job);

  // For the running thread.
  void wait_at_barrier();
  void relax();
  void* block_memory();
  /// The grid's thread that runs now.
  [[nodiscard]] std::string where() const;
  /// Blocks that run at once where the launch is not cooperative, as on a device with few multiprocessors.
  static constexpr std::size_t resident = 12;
  static constexpr std::size_t most_cooperative = 128;

 private:
  struct block_state;
  struct fiber;
  struct thread_state {
    block_state* block{};
    unsigned index{};
    fiber* on{};  // null before it has run
  };
  struct block_state {
    dim3 index;
    std::vector<thread_state> threads;
    std::vector<thread_state*> waiting;
    std::size_t alive{};
    std::vector<std::uint64_t> memory;
  };
  /// Where something stopped. Entered as a context, left and entered again by a jump, which asks no kernel.
  struct place {
    ucontext_t context{};
    jmp_buf jump{};
    bool started = false;
  };
  struct fiber {
    place at;
    void* stack{};
    grid_runner* runner{};
  };
  enum class step { ended, waits, goes_on };

  static void fiber_main(unsigned high, unsigned low);
  static void switch_over(place& from, place& to);
  fiber* take_fiber();
  step resume(thread_state& t);
  void leave();
  void pause();
  void start_block(std::size_t number, grid_job const& job);
  void release(block_state& b);
  void complain(block_state const& b, unsigned thread, std::string const& what);

  std::mt19937_64 random_;
  std::chrono::microseconds most_pause_{};
  std::size_t pauses_ = 0;
  std::vector<std::unique_ptr<fiber>> fibers_;
  std::vector<fiber*> idle_;
  place scheduler_;
  grid_job const* job_{};
  thread_state* running_{};
  step last_ = step::ended;
  std::vector<std::unique_ptr<block_state>> blocks_;
  std::vector<thread_state*> ready_;
  std::string wrong_;
  void const* scheduler_stack_{};  // for the sanitizer
  std::size_t scheduler_stack_size_{};
};

}  // namespace cuda_on_host
