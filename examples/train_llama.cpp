// SPDX-License-Identifier: Apache-2.0
/// train_llama: trains a Llama-family checkpoint on several ranks of this machine, as a configuration of DeepSpeed or
/// LLaMA-Factory asks for it. A user of the public headers, and an example of them. From top to bottom: what is trained
/// on, the optimizer, the sum of gradients, one rank's training, what the configuration decides, what leaves the
/// program, the command line. The model stands in llama.hpp.
#include "../tools/frontend.hpp"
#include "../tools/noted_signals.hpp"
#include "../tools/report.hpp"
#include "../tools/resolver.hpp"
#include "llama.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/communicator.hpp>
#include <flatshard/config/resolve.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/file.hpp>
#include <flatshard/json.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/memory_arena.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>
#include <flatshard/safetensors.hpp>
#include <flatshard/safetensors_writer.hpp>
#include <flatshard/unfinished_folder.hpp>
#include <flatshard/unit.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace {

using namespace llama;
namespace fs = std::filesystem;
using flatshard::dtype;
using flatshard::role;
using flatshard::value;

// ---- what is trained on ---------------------------------------------------------------------------------------------
// Bytes of text files, or the rows of a safetensors file.

/// Throws `bad_input` with one problem at a place of a file.
[[noreturn]] void refuse(flatshard::errc code, flatshard::place where, std::string text) {
  flatshard::problem p;
  p.code = code;
  p.where = std::move(where);
  p.detail = std::move(text);
  flatshard::throw_bad_input(flatshard::config_error{std::move(p)});
}
/// The same about a file as a whole.
[[noreturn]] void refuse(flatshard::errc code, std::string const& file, std::string text) {
  refuse(code, flatshard::place{file, {}, 0, 0}, std::move(text));
}

/// What learning rates, decays and other settings of the optimizer are.
[[nodiscard]] bool not_negative(double number) { return std::isfinite(number) && number >= 0; }

/// One tensor of a safetensors file, whole, in memory.
template <class T>
struct stored_tensor {
  std::vector<std::size_t> dims;
  std::vector<T> values;
};
/// Reads the tensor `name`, which must have the type `type` and `rank` dimensions. Throws `bad_input`.
template <class T>
[[nodiscard]] stored_tensor<T> read_tensor(fs::path const& path, std::string_view name, flatshard::dtype type,
                                           std::size_t rank) {
  auto const opened = flatshard::open_safetensors(path);
  auto const& from = opened.value();
  auto const found = from.header.find(name);
  if (!found) refuse(flatshard::errc::tensor_missing, path.string(), "there is no tensor " + std::string{name});
  auto const t = from.header[*found];
  if (t.type != type || t.dims.size() != rank)
    refuse(flatshard::errc::shape_mismatch, path.string(),
           std::string{name} + " must be " + std::string{flatshard::row(type).file_name} + " with " +
               std::to_string(rank) + " dimensions, found " + std::string{flatshard::row(t.type).file_name} + " with " +
               std::to_string(t.dims.size()));
  stored_tensor<T> tensor{t.dims, std::vector<T>(from.header.data_size(*found).value / sizeof(T))};
  from.file.read_at(std::as_writable_bytes(std::span{tensor.values}), from.header.file_offset(*found)).value();
  return tensor;
}

/// Sequences of tokens by number. The same for every number of ranks.
class token_source {
 public:
  /// Bytes of the files, one after the other; sequences begin at places drawn from `seed`. Throws `bad_input`.
  [[nodiscard]] static token_source text(std::vector<std::string> const& files, std::uint64_t seed) {
    token_source source;
    source.seed_ = seed;
    for (auto const& name : files) {
      auto const opened = flatshard::input_file::open(name);
      auto const& in = opened.value();
      auto const before = source.text_.size();
      source.text_.resize(before + in.size().value);
      in.read_at(std::as_writable_bytes(std::span{source.text_}.subspan(before)), {}).value();
      source.files_ += (source.files_.empty() ? "" : ", ") + name;
    }
    return source;
  }
  /// The rows of the tensor `input_ids` (I64, [rows, tokens + 1]) of a safetensors file, again and again.
  [[nodiscard]] static token_source rows(std::string const& file) {
    token_source source;
    source.rows_ = read_tensor<std::int64_t>(file, "input_ids", flatshard::dtype::i64, 2);
    source.files_ = file;
    if (source.rows_.dims[0] == 0 || source.rows_.dims[1] < 2)
      refuse(flatshard::errc::shape_mismatch, file, "input_ids must have rows of at least two tokens");
    return source;
  }
  [[nodiscard]] bool is_text() const { return rows_.dims.empty(); }
  [[nodiscard]] std::size_t row_count() const { return is_text() ? 0 : rows_.dims[0]; }
  /// Tokens of a row that are inputs; one more follows as the last label.
  [[nodiscard]] std::size_t row_tokens() const { return is_text() ? 0 : rows_.dims[1] - 1; }

