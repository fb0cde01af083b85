// SPDX-License-Identifier: Apache-2.0
// Loading sharded units on the ranks of a group: the same weights for every world size, one error for all ranks.
#include "checkpoint_folder.hpp"
#include "golden.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/unit.hpp>

#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
using namespace std::chrono_literals;
using kernels::thread_communicator;
using kernels::thread_group;
namespace fs = std::filesystem;

namespace {

#if !defined(__SANITIZE_THREAD__)  // whose own allocation clang's linker does not let go
/// Above this many bytes the calling thread gets no memory.
thread_local std::size_t most_allocated = SIZE_MAX;
struct allocation_limit {
  explicit allocation_limit(std::size_t most) { most_allocated = most; }
  allocation_limit(allocation_limit const&) = delete;
  ~allocation_limit() { most_allocated = SIZE_MAX; }
};
#endif

}  // namespace

#if !defined(__SANITIZE_THREAD__)

// Not inlined: g++ 12 warns of free() where it sees the one without the other.
[[gnu::noinline]] void* operator new(std::size_t size) {
  auto* const found = size <= most_allocated ? std::malloc(size) : nullptr;
  if (found == nullptr) throw std::bad_alloc{};
  return found;
}
[[gnu::noinline]] void operator delete(void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete(void* at, std::size_t) noexcept { std::free(at); }
#endif

namespace {

std::vector<tensor_spec> const tensors{{"h.0.w", dtype::bf16, {61, 7}}, {"h.0.few", dtype::bf16, {2}},
                                       {"h.1.w", dtype::bf16, {61, 7}}, {"h.1.none", dtype::bf16, {0, 3}},
                                       {"h.1.few", dtype::bf16, {2}},   {"tail", dtype::bf16, {1000}}};

struct vector_cast {
  template <class To, class From>
  requires requires(std::span<To> out, std::span<From const> in) { kernels::cast(out, in); }
  void operator()(std::span<To> out, std::span<From const> in) const { kernels::cast(out, in); }
};

/// Runs `body(comm, units)` on every rank, over units of the checkpoint.
template <class Sharding>
void with_units(
    std::size_t w, precision p, checkpoint_files const& from,
    std::function<void(thread_communicator&, std::vector<sharded_unit<precision, Sharding>>&)> const& body) {
  auto const parts = model_units(from).value();
  thread_group{world{w}, {.deadline = 20s}}.run([&](thread_communicator& comm) {
    bytes need;
    for (auto const& part : parts) {
      layout const l{Sharding{}, part.parameters, world{w}};
      auto const one = bytes_needed(l, p);
      need += one.persistent + one.gathered + one.gradients + one.staging;
    }
    kernels::page_buffer memory{need, kernels::page_size::plain};
    std::memset(memory.span().data(), 0x77, memory.span().size());
    memory_arena arena{memory.span()};
    std::vector<sharded_unit<precision, Sharding>> units;
    for (auto const& part : parts) units.emplace_back(part.parameters, world{w}, p, Sharding{}, arena);
    body(comm, units);
  });
}

/// Waits, well below the deadline of the group, until other ranks have counted so far: they are free although this rank
/// has not returned, which would free them too.
void wait_for(std::atomic<int> const& others, int count) {
  auto const until = std::chrono::steady_clock::now() + 5s;
  while (others < count && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(1ms);
  CHECK(others == count);
}

/// What every rank throws from `attempt`, one text a rank.
template <class Error>
std::vector<std::string> thrown_on_all(
    std::size_t w, checkpoint_files const& from,
    std::function<void(thread_communicator&, std::vector<sharded_unit<precision, native>>&)> const& attempt) {
  std::vector<std::string> texts(w);
  with_units<native>(w, fsdp2_bf16, from, [&](thread_communicator& comm, auto& units) {
    try {
      attempt(comm, units);
    } catch (Error const& e) {
      texts[index(comm.self())] = e.what();
    }
  });
  return texts;
}

/// The weights of a checkpoint as every rank gathers them after a load: the file's own bits in bf16, exact in fp32.
/// Whether that holds.
template <class Sharding>
bool check_weights(checkpoint_files const& from, std::size_t w, precision p, bool ready_cast) {
  std::mutex one_at_a_time;
  std::size_t read = 0;
  bool right = true;
  with_units<Sharding>(w, p, from, [&](thread_communicator& comm, auto& units) {
    auto const report = ready_cast ? load(units, from, comm, {}, vector_cast{}) : load(units, from, comm);
    std::size_t wrong = 0, compared = 0;
    for (auto& unit : units) {
      auto const weights = gather(unit, comm, inline_stream{});
      for (std::size_t t = 0; t < weights.size(); ++t) {
        auto const i = *from.find(unit.layout().parameter_at(t).name);
        std::vector<std::byte> file(from.data_size(i).value);
        REQUIRE(from.files()[from.file_number(i)].file.read_at(file, from.file_offset(i)).has_value());
        for (std::size_t k = 0; k < weights[t].dims.numel(); ++k, ++compared) {
          float value = 0;
          if (from.type(i) == dtype::f32) {
            std::memcpy(&value, file.data() + 4 * k, 4);
          } else {
            bf16 stored;
            std::memcpy(&stored, file.data() + 2 * k, 2);
            value = widen(stored);
          }
          if (p.compute == dtype::bf16)
            wrong += weights[t].template data<bf16>()[k] != narrow<bf16>(value);
          else
            wrong += std::bit_cast<std::uint32_t>(weights[t].template data<float>()[k]) !=
                     std::bit_cast<std::uint32_t>(value);
        }
        if (unit.has_master()) {
          auto const piece = unit.layout().piece_of(t, comm.self());
          for (std::size_t k = 0; k < piece.size().value && from.type(i) == dtype::bf16; ++k) {
            bf16 stored;
            std::memcpy(&stored, file.data() + 2 * (piece.begin.value + k), 2);
            wrong += std::bit_cast<std::uint32_t>(unit.master()[piece.local.value + k]) !=
                     std::bit_cast<std::uint32_t>(widen(stored));
          }
        }
      }
      release(unit, inline_stream{});
    }
    std::lock_guard const lock{one_at_a_time};
    CHECK(wrong == 0);
    CHECK(compared > 0);
    CHECK(report.bytes_read == report.data_bytes + from.header_size());
    right = right && wrong == 0 && compared > 0;
    read += report.data_bytes.value;
  });
  CHECK(read == from.data_size().value);
  return right && read == from.data_size().value;
}

}  // namespace

TEST_CASE_TEMPLATE("a load and a gather give the file's values, for every world size and precision", Sharding, native,
                   zero3, fsdp2) {
  test_folder here{"loader-ranks"};
  write_test_file(here.path / "model.safetensors", tensors);
  auto const from = open_checkpoint(here.path).value();
  for (std::size_t const w : {1u, 2u, 3u, 5u})
    for (auto const& p : {fsdp2_bf16, fsdp2_fp32, deepspeed_bf16, deepspeed_fp32})
      check_weights<Sharding>(from, w, p, w % 2 == 0);
}

TEST_CASE("golden Llama checkpoints load sharded") {
  golden::tally count{"llama"};
  auto const root = golden::find("llama");
  if (!root) return;
  for (auto const& entry : fs::directory_iterator{*root}) {
    if (!entry.is_directory()) continue;
    auto const from = open_checkpoint(entry.path()).value();
    auto const number = count.ran++;
    bool const one = check_weights<native>(from, 2, fsdp2_bf16, true);
    bool const two = check_weights<zero3>(from, 3, deepspeed_bf16, true);
    bool const three = check_weights<fsdp2>(from, 4, fsdp2_fp32, false);
    CHECK_MESSAGE((one && two && three), "case " << number);
    count.passed += one && two && three;
  }
  CHECK(count.passed == count.ran);
}

TEST_CASE("whatever goes wrong on one rank is the same error on all") {
  test_folder here{"loader-errors"};
  fs::create_directory(here.path / "same");
  fs::create_directory(here.path / "other");
  write_test_file(here.path / "model.safetensors", tensors);
  write_test_file(here.path / "same" / "model.safetensors", tensors);
  auto fewer = tensors;
  fewer.pop_back();
  write_test_file(here.path / "other" / "model.safetensors", fewer);
  auto const from = open_checkpoint(here.path).value();

  SUBCASE("a file that only one rank lacks") {
    auto const texts = thrown_on_all<bad_input>(3, from, [&](auto& comm, auto& units) {
      load(units, comm.self() == rank_at(1) ? here.path / "absent" : here.path, comm);
    });
    for (auto const& text : texts) {
      CHECK(text == texts[0]);
      CHECK(text.find("(on rank 1)") != std::string::npos);
      CHECK(text.find("[file_missing]") != std::string::npos);
    }
  }
  SUBCASE("other headers on one rank") {
    auto const texts = thrown_on_all<mismatch>(3, from, [&](auto& comm, auto& units) {
      load(units, comm.self() == rank_at(2) ? here.path / "other" : here.path, comm);
    });
    for (auto const& text : texts) CHECK(text.find("the headers of the checkpoint") != std::string::npos);
  }
  SUBCASE("another mode on one rank") {
    auto const texts = thrown_on_all<mismatch>(3, from, [&](auto& comm, auto& units) {
      load(units, from, comm, {.mode = comm.self() == rank_at(1) ? load_mode::whole : load_mode::ranges});
    });
    for (auto const& text : texts) CHECK(text.find("the load mode") != std::string::npos);
  }
#if !defined(__SANITIZE_THREAD__)
  SUBCASE("no memory for the header on one rank frees the others") {
    std::atomic<int> own{0}, others{0};
    with_units<native>(3, fsdp2_bf16, from, [&](thread_communicator& comm, auto& units) {
      try {
        allocation_limit const limit{comm.self() == rank_at(1) ? 256 : SIZE_MAX};
        load(units, here.path, comm);
      } catch (peer_lost const&) {
        ++others;
      } catch (std::bad_alloc const&) {
        wait_for(others, 2);
        ++own;
      }
    });
    CHECK(own == 1);
    CHECK(others == 2);
  }
#endif
  SUBCASE("a tensor that is missing on all") {
    auto const texts = thrown_on_all<bad_input>(
        2, from, [&](auto& comm, auto& units) { load(units, (here.path / "other").c_str(), comm); });
    for (auto const& text : texts) CHECK(text.find("\"tail\"") != std::string::npos);
  }
  SUBCASE("a file that ends too early on one rank") {
    auto const cut = open_checkpoint(here.path / "same").value();
    fs::resize_file(here.path / "same" / "model.safetensors", 2000);
    auto const texts = thrown_on_all<bad_input>(
        4, from, [&](auto& comm, auto& units) { load(units, comm.self() == rank_at(0) ? from : cut, comm); });
    for (auto const& text : texts) {
      CHECK(text == texts[0]);
      CHECK((text.find("[short_read]") != std::string::npos || text.find("[file_changed]") != std::string::npos));
      CHECK(text.find("(on rank 1)") != std::string::npos);  // the lowest that failed
    }
  }
  SUBCASE("an exception on one rank frees the others") {
    struct failing_cast {
      bool fails;
      void operator()(std::span<float> out, std::span<bf16 const> in) const {
        if (fails) throw std::runtime_error{"the cast failed"};
        portable_cast{}(out, in);
      }
    };
    std::atomic<int> own{0}, others{0};
    with_units<native>(3, fsdp2_bf16, from, [&](thread_communicator& comm, auto& units) {
      try {
        load(units, from, comm, {}, failing_cast{comm.self() == rank_at(1)});
      } catch (peer_lost const&) {
        ++others;
      } catch (std::runtime_error const& e) {
        CHECK(std::string{e.what()} == "the cast failed");
        wait_for(others, 2);
        ++own;
      }
    });
    CHECK(own == 1);
    CHECK(others == 2);
  }
}
