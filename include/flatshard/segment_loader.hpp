// SPDX-License-Identifier: Apache-2.0
/// safetensors files + layout -> this rank's segment: only its own ranges are read, cast on the way, no full tensor.
///
///     auto model = open_checkpoint("model/").value();
///     auto one = load_segment(model, layout, rank, {storage, dtype::bf16}).value();  // one unit, no communicator
///     auto all = load_segments(model, jobs, options, cast).value();                  // several units, in file order
///     auto report = load(units, "model/", comm);                                     // loader.hpp: on every rank
#pragma once

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/cut_problems.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The cast of the core's one rounding rule, for any pair of fp32, bf16 and fp16. Stands for what a loader takes: a
/// callable on (out, in) spans of equal size. A caller's own may lack pairs if it is constrained to those that it has;
/// the portable rule then does the rest.
struct portable_cast {
  template <CastElement To, CastElement From>
  void operator()(std::span<To> out, std::span<From const> in) const {
    for (std::size_t i = 0; i < in.size(); ++i) out[i] = narrow<To>(widen(in[i]));
  }
};

/// Where one rank's segment of one unit goes. Shapes: [segment] elements; aligned for their types.
struct load_destination {
  std::span<std::byte> storage;
  dtype storage_dtype = dtype::none;
  std::span<float> master{};  ///< a separate fp32 copy; empty = there is none
};

/// What is read.
enum class load_mode : std::uint8_t {
  ranges,  ///< this rank's ranges alone
  whole    ///< every byte of every tensor on every rank, which then keeps its part: what an unsharded load costs
};

struct load_options {
  load_mode mode = load_mode::ranges;
  bool unexpected_is_error = false;       ///< tensors of the checkpoint that no unit has
  bytes chunk{std::size_t{4} << 20};      ///< one staging chunk
  std::size_t chunks = 4;                 ///< in the ring: one is cast while the system is asked to read the others
  bytes request{std::size_t{8} << 20};    ///< the largest read that goes straight into a segment
  std::function<void(bytes)> progress{};  ///< called on the loading thread with `bytes_read` so far
};

/// What a load did on this rank.
struct load_report {
  load_mode mode = load_mode::ranges;
  bytes bytes_needed;        ///< of its tensors' data
  bytes bytes_read;          ///< all that it read from files: what opening the checkpoint reads, and `data_bytes`
  bytes data_bytes;          ///< tensors' data that it read
  std::size_t requests = 0;  ///< reads
  std::size_t merged = 0;    ///< ranges that shared the read of the range before them
  std::size_t files = 0;
  bytes ring;  ///< staging memory that was used
  double seconds = 0;
  std::uint64_t header_hash = 0;  ///< what this rank saw; equal on ranks that loaded the same checkpoint
};

/// One unit to load on one rank.
template <class Layout>
struct segment_job {
  Layout const* layout{};
  rank_id rank{};
  load_destination to;
};

/// Whether the loader turns elements of `file` into `storage`: equal types, and fp32, bf16, fp16 among each other.
/// Integers, booleans, fp8 and narrower types are never cast.
[[nodiscard]] constexpr bool loadable(dtype file, dtype storage) {
  auto const castable = [](dtype t) { return t == dtype::f32 || t == dtype::bf16 || t == dtype::f16; };
  return file == storage || (castable(file) && castable(storage));
}

/// Every way in which the tensors of the checkpoint do not fit the units: missing, other shape, other kind of dtype,
/// cut inside a byte, and (option) unexpected. Equal on every rank. Complexity: O(parameters * log tensors). Reads
/// nothing.
template <class Layout>
[[nodiscard]] std::vector<problem> load_problems(checkpoint_files const& from,
                                                 std::vector<segment_job<Layout>> const& jobs,
                                                 load_options const& options = {});

/// Fills the segments of several units on one rank, in the order of the files. Everything that does not fit is listed
/// before the first byte of data is read. The padding of the segments becomes zero. Memory: the ring and O(pieces).
/// On failure the content of the segments is unspecified. May be called for different ranks at the same time.
template <class Layout, class Cast = portable_cast>
[[nodiscard]] result<load_report> load_segments(checkpoint_files const& from,
                                                std::vector<segment_job<Layout>> const& jobs,
                                                load_options const& options = {}, Cast const& cast = {});

