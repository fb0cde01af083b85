// SPDX-License-Identifier: Apache-2.0
/// One case of tests/golden/layouts in a constant expression: a layout whose shapes and world are known when compiled,
/// and the figures that the file has of it. tests/constant_cases.cpp writes the cases.
#pragma once

#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

namespace constant_case {

using namespace flatshard;

constexpr native native_of(std::size_t tensor_align, std::size_t segment_align) {
  native policy;
  policy.tensor_align = tensor_align;
  policy.segment_align = segment_align;
  return policy;
}
constexpr hpz hpz_of(std::size_t whole_world) {
  hpz policy;
  policy.whole_world = whole_world;
  return policy;
}
constexpr zero12 zero12_of(bool round_robin) {
  zero12 policy;
  policy.round_robin = round_robin;
  return policy;
}
constexpr fsdp1 fsdp1_of(bool use_orig_params, std::size_t element_bytes) {
  fsdp1 policy;
  policy.use_orig_params = use_orig_params;
  policy.element_bytes = element_bytes;
  return policy;
}
constexpr megatron experimental() {
  megatron policy;
  policy.packing = megatron_packing::experimental;
  return policy;
}

/// The hash of the gathered map, made piece by piece; the format is in the README there.
template <class L>
constexpr std::uint64_t map_hash(L const& l) {
  std::uint64_t h = 0xcbf29ce484222325u;
  auto const fold = [&](std::uint64_t v) { h = (h ^ v) * 0x100000001b3u; };
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    std::size_t at = 0;
    auto const pad_until = [&](std::size_t end) {
      for (; at < end; ++at) fold(~std::uint64_t{0});
    };
    for (auto const& p : l.pieces(rank_at(r))) {
      pad_until(p.local.value);
      for (auto i = p.begin.value; i < p.end.value; ++i, ++at) fold((std::uint64_t{p.tensor} << 40) | i);
    }
    pad_until(l.segment(rank_at(r)).value);
  }
  return h;
}
/// The same, made position by position: dearer by far.
template <class L>
constexpr std::uint64_t position_hash(L const& l) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (std::size_t g = 0; g < l.gathered().value; ++g) {
    auto const found = l.at_gathered({g});
    h = (h ^ (found.padding ? ~std::uint64_t{0} : (std::uint64_t{found.tensor} << 40) | found.index.value)) *
        0x100000001b3u;
  }
  return h;
}

/// The same value for `times` ranks.
struct run {
  std::size_t value, times;
};
using runs = std::initializer_list<run>;
using numbers = std::initializer_list<std::size_t>;

struct tensor_figures {
  std::size_t numel;
  runs sizes, local;
};
struct sample {
  std::size_t tensor, index, rank, local, gathered;
};
struct pad {
  std::size_t rank, local, gathered;
  std::optional<int> value;
};
/// What every layout's file has of a case; all counts are elements.
struct figures {
  std::size_t gathered, real;
  runs segments, padding;
  std::initializer_list<tensor_figures> tensors;
  std::initializer_list<sample> samples;
  std::initializer_list<pad> pads;
};

/// The first figure of a case that a layout does not have.
enum class difference : std::uint8_t {
  none,
  gathered,
  real,
  segments,
  padding,
  tensors,
  numel,
  sizes,
  local,
  sample,
  inverse,
  pad,
  pad_value
};

/// Whether `holds(r)` for every rank of [first, end); of more than 1024 ranks for the 16 first and last ones and the
/// one in the middle: they have one figure, and what every rank has is looked at where the case runs, in
/// layout_golden_test.
template <class F>
constexpr bool holds_for_all(std::size_t first, std::size_t end, F holds) {
  bool const few = end - first <= 1024;
  for (auto r = first; r < (few ? end : first + 16); ++r)
    if (!holds(r)) return false;
  if (few) return true;
  for (auto r = end - 16; r < end; ++r)
    if (!holds(r)) return false;
  return holds(first + (end - first) / 2);
}
/// Whether `f(0)`, `f(1)`, ... are the values of `expected`, `count` in all.
template <class F>
constexpr bool ranks_have(runs expected, std::size_t count, F f) {
  std::size_t first = 0;
  for (auto const& one : expected) {
    if (one.times > count - first) return false;
    if (!holds_for_all(first, first + one.times, [&](std::size_t r) { return f(r) == one.value; })) return false;
    first += one.times;
  }
  return first == count;
}
/// Value number k, if there are so many.
constexpr std::optional<std::size_t> value_at(runs all, std::size_t k) {
  for (auto const& one : all) {
    if (k < one.times) return one.value;
    k -= one.times;
  }
  return std::nullopt;
}

/// `sizes` and `local` of tensor `t`.
template <class L>
constexpr difference first_difference(L const& l, std::size_t t, tensor_figures const& expected) {
  if (l.place_at(t).numel != expected.numel) return difference::numel;
  std::size_t first = 0, begin = 0, owners = 0;  // ranks, elements and ranks that own some, before this run
  for (auto const& one : expected.sizes) {
    auto found = difference::none;
    holds_for_all(first, first + one.times, [&](std::size_t r) {
      auto const p = l.piece_of(t, rank_at(r));
      if (p.begin.value != begin + (r - first) * one.value || p.size().value != one.value) {
        found = difference::sizes;
      } else if (one.value != 0 && value_at(expected.local, owners + (r - first)) != p.local.value) {
        found = difference::local;
      }
      return found == difference::none;
    });
    if (found != difference::none) return found;
    first += one.times;
    begin += one.times * one.value;
    if (one.value != 0) owners += one.times;
  }
  if (first != l.world_size() || begin != expected.numel) return difference::sizes;
  return value_at(expected.local, owners) ? difference::local : difference::none;
}

