// SPDX-License-Identifier: Apache-2.0
/// Loads sharded units on every rank of a group: each byte of the checkpoint once, one error for all ranks.
///
///     auto report = load(units, "model/", comm);                       // every rank calls it; throws alike on all
///     load(units, checkpoint, comm, {.mode = load_mode::whole}, cast); // `cast`: a backend's own, see portable_cast
///     // one rank alone: segment_loader.hpp, load_segments
#pragma once

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/communicator.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/segment_loader.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Ends a step that every rank did for itself. If any rank has `problems`, all ranks throw `bad_input` with those of
/// the lowest such rank, whose number is added to their texts. Collective, ends by the communicator's deadline.
template <Communicator C>
void agree_on_problems(C& comm, std::vector<problem> const& problems, typename C::stream_type stream = {});

/// Loads `units`, a range of `sharded_unit`, from a checkpoint on the ranks of `comm`. Each rank opens and checks the
/// files itself and reads its own ranges; nothing but headers' hashes and the outcome is exchanged. Throws on all
/// ranks: `bad_input` (what does not fit, before data are read; a read that failed), `mismatch` (ranks see different
/// headers or layouts). Another exception on one rank aborts the communicator, so that the others get `peer_lost`.
template <class Units, Communicator C, class Cast = portable_cast>
load_report load(Units& units, checkpoint_files const& from, C& comm, load_options const& options = {},
                 Cast const& cast = {}, typename C::stream_type stream = {});

/// The same from a path that `open_checkpoint` takes.
template <class Units, Communicator C, class Cast = portable_cast>
load_report load(Units& units, std::filesystem::path const& from, C& comm, load_options const& options = {},
                 Cast const& cast = {}, typename C::stream_type stream = {});
template <class Units, Communicator C, class Cast = portable_cast>
load_report load(Units& units, char const* from, C& comm, load_options const& options = {}, Cast const& cast = {},
                 typename C::stream_type stream = {});

namespace detail {

/// Problems as bytes, to send them to other ranks: numbers as 8 bytes, little-endian, texts behind their length.
class problem_writer {
 public:
  std::vector<std::byte> out;
  void number(std::uint64_t value) {
    for (int i = 0; i < 8; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xFF));
  }
  void text(std::string_view value) {
    number(value.size());
    for (char const c : value) out.push_back(static_cast<std::byte>(c));
  }
};
class problem_reader {
 public:
  explicit problem_reader(std::span<std::byte const> in) : in_{in} {}
  std::uint64_t number() {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 8; ++i) value |= std::to_integer<std::uint64_t>(next()) << (8 * i);
    return value;
  }
  std::string text() {
    std::string value(number(), '\0');
    for (char& c : value) c = static_cast<char>(next());
    return value;
  }

 private:
  std::byte next() {
    auto const first = in_.front();
    in_ = in_.subspan(1);
    return first;
  }
  std::span<std::byte const> in_;
};

inline std::vector<std::byte> packed(std::vector<problem> const& problems, std::size_t rank) {
  constexpr std::size_t most = 1000;  // what a message carries; the rank's own list stays whole
  problem_writer to;
  to.number(std::min(problems.size(), most));
  for (std::size_t i = 0; i < problems.size() && i < most; ++i) {
    auto const& p = problems[i];
    to.number(static_cast<std::uint64_t>(p.code));
    to.number(static_cast<std::uint64_t>(p.level));
    to.text(p.where.file);
    to.text(p.where.pointer);
    to.number(p.where.line);
    to.number(p.where.column);
    to.text(p.detail + " (on rank " + std::to_string(rank) + ")");
    to.text(p.when);
    to.text(p.upstream);
  }
  return std::move(to.out);
}
inline std::vector<problem> unpacked(std::span<std::byte const> bytes_in) {
  problem_reader from{bytes_in};
  std::vector<problem> all(from.number());
  for (auto& p : all) {
    p.code = static_cast<errc>(from.number());
    p.level = static_cast<severity>(from.number());
    p.where.file = from.text();
    p.where.pointer = from.text();
    p.where.line = from.number();
    p.where.column = from.number();
    p.detail = from.text();
    p.when = from.text();
    p.upstream = from.text();
  }
  return all;
}

/// Calls `f`; if it throws, peers are freed from waiting before the exception goes on.
template <class C, class F>
auto or_abort(C& comm, F f) {
#if defined(__cpp_exceptions)
  try {
    return f();
  } catch (...) {
    comm.abort();
    throw;
  }
#else
  return f();
#endif
}

}  // namespace detail

template <Communicator C>
void agree_on_problems(C& comm, std::vector<problem> const& problems, typename C::stream_type stream) {
  auto const ranks = static_cast<std::size_t>(comm.size());
  auto message = detail::or_abort(
      comm, [&] { return problems.empty() ? std::vector<std::byte>{} : detail::packed(problems, index(comm.self())); });
  detail::problem_writer own;
  own.number(message.size());
  std::vector<std::byte> sizes(8 * ranks);
  comm.all_gather(std::span<std::byte>{sizes}, std::span<std::byte const>{own.out}, stream);
  comm.wait(stream);
  detail::problem_reader from{sizes};
  for (std::size_t r = 0; r < ranks; ++r) {
    auto const size = from.number();
    if (size == 0) continue;
    message.resize(size);
    comm.broadcast(std::span<std::byte>{message}, rank_at(r), stream);
    comm.wait(stream);
    throw_bad_input(config_error{detail::unpacked(message)});
  }
}

template <class Units, Communicator C, class Cast>
load_report load(Units& units, checkpoint_files const& from, C& comm, load_options const& options, Cast const& cast,
                 typename C::stream_type stream) {
  using layout_type = std::remove_cvref_t<decltype((*units.begin()).layout())>;
  std::vector<segment_job<layout_type>> jobs;
  std::uint64_t layouts = detail::fnv_offset;
  detail::or_abort(comm, [&] {
    for (auto& unit : units) {
      auto const storage = unit.storage();
      load_destination to{{storage.data, size_of(storage.count, storage.type).value}, storage.type};
      if (unit.has_master()) to.master = unit.master();
      jobs.push_back({&unit.layout(), comm.self(), to});
      layouts = detail::fnv(layouts, unit.layout().hash());
    }
  });
  agree(comm, layouts, "the layouts of the units", stream);
  agree(comm, from.hash(), "the headers of the checkpoint", stream);
  agree(comm, static_cast<std::uint64_t>(options.mode), "the load mode", stream);
  auto const done = detail::or_abort(comm, [&] { return load_segments(from, jobs, options, cast); });
  agree_on_problems(comm, done ? std::vector<problem>{} : done.error().problems, stream);
  return *done;
}

template <class Units, Communicator C, class Cast>
load_report load(Units& units, std::filesystem::path const& from, C& comm, load_options const& options,
                 Cast const& cast, typename C::stream_type stream) {
  auto const opened = detail::or_abort(comm, [&] { return open_checkpoint(from); });
  agree_on_problems(comm, opened ? std::vector<problem>{} : opened.error().problems, stream);
  return load(units, *opened, comm, options, cast, stream);
}
template <class Units, Communicator C, class Cast>
load_report load(Units& units, char const* from, C& comm, load_options const& options, Cast const& cast,
                 typename C::stream_type stream) {
  auto const path = detail::or_abort(comm, [&] { return std::filesystem::path{from}; });
  return load(units, path, comm, options, cast, stream);
}

}  // namespace v0
}  // namespace flatshard
