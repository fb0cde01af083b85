// SPDX-License-Identifier: Apache-2.0
/// Memory of one rank that counts itself: how many bytes live now, and the most that ever lived at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

namespace llama {

/// Bytes that live now and at the peak. One thread uses a ledger; it outlives its buffers.
class ledger {
 public:
  void grow(std::size_t bytes) { peak_ = std::max(peak_, now_ += bytes); }
  void shrink(std::size_t bytes) { now_ -= bytes; }
  [[nodiscard]] std::size_t now() const { return now_; }
  [[nodiscard]] std::size_t peak() const { return peak_; }

 private:
  std::size_t now_ = 0, peak_ = 0;
};

/// `size` elements, zero at first, counted in a ledger. Movable, not copyable.
template <class T>
class buffer {
 public:
  buffer() = default;
  buffer(ledger& l, std::size_t size) : ledger_{&l}, data_{std::make_unique<T[]>(size)}, size_{size} {
    ledger_->grow(size_ * sizeof(T));
  }
  buffer(buffer&& other) noexcept { swap(other); }
  buffer& operator=(buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~buffer() {
    if (ledger_ != nullptr) ledger_->shrink(size_ * sizeof(T));
  }
  [[nodiscard]] T* data() { return data_.get(); }
  [[nodiscard]] T const* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  void swap(buffer& other) noexcept {
    std::swap(ledger_, other.ledger_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  ledger* ledger_ = nullptr;
  std::unique_ptr<T[]> data_;
  std::size_t size_ = 0;
};

}  // namespace llama