/// The same for one unit.
template <class Layout, class Cast = portable_cast>
[[nodiscard]] result<load_report> load_segment(checkpoint_files const& from, Layout const& layout, rank_id rank,
                                               load_destination to, load_options const& options = {},
                                               Cast const& cast = {}) {
  return load_segments(from, std::vector<segment_job<Layout>>{{&layout, rank, to}}, options, cast);
}

namespace detail {

/// Elements that stand in one file in one run and go to one segment in one run, or nowhere.
struct load_run {
  static constexpr std::uint32_t nowhere = ~std::uint32_t{};
  std::uint64_t offset, size;  // bytes in the file
  std::uint64_t local;         // elements in the segment
  std::uint32_t file, job, tensor;
  dtype type;
};

/// Bytes after which a run may be cut: one element, or a byte of narrower types.
[[nodiscard]] constexpr std::size_t cut_size(dtype t) { return bits(t) % 8 == 0 ? bits(t) / 8 : 1; }

template <class T>
[[nodiscard]] std::span<T> typed_bytes(std::byte* at, std::size_t count) {
  return {reinterpret_cast<T*>(at), count};
}
template <class Cast, CastElement To, CastElement From>
void cast_or_copy(Cast const& cast, std::span<To> out, std::span<From const> in) {
  if constexpr (std::same_as<To, From>) {
    if (!in.empty()) std::memcpy(out.data(), in.data(), in.size_bytes());
  } else if constexpr (requires { cast(out, in); }) {
    cast(out, in);
  } else {
    portable_cast{}(out, in);
  }
}
template <class F>
void with_cast_element(dtype t, F f) {
  if (t == dtype::f32) return f(float{});
  if (t == dtype::bf16) return f(bf16{});
  require(t == dtype::f16, "only fp32, bf16 and fp16 are cast");
  f(f16{});
}

/// Places elements read from a file into a segment. `in` is aligned for its type.
template <class Cast>
void place_elements(load_destination const& to, std::uint64_t local, dtype type, std::span<std::byte const> in,
                    Cast const& cast) {
  if (to.master.empty() && type == to.storage_dtype) {
    std::memcpy(to.storage.data() + size_of(elements{local}, type).value, in.data(), in.size());
    return;
  }
  constexpr std::size_t block =
      8192;  // elements: the master's values are still in the nearest cache when they are narrowed
  with_cast_element(type, [&]<class From>(From) {
    require(reinterpret_cast<std::uintptr_t>(in.data()) % alignof(From) == 0, "staged elements must be aligned");
    std::span<From const> const all{reinterpret_cast<From const*>(in.data()), in.size() / sizeof(From)};
    with_cast_element(to.storage_dtype, [&]<class To>(To) {
      auto const out = typed_bytes<To>(to.storage.data() + local * sizeof(To), all.size());
      if (to.master.empty()) return cast_or_copy(cast, out, all);
      auto const master = to.master.subspan(local, all.size());
      for (std::size_t i = 0; i < all.size(); i += block) {
        auto const n = std::min(block, all.size() - i);
        cast_or_copy(cast, master.subspan(i, n), all.subspan(i, n));
        cast_or_copy(cast, out.subspan(i, n), std::span<float const>{master.subspan(i, n)});
      }
    });
  });
}

/// Zeroes what no piece covers. `pieces` lists (begin, end) of elements and is sorted here.
inline void clear_padding(load_destination const& to, elements segment,
                          std::vector<std::pair<std::size_t, std::size_t>>& pieces) {
  std::sort(pieces.begin(), pieces.end());
  auto const clear = [&](std::size_t begin, std::size_t end) {
    if (begin >= end) return;
    auto const first = size_of(elements{begin}, to.storage_dtype).value;
    std::memset(to.storage.data() + first, 0, size_of(elements{end}, to.storage_dtype).value - first);
    if (!to.master.empty())
      std::fill(to.master.begin() + static_cast<std::ptrdiff_t>(begin),
                to.master.begin() + static_cast<std::ptrdiff_t>(end), 0.0f);
  };
  std::size_t next = 0;
  for (auto const& [begin, end] : pieces) {
    require(begin >= next, "the pieces of one rank must not overlap in its segment");
    clear(next, begin);
    next = end;
  }
  require(next <= segment.value, "the pieces of one rank must lie inside its segment");
  clear(next, segment.value);
}

/// Reads sorted runs into segments.
template <class Layout, class Cast>
class run_reader {
 public:
  run_reader(checkpoint_files const& from, std::vector<segment_job<Layout>> const& jobs, load_options const& options,
             Cast const& cast, load_report& report)
      : from_{from}, jobs_{jobs}, options_{options}, cast_{cast}, report_{report} {}

