// SPDX-License-Identifier: Apache-2.0
/// The last calls of a rank, and what ranks compare before they work.
#include "call_notice.hpp"

#include <flatshard/kernels/flight_recorder.hpp>

#include <algorithm>
#include <bit>
#include <cstdio>

namespace flatshard {
inline namespace v0 {
namespace kernels {

unit_label::unit_label(std::string_view name) {
  name = name.substr(name.size() - std::min(name.size(), text_.size()));
  std::copy(name.begin(), name.end(), text_.begin());
  size_ = static_cast<std::uint8_t>(name.size());
}

void flight_recorder::begin(std::string_view operation, elements count, dtype out, dtype in,
                            std::optional<sum_order> order) {
  ++made_;
  recent_[(made_ - 1) % kept] = {made_, operation, count, out, in, call_record::state::waiting, unit_, order};
}

void flight_recorder::progress(call_record::state s) noexcept {
  if (made_ > 0) recent_[(made_ - 1) % kept].progress = s;
}

void flight_recorder::settle() noexcept {
  for (auto& c : recent_)
    if (c.progress == call_record::state::working) c.progress = call_record::state::done;
}

std::vector<call_record> flight_recorder::calls() const {
  std::vector<call_record> out;
  for (auto i = made_ - std::min<std::uint64_t>(made_, kept); i < made_; ++i) out.push_back(recent_[i % kept]);
  return out;
}

std::string flight_recorder::current() const {
  if (made_ == 0) return "a meeting";
  auto const& last = recent_[(made_ - 1) % kept];
  std::string text{last.operation};
  if (!last.unit.text().empty()) text += " of the unit of " + std::string{last.unit.text()};
  return text + " (call " + std::to_string(last.sequence) + ")";
}

std::string flight_recorder::history(rank_id self) const {
  constexpr std::array<std::string_view, 4> states{"waiting", "working", "done", "failed"};
  std::string text = "\nlast calls of rank " + std::to_string(index(self)) + ":";
  for (auto const& c : calls()) {
    text += "\n  " + std::to_string(c.sequence) + " " + std::string{c.operation} + " " + std::to_string(c.count.value) +
            " " + std::string{name(c.in)} + " -> " + std::string{name(c.out)};
    if (c.order.has_value()) text += " " + std::string{name(*c.order)};
    text += " " + std::string{states[static_cast<std::size_t>(c.progress)]};
    if (!c.unit.text().empty()) text += " " + std::string{c.unit.text()};
  }
  return text;
}

std::string_view name(collective operation) {
  constexpr std::array<std::string_view, 7> names{"all_gather", "reduce_scatter", "broadcast", "all_to_all_v",
                                                  "all_reduce", "barrier",        "agree"};
  return names[static_cast<std::size_t>(operation)];
}

std::optional<sum_order> order_of(call_notice const& call) {
  if (call.operation != collective::reduce_scatter) return {};
  return call.options.order;
}

namespace {

std::string hexadecimal(float x) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%a", static_cast<double>(x));
  return text.data();
}

}  // namespace

std::optional<disagreement> first_difference(call_notice const& a, call_notice const& b) {
  auto const say = [](auto const& x) { return std::string{name(x)}; };
  auto const yes = [](bool x) { return std::string{x ? "true" : "false"}; };
  auto const bits_of = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  if (a.operation != b.operation) return disagreement{"operation", say(a.operation), say(b.operation)};
  if (!(a.unit == b.unit)) return disagreement{"unit", std::string{a.unit.text()}, std::string{b.unit.text()}};
  if (a.in != b.in) return disagreement{"input dtype", say(a.in), say(b.in)};
  if (a.out != b.out) return disagreement{"output dtype", say(a.out), say(b.out)};
  if (a.count != b.count) return disagreement{"count", std::to_string(a.count), std::to_string(b.count)};
  if (a.options.order != b.options.order) return disagreement{"sum order", say(a.options.order), say(b.options.order)};
  if (bits_of(a.options.scale) != bits_of(b.options.scale))
    return disagreement{"scale", hexadecimal(a.options.scale), hexadecimal(b.options.scale)};
  if (a.options.accumulate != b.options.accumulate)
    return disagreement{"accumulate", yes(a.options.accumulate), yes(b.options.accumulate)};
  if (a.options.rounding != b.options.rounding)
    return disagreement{"rounding of the wire", flatshard::detail::hexadecimal(a.options.rounding),
                        flatshard::detail::hexadecimal(b.options.rounding)};
  if (a.how != b.how) return disagreement{"reduction", say(a.how), say(b.how)};
  if (a.root != b.root) return disagreement{"root", std::to_string(a.root), std::to_string(b.root)};
  return {};
}

mismatch unequal_counts(std::size_t from, std::size_t to, std::size_t sent, std::size_t taken,
                        std::string const& context) {
  return {"elements from rank " + std::to_string(from) + " to rank " + std::to_string(to),
          {rank_at(from), rank_at(to)},
          {std::to_string(sent), std::to_string(taken)},
          context};
}

std::string list(std::vector<rank_id> const& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(index(ranks[i]));
  return text;
}

std::string spelled(deadline limit) {
  auto const ms = std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
  return ms % 1000 == 0 ? std::to_string(ms / 1000) + " s" : std::to_string(ms) + " ms";
}

steady_time end_of(deadline limit) {
  auto const now = std::chrono::steady_clock::now();
  return limit < steady_time::max() - now ? now + limit : steady_time::max();
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
