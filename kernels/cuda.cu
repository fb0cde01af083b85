// SPDX-License-Identifier: Apache-2.0
/// Casts, pack and unpack, and their totals, on a stream.
#include "check.hpp"
#include "device_launch.hpp"
#include "device_packs.hpp"

#include <flatshard/kernels/cuda.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <type_traits>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

template <class Operation>
__global__ void __launch_bounds__(block_threads) cast_kernel(Operation op, std::uint64_t n) {
  walk_array(op, n);
}

/// Values that are not finite are few: each thread that met some adds them by itself.
template <class Out, class In>
__global__ void __launch_bounds__(block_threads)
    counting_cast_kernel(cast_operation<Out, In> cast, std::uint64_t n, std::uint64_t* not_finite) {
  counting_operation<Out, In> op{cast};
  walk_array(op, n);
  if (op.not_finite > 0) add_to(not_finite, op.not_finite);
}

/// Fills a flat buffer, a tile a block: padding with zeros, the rest by the operation of its tile.
template <class Flat, class OperationOf>
__device__ void fill_tiles(typename Flat::storage* flat, tile_list tiles, OperationOf operation_of) {
  for (std::uint32_t i = blockIdx.x; i < tiles.count; i += gridDim.x) {
    tile_place const t = tiles[i];
    if (t.tensor == no_tensor) {
      clear_operation<Flat> op{flat + t.target};
      walk_tile(op, t.length);
    } else {
      auto op = operation_of(t);
      walk_tile(op, t.length);
    }
  }
}
/// Tensors to flat.
template <class Flat, class Tensor>
__global__ void __launch_bounds__(block_threads, 4)
    pack_kernel(typename Flat::storage* flat, std::byte* const* tensors, tile_list tiles) {
  fill_tiles<Flat>(flat, tiles, [=](tile_place const& t) {
    auto const* const in = reinterpret_cast<typename Tensor::storage const*>(tensors[t.tensor]);
    return cast_operation<Flat, Tensor>{flat + t.target, in + t.source};
  });
}
__global__ void __launch_bounds__(block_threads)
    stochastic_pack_kernel(std::uint16_t* flat, std::byte* const* tensors, tile_list tiles, random_stream random,
                           std::uint32_t first_tensor) {
  fill_tiles<as_bf16>(flat, tiles, [=](tile_place const& t) {
    auto const* const in = reinterpret_cast<float const*>(tensors[t.tensor]);
    return stochastic_operation{flat + t.target, in + t.source, random, {first_tensor + t.tensor, t.source}};
  });
}
/// Flat to flat.
__global__ void __launch_bounds__(block_threads)
    stochastic_flat_kernel(std::uint16_t* out, float const* in, tile_list tiles, random_stream random,
                           std::uint32_t first_tensor) {
  fill_tiles<as_bf16>(out, tiles, [=](tile_place const& t) {
    return stochastic_operation{out + t.target, in + t.target, random, {first_tensor + t.tensor, t.source}};
  });
}
template <class Tensor, class Flat>
__global__ void __launch_bounds__(block_threads)
    unpack_kernel(std::byte* const* tensors, typename Flat::storage const* flat, tile_list tiles) {
  for (std::uint32_t i = blockIdx.x; i < tiles.count; i += gridDim.x) {
    tile_place const t = tiles[i];
    if (t.tensor == no_tensor) continue;
    auto* const out = reinterpret_cast<typename Tensor::storage*>(tensors[t.tensor]);
    cast_operation<Tensor, Flat> op{out + t.source, flat + t.target};
    walk_tile(op, t.length);
  }
}