  /// Throws `bad_input` unless a model with this vocabulary can train on sequences of this length.
  void check(std::size_t vocabulary, std::size_t tokens) const {
    if (is_text()) {
      if (vocabulary < 256)
        refuse(flatshard::errc::model_config, files_,
               "text is trained on as bytes, which needs a vocabulary of at least 256; the model has " +
                   std::to_string(vocabulary));
      if (text_.size() < tokens + 1)
        refuse(flatshard::errc::out_of_range, files_,
               "the text has " + std::to_string(text_.size()) + " bytes, one sequence needs " +
                   std::to_string(tokens + 1));
      return;
    }
    if (tokens != row_tokens())
      refuse(flatshard::errc::shape_mismatch, files_,
             "the rows hold " + std::to_string(row_tokens()) + " tokens and a last label, --seq says " +
                 std::to_string(tokens));
    for (auto const id : rows_.values)
      if (id < 0 || static_cast<std::size_t>(id) >= vocabulary)
        refuse(flatshard::errc::out_of_range, files_,
               "token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocabulary));
  }
  /// Tokens of sequence number `n` of the whole training. Shape: [tokens + 1].
  void read(std::span<std::int64_t> out, std::uint64_t n) const {
    if (!is_text()) {
      auto const width = rows_.dims[1];
      std::copy_n(rows_.values.begin() + static_cast<std::ptrdiff_t>(n % rows_.dims[0] * width), out.size(),
                  out.begin());
      return;
    }
    auto const start = draw(n) % (text_.size() - out.size() + 1);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<unsigned char>(text_[start + i]);
  }

 private:
  /// Source: the mixing function of splitmix64 (Steele, Lea, Flood 2014), keyed by seed and number.
  [[nodiscard]] std::uint64_t draw(std::uint64_t n) const {
    auto x = seed_ * 0xD1342543DE82EF95u + (n + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  std::string text_, files_;
  stored_tensor<std::int64_t> rows_;
  std::uint64_t seed_ = 0;
};

// ---- the optimizer --------------------------------------------------------------------------------------------------
// AdamW with decoupled weight decay on flat fp32 shards, in the order of torch.optim.AdamW.

/// The defaults are those of torch.optim.AdamW.
struct adamw_options {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, decay = 0.01;
};

/// One step on `p`, the copy that the optimizer updates: decay, first moment, second moment, update. Step numbers count
/// from 1. Every gradient is multiplied by `factor` (clipping) first. The scalars are computed in double and rounded
/// once; build without contraction (-ffp-contract=off) to get the same bits everywhere.
template <class G>
void adamw_step(std::span<float> p, std::span<G const> g, std::span<float> m, std::span<float> v, float factor,
                adamw_options const& o, std::size_t step) {
  flatshard::require(p.size() == g.size() && p.size() == m.size() && p.size() == v.size(),
                     "the optimizer's shards must have one size");
  auto const t = static_cast<double>(step);
  auto const keep = static_cast<float>(1.0 - o.lr * o.decay);
  auto const towards = static_cast<float>(1.0 - o.beta1);
  auto const beta2 = static_cast<float>(o.beta2), fresh = static_cast<float>(1.0 - o.beta2);
  auto const rate = static_cast<float>(o.lr / (1.0 - std::pow(o.beta1, t)));
  auto const correction = static_cast<float>(std::sqrt(1.0 - std::pow(o.beta2, t)));
  auto const epsilon = static_cast<float>(o.epsilon);
  for (std::size_t i = 0; i < p.size(); ++i) {
    auto const gradient = flatshard::widen(g[i]) * factor;
    m[i] = m[i] + towards * (gradient - m[i]);
    v[i] = beta2 * v[i] + fresh * gradient * gradient;
    p[i] = p[i] * keep - rate * m[i] / (std::sqrt(v[i]) / correction + epsilon);
  }
}

// ---- the sum of the gradients of a rank's sequences -----------------------------------------------------------------
// Each sequence's gradient is computed alone; they are added in a chosen tree.

/// Adds the gradients of one unit, sequence by sequence, in fp32: one after the other (`by_rank`), or neighbours in a
/// balanced tree with the odd one out passing up (`pairwise`), as `reduce_scatter` adds ranks. So with `pairwise` and a
/// power of two of equal ranks the whole sum is one tree over all sequences, whatever the number of ranks.
/// Memory: two sets of gradients by rank, one more than the depth of the tree pairwise; kept for the next unit.
class gradient_sum {
 public:
  gradient_sum(flatshard::sum_order order, ledger& l) : order_{order}, ledger_{&l} {
    flatshard::require(order != flatshard::sum_order::any, "the order of the sum must be by_rank or pairwise");
  }

  /// Begins the sum of another unit. With `into` the sum is made there, else in memory of its own.
  void start(std::span<tensor const> tensors, std::optional<tensor_pointers<float>> into) {
    tensors_ = tensors;
    into_ = into;
    counts_.clear();
  }
  /// Where the gradient of the next sequence is to be written.
  [[nodiscard]] tensor_pointers<float> next() { return set(counts_.size()); }
  /// The gradient that `next` asked for is written.
  void added() {
    counts_.push_back(1);
    while (counts_.size() > 1 && (order_ == flatshard::sum_order::by_rank || *(counts_.end() - 2) == counts_.back()))
      add_last_two();
  }
  /// The sum, to be called once after the last sequence; nothing if there was none.
  [[nodiscard]] std::optional<tensor_pointers<float>> finish() {
    while (counts_.size() > 1) add_last_two();
    if (counts_.empty()) return std::nullopt;
    return set(0);
  }

 private:
  void add_last_two() {
    auto const right = set(counts_.size() - 1), left = set(counts_.size() - 2);
    for (auto const& t : tensors_) {
      auto* const sum = left[t.slot];
      auto const* const more = right[t.slot];
      for (std::size_t i = 0, n = t.dims.numel(); i < n; ++i) sum[i] += more[i];
    }
    *(counts_.end() - 2) += counts_.back();
    counts_.pop_back();
  }
  [[nodiscard]] tensor_pointers<float> set(std::size_t level) {
    if (level == 0 && into_) return *into_;
    std::size_t size = 0;
    for (auto const& t : tensors_) size += flatshard::round_up(t.dims.numel(), 64);
    if (memory_.size() <= level) memory_.resize(level + 1);
    if (memory_[level].size() < size) {
      memory_[level] = {};
      memory_[level] = {*ledger_, size};
    }
    tensor_pointers<float> pointers{};
    auto* next = memory_[level].data();
    for (auto const& t : tensors_) {
      pointers[t.slot] = next;
      next += flatshard::round_up(t.dims.numel(), 64);
    }
    return pointers;
  }

  flatshard::sum_order order_;
  ledger* ledger_;
  std::span<tensor const> tensors_;
  std::optional<tensor_pointers<float>> into_;
  std::vector<buffer<float>> memory_;
  std::vector<std::size_t> counts_;  // sequences in each partial sum; set(i) holds the i-th
};

// ---- one rank of sharded training -----------------------------------------------------------------------------------
// A unit per decoder layer and one for what stands outside: gathered, used, released, reduce-scattered, and updated on
// the shards.

/// Calls `use` with an element of type `t`, fp32 or bf16. (fp16 would need loss scaling, which this trainer lacks.)
template <class Use>
void with_element(flatshard::dtype t, Use use) {
  flatshard::require(t == flatshard::dtype::f32 || t == flatshard::dtype::bf16, "the trainer uses fp32 and bf16");
  if (t == flatshard::dtype::bf16) return use(bf16{});
  use(float{});
}

/// The tensors of every unit of a model, root first. Units refer to the names: it must outlive them, unmoved.
struct unit_tables {
  explicit unit_tables(model_shape const& m) {
    tensors.push_back(root_tensors(m));
    for (std::size_t i = 0; i < m.layers; ++i) tensors.push_back(layer_tensors(m, i));
    for (auto const& unit : tensors) {
      auto& list = parameters.emplace_back();
      for (auto const& t : unit) list.push_back({t.name, t.dims});
    }
  }
  unit_tables(unit_tables const&) = delete;
  unit_tables& operator=(unit_tables const&) = delete;
  std::vector<std::vector<tensor>> tensors;
  std::vector<std::vector<flatshard::parameter>> parameters;
};

struct training_options {
  std::size_t batch = 8, tokens = 64;  ///< sequences in a step over all ranks, tokens in a sequence
  flatshard::sum_order order = flatshard::sum_order::by_rank;
  bool checkpointing = true;   ///< keep only each layer's input, compute the rest again in the backward pass
  std::optional<double> clip;  ///< limit of the global gradient norm
  adamw_options optimizer;
};

/// What one step did; equal on every rank.
struct step_report {
  double loss = 0, norm = 0;  ///< mean over the tokens; global gradient norm before clipping
  bool updated = false;       ///< false if the norm was not finite, or the step was for the loss alone
};

/// One rank's model, optimizer and buffers. `A` is the element of the compute dtype. Collective: every rank calls the
/// same members in the same order.
template <class A, flatshard::PrecisionPolicy Precision, flatshard::ShardingPolicy Sharding, flatshard::Communicator C>
class sharded_trainer {
 public:
  using unit_type = flatshard::sharded_unit<Precision, Sharding>;
  using stream_type = typename C::stream_type;
  /// Called with this rank's sequence (its global number) and its logits [tokens, vocabulary], before the backward
  /// pass.
  using logits_hook = std::function<void(std::size_t, std::span<A const>)>;

  /// Bytes that `arena` must have for this model and world. At most one unit is live at a time, with its gradients.
  [[nodiscard]] static flatshard::bytes arena_bytes(unit_tables const& tables, flatshard::world<> w,
                                                    Precision const& precision, Sharding sharding) {
    flatshard::bytes kept, most;
    for (auto const& list : tables.parameters) {
      auto const need = bytes_needed(flatshard::listed_layout<Sharding>{sharding, list, w}, precision);
      kept += need.persistent;
      most = std::max(most, need.gathered + need.gradients + need.staging);
    }
    return kept + most;
  }

  sharded_trainer(model_shape const& m, unit_tables const& tables, training_options const& options,
                  Precision const& precision, Sharding sharding, C& comm, flatshard::memory_arena& arena,
                  matrix_products& products, ledger& l)
      : m_{m},
        tables_{tables},
        options_{options},
        comm_{comm},
        model_{m, options.tokens, products, l},
        sum_{options.order, l} {
    auto const ranks = static_cast<std::size_t>(comm.size()), self = index(comm.self());
    first_ = self * options.batch / ranks;
    local_ = (self + 1) * options.batch / ranks - first_;
    units_.reserve(tables.parameters.size());
    for (auto const& list : tables.parameters)
      units_.emplace_back(list, flatshard::world{ranks}, precision, sharding, arena);
    for (std::size_t i = 0; i <= m.layers; ++i)
      for (std::size_t s = 0; s < local_; ++s) inputs_.emplace_back(l, options.tokens * m.hidden);
    for (std::size_t s = 0; s < local_; ++s) heads_.emplace_back(m, options.tokens, l);
    auto const sets = options.checkpointing ? std::min<std::size_t>(local_, 1) : m.layers * local_;
    for (std::size_t i = 0; i < sets; ++i) kept_.emplace_back(m, options.tokens, l);
  }

  [[nodiscard]] std::vector<unit_type>& units() { return units_; }
  [[nodiscard]] std::size_t first_sequence() const { return first_; }
  [[nodiscard]] std::size_t local_sequences() const { return local_; }
  /// The dtype of the buffer that the logits are in.
  [[nodiscard]] static constexpr flatshard::dtype logits_type() {
    return flatshard::dtype_of<std::remove_cvref_t<decltype(std::declval<head_memory<A>&>().logits.data()[0])>>;
  }

  /// The mean loss of a batch; nothing changes. `ids`: this rank's sequences, [local][tokens + 1].
  [[nodiscard]] double loss_of(std::span<std::int64_t const> ids) {
    std::vector<double> losses(options_.batch);
    forward(ids, losses, {});
    return mean(losses);
  }

  /// Forward, backward and gradients of a batch: `unit.grad()` holds the mean over all tokens of all ranks.
  [[nodiscard]] step_report gradients(std::span<std::int64_t const> ids, logits_hook const& hook = {}) {
    std::vector<double> losses(options_.batch);
    forward(ids, losses, hook);
    for (std::size_t i = m_.layers; i-- > 0;) layer_backward(i);
    root_backward(ids);
    return {mean(losses), global_norm(units_, comm_, stream_type{})};
  }

  /// Clipping and AdamW with the gradients that `gradients` left. A norm that is not finite skips the update.
  void update(step_report& report) {
    if (!std::isfinite(report.norm)) return;
    auto const factor = options_.clip ? static_cast<float>(flatshard::clip_factor(report.norm, *options_.clip)) : 1.0f;
    ++step_;
    for (auto& unit : units_)
      with_element(unit.grad().type, [&]<class G>(G) {
        adamw_step(unit.master(), std::span<G const>{unit.template grad<G>()}, unit.state(0), unit.state(1), factor,
                   options_.optimizer, step_);
      });
    report.updated = true;
  }

 private:
  [[nodiscard]] A* input(std::size_t layer, std::size_t s) { return inputs_[layer * local_ + s].data(); }
  [[nodiscard]] layer_memory<A>& kept(std::size_t layer, std::size_t s) {
    return kept_[options_.checkpointing ? 0 : layer * local_ + s];
  }
  [[nodiscard]] std::span<std::int64_t const> tokens_of(std::span<std::int64_t const> ids, std::size_t s) const {
    return ids.subspan(s * (options_.tokens + 1), options_.tokens);
  }
  [[nodiscard]] std::span<std::int64_t const> labels_of(std::span<std::int64_t const> ids, std::size_t s) const {
    return ids.subspan(s * (options_.tokens + 1) + 1, options_.tokens);
  }

  /// Gathers unit `u`, calls `use` with its whole weights by slot, and releases it.
  template <class Use>
  void with_weights(std::size_t u, Use use) {
    auto const weights = gather(units_[u], comm_, stream_type{});
    tensor_pointers<A const> by_slot{};
    for (std::size_t t = 0; t < tables_.tensors[u].size(); ++t)
      by_slot[tables_.tensors[u][t].slot] = weights[t].template data<A>().data();
    use(by_slot);
    release(units_[u], stream_type{});
  }

  void forward(std::span<std::int64_t const> ids, std::span<double> losses, logits_hook const& hook) {
    flatshard::require(ids.size() == local_ * (options_.tokens + 1), "a rank gets its own sequences, one token longer");
    with_weights(0, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) model_.embed(input(0, s), w[embed_weight], tokens_of(ids, s));
    });
    for (std::size_t i = 0; i < m_.layers; ++i)
      with_weights(i + 1, [&](auto const& w) {
        for (std::size_t s = 0; s < local_; ++s) model_.layer_forward(input(i + 1, s), input(i, s), w, kept(i, s));
      });
    with_weights(0, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) {
        model_.head_forward(input(m_.layers, s), w, heads_[s]);
        if (hook) hook(first_ + s, {heads_[s].logits.data(), heads_[s].logits.size()});
        losses[first_ + s] = model_.head_backward(input(m_.layers, s), w, heads_[s], labels_of(ids, s));
      }
    });
  }

  void layer_backward(std::size_t i) {
    start_sum(i + 1);
    with_weights(i + 1, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) {
        if (options_.checkpointing) model_.layer_forward(nullptr, input(i, s), w, kept(i, s));
        model_.layer_backward(input(m_.layers, s), input(i, s), w, kept(i, s), sum_.next());
        sum_.added();
      }
    });
    reduce_sum(i + 1);
  }
  void root_backward(std::span<std::int64_t const> ids) {
    start_sum(0);
    for (std::size_t s = 0; s < local_; ++s) {
      model_.root_backward(input(m_.layers, s), tokens_of(ids, s), heads_[s], sum_.next());
      sum_.added();
    }
    reduce_sum(0);
  }

  /// The sum over this rank's sequences is made in fp32; where the wire is fp32 too, in the unit's own buffer.
  void start_sum(std::size_t u) {
    std::optional<tensor_pointers<float>> into;
    if (units_[u].precision()(flatshard::role::reduce) == flatshard::dtype::f32) {
      into.emplace();
      into->fill(nullptr);
      auto const full = units_[u].gradients();
      for (std::size_t t = 0; t < full.size(); ++t)
        (*into)[tables_.tensors[u][t].slot] = full[t].template data<float>().data();
    }
    sum_.start(tables_.tensors[u], into);
  }
  void reduce_sum(std::size_t u) {
    auto const sum = sum_.finish();
    if (sum && units_[u].precision()(flatshard::role::reduce) == flatshard::dtype::bf16) {
      auto const full = units_[u].gradients();
      for (std::size_t t = 0; t < full.size(); ++t) {
        auto const out = full[t].template data<bf16>();
        auto const* const in = (*sum)[tables_.tensors[u][t].slot];
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = narrow<bf16>(in[i]);
      }
    }
    auto const count = static_cast<double>(options_.batch * options_.tokens);
    reduce_scatter(units_[u], comm_, {.scale = static_cast<float>(1.0 / count), .order = options_.order},
                   stream_type{});
  }

  /// Every sequence's loss reaches every rank and is added in the order of the sequences, so the mean does not depend
  /// on the number of ranks.
  [[nodiscard]] double mean(std::span<double> losses) {
    comm_.all_reduce(losses, flatshard::reduction::sum, stream_type{});
    comm_.wait(stream_type{});
    double total = 0;
    for (auto const loss : losses) total += loss;
    return total / static_cast<double>(options_.batch * options_.tokens);
  }

  model_shape const& m_;
  unit_tables const& tables_;
  training_options const& options_;
  C& comm_;
  sequence_model<A> model_;
  gradient_sum sum_;
  std::vector<unit_type> units_;
  std::size_t first_ = 0, local_ = 0, step_ = 0;
  std::vector<buffer<A>> inputs_;  // of each layer and of the head, which becomes the gradient that flows back
  std::vector<head_memory<A>> heads_;
  std::vector<layer_memory<A>> kept_;
};

