// SPDX-License-Identifier: Apache-2.0
#include "rank_training.hpp"

#include "checkpoint_output.hpp"
#include "sharded_trainer.hpp"
#include "tensor_dump.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/core.h>

namespace trainer {

namespace {

/// The vectorised casts in the form that the loader takes.
struct vector_cast {
  template <flatshard::CastElement To, flatshard::CastElement From>
  void operator()(std::span<To> out, std::span<From const> in) const requires requires {
    flatshard::kernels::cast(out, in);
  }
  { flatshard::kernels::cast(out, in); }
};

/// Loads the units as the configuration asks for it. Collective; throws alike on every rank.
template <class Units, class C>
[[nodiscard]] loaded load_units(Units& units, std::string const& model, training_setup const& setup, C& comm) {
  auto const done = flatshard::load(units, std::filesystem::path{model}, comm, setup.load, vector_cast{});
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
    if (setup.layout == flatshard::zero3::name) return with_element_type(setup.dtypes, flatshard::zero3{});
    if (setup.layout == flatshard::fsdp2::name) return with_element_type(setup.dtypes, flatshard::fsdp2{});
    with_element_type(setup.dtypes, flatshard::native{});
  };
  if (p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12)
    return by_value();  // one rank, nothing to cut
  with_static(setup.resolved, [&](auto precision, auto sharding) {
    // accelerate's dtypes have a name too, but no profile of this trainer resolves to them
    if constexpr (!std::same_as<decltype(precision), flatshard::static_precision<flatshard::accelerate_fsdp2_bf16>>)
      if (setup.layout == sharding.name) return with_element_type(precision, sharding);
    by_value();  // a layout that the configuration does not name
  });
}

/// One rank from its first step to the last file. `speaks`: it is rank 0, which prints and writes.
void train_rank(training const& job, rank_trainer& rank, bool speaks) {
  auto const& args = job.args;
  auto const& options = job.options;
  auto& report = job.report;

  // What LLaMA-Factory prints, from the dtypes of the buffers that hold parameters and logits.
  auto const lines = flatshard::precision_lines(job.setup.dist(), job.setup.resolved.policies.mode, rank.storage_type(),
                                                rank.logits_type());
  if (speaks) {
    for (auto const& line : lines) report.line(line);
    report.set("static", rank.has_static_dtypes());
  }

  tensor_dump dump;
  bool const dumps = !args.dump.empty();
  if (dumps) dump.add("compute.", rank, model_copy::compute);
  auto const before = rank.work();  // gathers for the dump are none of the training's

  std::vector<std::int64_t> ids(rank.local_sequences() * (options.tokens + 1));
  auto const read_batch = [&](std::size_t step) {
    for (std::size_t s = 0; s < rank.local_sequences(); ++s)
      job.tokens.read(std::span{ids}.subspan(s * (options.tokens + 1), options.tokens + 1),
                      step * options.batch + rank.first_sequence() + s);
  };
  std::vector<double> losses, norms;
  std::size_t updates = 0;
  for (std::size_t step = 0; step < args.steps; ++step) {
    auto const begin = std::chrono::steady_clock::now();
    read_batch(step);
    bool const dumps_step = dumps && step == 0;
    auto done = rank.gradients(ids, dumps_step ? job.logits : std::span<float>{});
    if (dumps_step) {
      if (speaks) dump.add<float>("logits", {options.batch, options.tokens, job.model.vocabulary}, job.logits);
      dump.add("grad.", rank, model_copy::gradient);
    }
    rank.update(done);
    updates += done.updated ? 1 : 0;
    std::chrono::duration<double> const seconds = std::chrono::steady_clock::now() - begin;
    losses.push_back(done.loss);
    norms.push_back(done.norm);
    if (speaks) report.step(step + 1, done, seconds.count());
  }
  auto const after = rank.work();
  if (args.final_loss) {
    read_batch(args.steps);
    losses.push_back(rank.loss_of(ids));
    if (speaks) report.line(fmt::format("after the last step  loss {:.6f}", losses.back()));
    if (speaks) report.set("final_loss", std::isfinite(losses.back()) ? value{losses.back()} : value{nullptr});
  }
  if (speaks && args.steps > 0) {
    auto const gathers = (after.gathers - before.gathers) / args.steps, reduces = after.reduces / args.steps;
    report.line(fmt::format("per step: {} gathers, {} reduce-scatters", gathers, reduces));
    report.set("gathers_per_step", gathers);
    report.set("reduce_scatters_per_step", reduces);
    report.set("gathered_bytes", after.gathered);
    report.set("reduced_bytes", after.reduced);
  }
  if (speaks) {
    auto const peak = rank.work();
    report.line(fmt::format(
        "peak memory: {} resident for all ranks (VmHWM); rank 0: {} activations and scratch, {} shards and buffers",
        mebibytes(peak_resident()), mebibytes(peak.activation_bytes), mebibytes(peak.unit_bytes)));
    report.set("peak", value::object({{"resident_bytes", peak_resident()},
                                      {"activation_bytes", peak.activation_bytes},
                                      {"unit_bytes", peak.unit_bytes}}));
    auto printed = value::array();
    for (auto const& line : lines) printed.push_back(line);
    report.set("precision_lines", printed);
  }
  if (dumps) {
    dump.add("weights.", rank, model_copy::master);
    dump.add("m.", rank, model_copy::first_moment);
    dump.add("v.", rank, model_copy::second_moment);
    if (speaks) {
      dump.add<double>("losses", {losses.size()}, losses);
      dump.add<double>("grad_norms", {norms.size()}, norms);
      dump.write(args.dump);
    }
  }
  if (!args.save.empty() && (updates > 0 || args.steps == 0)) {  // not what no step could train
    save_checkpoint(args.save, job.config, job.tables, rank, speaks);
    if (speaks) report.line("saved " + args.save);
    if (speaks) report.set("saved", args.save);
  }
}

}  // namespace

void train_ranks(training const& job, flatshard::kernels::thread_options const& waits) {
  using communicator = flatshard::kernels::thread_communicator;
  with_policies(job.setup, [&]<class A>(A, auto precision, auto sharding) {
    flatshard::kernels::thread_group const ranks{flatshard::world{job.args.world}, waits};
    ranks.run([&](communicator& comm) {
      sharded_trainer<A, decltype(precision), decltype(sharding), communicator> rank{
          job.model, job.tables, job.options, job.backend, precision, sharding, comm};
      agree(comm, job.setup.resolved, rank.units());
      auto const done = load_units(rank.units(), job.args.model, job.setup, comm);
      bool const speaks = index(comm.self()) == 0;
      if (speaks) job.report.load(done, job.file_bytes, job.setup.loading);
      train_rank(job, rank, speaks);
    });
  });
}

}  // namespace trainer