/// One tile of an fp32 result. No head: element i of a tile belongs to pack i / 8, whatever its address.
template <class In>
struct result_operation {
  float* out;
  typename In::storage const* in;
  result_rule rule;
  thread_totals totals;
  __device__ walk_plan plan(std::uint64_t) const { return {0, on_words(out) && on_words(in)}; }
  __device__ eight get(std::uint64_t i) const { return In::load(in + i, true); }
  __device__ void put(std::uint64_t i, eight const& v) {
    eight const result = rule(v, out + i);
    as_f32::store(out + i, result);
#pragma unroll
    for (unsigned k = 0; k < 8; ++k) totals.add(result.x[k], k);
  }
  __device__ void one(std::uint64_t i, unsigned k) {
    out[i] = rule(In::load_one(in + i), rule.accumulate ? out[i] : 0.0f);
    totals.add(out[i], k);
  }
};
template <class Tensor>
__global__ void __launch_bounds__(block_threads)
    result_kernel(float* flat, std::byte* const* tensors, tile_list tiles, value_totals* totals, result_rule rule) {
  for (std::uint32_t i = blockIdx.x; i < tiles.count; i += gridDim.x) {
    tile_place const t = tiles[i];
    if (t.tensor == no_tensor) {
      clear_operation<as_f32> op{flat + t.target};
      walk_tile(op, t.length);
      write_totals(totals + i, 0.0, 0);
    } else {
      auto const* const in = reinterpret_cast<typename Tensor::storage const*>(tensors[t.tensor]);
      result_operation<Tensor> op{flat + t.target, in + t.source, rule, {}};
      walk_tile(op, t.length);
      write_totals(totals + i, op.totals);
    }
  }
}
__global__ void __launch_bounds__(block_threads)
    total_kernel(value_totals* out, value_totals const* of_tiles, std::uint32_t count) {
  value_totals mine;
  for (std::uint32_t i = threadIdx.x; i < count; i += block_threads) {
    mine.squares += of_tiles[i].squares;
    mine.not_finite += of_tiles[i].not_finite;
  }
  write_totals(out, mine.squares, mine.not_finite);
}

launch_shape array_shape(std::size_t n) {
  return {dim3{blocks_for(ceil_div(n, 16 * std::size_t{block_threads}))}, block_threads};
}
template <class Operation>
void launch_cast(Operation const& op, std::size_t n, stream_ref stream) {
  if (n == 0) return;
  launch("cast", cast_kernel<Operation>, array_shape(n), stream, op, std::uint64_t{n});
}
template <class Out, class In>
void launch_counting_cast(buffer_ref out, buffer_ref in, std::uint64_t* not_finite, stream_ref stream) {
  require(out.count == in.count, "a cast writes as many elements as it reads");
  if (in.count.value == 0) return;
  launch("cast", counting_cast_kernel<Out, In>, array_shape(in.count.value), stream,
         cast_operation<Out, In>{storage_of<Out>(out), storage_of<In>(in)}, std::uint64_t{in.count.value}, not_finite);
}
template <class T>
buffer_ref buffer_of(std::span<T> s) {
  return {reinterpret_cast<std::byte*>(const_cast<std::remove_const_t<T>*>(s.data())),
          dtype_of<std::remove_const_t<T>>,
          {s.size()}};
}
template <class Out, class In, class To, class From>
void cast_as(std::span<To> out, std::span<From const> in, stream_ref stream) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  launch_cast(cast_operation<Out, In>{reinterpret_cast<typename Out::storage*>(out.data()),
                                      reinterpret_cast<typename In::storage const*>(in.data())},
              in.size(), stream);
}

launch_shape tile_shape(device_tiles const& tiles, std::size_t shared = 0) {
  return {dim3{blocks_for(tiles.count, tiles.multiprocessors)}, block_threads, shared};
}
void check_tiles(elements flat, tensor_pointers const& tensors, device_tiles const& tiles) {
  require(tiles.flat_size <= flat, "the flat buffer must hold every tile of the table");
  require(tiles.tensors <= tensors.count, "a table of tiles needs every tensor that it names");
}

}  // namespace