/// The whole tensors of unit `u` from one shard of each rank, in the order of its list; on rank 0, empty elsewhere.
/// Collective.
template <class T, class Unit, flatshard::Communicator C>
[[nodiscard]] std::vector<std::vector<T>> whole_tensors(Unit const& unit, std::span<T const> shard, C& comm) {
  auto const& l = unit.layout();
  std::vector<T> full(l.gathered().value);
  comm.all_gather(std::span<T>{full}, shard, {});
  comm.wait({});
  std::vector<std::vector<T>> tensors;
  if (index(comm.self()) != 0) return tensors;
  for (std::size_t t = 0; t < l.size(); ++t) tensors.emplace_back(l.place_at(t).numel);
  for (std::size_t r = 0; r < l.world_size(); ++r)
    for (auto const& p : l.pieces(flatshard::rank_at(r)))
      std::copy_n(full.begin() + static_cast<std::ptrdiff_t>((l.segment() * r + p.local).value), p.size().value,
                  tensors[p.tensor].begin() + static_cast<std::ptrdiff_t>(p.begin.value));
  return tensors;
}

// ---- what the configuration decides ---------------------------------------------------------------------------------
// Precision and sharding as types, loading, clipping, the optimizer.

/// What the command line says about the configuration.
struct setup_arguments {
  std::string config, profile = "llamafactory", bf16, layout;
  double lr = 1e-3;
};

