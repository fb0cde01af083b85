// SPDX-License-Identifier: Apache-2.0
/// Pack and unpack on the CPU: the tiles of a table, in lots that threads take in turn.
#include "cpu_run.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

constexpr std::size_t lot = 64;  // tiles that a thread takes at once

bool castable(dtype t) { return t == dtype::f32 || t == dtype::bf16 || t == dtype::f16; }
std::size_t width(dtype t) { return bits(t) / 8; }

void check(buffer_ref const& b) {
  require(castable(b.type), "a tile holds fp32, bf16 or fp16");
  require(reinterpret_cast<std::uintptr_t>(b.data) % width(b.type) == 0,
          "a buffer must be aligned for its element type");
}
void check(buffer_ref flat, std::span<buffer_ref const> tensors, tile_table const& table) {
  check(flat);
  require(table.flat_size() <= flat.count, "the flat buffer must hold every tile of the table");
  auto const needed = table.tensor_sizes();
  require(needed.size() <= tensors.size(), "a table of tiles needs every tensor that it names");
  for (std::size_t t = 0; t < needed.size(); ++t) {
    if (needed[t] == 0) continue;
    check(tensors[t]);
    require(needed[t] <= tensors[t].count.value, "a tensor must hold every tile of the table");
  }
}

/// Calls work(first, last) for lots of tiles until all are done, on this thread and others.
template <class Work>
void share_tiles(tile_table const& table, work_options const& options, Work const& work) {
  std::atomic<std::size_t> next = 0;
  auto const take = [&] {
    for (std::size_t first; (first = next.fetch_add(lot)) < table.size();)
      work(first, std::min(first + lot, table.size()));
  };
  std::vector<std::jthread> others;
  for (auto extra = worthy_threads(table.flat_size().value, options); extra > 1; --extra) others.emplace_back(take);
  take();
}

/// Calls work(place) for the tiles of a lot, those that continue each other as one.
template <class Work>
void for_each_place(tile_table const& table, std::size_t first, std::size_t last, Work const& work) {
  struct run {
    std::uint64_t source, target, length;
    std::uint32_t tensor;
  } now{0, 0, 0, no_tensor};
  for (std::size_t i = first; i < last; ++i) {
    auto const t = table[i];
    bool const goes_on = now.length > 0 && t.tensor == now.tensor && t.target == now.target + now.length &&
                         (t.tensor == no_tensor || t.source == now.source + now.length);
    if (goes_on) {
      now.length += t.length;
      continue;
    }
    if (now.length > 0) work(now.tensor, now.source, now.target, now.length);
    now = {t.source, t.target, t.length, t.tensor};
  }
  if (now.length > 0) work(now.tensor, now.source, now.target, now.length);
}

std::byte* at(buffer_ref const& b, std::size_t i) { return b.data + i * width(b.type); }

void convert(kernel_table const& loops, buffer_ref to, std::size_t to_first, buffer_ref from, std::size_t from_first,
             std::size_t n, unsigned how) {
  if (to.type == from.type) return loops.copy(at(to, to_first), at(from, from_first), n * width(to.type), how);
  loop_of(loops, to.type, from.type)(at(to, to_first), at(from, from_first), n, how);
}

unsigned treatment_of(buffer_ref flat, tile_table const& table, work_options const& options) {
  auto const size = size_of(table.flat_size(), flat.type).value;
  return treatment(options, size, size);
}

/// The fp32 result of one tile, and what it adds up to.
class tile_sum {
 public:
  tile_sum(kernel_table const& loops, pack_options const& options, unsigned how)
      : loops_{loops}, options_{options}, how_{how} {}
  value_totals run(float* out, buffer_ref in, tile_place const& t) {
    part_.fill(0.0);
    value_totals totals;
    auto const add = in.type == dtype::bf16 ? loops_.sum_bf16 : in.type == dtype::f16 ? loops_.sum_f16 : loops_.sum_f32;
    for (std::size_t done = 0; done < t.length; done += partial_sums) {
      auto const n = std::min<std::size_t>(partial_sums, t.length - done);
      void const* const from = at(in, t.source + done);
      add(out + done, {&from, 1, options_.scale, options_.accumulate, false}, n, how_ & prefetching);
      totals.not_finite += loops_.add_squares(part_.data(), out + done, n);
    }
    for (std::size_t p = 0; p < partial_packs; ++p) {
      auto* const pack = part_.data() + p * pack_elements;
      for (std::size_t half = pack_elements / 2; half > 0; half /= 2)
        for (std::size_t k = 0; k < half; ++k) pack[k] += pack[k + half];
      part_[p] = pack[0];
    }
    totals.squares = tree(part_.data());
    return totals;
  }
  /// The sum of 256 values, upper half onto lower half.
  static double tree(double* x) {
    for (std::size_t half = partial_packs / 2; half > 0; half /= 2)
      for (std::size_t k = 0; k < half; ++k) x[k] += x[k + half];
    return x[0];
  }

