// SPDX-License-Identifier: Apache-2.0
/// The collectives between processes: a shared window inside a node, messages between nodes, fp32 sums of our own.
#include "call_notice.hpp"
#include "call_rules.hpp"
#include "cpu_run.hpp"
#include "mpi_group.hpp"

#include <flatshard/kernels/mpi.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <utility>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

namespace {

std::size_t width(dtype t) { return bits(t) / 8; }
std::size_t parts(std::size_t n, std::size_t of) { return n / of + (n % of != 0 ? 1 : 0); }
/// Elements of part k of n, in steps of `of`.
std::size_t part(std::size_t n, std::size_t of, std::size_t k) { return std::min(of, n - k * of); }
/// One block for everybody, at the start of the area.
constexpr auto for_all = [](std::size_t) -> std::size_t { return 0; };

}  // namespace

template <class Self>
int mpi_collectives<Self>::size() const {
  return static_cast<int>(group_->size());
}
template <class Self>
rank_id mpi_collectives<Self>::self() const {
  return rank_at(group_->self());
}

template <class Self>
void mpi_collectives<Self>::gather_memory(memory_ref full, const_memory_ref shard, inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = shard.size;
  auto const notice = gather_call(ranks, self, full, shard);
  auto const wire = width(full.type) < width(shard.type) ? full.type : shard.type;
  auto const step = g.half() / width(wire);
  work_options const how{.output = hint(size_of(elements{full.size}, full.type).value)};
  auto const slot = [&](std::size_t rank, std::size_t at) { return offset(full.data, rank * count + at, full.type); };
  g.call(notice, limit_, [&] {
    g.rounds(
        parts(count, step), [&](auto, auto, std::size_t k) { return part(count, step, k) * width(wire); }, for_all,
        [&](std::size_t k, std::byte* area) {
          g.lay(self, area, wire, offset(shard.data, k * step, shard.type), shard.type, part(count, step, k),
                how.output);
        },
        [&](std::size_t k, auto const& area_of) {
          auto const n = part(count, step, k);
          if (shard.data != slot(self, 0))
            run_cast(slot(self, k * step), full.type, offset(shard.data, k * step, shard.type), shard.type, n, how);
          for (std::size_t i = 1; i < ranks; ++i) {
            auto const r = (self + i) % ranks;
            run_cast(slot(r, k * step), full.type, area_of(r), wire, n, how);
          }
        });
  });
}

template <class Self>
void mpi_collectives<Self>::reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const& options,
                                          inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = out.size;
  auto const notice = reduce_call(ranks, self, out, grads, options);
  auto const w = width(grads.type);
  auto const room = std::max<std::size_t>(g.half() / ranks / 64 * 64, 64);  // bytes for one peer
  require(room * ranks <= g.half(), "the staging area holds at least 64 bytes a rank");
  auto const step = room / w;
  auto const how = hint(size_of(elements{grads.size}, grads.type).value);
  auto const place = [&](std::size_t to) { return to * room; };
  std::vector<void const*> in(ranks);
  g.call(notice, limit_, [&] {
    g.rounds(
        parts(count, step), [&](auto, auto, std::size_t k) { return part(count, step, k) * w; }, place,
        [&](std::size_t k, std::byte* area) {
          auto const n = part(count, step, k);
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self)
              g.lay(r, area + place(r), grads.type, offset(grads.data, r * count + k * step, grads.type), grads.type, n,
                    how);
        },
        [&](std::size_t k, auto const& area_of) {
          for (std::size_t r = 0; r < ranks; ++r)
            in[r] = r == self ? offset(grads.data, r * count + k * step, grads.type) : area_of(r);
          run_sum(offset(out.data, k * step, out.type), out.type, in.data(), ranks, grads.type, part(count, step, k),
                  options, {});
        });
  });
}

template <class Self>
void mpi_collectives<Self>::spread_memory(memory_ref buffer, rank_id root, inline_stream) {
  auto& g = *group_;
  auto const notice = spread_call(g.size(), buffer, root);
  auto const from = index(root), all = size_of(elements{buffer.size}, buffer.type).value, step = g.half();
  auto* const data = static_cast<std::byte*>(buffer.data);
  g.call(notice, limit_, [&] {
    g.rounds(
        parts(all, step),
        [&](std::size_t r, auto, std::size_t k) { return r == from ? part(all, step, k) : std::size_t{0}; }, for_all,
        [&](std::size_t k, std::byte* area) {
          if (g.self() == from) g.lay(from, area, dtype::u8, data + k * step, dtype::u8, part(all, step, k), hint(all));
        },
        [&](std::size_t k, auto const& area_of) {
          if (g.self() != from) run_cast(data + k * step, dtype::u8, area_of(from), dtype::u8, part(all, step, k), {});
        });
  });
}