struct training_setup {
  flatshard::resolution resolved;
  std::string layout;  ///< zero3, fsdp2 or native
  flatshard::load_options load;
  bool activation_checkpointing = true;
  std::optional<double> clip;
  adamw_options optimizer;
  std::vector<std::string> lines;     ///< for people
  std::vector<std::string> warnings;  ///< for people, on stderr
  flatshard::loading_choice loading;  ///< whether ranks load their own parts, and why
  flatshard::value report = flatshard::value::object();
  [[nodiscard]] std::string_view dist() const { return name(resolved.policies.backend); }
};

struct resolved_file {
  flatshard::resolution decisions;
  std::optional<double> learning_rate;  ///< LLaMA-Factory's own key
};
[[nodiscard]] resolved_file resolve_file(setup_arguments const& args, std::size_t world, std::size_t batch,
                                         flatshard::value const& model_config) {
  flatshard::facts known;
  known.world = world;
  known.model_config = model_config;
  known.device = flatshard::device_kind::cpu;
  known.client_optimizer = false;  // this trainer builds the optimizer that the configuration describes
  known.micro_batch_size = std::max<std::size_t>(batch / world, 1);
  if (!args.bf16.empty()) known.bf16 = args.bf16 == "true";
  auto const text = flatshard::frontend::read_configuration(args.config).value();
  flatshard::frontend::read_named_files(text, known);
  auto const front_end = flatshard::profile_of(args.profile).value_or(flatshard::profile::llamafactory);
  resolved_file out{decide(text, front_end, known).value(), {}};
  if (flatshard::form_of(text, known) == flatshard::config_form::deepspeed) return out;
  for (auto const key : {"optim_config", "lr_scheduler_config", "peft_config"})
    if (auto const at = text[key]; at.present() && !at->is(flatshard::value_kind::null))
      refuse(flatshard::errc::other, at.where(),
             "this trainer updates every parameter by AdamW at a constant rate; leave " + std::string{key} + " out");
  auto const rate = text["learning_rate"];
  if (!rate.present() || rate->is(flatshard::value_kind::null)) return out;
  if (!rate->is_number() || !not_negative(*rate->number()))
    refuse(flatshard::errc::out_of_range, rate.where(),
           "found " + to_json(*rate) + ", a number of at least 0 is needed");
  out.learning_rate = rate->number();
  return out;
}

/// Where the configuration decides `key`; the whole file where nothing there does.
[[nodiscard]] flatshard::place place_of(flatshard::resolution const& r, std::string_view key, std::string const& file) {
  auto const* const decided = r.find(key);
  if (decided != nullptr && !decided->source.file.empty()) return decided->source;
  return {file, {}, 0, 0};
}

/// Refuses an optimizer section that asks for another optimizer than AdamW. Names are read as DeepSpeed reads them:
/// without regard to case, and Adam is AdamW unless adam_w_mode is off. Source: DeepSpeed@edaa7221,
/// deepspeed/runtime/engine.py (_configure_basic_optimizer), deepspeed/runtime/config.py.
void refuse_optimizer(flatshard::resolution const& r, setup_arguments const& args) {
  auto const& wanted = *r.policies.optimizer;
  auto name = wanted.type;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  auto const& decoupled = r.policies.deepspeed_config["optimizer"]["params"]["adam_w_mode"];
  bool const plain = name == "adam" && decoupled.present() && !truthy(decoupled);
  if ((name != "adam" && name != "adamw") || plain)
    refuse(flatshard::errc::other, place_of(r, "optimizer.type", args.config),
           "the optimizer is " + wanted.type + (plain ? " with adam_w_mode off" : "") +
               "; this trainer has AdamW alone: write AdamW, or Adam, which DeepSpeed takes for it");
  for (auto const& [key, number] :
       {std::pair{"lr", wanted.learning_rate}, {"eps", wanted.eps}, {"weight_decay", wanted.weight_decay}})
    if (number && !not_negative(*number))
      refuse(flatshard::errc::out_of_range, place_of(r, std::string{"optimizer."} + key, args.config),
             fmt::format("found {}, a number of at least 0 is needed", *number));
  if (wanted.betas)
    for (auto const beta : *wanted.betas)
      if (!(beta >= 0 && beta < 1))
        refuse(flatshard::errc::out_of_range, place_of(r, "optimizer.betas", args.config),
               fmt::format("found {} among the betas, they must be at least 0 and below 1", beta));
}

/// What this trainer has no code for, as a problem of the configuration file.
void refuse_unsupported(flatshard::resolution const& r, setup_arguments const& args, std::size_t world) {
  using flatshard::dtype;
  using flatshard::role;
  auto const& p = r.policies;
  auto const at = [&](std::string_view key) { return place_of(r, key, args.config); };
  bool const whole = p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12;
  if (whole && world > 1)
    refuse(flatshard::errc::other, at("sharding"),
           "this configuration (" + std::string{name(p.backend)} + ", sharding " + std::string{name(p.sharding)} +
               ") keeps the parameters whole on every rank; this trainer runs it on one rank only: use --world 1, or "
               "ZeRO stage 3 or fsdp2");
  if (p.fsdp2 && p.fsdp2->replicate > 1)
    refuse(flatshard::errc::other, at("mp_replicate_size"),
           "mp_replicate_size is " + std::to_string(p.fsdp2->replicate) + "; this trainer shards over all ranks");
  for (auto const which : {role::parameter_storage, role::compute, role::reduce, role::grad_accum})
    if (auto const t = p.dtypes(which); t != dtype::f32 && t != dtype::bf16)
      refuse(flatshard::errc::other, at(name(which)),
             std::string{name(which)} + " is " + std::string{name(t)} +
                 "; this trainer computes in fp32 and bf16, without loss scaling");
  auto const updated = p.dtypes.master == dtype::none ? role::parameter_storage : role::master;
  for (auto const which : {updated, role::optimizer_state})
    if (p.dtypes(which) != dtype::f32)
      refuse(flatshard::errc::other, at(name(which)), "this trainer's optimizer works on fp32 copies and fp32 moments");
  if (p.gradient_clipping.present() && !p.clip_norm())
    refuse(flatshard::errc::wrong_type, at(p.fsdp2 ? "max_grad_norm" : "gradient_clipping"),
           "the clipping norm is " + flatshard::to_json(p.gradient_clipping) + ", a number is needed");
  if (p.optimizer) refuse_optimizer(r, args);
  if (p.deepspeed_config["scheduler"].present() && !p.deepspeed_config["scheduler"].is(flatshard::value_kind::null))
    refuse(flatshard::errc::other, p.config_file,
           "the section scheduler is there; this trainer keeps the learning rate constant: leave the section out");
}

