// SPDX-License-Identifier: Apache-2.0
/// The collectives over NCCL: whole flat buffers, fp32 sums of our own, every wait bounded.
#include "call_rules.hpp"
#include "nccl_call.hpp"
#include "nccl_group.hpp"

#include <flatshard/kernels/nccl.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

template <class Self>
int nccl_collectives<Self>::size() const {
  return static_cast<int>(group_->size());
}
template <class Self>
rank_id nccl_collectives<Self>::self() const {
  return rank_at(group_->self());
}

template <class Self>
bool nccl_collectives<Self>::overlaps() const {
  return group_->overlaps();
}

template <class Self>
void nccl_collectives<Self>::gather_memory(memory_ref full, const_memory_ref shard, stream_ref s) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = shard.size;
  auto const notice = gather_call(ranks, self, full, shard);
  auto* const own = offset(full.data, self * count, full.type);
  g.call(notice, s, limit_, [&] {
    if (count == 0 || (ranks == 1 && own == shard.data)) return;
    if (ranks == 1) return kernels::cast(buffer(own, full.type, count), buffer(shard.data, shard.type, count), s);
    if (width(full.type) <= width(shard.type)) {
      void const* from = shard.data;
      if (full.type != shard.type) {
        kernels::cast(buffer(own, full.type, count), buffer(shard.data, shard.type, count), s);
        from = own;
      }
      return g.enqueue(ncclAllGather(from, full.data, count, on_wire(full.type), g.comm(), s.stream), "ncclAllGather");
    }
    auto const room = g.room(s);  // wider: gathered narrow, in parts that the workspace holds
    auto const step = room.size() / ranks / width(shard.type) / 128 * 128;
    require(step > 0, "the workspace of a widening all-gather holds at least 128 elements a rank");
    for (std::size_t at = 0; at < count; at += step) {
      auto const n = std::min(step, count - at);
      g.enqueue(
          ncclAllGather(offset(shard.data, at, shard.type), room.data(), n, on_wire(shard.type), g.comm(), s.stream),
          "ncclAllGather");
      for (std::size_t r = 0; r < ranks; ++r)
        kernels::cast(buffer(offset(full.data, r * count + at, full.type), full.type, n),
                      buffer(offset(room.data(), r * n, shard.type), shard.type, n), s);
    }
  });
}

template <class Self>
void nccl_collectives<Self>::reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const& options,
                                           stream_ref s) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = out.size;
  auto const notice = reduce_call(ranks, self, out, grads, options);
  auto const sum = [&](std::span<float> to, void const* slots, std::size_t n, reduce_options const& o) {
    switch (grads.type) {
      case dtype::bf16: return kernels::sum(to, std::span{static_cast<bf16 const*>(slots), n}, o, s);
      case dtype::f16: return kernels::sum(to, std::span{static_cast<f16 const*>(slots), n}, o, s);
      default: return kernels::sum(to, std::span{static_cast<float const*>(slots), n}, o, s);
    }
  };
  g.call(notice, s, limit_, [&] {
    if (count == 0) return;
    auto* const result = static_cast<float*>(out.data);
    if (options.order == sum_order::any && grads.type == dtype::f32 && !options.accumulate && ranks > 1) {
      g.enqueue(ncclReduceScatter(grads.data, out.data, count, ncclFloat32, ncclSum, g.sums(), s.stream),
                "ncclReduceScatter");
      if (options.scale != 1.0f) sum({result, count}, result, count, {.scale = options.scale});
      return;
    }
    auto ours = options;
    if (ours.order == sum_order::any) ours.order = sum_order::by_rank;
    bool const narrow = out.type != dtype::f32;
    if (ranks == 1 && !narrow) return sum({result, count}, grads.data, count, ours);
    // The slices of all ranks for this one, and where the result is narrow its fp32 sums, in parts.
    auto const room = g.room(s);
    auto const step = room.size() / (ranks * width(grads.type) + (narrow ? 4 : 0)) / 128 * 128;
    require(step > 0, "the workspace of a reduce-scatter holds at least 128 elements a rank");
    for (std::size_t at = 0; at < count; at += step) {
      auto const n = std::min(step, count - at);
      auto* const wide = reinterpret_cast<float*>(room.data());
      auto* const slots = room.data() + (narrow ? padded(n * 4) : 0);
      void const* addends = slots;
      if (ranks == 1) {
        addends = offset(grads.data, at, grads.type);  // no NCCL: its own slice is all there is
      } else if (n == count) {
        g.enqueue(ncclAlltoAll(grads.data, slots, n, on_wire(grads.type), g.sums(), s.stream), "ncclAlltoAll");
      } else {
        nccl_group::group all{g, g.sums()};
        for (std::size_t r = 0; r < ranks; ++r) {
          all.send(offset(grads.data, r * count + at, grads.type), n, grads.type, r, s);
          all.receive(offset(slots, r * n, grads.type), n, grads.type, r, s);
        }
        all.end();
      }
      if (!narrow) {
        sum({result + at, n}, addends, ranks * n, ours);
      } else {
        auto const here = buffer(offset(out.data, at, out.type), out.type, n), sums = buffer(wide, dtype::f32, n);
        if (ours.accumulate) kernels::cast(sums, here, s);
        sum({wide, n}, addends, ranks * n, ours);
        kernels::cast(here, sums, s);
      }
    }
  });
}