void cast(std::span<bf16> out, std::span<float const> in, stream_ref s) { cast_as<as_bf16, as_f32>(out, in, s); }
void cast(std::span<f16> out, std::span<float const> in, stream_ref s) { cast_as<as_f16, as_f32>(out, in, s); }
void cast(std::span<float> out, std::span<bf16 const> in, stream_ref s) { cast_as<as_f32, as_bf16>(out, in, s); }
void cast(std::span<float> out, std::span<f16 const> in, stream_ref s) { cast_as<as_f32, as_f16>(out, in, s); }
void cast(std::span<f16> out, std::span<bf16 const> in, stream_ref s) { cast_as<as_f16, as_bf16>(out, in, s); }
void cast(std::span<bf16> out, std::span<f16 const> in, stream_ref s) { cast_as<as_bf16, as_f16>(out, in, s); }

void cast(std::span<bf16> out, std::span<float const> in, random_stream const& random, element_origin first,
          stream_ref stream) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  require(checked_add(first.element, in.size()) <= std::size_t{1} << 59,
          "an element of a random stream has an index below 2^59");
  launch_cast(stochastic_operation{reinterpret_cast<std::uint16_t*>(out.data()), in.data(), random, first}, in.size(),
              stream);
}

void cast(std::span<bf16> out, std::span<float const> in, std::uint64_t* not_finite, stream_ref s) {
  launch_counting_cast<as_bf16, as_f32>(buffer_of(out), buffer_of(in), not_finite, s);
}
void cast(std::span<f16> out, std::span<float const> in, std::uint64_t* not_finite, stream_ref s) {
  launch_counting_cast<as_f16, as_f32>(buffer_of(out), buffer_of(in), not_finite, s);
}
void cast(std::span<f16> out, std::span<bf16 const> in, std::uint64_t* not_finite, stream_ref s) {
  launch_counting_cast<as_f16, as_bf16>(buffer_of(out), buffer_of(in), not_finite, s);
}
void cast(buffer_ref out, buffer_ref in, std::uint64_t* not_finite, stream_ref s) {
  bool const wide = in.type == dtype::f32;
  require((wide && out.type == dtype::bf16) || ((wide || in.type == dtype::bf16) && out.type == dtype::f16),
          "a cast that counts goes from fp32 to bf16 or fp16, or from bf16 to fp16");
  for (auto const& b : {out, in})
    require(reinterpret_cast<std::uintptr_t>(b.data) % (bits(b.type) / 8) == 0,
            "a buffer must be aligned for its element type");
  if (out.type == dtype::bf16) return launch_counting_cast<as_bf16, as_f32>(out, in, not_finite, s);
  if (wide) return launch_counting_cast<as_f16, as_f32>(out, in, not_finite, s);
  launch_counting_cast<as_f16, as_bf16>(out, in, not_finite, s);
}

void cast(buffer_ref out, buffer_ref in, stream_ref stream) {
  require(out.count == in.count, "a cast writes as many elements as it reads");
  with_formats(out, in, [&]<class Out, class In>(Out, In) {
    launch_cast(cast_operation<Out, In>{storage_of<Out>(out), storage_of<In>(in)}, in.count.value, stream);
  });
}

bytes workspace_size(tile_table const& table) {
  auto const tile_bytes = table.packed() ? sizeof(tile) : sizeof(wide_tile);
  return {checked_mul(table.size(), tile_bytes + sizeof(value_totals))};
}

device_tiles upload(tile_table const& table, std::span<std::byte> workspace, stream_ref stream) {
  require(workspace.size() >= workspace_size(table).value, "a table of tiles needs the workspace that it asks for");
  require(reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 == 0, "a workspace must be aligned to 16 bytes");
  require(table.size() <= 0xFFFFFFFFu, "a table on a device has fewer than 2^32 tiles");
  auto const raw = table.packed() ? std::as_bytes(table.tiles()) : std::as_bytes(table.wide_tiles());
  if (!raw.empty())
    check(cudaMemcpyAsync(workspace.data(), raw.data(), raw.size(), cudaMemcpyHostToDevice, stream.stream),
          "cudaMemcpyAsync of a table of tiles");
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return {workspace.data(),
          reinterpret_cast<value_totals*>(workspace.data() + raw.size()),
          static_cast<std::uint32_t>(table.size()),
          table.packed(),
          table.flat_size(),
          table.tensor_sizes().size(),
          table.covered(),
          static_cast<std::uint32_t>(multiprocessors)};
}