/// Reads and resolves the configuration. Throws `bad_input` with every problem: what upstream refuses, and what this
/// trainer has no code for.
[[nodiscard]] training_setup read_setup(setup_arguments const& args, std::size_t world, std::size_t batch,
                                        flatshard::value const& model_config) {
  using flatshard::value;
  training_setup s;
  auto const file = resolve_file(args, world, batch, model_config);
  s.resolved = file.decisions;
  refuse_unsupported(s.resolved, args, world);
  auto const& p = s.resolved.policies;
  s.layout = !args.layout.empty()                            ? args.layout
             : p.sharding == flatshard::sharding_kind::zero3 ? "zero3"
             : p.sharding == flatshard::sharding_kind::fsdp2 ? "fsdp2"
                                                             : "native";
  s.activation_checkpointing = p.activation_checkpointing;
  // DeepSpeed: 0 is off. LLaMA-Factory's own loop always calls clip_grad_norm_, whatever the limit.
  if (auto const norm = p.clip_norm(); norm && (*norm > 0 || p.backend != flatshard::backend_kind::deepspeed))
    s.clip = norm;
  s.optimizer.lr = file.learning_rate.value_or(args.lr);
  if (p.optimizer) {
    s.warnings.push_back(to_string(place_of(s.resolved, "optimizer.type", args.config)) +
                         ": warning: the optimizer section decides, " + p.optimizer->type +
                         " as AdamW; LLaMA-Factory itself would refuse the section");
    s.optimizer.lr = p.optimizer->learning_rate.value_or(s.optimizer.lr);
    s.optimizer.epsilon = p.optimizer->eps.value_or(s.optimizer.epsilon);
    s.optimizer.decay = p.optimizer->weight_decay.value_or(s.optimizer.decay);
    if (p.optimizer->betas) {
      s.optimizer.beta1 = p.optimizer->betas->at(0);
      s.optimizer.beta2 = p.optimizer->betas->at(1);
    }
  }
  s.loading = loading_of(s.resolved);
  s.load.mode = s.loading.partitioned ? flatshard::load_mode::ranges : flatshard::load_mode::whole;

  std::string roles;
  auto precision = value::object();
  for (auto const r : flatshard::roles) {
    roles += (roles.empty() ? "" : ", ") + std::string{name(r)} + ' ' + std::string{name(p.dtypes(r))};
    precision.set(name(r), name(p.dtypes(r)));
  }
  s.lines.push_back("config " + args.config + ": " + std::string{s.dist()} + ", " + roles);
  s.lines.push_back(fmt::format("activation checkpointing {}, clipping {}, AdamW lr {} betas {} {} eps {} decay {}",
                                s.activation_checkpointing ? "on" : "off",
                                s.clip ? fmt::format("to norm {}", *s.clip) : "off", s.optimizer.lr, s.optimizer.beta1,
                                s.optimizer.beta2, s.optimizer.epsilon, s.optimizer.decay));
  if (p.batch && p.batch->train.integer() && static_cast<std::size_t>(*p.batch->train.integer()) != batch)
    s.warnings.push_back(
        fmt::format("{}: warning: the configuration asks for {} sequences a step; --batch says {}, which is what runs",
                    args.config, *p.batch->train.integer(), batch));
  auto problems = value::array();
  for (auto const& problem : s.resolved.problems) {
    (problem.level == flatshard::severity::note ? s.lines : s.warnings).push_back(to_string(problem));
    problems.push_back(to_string(problem));
  }
  s.report.set("dist", s.dist());
  s.report.set("layout", s.layout);
  s.report.set("precision", precision);
  s.report.set("activation_checkpointing", s.activation_checkpointing);
  s.report.set("clip", s.clip ? value{*s.clip} : value{nullptr});
  s.report.set("lr", s.optimizer.lr);
  s.report.set("problems", problems);
  return s;
}

/// The vectorised casts in the form that the loader takes.
struct vector_cast {
  template <flatshard::CastElement To, flatshard::CastElement From>
  void operator()(std::span<To> out, std::span<From const> in) const requires requires {
    flatshard::kernels::cast(out, in);
  }
  { flatshard::kernels::cast(out, in); }
};

/// What a load did, on all ranks together.
struct loaded {
  flatshard::load_mode mode;
  std::size_t bytes_read;
};
/// Loads the units as the configuration asks for it. Collective; throws alike on every rank.
template <class Units, class C>
[[nodiscard]] loaded load_units(Units& units, std::string const& model, training_setup const& setup, C& comm) {
  auto const done = flatshard::load(units, fs::path{model}, comm, setup.load, vector_cast{});
  std::array<double, 1> read{static_cast<double>(done.bytes_read.value)};  // whole numbers below 2^53 are exact
  comm.all_reduce(std::span<double>{read}, flatshard::reduction::sum, {});
  comm.wait({});
  return {done.mode, static_cast<std::size_t>(read[0])};
}

/// Calls `use` with the element type of the compute dtype, the precision and the sharding policy, as types: the one
/// place where run-time decisions become types. A precision without a name, or another configuration's layout, stays a
/// value.
template <class Use>
void with_policies(training_setup const& setup, Use use) {
  auto const& p = setup.resolved.policies;
  auto const with_element_type = [&]<class Precision>(Precision precision, auto sharding) {
    if constexpr (std::same_as<Precision, flatshard::precision>) {
      with_element(precision.compute, [&](auto element) { use(element, precision, sharding); });
    } else if constexpr (Precision::value.compute == flatshard::dtype::bf16) {
      use(flatshard::bf16{}, precision, sharding);
    } else {
      use(float{}, precision, sharding);
    }
  };
  auto const by_value = [&] {
    if (setup.layout == flatshard::zero3::name) return with_element_type(p.dtypes, flatshard::zero3{});
    if (setup.layout == flatshard::fsdp2::name) return with_element_type(p.dtypes, flatshard::fsdp2{});
    with_element_type(p.dtypes, flatshard::native{});
  };
  if (p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12)
    return by_value();  // one rank, nothing to cut
  with_static(setup.resolved, [&](auto precision, auto sharding) {
    if (setup.layout == sharding.name) return with_element_type(precision, sharding);
    by_value();  // a layout that the configuration does not name
  });
}

/// The project's own documentation, what is trained on by default.
[[nodiscard]] std::vector<std::string> default_texts() {
  std::vector<std::string> files;
  std::error_code none;
  for (auto const& entry : fs::directory_iterator{fs::path{FLATSHARD_PROJECT} / "docs", none})
    if (entry.path().extension() == ".md") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  if (auto const readme = fs::path{FLATSHARD_PROJECT} / "README.md"; fs::exists(readme, none))
    files.push_back(readme.string());
  if (files.empty())
    refuse(flatshard::errc::file_missing, FLATSHARD_PROJECT, "no docs/*.md and README.md; give --data");
  return files;
}

struct arguments {
  setup_arguments setup;
  std::string model, save, tokens, dump, adamw, sum_order = "by_rank";
  std::vector<std::string> data;
  std::size_t world = 1, steps = 10, batch = 8, tokens_in_sequence = 64;
  bool batch_given = false, tokens_given = false, json = false, final_loss = false;
  double lr = 1e-3, max_grad_norm = 0, grad_scale = 1;
  std::uint64_t seed = 0;
};

// ---- tensors that leave the program --------------------------------------------------------------------------------

/// Tensors gathered in memory and written as one safetensors file.
class tensor_dump {
 public:
  template <class T>
  void add(std::string const& name, std::vector<std::size_t> dims, std::span<T const> values) {
    specs_.push_back({name, flatshard::dtype_of<T>, std::move(dims)});
    auto const raw = std::as_bytes(values);
    data_.emplace_back(name, std::vector<std::byte>(raw.begin(), raw.end()));
  }
  void write(fs::path const& path) const {
    tool::noted_signals const noted;
    flatshard::safetensors_writer out{path, specs_};
    for (auto const& [name, raw] : data_) {
      tool::stop_if_interrupted();
      out.write(name, raw);
    }
    tool::stop_if_interrupted();
    out.commit();
  }

 private:
  std::vector<flatshard::tensor_spec> specs_;
  std::vector<std::pair<std::string, std::vector<std::byte>>> data_;
};

[[nodiscard]] std::vector<std::size_t> dims_of(tensor const& t) {
  return {t.dims.sizes().begin(), t.dims.sizes().end()};
}

/// Adds `prefix` + name of every tensor of every unit, assembled from the shards that `shard_of` names. Collective.
template <class T, class Units, class C, class ShardOf>
void add_whole(tensor_dump& dump, std::string const& prefix, unit_tables const& tables, Units& units, C& comm,
               ShardOf shard_of) {
  for (std::size_t u = 0; u < units.size(); ++u) {
    auto const whole = whole_tensors<T>(units[u], shard_of(units[u]), comm);
    for (std::size_t t = 0; t < whole.size(); ++t)
      dump.add<T>(prefix + tables.tensors[u][t].name, dims_of(tables.tensors[u][t]), whole[t]);
  }
}

/// Writes config.json as it was read, but for the dtype of the tensors beside it.
void write_config(fs::path const& path, value config, dtype type) {
  for (auto const* const key : {"dtype", "torch_dtype"})  // transformers 5 and 4
    if (config.has(key)) config.set(key, flatshard::torch_name(type).substr(std::string_view{"torch."}.size()));
  std::ofstream out{path, std::ios::binary};
  out << flatshard::to_json(config) << '\n';
  out.close();
  if (!out) throw flatshard::file_error{errno, "writing", path.string()};
}