  [[nodiscard]] result<void> read(std::vector<load_run> const& runs) {
    for (std::size_t i = 0; i < runs.size();) {
      auto next = i + 1;
      while (next < runs.size() && continues(runs[next - 1], runs[next])) ++next;
      if (within_ == 0 && is_direct(runs[i])) {
        std::uint64_t size = 0;
        for (auto k = i; k < next; ++k) size += runs[k].size;
        if (size >= direct_bytes) {
          report_.merged += next - i - 1;
          if (auto done = read_direct(runs[i], size); !done) return done;
          i = next;
          continue;
        }
      }
      if (auto done = read_staged(runs, i); !done) return done;
    }
    return {};
  }

 private:
  static constexpr std::uint64_t direct_bytes = 128 << 10;  // shorter ranges are read together where they touch

  struct free_memory {
    void operator()(std::byte* p) const { std::free(p); }
  };

  [[nodiscard]] bool is_direct(load_run const& r) const {
    if (r.job == load_run::nowhere) return false;
    auto const& to = jobs_[r.job].to;
    return to.master.empty() && to.storage_dtype == r.type;
  }
  [[nodiscard]] static bool touches(load_run const& a, load_run const& b) {
    return a.file == b.file && a.offset + a.size == b.offset;
  }
  /// b follows a in the file and in the segment, with the same type.
  [[nodiscard]] bool continues(load_run const& a, load_run const& b) const {
    return touches(a, b) && a.job == b.job && a.job != load_run::nowhere && a.type == b.type && bits(a.type) % 8 == 0 &&
           a.local + a.size / cut_size(a.type) == b.local;
  }
  [[nodiscard]] result<void> read_at(load_run const& r, std::span<std::byte> out, std::uint64_t at) {
    auto done = from_.files()[r.file].file.read_at(out, {at});
    if (!done) {
      auto one = done.error().problems.front();
      one.detail += " (tensor " + shown(from_.name(r.tensor)) + ")";
      return config_error{std::move(one)};
    }
    ++report_.requests;
    report_.bytes_read += bytes{out.size()};
    report_.data_bytes += bytes{out.size()};
    if (options_.progress) options_.progress(report_.bytes_read);
    return {};
  }
  [[nodiscard]] result<void> read_direct(load_run const& first, std::uint64_t size) {
    auto const& to = jobs_[first.job].to;
    auto out = to.storage.subspan(size_of(elements{first.local}, first.type).value, size);
    for (auto at = first.offset; !out.empty();) {
      auto const n = std::min<std::size_t>(out.size(), options_.request.value);
      if (auto done = read_at(first, out.first(n), at); !done) return done;
      at += n;
      out = out.subspan(n);
    }
    return {};
  }

