// SPDX-License-Identifier: Apache-2.0
#include "fibers.hpp"

#include <algorithm>
#include <new>
#include <thread>

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
namespace {

constexpr std::size_t stack_size = std::size_t{64} << 10;
constexpr std::uint64_t poison = 0xFBFBFBFBFBFBFBFBu;

}  // namespace

grid_runner::~grid_runner() {
  for (auto& f : fibers_) munmap(f->stack, stack_size);
}

grid_runner::fiber* grid_runner::take_fiber() {
  if (!idle_.empty()) {
    auto* const f = idle_.back();
    idle_.pop_back();
    return f;
  }
  auto& f = fibers_.emplace_back(std::make_unique<fiber>());
  f->stack = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (f->stack == MAP_FAILED) throw std::bad_alloc{};
  f->runner = this;
  getcontext(&f->at.context);
  f->at.context.uc_stack.ss_sp = f->stack;
  f->at.context.uc_stack.ss_size = stack_size;
  f->at.context.uc_link = nullptr;
  auto const address = reinterpret_cast<std::uintptr_t>(f.get());
  makecontext(&f->at.context, reinterpret_cast<void (*)()>(&fiber_main), 2, static_cast<unsigned>(address >> 32),
              static_cast<unsigned>(address));
  return f.get();
}

void grid_runner::switch_over(place& from, place& to) {
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&from.context, &to.context);  // the sanitizer takes a jump for the end of a stack
#else
  if (_setjmp(from.jump) != 0) return;
  from.started = true;
  if (to.started) _longjmp(to.jump, 1);
  setcontext(&to.context);
#endif
}

/// A fiber runs one thread after the other.
void grid_runner::fiber_main(unsigned high, unsigned low) {
  auto* const self = reinterpret_cast<fiber*>(static_cast<std::uintptr_t>(high) << 32 | low);
  auto& runner = *self->runner;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &runner.scheduler_stack_, &runner.scheduler_stack_size_);
#endif
  for (;;) {
    runner.job_->thread();
    runner.last_ = step::ended;
    runner.leave();
  }
}

/// From the running fiber back to the scheduler.
void grid_runner::leave() {
  auto* const from = running_->on;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, scheduler_stack_, scheduler_stack_size_);
#endif
  switch_over(from->at, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack_, &scheduler_stack_size_);
#endif
}

grid_runner::step grid_runner::resume(thread_state& t) {
  if (t.on == nullptr) t.on = take_fiber();
  running_ = &t;
  blockIdx = t.block->index;
  threadIdx = dim3{t.index};
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, t.on->stack, stack_size);
#endif
  switch_over(scheduler_, t.on->at);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  running_ = nullptr;
  return last_;
}

/// One time in 16, so that a grid of many threads ends.
void grid_runner::pause() {
  if (most_pause_.count() == 0 || random_() % 16 != 0) return;
  ++pauses_;
  std::this_thread::sleep_for(std::chrono::microseconds{random_() % static_cast<std::uint64_t>(most_pause_.count())});
}

void grid_runner::wait_at_barrier() {
  pause();
  last_ = step::waits;
  leave();
}
void grid_runner::relax() {
  pause();
  last_ = step::goes_on;
  leave();
}
void* grid_runner::block_memory() { return running_->block->memory.data(); }

std::string grid_runner::where() const {
  if (running_ == nullptr) return "";
  auto const& b = running_->block->index;
  return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + "), thread " + std::to_string(running_->index);
}

void grid_runner::complain(block_state const& b, unsigned thread, std::string const& what) {
  if (!wrong_.empty()) return;
  wrong_ = "block (" + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + "), thread " +
           std::to_string(thread) + ": " + what;
}

void grid_runner::start_block(std::size_t number, grid_job const& job) {
  auto b = std::make_unique<block_state>();
  b->index = {static_cast<unsigned>(number % job.grid.x), static_cast<unsigned>(number / job.grid.x), 0};
  b->alive = job.block.x;
  b->memory.assign((job.shared + 7) / 8, poison);
  b->threads.resize(job.block.x);
  for (unsigned i = 0; i < job.block.x; ++i) {
    b->threads[i] = {b.get(), i, nullptr};
    ready_.push_back(&b->threads[i]);
  }
  blocks_.push_back(std::move(b));
}

void grid_runner::release(block_state& b) {
  ready_.insert(ready_.end(), b.waiting.begin(), b.waiting.end());
  b.waiting.clear();
}

std::string grid_runner::run(grid_job const& job) {
  job_ = &job;
  wrong_.clear();
  blockDim = job.block;
  gridDim = job.grid;
  std::vector<std::size_t> order(std::size_t{job.grid.x} * job.grid.y);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_);
  auto const at_once = job.cooperative ? order.size() : std::min(order.size(), resident);
  std::size_t next = 0, turns_without_progress = 0;
  while (next < at_once) start_block(order[next++], job);
  while (!ready_.empty()) {
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    auto& t = *ready_.back();
    ready_.pop_back();
    auto& b = *t.block;
    auto const did = resume(t);
    if (did == step::goes_on) {
      ready_.push_back(&t);
      if (++turns_without_progress > 2 * ready_.size()) {  // what they wait for is on another stream
        std::this_thread::yield();
        turns_without_progress = 0;
      }
      continue;
    }
    turns_without_progress = 0;
    if (did == step::waits) {
      b.waiting.push_back(&t);
    } else {
      idle_.push_back(t.on);
      t.on = nullptr;
      --b.alive;
      if (!b.waiting.empty()) complain(b, t.index, "ended while others wait at a barrier");
    }
    if (b.alive > 0 && b.waiting.size() == b.alive) release(b);
    if (b.alive == 0) {
      std::erase_if(blocks_, [&](auto const& one) { return one.get() == &b; });
      if (next < order.size()) start_block(order[next++], job);
    }
  }
  job_ = nullptr;
  return wrong_;
}

}  // namespace cuda_on_host