/// Writes a Hugging Face checkpoint, in the dtype of the parameters' storage, unit by unit. The folder appears under
/// its name when it is complete; an error or a signal in between leaves nothing. Collective.
template <class Units, class C>
void save_checkpoint(fs::path const& to, value const& config, unit_tables const& tables, Units& units, C& comm) {
  bool const writes = index(comm.self()) == 0;
  auto const type = units.front().storage().type;
  std::optional<tool::noted_signals> noted;
  std::optional<flatshard::unfinished_folder> folder;
  std::optional<flatshard::safetensors_writer> out;
  if (writes) {
    std::vector<flatshard::tensor_spec> specs;
    for (auto const& unit : tables.tensors)
      for (auto const& t : unit) specs.push_back({t.name, type, dims_of(t)});
    noted.emplace();
    folder.emplace(to);
    write_config(folder->path() / "config.json", config, type);
    out.emplace(folder->path() / "model.safetensors", std::move(specs));
  }
  for (std::size_t u = 0; u < units.size(); ++u) {
    units[u].publish(comm, {});
    auto const storage = units[u].storage();
    with_element(type, [&]<class T>(T) {
      std::span<T const> const shard{reinterpret_cast<T const*>(storage.data), storage.count.value};
      auto const whole = whole_tensors<T>(units[u], shard, comm);
      for (std::size_t t = 0; t < whole.size(); ++t) {
        tool::stop_if_interrupted();
        out->write(tables.tensors[u][t].name, std::as_bytes(std::span{whole[t]}));
      }
    });
  }
  if (writes) {
    out->commit();
    tool::stop_if_interrupted();
    folder->finish();
  }
}

// ---- what is printed -----------------------------------------------------------------------------------------------

/// Most memory that this process ever had resident. Units: bytes; 0 if the system does not tell.
[[nodiscard]] std::size_t peak_resident() {
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  return 0;
}
[[nodiscard]] std::string mebibytes(std::size_t n) {
  return fmt::format("{:.1f} MiB", static_cast<double>(n) / (1024.0 * 1024.0));
}

/// What a training prints and, with --json, collects. Rank 0's thread alone uses it while ranks run.
class reporter {
 public:
  explicit reporter(bool json) : json_{json} { object_.set("schema", 1); }
  void line(std::string const& text) {
    if (json_) return;
    fmt::print("{}\n", tool::one_line(text));
    std::fflush(stdout);
  }
  /// How the weights were loaded, from the report of the load; why, from the configuration.
  void load(loaded const& done, std::size_t file_bytes, flatshard::loading_choice const& why) {
    bool const whole = done.mode == flatshard::load_mode::whole;
    auto const where = to_string(why.where);
    line(fmt::format("loaded {}{}{}; all ranks together read {} of files of {}",
                     whole ? "whole on every rank" : "each rank's own ranges",
                     why.reason.empty() ? "" : ": " + why.reason, where.empty() ? "" : " (" + where + ")",
                     tool::human(done.bytes_read), tool::human(file_bytes)));
    set("load", value::object({{"partitioned", !whole},
                               {"whole", whole},
                               {"reason", why.reason},
                               {"where", where},
                               {"bytes_read", done.bytes_read},
                               {"file_bytes", file_bytes}}));
  }
  void set(std::string_view key, value v) { object_.set(key, std::move(v)); }
  void step(std::size_t number, step_report const& done, double seconds) {
    line(fmt::format("step {:4}  loss {:.6f}  grad norm {:.6f}  {:.3f} s{}", number, done.loss, done.norm, seconds,
                     done.updated ? "" : "  not finite, no update"));
    auto const finite = [](double x) { return std::isfinite(x) ? value{x} : value{nullptr}; };  // JSON has no NaN
    steps_.push_back(value::object({{"step", number},
                                    {"loss", finite(done.loss)},
                                    {"grad_norm", finite(done.norm)},
                                    {"seconds", seconds},
                                    {"updated", done.updated}}));
  }
  void finish() {
    object_.set("steps", steps_);
    if (json_) fmt::print("{}\n", flatshard::to_json(object_));
  }

 private:
  bool json_;
  value object_ = value::object(), steps_ = value::array();
};

// ---- training ------------------------------------------------------------------------------------------------------

struct training {
  arguments const& args;
  training_setup const& setup;
  value const& config;  ///< the model's config.json
  model_shape const& model;
  std::size_t file_bytes;  ///< of the checkpoint
  token_source const& tokens;
  training_options options;
  matmul_backend backend;
  reporter& report;
  std::span<float> logits;  ///< of the first step, [batch, tokens, vocabulary]; every rank writes its own sequences
};

/// One rank from loading to the last file.
template <class A, class Precision, class Sharding, class C>
void train_rank(training const& job, Precision precision, Sharding sharding, C& comm) {
  using trainer_type = sharded_trainer<A, Precision, Sharding, C>;
  bool const speaks = index(comm.self()) == 0;
  auto const& args = job.args;
  auto const& options = job.options;
  auto const& model = job.model;
  auto& report = job.report;
  auto const world = flatshard::world{args.world};

  unit_tables const tables{model};
  ledger activations;
  matrix_products products{job.backend};
  flatshard::kernels::page_buffer const memory{trainer_type::arena_bytes(tables, world, precision, sharding)};
  flatshard::memory_arena arena{memory.span()};
  trainer_type trainer{model, tables, options, precision, sharding, comm, arena, products, activations};
  auto& units = trainer.units();
  agree(comm, job.setup.resolved, units);
  auto const done_loading = load_units(units, args.model, job.setup, comm);
  if (speaks) report.load(done_loading, job.file_bytes, job.setup.loading);

  // What LLaMA-Factory prints, from the dtypes of the buffers that hold parameters and logits.
  auto const lines = flatshard::precision_lines(job.setup.dist(), job.setup.resolved.policies.mode,
                                                units.front().storage().type, trainer_type::logits_type());
  if (speaks) {
    for (auto const& line : lines) report.line(line);
    // Whether the dtypes of this instantiation are constants, too; the layout's policy is a type always.
    report.set("static", !std::same_as<Precision, flatshard::precision>);
  }

  tensor_dump dump;
  bool const dumps = !args.dump.empty();
  if (dumps)
    for (std::size_t u = 0; u < units.size(); ++u) {
      auto const w = gather(units[u], comm, {});
      for (std::size_t t = 0; speaks && t < w.size(); ++t)
        dump.add<A>("compute." + tables.tensors[u][t].name, dims_of(tables.tensors[u][t]), w[t].template data<A>());
      release(units[u], flatshard::inline_stream{});
    }

  std::vector<std::int64_t> ids(trainer.local_sequences() * (options.tokens + 1));
  auto const read_batch = [&](std::size_t step) {
    for (std::size_t s = 0; s < trainer.local_sequences(); ++s)
      job.tokens.read(std::span{ids}.subspan(s * (options.tokens + 1), options.tokens + 1),
                      step * options.batch + trainer.first_sequence() + s);
  };
  auto const keep_logits = [&](std::size_t sequence, std::span<A const> z) {
    for (std::size_t i = 0; i < z.size(); ++i) job.logits[sequence * z.size() + i] = widen(z[i]);
  };
  std::vector<double> losses, norms;
  for (std::size_t step = 0; step < args.steps; ++step) {
    auto const begin = std::chrono::steady_clock::now();
    read_batch(step);
    bool const dumps_step = dumps && step == 0;
    auto done = dumps_step ? trainer.gradients(ids, keep_logits) : trainer.gradients(ids);
    if (dumps_step) {
      if (speaks) dump.add<float>("logits", {options.batch, options.tokens, model.vocabulary}, job.logits);
      with_element(units.front().grad().type, [&]<class G>(G) {
        add_whole<G>(dump, "grad.", tables, units, comm,
                     [](auto& u) { return std::span<G const>{u.template grad<G>()}; });
      });
    }
    trainer.update(done);
    std::chrono::duration<double> const seconds = std::chrono::steady_clock::now() - begin;
    losses.push_back(done.loss);
    norms.push_back(done.norm);
    if (speaks) report.step(step + 1, done, seconds.count());
  }
  std::size_t gathers = 0, reduces = 0, gathered = 0, reduced = 0;
  for (auto const& u : units) {
    gathers += u.counters().gathers;
    reduces += u.counters().reduce_scatters;
    gathered += u.counters().gathered.value;
    reduced += u.counters().reduced.value;
  }
  if (dumps) gathers -= units.size();  // of the compute copies, above
  if (args.final_loss) {
    read_batch(args.steps);
    losses.push_back(trainer.loss_of(ids));
    if (speaks) report.line(fmt::format("after the last step  loss {:.6f}", losses.back()));
    if (speaks) report.set("final_loss", std::isfinite(losses.back()) ? value{losses.back()} : value{nullptr});
  }
  if (speaks && args.steps > 0) {
    report.line(fmt::format("per step: {} gathers, {} reduce-scatters", gathers / args.steps, reduces / args.steps));
    report.set("gathers_per_step", gathers / args.steps);
    report.set("reduce_scatters_per_step", reduces / args.steps);
    report.set("gathered_bytes", gathered);
    report.set("reduced_bytes", reduced);
  }
  if (speaks) {
    report.line(fmt::format(
        "peak memory: {} resident for all ranks (VmHWM); rank 0: {} activations and scratch, {} shards and buffers",
        mebibytes(peak_resident()), mebibytes(activations.peak()), mebibytes(arena.peak().value)));
    report.set("peak", value::object({{"resident_bytes", peak_resident()},
                                      {"activation_bytes", activations.peak()},
                                      {"unit_bytes", arena.peak().value}}));
    auto printed = value::array();
    for (auto const& line : lines) printed.push_back(line);
    report.set("precision_lines", printed);
  }
  if (dumps) {
    auto const add = [&](std::string const& prefix, auto shard_of) {
      add_whole<float>(dump, prefix, tables, units, comm, shard_of);
    };
    add("weights.", [](auto& u) { return std::span<float const>{u.master()}; });
    add("m.", [](auto& u) { return std::span<float const>{u.state(0)}; });
    add("v.", [](auto& u) { return std::span<float const>{u.state(1)}; });
    if (speaks) {
      dump.add<double>("losses", {losses.size()}, losses);
      dump.add<double>("grad_norms", {norms.size()}, norms);
      dump.write(args.dump);
    }
  }
  if (!args.save.empty()) {
    save_checkpoint(args.save, job.config, tables, units, comm);
    if (speaks) report.line("saved " + args.save);
    if (speaks) report.set("saved", args.save);
  }
}