  /// Fills one chunk from run `i` on and empties it; `i` and `within_` move to what comes next.
  [[nodiscard]] result<void> read_staged(std::vector<load_run> const& runs, std::size_t& i) {
    if (!chunk_) {
      chunk_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, options_.chunk.value)));
      require(chunk_ != nullptr, "there must be memory for a staging chunk");
      report_.ring = options_.chunk;
    }
    auto const begin = runs[i].offset + within_;
    auto const first = i;
    std::size_t used = 0;
    parts_.clear();
    while (i < runs.size() && used < options_.chunk.value) {
      auto const& r = runs[i];
      if (i != first &&
          (!touches(runs[i - 1], r) || used % cut_size(r.type) != 0 || (is_direct(r) && r.size >= direct_bytes)))
        break;
      auto const left = r.size - within_;
      auto take = std::min<std::uint64_t>(left, options_.chunk.value - used);
      if (take < left) take -= take % cut_size(r.type);
      if (take == 0) break;
      parts_.push_back({i, within_, used, take});
      used += take;
      if (take < left) {
        within_ += take;
        break;
      }
      within_ = 0;
      ++i;
    }
    report_.merged += parts_.size() - 1;
    if (i < runs.size()) hint(runs[i]);
    if (auto done = read_at(runs[first], {chunk_.get(), used}, begin); !done) return done;
    for (auto const& part : parts_) {
      auto const& r = runs[part.run];
      if (r.job == load_run::nowhere) continue;
      place_elements(jobs_[r.job].to, r.local + part.from * 8 / bits(r.type), r.type,
                     {chunk_.get() + part.at, part.size}, cast_);
    }
    return {};
  }

  /// Asks the system for the rest of the ring behind the present chunk, each byte once.
  void hint(load_run const& next) {
    auto const from = next.offset + within_;
    auto const end = std::min(next.offset + next.size, from + (options_.chunks - 1) * options_.chunk.value);
    if (hinted_file_ != next.file) hinted_to_ = 0;
    hinted_file_ = next.file;
    auto const begin = std::max(from, hinted_to_);
    if (begin >= end) return;
    from_.files()[next.file].file.will_read({begin}, {end - begin});
    hinted_to_ = end;
  }

  struct chunk_part {
    std::size_t run;
    std::uint64_t from;  // bytes of the run before it
    std::size_t at, size;
  };

  checkpoint_files const& from_;
  std::vector<segment_job<Layout>> const& jobs_;
  load_options const& options_;
  Cast const& cast_;
  load_report& report_;
  std::unique_ptr<std::byte, free_memory> chunk_;
  std::vector<chunk_part> parts_;
  std::uint64_t within_ = 0;  // bytes of the next run that were read already
  std::uint32_t hinted_file_ = 0;
  std::uint64_t hinted_to_ = 0;
};

}  // namespace detail

template <class Layout>
std::vector<problem> load_problems(checkpoint_files const& from, std::vector<segment_job<Layout>> const& jobs,
                                   load_options const& options) {
  std::vector<problem> all;
  std::vector<bool> used(options.unexpected_is_error ? from.size() : 0);
  auto const add = [&](errc code, std::size_t file, std::string detail) {
    auto const place = file < from.files().size() ? from.files()[file].file.path() : from.directory().string();
    all.push_back(detail::file_problem(code, place, std::move(detail)).problems.front());
  };
  auto const text = [](auto const& sizes) {
    std::string out = "[";
    for (auto const d : sizes) out += (out.size() > 1 ? ", " : "") + std::to_string(d);
    return out + ']';
  };
  for (auto const& job : jobs)
    for (std::size_t t = 0; t < job.layout->size(); ++t) {
      auto const& wanted = job.layout->parameter_at(t);
      auto const found = from.find(wanted.name);
      if (!found) {
        add(errc::tensor_missing, from.files().size(), "the checkpoint has no tensor " + shown(wanted.name));
        continue;
      }
      if (!used.empty()) used[*found] = true;
      auto const there = from[*found];
      auto const sizes = wanted.dims.sizes();
      if (!std::equal(sizes.begin(), sizes.end(), there.dims.begin(), there.dims.end()))
        add(errc::shape_mismatch, from.file_number(*found),
            "tensor " + shown(wanted.name) + " has shape " + text(there.dims) + ", the model needs " + text(sizes));
      if (!loadable(there.type, job.to.storage_dtype) || (!job.to.master.empty() && !loadable(there.type, dtype::f32)))
        add(errc::dtype_mismatch, from.file_number(*found),
            "tensor " + shown(wanted.name) + " is " + std::string{name(there.type)} + ", which is not cast to " +
                std::string{name(job.to.master.empty() ? job.to.storage_dtype : dtype::f32)});
      else if (std::equal(sizes.begin(), sizes.end(), there.dims.begin(), there.dims.end()))
        if (auto const at = split_byte(*job.layout, t, there.type))
          add(errc::not_byte_sized, from.file_number(*found),
              "tensor " + shown(wanted.name) + " is " + std::string{name(there.type)} + ", " +
                  std::to_string(bits(there.type)) + " bits an element, and the layout cuts it at element " +
                  std::to_string(at->value) + ", inside a byte");
    }
  for (std::size_t i = 0; i < used.size(); ++i)
    if (!used[i])
      add(errc::tensor_unexpected, from.file_number(i), "the model has no parameter " + shown(from.name(i)));
  return all;
}