template <class Self>
void mpi_collectives<Self>::exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                                            std::span<elements const> send, inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), w = width(in.type);
  auto const notice = exchange_call(ranks, out, receive, in, send);
  auto const room = std::max<std::size_t>(g.half() / ranks / 64 * 64, 64), row = 2 * ranks * sizeof(std::uint64_t);
  require(room * ranks <= g.half() && row <= g.half(), "the staging area holds at least 64 bytes a rank");
  auto const step = room / w;
  auto const how = hint(size_of(elements{in.size}, in.type).value);
  auto const place = [&](std::size_t to) { return to * room; };
  std::vector<std::uint64_t> counts(2 * ranks * ranks);  // of each rank: what it sends, what it takes
  auto const sent = [&](std::size_t from, std::size_t to) { return counts[2 * ranks * from + to]; };
  auto const taken = [&](std::size_t by, std::size_t from) { return counts[2 * ranks * by + ranks + from]; };
  auto const elements_of = [&](std::size_t from, std::size_t to, std::size_t k) {
    auto const n = sent(from, to);
    return k * step < n ? part(n, step, k) : 0;
  };
  g.call(notice, limit_, [&] {
    for (std::size_t r = 0; r < ranks; ++r) {
      counts[2 * ranks * self + r] = send[r].value;
      counts[2 * ranks * self + ranks + r] = receive[r].value;
    }
    g.rounds(
        1, [&](auto, auto, auto) { return row; }, for_all,
        [&](auto, std::byte* area) { std::memcpy(area, &counts[2 * ranks * self], row); },
        [&](auto, auto const& area_of) {
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self) std::memcpy(&counts[2 * ranks * r], area_of(r), row);
        });
    std::uint64_t most = 0;
    for (std::size_t s = 0; s < ranks; ++s)
      for (std::size_t r = 0; r < ranks; ++r) {
        if (sent(s, r) != taken(r, s))
          raise(unequal_counts(s, r, sent(s, r), taken(r, s),
                               " in " + g.calls().current() + g.calls().history(rank_at(self))));
        most = std::max(most, sent(s, r));
      }
    std::vector<std::size_t> from_at(ranks), to_at(ranks);
    for (std::size_t r = 1; r < ranks; ++r) {
      from_at[r] = from_at[r - 1] + receive[r - 1].value;
      to_at[r] = to_at[r - 1] + send[r - 1].value;
    }
    run_cast(offset(out.data, from_at[self], out.type), out.type, offset(in.data, to_at[self], in.type), in.type,
             send[self].value, {});
    g.rounds(
        parts(most, step),
        [&](std::size_t from, std::size_t to, std::size_t k) { return elements_of(from, to, k) * w; }, place,
        [&](std::size_t k, std::byte* area) {
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self)
              g.lay(r, area + place(r), in.type, offset(in.data, to_at[r] + k * step, in.type), in.type,
                    elements_of(self, r, k), how);
        },
        [&](std::size_t k, auto const& area_of) {
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self)
              run_cast(offset(out.data, from_at[r] + k * step, out.type), out.type, area_of(r), in.type,
                       elements_of(r, self, k), {});
        });
  });
}

template <class Self>
void mpi_collectives<Self>::all_reduce(std::span<double> values, reduction how, inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), step = g.half() / sizeof(double);
  std::vector<double> own;
  g.call(all_reduce_call(values.size(), how), limit_, [&] {
    g.rounds(
        parts(values.size(), step),
        [&](auto, auto, std::size_t k) { return part(values.size(), step, k) * sizeof(double); }, for_all,
        [&](std::size_t k, std::byte* area) {
          std::memcpy(area, &values[k * step], part(values.size(), step, k) * sizeof(double));
        },
        [&](std::size_t k, auto const& area_of) {
          auto const part_of = values.subspan(k * step, part(values.size(), step, k));
          own.assign(part_of.begin(), part_of.end());
          for (std::size_t i = 0; i < own.size(); ++i) {
            auto const of = [&](std::size_t r) {
              double x = own[i];
              if (r != self) std::memcpy(&x, area_of(r) + i * sizeof x, sizeof x);
              return x;
            };
            part_of[i] = of(0);
            for (std::size_t r = 1; r < ranks; ++r) part_of[i] = combined(how, part_of[i], of(r));
          }
        });
  });
}

template <class Self>
void mpi_collectives<Self>::barrier(inline_stream) {
  group_->call({.operation = collective::barrier}, limit_, [] {});
}
template <class Self>
void mpi_collectives<Self>::abort(std::string_view why) {
  std::string text = "rank " + std::to_string(group_->self()) + " aborted the group";
  if (!why.empty()) text += ": " + std::string{why};
  group_->fail({rank_at(group_->self())}, text);
}
template <class Self>
void mpi_collectives<Self>::label(std::string_view unit) {
  group_->calls().label(unit);
}
template <class Self>
std::vector<call_record> mpi_collectives<Self>::recent_calls() const {
  return group_->calls().calls();
}

template class mpi_collectives<mpi_ref>;
template class mpi_collectives<mpi_communicator>;

}  // namespace detail

mpi_ref::mpi_ref(MPI_Comm borrowed, mpi_ref_options options)
    : mpi_collectives{std::make_shared<detail::mpi_group>(borrowed, options), options.deadline} {}

mpi_communicator::mpi_communicator(MPI_Comm from, mpi_options options)
    : mpi_collectives{std::make_shared<detail::mpi_group>(from, options), options.deadline} {}
mpi_communicator::~mpi_communicator() = default;
void mpi_communicator::run(std::function<void(mpi_communicator&)> const& rank_main) {
  auto const tell = [&](std::string const& text) {
    group_->fail({self()}, "rank " + std::to_string(index(self())) + " failed: " + text);
  };
  try {
    rank_main(*this);
  } catch (std::exception const& e) {
    tell(e.what());
    throw;
  } catch (...) {
    tell("an exception of unknown type");
    throw;
  }
}
void mpi_communicator::close() { group_->close(limit_); }
int mpi_communicator::window_ranks() const { return static_cast<int>(group_->window_ranks()); }

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
