// SPDX-License-Identifier: Apache-2.0
/// The caller's memory, from which units take their buffers and to which they give them back.
#pragma once

#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Hands out blocks of one caller-owned stretch of memory, first fit, each at a multiple of `alignment` bytes.
/// It never touches the memory, so device memory is fine. One thread at a time. Complexity: O(free blocks) a call.
class memory_arena {
 public:
  /// Every block begins at a multiple of this (the base must too) and takes a multiple of it.
  static constexpr std::size_t alignment = 256;
  /// What a block of `n` bytes takes. Units: bytes.
  [[nodiscard]] static constexpr bytes block(bytes n) { return {round_up(n.value, alignment)}; }

  explicit memory_arena(std::span<std::byte> memory) : memory_{memory} {
    require(reinterpret_cast<std::uintptr_t>(memory.data()) % alignment == 0,
            "an arena begins at a multiple of 256 bytes");
    if (!memory.empty()) free_.push_back({0, memory.size() / alignment * alignment});
  }
  memory_arena(memory_arena const&) = delete;
  memory_arena& operator=(memory_arena const&) = delete;

  /// A block of `n` bytes, not cleared; a broken rule if none is left that is long enough.
  [[nodiscard]] std::span<std::byte> take(bytes n) {
    if (n.value == 0) return {};
    auto const wanted = block(n).value;
    free_.reserve(taken_ + 2);  // a free range lies between two taken ones: giving back never allocates
    auto const found = std::find_if(free_.begin(), free_.end(), [&](range const& f) { return f.size >= wanted; });
    require(found != free_.end(), "the arena is too small for the buffers of its units (see bytes_needed)");
    auto const begin = found->begin;
    found->begin += wanted;
    found->size -= wanted;
    if (found->size == 0) free_.erase(found);
    used_ += wanted;
    ++taken_;
    peak_ = std::max(peak_, used_);
    return memory_.subspan(begin, n.value);
  }
  /// Takes back what `take` gave.
  void give_back(std::span<std::byte> taken) {
    if (taken.empty()) return;
    auto const at = reinterpret_cast<std::uintptr_t>(taken.data());
    auto const base = reinterpret_cast<std::uintptr_t>(memory_.data());
    require(at >= base && at - base < memory_.size(), "an arena takes back its own blocks");
    auto const begin = static_cast<std::size_t>(at - base);
    range back{begin, block({taken.size()}).value};
    auto next = std::find_if(free_.begin(), free_.end(), [&](range const& f) { return f.begin > begin; });
    require((next == free_.end() || back.begin + back.size <= next->begin) &&
                (next == free_.begin() || (next - 1)->begin + (next - 1)->size <= begin),
            "a block is given back once");
    used_ -= back.size;
    --taken_;
    if (next != free_.end() && back.begin + back.size == next->begin) {
      back.size += next->size;
      next = free_.erase(next);
    }
    if (next != free_.begin() && (next - 1)->begin + (next - 1)->size == back.begin) {
      (next - 1)->size += back.size;
    } else {
      free_.insert(next, back);
    }
  }
  /// Bytes taken now, and the most that was ever taken.
  [[nodiscard]] bytes used() const { return {used_}; }
  [[nodiscard]] bytes peak() const { return {peak_}; }
  [[nodiscard]] bytes capacity() const { return {memory_.size()}; }

 private:
  struct range {
    std::size_t begin, size;
  };
  std::span<std::byte> memory_;
  std::vector<range> free_;  // by begin, never touching
  std::size_t used_ = 0, peak_ = 0, taken_ = 0;
};

/// A block that goes back to its arena at the end of its life. Moves, never copies; the arena must outlive it.
class arena_block {
 public:
  arena_block() = default;
  arena_block(memory_arena& from, bytes n) : arena_{&from}, memory_{from.take(n)} {}
  arena_block(arena_block&& other) noexcept
      : arena_{std::exchange(other.arena_, nullptr)}, memory_{std::exchange(other.memory_, {})} {}
  arena_block& operator=(arena_block&& other) noexcept {
    if (this != &other) {
      give_back();
      arena_ = std::exchange(other.arena_, nullptr);
      memory_ = std::exchange(other.memory_, {});
    }
    return *this;
  }
  ~arena_block() { give_back(); }
  void give_back() noexcept {
    if (arena_ != nullptr) arena_->give_back(memory_);
    arena_ = nullptr;
    memory_ = {};
  }
  /// True between `take` and `give_back`, also for a block of no bytes.
  [[nodiscard]] bool taken() const { return arena_ != nullptr; }
  [[nodiscard]] std::span<std::byte> memory() const { return memory_; }
  [[nodiscard]] std::byte* data() const { return memory_.data(); }
  [[nodiscard]] bytes size() const { return {memory_.size()}; }

 private:
  memory_arena* arena_ = nullptr;
  std::span<std::byte> memory_;
};

}  // namespace v0
}  // namespace flatshard