template <class Layout, class Cast>
result<load_report> load_segments(checkpoint_files const& from, std::vector<segment_job<Layout>> const& jobs,
                                  load_options const& options, Cast const& cast) {
  auto const start = std::chrono::steady_clock::now();
  require(options.chunk.value >= 4096 && options.chunk.value % 4096 == 0,
          "a staging chunk must be a multiple of 4096 bytes");
  require(options.chunks > 0 && options.request.value > 0, "a load needs at least one chunk and requests of some size");
  for (auto const& job : jobs) {
    auto const& to = job.to;
    require(index(job.rank) < job.layout->world_size(), "rank must be smaller than the world size");
    require(to.storage.size() == size_of(job.layout->segment(), to.storage_dtype).value,
            "the storage must have the size of the layout's segment");
    require(to.master.empty() || to.master.size() == job.layout->segment().value,
            "the master copy must have the size of the layout's segment");
    require(reinterpret_cast<std::uintptr_t>(to.storage.data()) % detail::cut_size(to.storage_dtype) == 0,
            "a buffer must be aligned for its element type");
  }
  if (auto problems = load_problems(from, jobs, options); !problems.empty()) return config_error{std::move(problems)};

  load_report report;
  report.mode = options.mode;
  report.files = from.files().size();
  report.bytes_read = from.header_size();
  report.header_hash = from.hash();
  std::vector<detail::load_run> runs;
  std::vector<std::pair<std::size_t, std::size_t>> covered;
  for (std::uint32_t j = 0; j < jobs.size(); ++j) {
    auto const& job = jobs[j];
    covered.clear();
    std::size_t next = 0;  // tensor after the last one listed
    auto const list = [&](std::size_t t, elements begin, elements end, elements local) {
      auto const i = *from.find(job.layout->parameter_at(t).name);
      auto const type = from.type(i);
      auto const run = [&](elements b, elements e, std::uint32_t to) {
        if (b == e) return;
        auto const at = size_of(b, type);
        runs.push_back({(from.file_offset(i) + at).value, (size_of(e, type) - at).value, local.value,
                        static_cast<std::uint32_t>(from.file_number(i)), to, static_cast<std::uint32_t>(i), type});
      };
      run(begin, end, j);
      report.bytes_needed += size_of(end, type) - size_of(begin, type);
      if (options.mode == load_mode::ranges) return;
      run({}, begin, detail::load_run::nowhere);
      run(end, {job.layout->parameter_at(t).dims.numel()}, detail::load_run::nowhere);
    };
    for (auto const& piece : job.layout->pieces(job.rank)) {
      if (options.mode == load_mode::whole)
        for (; next < piece.tensor; ++next) list(next, {}, {}, {});
      list(piece.tensor, piece.begin, piece.end, piece.local);
      next = piece.tensor + 1;
      covered.emplace_back(piece.local.value, (piece.local + (piece.end - piece.begin)).value);
    }
    if (options.mode == load_mode::whole)
      for (; next < job.layout->size(); ++next) list(next, {}, {}, {});
    detail::clear_padding(job.to, job.layout->segment(), covered);
  }
  std::sort(runs.begin(), runs.end(), [](detail::load_run const& a, detail::load_run const& b) {
    return a.file != b.file ? a.file < b.file : a.offset < b.offset;
  });
  detail::run_reader<Layout, Cast> reader{from, jobs, options, cast, report};
  if (auto done = reader.read(runs); !done) return done.error();
  if (auto same = from.unchanged(); !same) return same.error();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace v0
}  // namespace flatshard