/// Refuses a --dump over what this run reads.
void check_dump(arguments const& args) {
  auto inputs = args.data;
  inputs.insert(inputs.end(), {args.model, args.setup.config, args.tokens, args.adamw});
  if (!args.dump.empty() && tool::replaces_input(args.dump, inputs))
    refuse(flatshard::errc::path, args.dump, "--dump names a file that is read here; give another name");
}

/// Refuses targets that cannot be written, as after the training it would be too late: begins what the end will write,
/// and takes it away again.
void check_targets(arguments const& args) {
  check_dump(args);
  tool::noted_signals const noted;
  auto const attempt = [](char const* option, std::string const& target, auto begin) {
    try {
      begin();
    } catch (flatshard::file_error const& e) {
      refuse(flatshard::errc::path, target, fmt::format("{} cannot be written: {}", option, e.what()));
    }
  };
  std::error_code unseen;  // the attempt says what is wrong
  if (!args.save.empty()) {
    auto const name = fs::path{args.save}.lexically_normal().filename();
    auto const there = fs::symlink_status(args.save, unseen);
    bool const empty = fs::is_directory(args.save, unseen) && fs::is_empty(args.save, unseen);
    if (name == "." || name == ".." || (fs::exists(there) && !empty))
      refuse(flatshard::errc::path, args.save, "--save needs a name that is free, or an empty folder");
    attempt("--save", args.save, [&] { flatshard::unfinished_folder const folder{args.save}; });
  }
  if (!args.dump.empty()) {
    auto const whole = [](std::string const& path) { return fs::absolute(path).lexically_normal(); };
    if (!args.save.empty() && whole(args.dump) == whole(args.save))
      refuse(flatshard::errc::path, args.dump, "--dump and --save need two names");
    auto const there = fs::status(args.dump, unseen);
    if (fs::exists(there) && !fs::is_regular_file(there))
      refuse(flatshard::errc::path, args.dump, "--dump needs a name that is free or a regular file's");
    attempt("--dump", args.dump, [&] { flatshard::replacing_file const file{args.dump, {}}; });
  }
  tool::stop_if_interrupted();
}

/// Everything that can be refused is refused here, before a rank starts.
void train(arguments const& args) {
  auto const backend = chosen_backend();
  reporter report{args.json};
  auto const config_path = fs::path{args.model} / "config.json";
  auto const config = flatshard::parse_file(config_path.string()).value();
  auto const model = read_model(config).value();
  auto const checkpoint = flatshard::open_checkpoint(args.model).value();
  check_sizes(config, model, checkpoint).value();
  auto const tokens = !args.tokens.empty()
                          ? token_source::rows(args.tokens)
                          : token_source::text(args.data.empty() ? default_texts() : args.data, args.seed);
  training_options options;
  options.batch = args.batch_given || tokens.is_text() ? args.batch : tokens.row_count();
  auto const setup = read_setup(args.setup, args.world, options.batch, config.value_of_root());
  options.tokens = args.tokens_given || tokens.is_text() ? args.tokens_in_sequence : tokens.row_tokens();
  options.order = args.sum_order == "pairwise" ? flatshard::sum_order::pairwise : flatshard::sum_order::by_rank;
  options.checkpointing = setup.activation_checkpointing;
  options.clip = setup.clip;
  options.optimizer = setup.optimizer;
  tokens.check(model.vocabulary, options.tokens);
  check_targets(args);

  std::size_t parameters = 0;
  for (auto const& list : unit_tables{model}.parameters)
    for (auto const& p : list) parameters += p.dims.numel();
  report.line(fmt::format("model {}: {}, {} parameters, {} layers, vocabulary {}", args.model, model.type, parameters,
                          model.layers, model.vocabulary));
  report.line(fmt::format("world {}, layout {}, batch {} x {} tokens, sums {}, products by {}", args.world,
                          setup.layout, options.batch, options.tokens, args.sum_order, name(backend)));
  for (auto const& line : setup.lines) report.line(line);
  std::fflush(stdout);
  for (auto const& line : setup.warnings) std::fputs((tool::one_line(line) + '\n').c_str(), stderr);
  report.set("model", value::object({{"type", model.type}, {"parameters", parameters}, {"layers", model.layers}}));
  report.set("world", args.world);
  report.set("batch", options.batch);
  report.set("tokens", options.tokens);
  report.set("sum_order", args.sum_order);
  report.set("matmul", name(backend));
  for (auto const& m : setup.report.members()) report.set(m.key, m.held);

  auto const too_large = [&] {
    return std::runtime_error{
        fmt::format("there is not enough memory for {} on {} ranks with {} sequences of {} tokens a step; a smaller "
                    "--world, --batch or --seq needs less",
                    args.model, args.world, options.batch, options.tokens)};
  };
  try {
    std::vector<float> logits;
    if (!args.dump.empty())
      logits.resize(flatshard::checked_mul(flatshard::checked_mul(options.batch, options.tokens), model.vocabulary));
    training const job{
        args,   setup, config.value_of_root(), model, checkpoint.file_size().value, tokens, options, backend,
        report, logits};
    // The configuration's timeout of the process group bounds every wait for another rank.
    auto const limit = std::min<std::int64_t>(setup.resolved.policies.process_group.timeout_seconds, 1'000'000'000);
    flatshard::kernels::thread_options waits;
    if (limit > 0) waits.deadline = std::chrono::seconds{limit};
    auto const bound = std::chrono::duration_cast<std::chrono::seconds>(waits.deadline).count();
    report.line(fmt::format("a rank waits {} s for the others", bound));
    report.set("deadline_seconds", bound);
    with_policies(setup, [&]<class A>(A, auto precision, auto sharding) {
      flatshard::kernels::thread_group const ranks{flatshard::world{args.world}, waits};
      ranks.run([&](flatshard::kernels::thread_communicator& comm) { train_rank<A>(job, precision, sharding, comm); });
    });
  } catch (std::bad_alloc const&) {
    throw too_large();
  } catch (std::length_error const&) {  // what a container says of a size that no memory could have
    throw too_large();
  }
  report.finish();
}

/// AdamW alone: runs the optimizer on stored gradients, without a model.
void run_adamw(arguments const& args) {
  check_dump(args);
  auto const start = read_tensor<float>(args.adamw, "start", dtype::f32, 1);
  auto const grads = read_tensor<float>(args.adamw, "grads", dtype::f32, 2);
  auto const n = start.values.size();
  if (grads.dims[1] != n)
    refuse(flatshard::errc::shape_mismatch, args.adamw,
           fmt::format("grads must have rows of {} numbers as start has, found {}", n, grads.dims[1]));
  adamw_options options;
  options.lr = args.lr;
  auto p = start.values;
  std::vector<float> m(n), v(n), all;
  std::vector<double> norms;
  for (std::size_t step = 0; step < grads.dims[0]; ++step) {
    std::vector<float> g(n);
    double squares = 0;
    for (std::size_t i = 0; i < n; ++i) {
      g[i] = grads.values[step * n + i] * static_cast<float>(args.grad_scale);
      squares += static_cast<double>(g[i]) * static_cast<double>(g[i]);
    }
    norms.push_back(std::sqrt(squares));
    auto const factor =
        args.max_grad_norm > 0 ? static_cast<float>(flatshard::clip_factor(norms.back(), args.max_grad_norm)) : 1.0f;
    adamw_step(std::span{p}, std::span<float const>{g}, std::span{m}, std::span{v}, factor, options, step + 1);
    all.insert(all.end(), p.begin(), p.end());
  }
  tensor_dump dump;
  dump.add<float>("weights", {grads.dims[0], n}, all);
  dump.add<float>("m", {n}, m);
  dump.add<float>("v", {n}, v);
  dump.add<double>("norms", {norms.size()}, norms);
  dump.write(args.dump);
}

/// Throws nothing where stderr is closed or full, as it is called where exceptions end.
void report_error(std::string_view text) {
  std::fputs(fmt::format("train_llama: {}\n", tool::every_line(text)).c_str(), stderr);
}

}  // namespace