template <class Self>
void nccl_collectives<Self>::spread_memory(memory_ref buffer_of, rank_id root, stream_ref s) {
  auto& g = *group_;
  auto const notice = spread_call(g.size(), buffer_of, root);
  auto const n = size_of(elements{buffer_of.size}, buffer_of.type).value;
  g.call(notice, s, limit_, [&] {
    if (n == 0 || g.size() == 1) return;
    g.enqueue(
        ncclBroadcast(buffer_of.data, buffer_of.data, n, ncclUint8, static_cast<int>(index(root)), g.comm(), s.stream),
        "ncclBroadcast");
  });
}

template <class Self>
void nccl_collectives<Self>::exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                                             std::span<elements const> send, stream_ref s) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self();
  auto const notice = exchange_call(ranks, out, receive, in, send);
  g.call(notice, s, limit_, [&] {
    if (ranks == 1) {
      if (send[0] != receive[0]) raise(unequal_counts(0, 0, send[0].value, receive[0].value, g.context()));
      auto const n = size_of(send[0], in.type).value;
      if (n > 0) FLATSHARD_CUDA_CALL(cudaMemcpyAsync, out.data, in.data, n, cudaMemcpyDeviceToDevice, s.stream);
      return;
    }
    if (g.checked()) {  // whom each rank sends to, then whom it takes from, one peer at a time
      std::vector<std::array<std::uint64_t, 2>> all(ranks), counts(ranks * ranks);
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        std::array<std::uint64_t, 2> const own{send[peer].value, receive[peer].value};
        g.gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&own), sizeof own,
                      s);
        for (std::size_t r = 0; r < ranks; ++r) counts[r * ranks + peer] = all[r];
      }
      for (std::size_t from = 0; from < ranks; ++from)
        for (std::size_t to = 0; to < ranks; ++to)
          if (auto const sent = counts[from * ranks + to][0], taken = counts[to * ranks + from][1]; sent != taken)
            raise(unequal_counts(from, to, sent, taken, g.context()));
    }
    nccl_group::group all{g, g.comm()};
    std::size_t from = 0, to = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      all.send(offset(in.data, from, in.type), send[r].value, in.type, r, s);
      all.receive(offset(out.data, to, out.type), receive[r].value, out.type, r, s);
      from += send[r].value;
      to += receive[r].value;
    }
    all.end();
  });
  static_cast<void>(self);
}

template <class Self>
void nccl_collectives<Self>::cast_memory(buffer_ref out, buffer_ref in, stream_ref s) {
  kernels::cast(out, in, s);
}

template <class Self>
void nccl_collectives<Self>::all_reduce(std::span<double> values, reduction how, stream_ref s) {
  auto& g = *group_;
  require(values.size() <= most_values, "an all-reduce over NCCL combines at most 64 values");
  g.call(all_reduce_call(values.size(), how), s, limit_, [&] {
    if (values.empty()) return;
    std::vector<double> all(values.size() * g.size());
    g.gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(values.data()),
                  values.size_bytes(), s);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = all[i];
      for (std::size_t r = 1; r < g.size(); ++r) values[i] = combined(how, values[i], all[r * values.size() + i]);
    }
  });
}