 private:
  kernel_table const& loops_;
  pack_options options_;
  unsigned how_;
  alignas(64) std::array<double, partial_sums> part_;
};

}  // namespace

void pack(buffer_ref flat, std::span<buffer_ref const> tensors, tile_table const& table, work_options options) {
  check(flat, tensors, table);
  auto const& loops = kernels::table(options.at_most);
  auto const how = treatment_of(flat, table, options);
  share_tiles(table, options, [&](std::size_t first, std::size_t last) {
    for_each_place(table, first, last, [&](auto tensor, auto source, auto target, auto n) {
      if (tensor == no_tensor) {
        std::memset(at(flat, target), 0, n * width(flat.type));
      } else {
        convert(loops, flat, target, tensors[tensor], source, n, how);
      }
    });
  });
}

void pack(std::span<bf16> flat, std::span<buffer_ref const> tensors, tile_table const& table,
          random_stream const& random, std::uint32_t first_tensor, work_options options) {
  buffer_ref const out{reinterpret_cast<std::byte*>(flat.data()), dtype::bf16, {flat.size()}};
  check(out, tensors, table);
  for (std::size_t t = 0; t < table.tensor_sizes().size(); ++t)
    require(table.tensor_sizes()[t] == 0 || tensors[t].type == dtype::f32, "stochastic rounding takes fp32 to bf16");
  auto const& loops = kernels::table(options.at_most);
  auto const how = treatment_of(out, table, options);
  share_tiles(table, options, [&](std::size_t first, std::size_t last) {
    for_each_place(table, first, last, [&](std::uint32_t tensor, auto source, auto target, auto n) {
      if (tensor == no_tensor) {
        std::memset(at(out, target), 0, n * width(out.type));
      } else {
        loops.f32_to_bf16_stochastic(at(out, target), reinterpret_cast<float const*>(at(tensors[tensor], source)), n,
                                     {random, {first_tensor + tensor, source}}, how);
      }
    });
  });
}

void cast(std::span<bf16> out, std::span<float const> in, tile_table const& table, random_stream const& random,
          std::uint32_t first_tensor, work_options options) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  require(table.flat_size().value == in.size() && table.covered().value == in.size(),
          "the tiles of a flat cast must cover its buffers");
  auto const& loops = kernels::table(options.at_most);
  auto const how = treatment(options, out.size_bytes(), out.size_bytes());
  share_tiles(table, options, [&](std::size_t first, std::size_t last) {
    for_each_place(table, first, last, [&](std::uint32_t tensor, auto source, auto target, auto n) {
      if (tensor == no_tensor) {
        std::fill_n(out.data() + target, n, bf16{});
      } else {
        loops.f32_to_bf16_stochastic(out.data() + target, in.data() + target, n,
                                     {random, {first_tensor + tensor, source}}, how);
      }
    });
  });
}

void unpack(std::span<buffer_ref const> tensors, buffer_ref flat, tile_table const& table, work_options options) {
  check(flat, tensors, table);
  auto const& loops = kernels::table(options.at_most);
  auto const how = treatment_of(flat, table, options);
  share_tiles(table, options, [&](std::size_t first, std::size_t last) {
    for_each_place(table, first, last, [&](auto tensor, auto source, auto target, auto n) {
      if (tensor != no_tensor) convert(loops, tensors[tensor], source, flat, target, n, how);
    });
  });
}

value_totals pack(std::span<float> flat, std::span<buffer_ref const> tensors, tile_table const& table,
                  pack_options const& result, work_options options) {
  buffer_ref const out{reinterpret_cast<std::byte*>(flat.data()), dtype::f32, {flat.size()}};
  check(out, tensors, table);
  auto const& loops = kernels::table(options.at_most);
  auto const how = treatment_of(out, table, options);
  std::vector<value_totals> found(table.size());
  share_tiles(table, options, [&](std::size_t first, std::size_t last) {
    tile_sum sum{loops, result, how};
    for (std::size_t i = first; i < last; ++i) {
      auto const t = table[i];
      if (t.tensor == no_tensor) {
        std::fill_n(flat.data() + t.target, t.length, 0.0f);
      } else {
        found[i] = sum.run(flat.data() + t.target, tensors[t.tensor], t);
      }
    }
  });
  return total(found);
}

value_totals total(std::span<value_totals const> of_tiles) {
  std::array<double, partial_packs> part{};
  value_totals all;
  for (std::size_t i = 0; i < of_tiles.size(); ++i) {
    part[i % partial_packs] += of_tiles[i].squares;
    all.not_finite += of_tiles[i].not_finite;
  }
  all.squares = tile_sum::tree(part.data());
  return all;
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