int main(int argc, char** argv) {
  tool::fail_large_writes();
  arguments args;
  CLI::App app{"Trains a Llama-family checkpoint on ranks of this machine, as a training configuration asks for it",
               "train_llama"};
  app.footer("Exit codes: 0 done, 1 bad input or environment, 2 wrong usage.");
  app.failure_message(CLI::FailureMessage::simple);
  auto* const model = app.add_option("--model", args.model, "folder with config.json and safetensors files");
  auto* const config =
      app.add_option("--config", args.setup.config, "DeepSpeed JSON, or LLaMA-Factory's settings as YAML or JSON");
  auto const at_least = [](std::size_t low, std::size_t high = 999999999) {
    return CLI::Validator{[low, high](std::string& text) {
                            std::size_t const digits = text.find_first_not_of("0123456789");
                            if (digits == std::string::npos && !text.empty() && text.size() < 10)
                              if (auto const n = std::stoull(text); n >= low && n <= high) return std::string{};
                            return fmt::format("must be a whole number from {} to {}, found {}", low, high, text);
                          },
                          ""};
  };
  app.add_option("--world", args.world, "ranks, threads of this process (1; at most 1024)")->check(at_least(1, 1024));
  app.add_option("--steps", args.steps, "optimizer steps (10)")->check(at_least(0));
  auto* const batch =
      app.add_option("--batch", args.batch, "sequences in a step over all ranks (8; all rows of --tokens)")
          ->check(at_least(1));
  auto* const seq = app.add_option("--seq", args.tokens_in_sequence, "tokens in a sequence (64; the rows of --tokens)")
                        ->check(at_least(1));
  app.add_option("--lr", args.lr, "learning rate (1e-3); the configuration's own wins");
  app.add_option("--seed", args.seed, "where in the text sequences begin (0)")->check(at_least(0));
  app.add_option("--data", args.data, "text files; their bytes are the tokens (the project's docs and README)");
  app.add_option("--tokens", args.tokens, "safetensors file with input_ids, I64 [rows, tokens + 1], instead of text");
  app.add_option("--sum-order", args.sum_order, "how gradients are added: by_rank or pairwise (by_rank)")
      ->check(CLI::IsMember({"by_rank", "pairwise"}));
  app.add_option("--profile", args.setup.profile, "whose rules read the configuration (llamafactory)")
      ->check(CLI::IsMember({"llamafactory", "llamafactory-review"}));
  app.add_option("--bf16", args.setup.bf16, "the front end's argument bf16: true or false")
      ->check(CLI::IsMember({"true", "false"}));
  app.add_option("--layout", args.setup.layout, "zero3, fsdp2 or native, instead of the configuration's own")
      ->check(CLI::IsMember({"zero3", "fsdp2", "native"}));
  app.add_option("--save", args.save, "folder for the trained checkpoint, in the dtype of the parameters' storage");
  app.add_option(
      "--dump", args.dump,
      "safetensors file: compute copies at the start, logits and mean gradients of step 1, losses and norms, "
      "weights and moments at the end");
  app.add_flag("--final-loss", args.final_loss, "also the loss of the next batch after the last step");
  app.add_flag("--json", args.json, "print one JSON object");
  auto* const adamw = app.add_option("--adamw", args.adamw,
                                     "no training: AdamW on start [n] with grads [steps, n] of a safetensors file, "
                                     "written to --dump");
  app.add_option("--max-grad-norm", args.max_grad_norm, "of --adamw: clip to this norm (0 = off)")->needs(adamw);
  app.add_option("--grad-scale", args.grad_scale, "of --adamw: multiplies the gradients first (1)")->needs(adamw);
  CLI::Validator const named{[](std::string& text) { return text.empty() ? "must not be empty" : std::string{}; }, ""};
  for (auto const* const option : {"--model", "--config", "--save", "--dump", "--tokens", "--adamw"})
    app.get_option(option)->check(named);
  try {
    app.parse(argc, argv);
    if (args.adamw.empty() && (!*model || !*config)) throw CLI::RequiredError("--model and --config");
    if (!args.adamw.empty() && args.dump.empty()) throw CLI::RequiredError("--dump");
    if (!args.tokens.empty() && !args.data.empty()) throw CLI::ExcludesError("--tokens", "--data");
    for (auto const& [name, number] :
         {std::pair{"--lr", args.lr}, {"--max-grad-norm", args.max_grad_norm}, {"--grad-scale", args.grad_scale}})
      if (!not_negative(number)) throw CLI::ValidationError(name, "must be a number of at least 0");
  } catch (CLI::ParseError const& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  args.setup.lr = args.lr;
  args.batch_given = batch->count() > 0;
  args.tokens_given = seq->count() > 0;
  try {
    if (!args.adamw.empty()) {
      run_adamw(args);
    } else {
      train(args);
    }
    tool::stop_if_interrupted();  // too late to stop anything, but asked for
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw std::runtime_error{"cannot write to standard output" +
                               (args.save.empty() ? std::string{} : "; " + args.save + " is complete and stays")};
    return 0;
  } catch (tool::interrupted const&) {
    tool::end_by_signal("train_llama");
    return 1;
  } catch (flatshard::bad_input const& e) {
    for (auto const& p : e.error.problems) report_error(to_string(p));
    return 1;
  } catch (fs::filesystem_error const& e) {
    report_error(e.path1().string() + ": " + e.code().message());
    return 1;
  } catch (std::exception const& e) {
    report_error(e.what());
    return 1;
  }
}