template <class Self>
std::vector<std::uint64_t> nccl_collectives<Self>::gather_words(std::uint64_t own, stream_ref s) {
  auto& g = *group_;
  std::vector<std::uint64_t> all(g.size());
  g.call({.operation = collective::agree, .count = 1}, s, limit_, [&] {
    g.gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&own), sizeof own, s);
  });
  return all;
}

template <class Self>
void nccl_collectives<Self>::barrier(stream_ref s) {
  auto& g = *group_;
  g.call({.operation = collective::barrier}, s, limit_, [&] { g.touch_all(s); });
}
template <class Self>
void nccl_collectives<Self>::wait(stream_ref s) {
  group_->wait(s, limit_);
}
template <class Self>
void nccl_collectives<Self>::abort() {
  group_->abort();
}
template <class Self>
void nccl_collectives<Self>::label(std::string_view unit) {
  group_->calls().label(unit);
}
template <class Self>
std::vector<call_record> nccl_collectives<Self>::recent_calls() const {
  return group_->calls().calls();
}

template class nccl_collectives<nccl_ref>;
template class nccl_collectives<nccl_communicator>;

}  // namespace detail

bytes nccl_workspace(world<> ranks) { return {(ranks.value() + 1) * detail::padded(detail::word_bytes)}; }

ncclUniqueId new_nccl_id() {
  ncclUniqueId id{};
  if (auto const code = ncclGetUniqueId(&id); code != ncclSuccess)
    flatshard::detail::raise(nccl_error{code, detail::said(code, "ncclGetUniqueId")});
  return id;
}

ncclUniqueId exchange_nccl_id(std::string const& path, world<> ranks, rank_id self, deadline limit) {
  struct content {
    std::array<char, 8> magic{'f', 's', 'n', 'c', 'c', 'l', '1', 0};
    std::uint64_t ranks = 0;
    ncclUniqueId id{};
  } here;
  here.ranks = ranks.value();
  if (index(self) == 0) {
    here.id = new_nccl_id();
    auto const unfinished = path + ".unfinished";
    {
      std::ofstream file{unfinished, std::ios::binary};
      file.write(reinterpret_cast<char const*>(&here), sizeof here);
      if (!file.flush())
        flatshard::detail::raise(std::runtime_error{unfinished + ": the id of the group was not written"});
    }
    if (std::rename(unfinished.c_str(), path.c_str()) != 0)
      flatshard::detail::raise(std::runtime_error{path + ": the file of the id could not be put in place"});
    return here.id;
  }
  for (auto const until = end_of(limit);;) {
    content found;
    if (std::ifstream file{path, std::ios::binary}; file.read(reinterpret_cast<char*>(&found), sizeof found)) {
      if (found.magic != here.magic)
        flatshard::detail::raise(std::runtime_error{path + ": holds something else than the id of a group"});
      if (found.ranks != here.ranks)
        flatshard::detail::raise(mismatch{"the world size",
                                          {rank_at(0), self},
                                          {std::to_string(found.ranks), std::to_string(here.ranks)},
                                          " in " + path});
      return found.id;
    }
    if (std::chrono::steady_clock::now() >= until)
      flatshard::detail::raise(peer_lost{
          {rank_at(0)},
          "rank 0 did not write the id of the group to " + path + " before the deadline of " + spelled(limit)});
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
}

nccl_ref::nccl_ref(ncclComm_t borrowed, nccl_ref_options options)
    : nccl_collectives{std::make_shared<detail::nccl_group>(borrowed, options), options.deadline} {}

nccl_communicator::nccl_communicator(world<> ranks, rank_id self, ncclUniqueId const& id, nccl_options options)
    : nccl_collectives{std::make_shared<detail::nccl_group>(ranks.value(), index(self), id, options),
                       options.deadline} {}
nccl_communicator::~nccl_communicator() = default;
void nccl_communicator::close() { group_->close(limit_); }

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