tensor_pointers upload(std::span<std::byte* const> pointers, dtype type, std::span<std::byte> workspace,
                       stream_ref stream) {
  require(workspace.size() >= pointers.size_bytes(), "pointers of tensors need 8 bytes each");
  require(reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 == 0, "a workspace must be aligned to 16 bytes");
  if (!pointers.empty())
    check(cudaMemcpyAsync(workspace.data(), pointers.data(), pointers.size_bytes(), cudaMemcpyHostToDevice,
                          stream.stream),
          "cudaMemcpyAsync of the pointers of tensors");
  return {reinterpret_cast<std::byte* const*>(workspace.data()), pointers.size(), type};
}

void pack(buffer_ref flat, tensor_pointers in, device_tiles const& tiles, stream_ref stream) {
  check_tiles(flat.count, in, tiles);
  if (tiles.count == 0) return;
  with_formats(flat, {nullptr, in.type, {}}, [&]<class Flat, class Tensor>(Flat, Tensor) {
    launch("pack", pack_kernel<Flat, Tensor>, tile_shape(tiles), stream, storage_of<Flat>(flat), in.base,
           list_of(tiles));
  });
}

void pack(std::span<bf16> flat, tensor_pointers in, device_tiles const& tiles, random_stream const& random,
          std::uint32_t first_tensor, stream_ref stream) {
  check_tiles({flat.size()}, in, tiles);
  require(in.type == dtype::f32, "stochastic rounding takes fp32 to bf16");
  if (tiles.count == 0) return;
  launch("pack", stochastic_pack_kernel, tile_shape(tiles), stream, reinterpret_cast<std::uint16_t*>(flat.data()),
         in.base, list_of(tiles), random, first_tensor);
}

void cast(std::span<bf16> out, std::span<float const> in, device_tiles const& tiles, random_stream const& random,
          std::uint32_t first_tensor, stream_ref stream) {
  require(out.size() == in.size(), "a cast writes as many elements as it reads");
  require(covers(tiles, in.size()), "the tiles of a flat cast must cover its buffers");
  if (tiles.count == 0) return;
  launch("cast", stochastic_flat_kernel, tile_shape(tiles), stream, reinterpret_cast<std::uint16_t*>(out.data()),
         in.data(), list_of(tiles), random, first_tensor);
}

void unpack(tensor_pointers out, buffer_ref flat, device_tiles const& tiles, stream_ref stream) {
  check_tiles(flat.count, out, tiles);
  if (tiles.count == 0) return;
  with_formats({nullptr, out.type, {}}, flat, [&]<class Tensor, class Flat>(Tensor, Flat) {
    launch("unpack", unpack_kernel<Tensor, Flat>, tile_shape(tiles), stream, out.base,
           static_cast<typename Flat::storage const*>(storage_of<Flat>(flat)), list_of(tiles));
  });
}

void pack(std::span<float> flat, tensor_pointers in, device_tiles const& tiles, pack_options const& result,
          stream_ref stream) {
  check_tiles({flat.size()}, in, tiles);
  if (tiles.count == 0) return;
  with_format({nullptr, in.type, {}}, [&]<class Tensor>(Tensor) {
    launch("pack", result_kernel<Tensor>, tile_shape(tiles, totals_memory), stream, flat.data(), in.base,
           list_of(tiles), tiles.totals, result_rule{result.scale, result.accumulate});
  });
}

void total(value_totals* out, device_tiles const& tiles, stream_ref stream) {
  launch("total", total_kernel, {dim3{1}, block_threads, totals_memory}, stream, out,
         static_cast<value_totals const*>(tiles.totals), tiles.count);
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