template <class L>
constexpr difference first_difference(L const& l, figures const& expected) {
  auto const w = l.world_size();
  if (l.gathered().value != expected.gathered) return difference::gathered;
  if (l.real().value != expected.real) return difference::real;
  if (!ranks_have(expected.segments, w, [&](std::size_t r) { return l.segment(rank_at(r)).value; }))
    return difference::segments;
  if (!ranks_have(expected.padding, w, [&](std::size_t r) { return l.padding(rank_at(r)).value; }))
    return difference::padding;
  if (l.size() != expected.tensors.size()) return difference::tensors;
  std::size_t t = 0;
  for (auto const& tensor : expected.tensors) {
    if (auto const found = first_difference(l, t, tensor); found != difference::none) return found;
    ++t;
  }
  for (auto const& s : expected.samples) {
    elements const i{s.index};
    if (index(l.owner(s.tensor, i)) != s.rank || l.local(s.tensor, i).value != s.local ||
        l.gathered(s.tensor, i).value != s.gathered)
      return difference::sample;
    element_place const here{s.tensor, i, false};
    if (l.at(rank_at(s.rank), {s.local}) != here || l.at_gathered({s.gathered}) != here) return difference::inverse;
  }
  for (auto const& p : expected.pads) {
    if (!l.at(rank_at(p.rank), {p.local}).padding || !l.at_gathered({p.gathered}).padding ||
        l.segment_start(p.rank).value + p.local != p.gathered)
      return difference::pad;
    if (l.padding_value() != p.value) return difference::pad_value;
  }
  return difference::none;
}

/// `flat_offsets`, `slots`: where the tensors start, or what a rank's slot of each holds.
template <class L>
constexpr bool has_starts(L const& l, numbers expected) {
  std::size_t t = 0;
  for (auto const start : expected)
    if (l.place_at(t++).start != start) return false;
  return t == l.size();
}
template <class L>
constexpr bool has_slots(L const& l, numbers expected) {
  std::size_t t = 0;
  for (auto const slot : expected)
    if (l.place_at(t++).step != slot) return false;
  return t == l.size();
}
/// `rows`: of dimension 0 that each rank owns, 0 where a row has no elements.
template <class L>
constexpr bool has_rows(L const& l, std::initializer_list<runs> expected) {
  std::size_t t = 0;
  for (auto const& of_tensor : expected) {
    auto const dims = l.parameter_at(t).dims;
    auto const row = dims.dims[0] == 0 ? 0 : dims.numel() / dims.dims[0];
    auto const rows_of = [&](std::size_t r) {
      auto const size = l.piece_of(t, rank_at(r)).size().value;
      return row == 0 ? size : size % row == 0 ? size / row : dims.dims[0] + 1;
    };
    if (!ranks_have(of_tensor, l.world_size(), rows_of)) return false;
    ++t;
  }
  return t == l.size();
}
/// `post_forward_slot`, `post_forward_real`: what the k ranks of a group keep after forward.
template <class L>
constexpr bool keeps(L const& l, std::size_t k, numbers slots, std::initializer_list<runs> real) {
  auto of_tensor = real.begin();
  std::size_t t = 0;
  for (auto const slot : slots) {
    auto const real_of = [&](std::size_t i) {
      auto const kept = post_forward(l, t, k, rank_at(i));
      return (kept.size + kept.padding).value == slot ? kept.size.value : slot + 1;
    };
    if (of_tensor == real.end() || !ranks_have(*of_tensor, k, real_of)) return false;
    ++of_tensor, ++t;
  }
  return t == l.size() && of_tensor == real.end();
}
/// `sub_groups` of ZeRO-3.
template <class L>
constexpr bool has_sub_groups(L const& l, std::size_t size, std::initializer_list<sub_group> expected) {
  auto const got = sub_groups(l, elements{size});
  return std::equal(got.begin(), got.end(), expected.begin(), expected.end());
}
/// The order of a DeepSpeed group.
template <std::size_t W, class Table>
constexpr std::vector<std::size_t> group_order(layout<zero12, W, Table> const& l) {
  return round_robin_order(l.size(), l.policy().round_robin ? l.world_size() : 1);
}
/// What all ranks own together.
template <class L>
constexpr std::size_t owned_by_all(L const& l) {
  std::size_t n = 0;
  for (std::size_t r = 0; r < l.world_size(); ++r) n += l.owned(rank_at(r)).value;
  return n;
}
/// `order`: in which the tensors are placed.
template <class List>
constexpr bool has_order(List const& got, numbers expected) {
  return std::equal(got.begin(), got.end(), expected.begin(), expected.end());
}

/// The first element and the number of elements of each rank, of a unit of one tensor.
struct rank_range {
  std::size_t first, size;
};
template <class L>
constexpr bool has_ranges(L const& l, std::initializer_list<rank_range> expected) {
  std::size_t r = 0;
  for (auto const& range : expected) {
    auto const p = l.piece_of(0, rank_at(r++));
    if (p.begin.value != range.first || p.size().value != range.size || p.local.value != 0) return false;
  }
  return r == l.world_size() && l.gathered() == l.real();
}

/// Whether what `make` builds is a broken rule: then it is no constant expression. That it is this rule and no limit of
/// the compiler is looked at where the case runs, in layout_golden_test: by its sentence.
template <class Make>
constexpr bool refused(Make) {
  return !requires { typename std::bool_constant<(Make{}(), true)>; };
}

}  // namespace constant_case
