// SPDX-License-Identifier: Apache-2.0
#include "training.hpp"

#include "../../tools/report.hpp"
#include "checkpoint_fit.hpp"
#include "matmul_backend.hpp"
#include "matrix_products.hpp"
#include "model_config.hpp"
#include "output_targets.hpp"
#include "rank_training.hpp"
#include "stored_tensor.hpp"
#include "tensor_dump.hpp"
#include "token_source.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/json.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/unit.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fmt/core.h>

namespace trainer {

namespace {

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

/// A line for people beside the results, on stderr.
void warn(std::string_view line) { std::fputs((tool::one_line(line) + '\n').c_str(), stderr); }

}  // namespace

void train(arguments const& args) {
  auto const asked_products = llama::asked_backend();
  reporter report{args.json};
  if (std::error_code unseen; fs::is_regular_file(args.model, unseen))
    refuse(flatshard::errc::file_type, args.model, "--model: this is a file; give the folder that holds it");
  auto const config_path = fs::path{args.model} / "config.json";
  auto const config = flatshard::parse_file(config_path.string()).value();
  auto const model = llama::read_model(config).value();
  auto const checkpoint = flatshard::open_checkpoint(args.model).value();
  llama::check_sizes(config, model, checkpoint).value();
  auto const texts = !args.tokens.empty() ? std::vector<std::string>{}
                     : args.data.empty()  ? default_texts()
                                          : args.data;
  auto const tokens = !args.tokens.empty() ? token_source::rows(args.tokens) : token_source::text(texts, args.seed);
  training_options options;
  options.batch = args.batch_given || tokens.is_text() ? args.batch : tokens.row_count();
  auto const setup = read_setup(args.setup, args.world, options.batch, config.value_of_root());
  auto const compute = setup.dtypes.compute;
  auto const backend = llama::backend_for(asked_products, compute);
  options.tokens = args.tokens_given || tokens.is_text() ? args.tokens_in_sequence : tokens.row_tokens();
  options.order = args.sum_order == "pairwise" ? flatshard::sum_order::pairwise : flatshard::sum_order::by_rank;
  options.checkpointing = setup.activation_checkpointing;
  options.clip = setup.clip;
  options.optimizer = setup.optimizer;
  tokens.check(model.vocabulary, options.tokens);
  unit_tables const tables{model};
  check_tensors(tables, checkpoint, setup.dtypes);
  auto const surplus = surplus_tensors(config, model, tables, checkpoint);
  auto read = setup.named_files;
  read.insert(read.end(), texts.begin(), texts.end());
  check_targets(args, read);

  std::size_t parameters = 0;
  for (auto const& list : tables.parameters)
    for (auto const& p : list) parameters += p.dims.numel();
  report.line(fmt::format("model {}: {}, {} parameters, {} layers, vocabulary {}", args.model, model.type, parameters,
                          model.layers, model.vocabulary));
  bool const not_by_onednn = llama::has_onednn && !asked_products && backend == llama::matmul_backend::loops;
  report.line(
      fmt::format("world {}, layout {}, batch {} x {} tokens, sums {}, products by {}{}", args.world, setup.layout,
                  options.batch, options.tokens, args.sum_order, name(backend),
                  not_by_onednn ? fmt::format(" (oneDNN multiplies no {} on this processor)", name(compute)) : ""));
  for (auto const& line : setup.lines) report.line(line);
  std::fflush(stdout);
  for (auto const& line : setup.warnings) warn(line);
  for (auto const& problem : surplus) warn(to_string(problem));
  report.set("model", value::object({{"type", model.type}, {"parameters", parameters}, {"layers", model.layers}}));
  report.set("world", args.world);
  report.set("batch", options.batch);
  report.set("tokens", options.tokens);
  report.set("sum_order", args.sum_order);
  report.set("matmul", name(backend));
  for (auto const& m : setup.report.members()) report.set(m.key, m.held);
  auto problems = setup.report["problems"];
  for (auto const& problem : surplus) problems.push_back(to_string(problem));
  report.set("problems", problems);

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
        args,   setup, config.value_of_root(), model, tables, checkpoint.file_size().value, tokens, options, backend,
        report, logits};
    // The configuration's timeout of the process group bounds every wait for another rank.
    auto const limit = std::min<std::int64_t>(setup.resolved.policies.process_group.timeout_seconds, 1'000'000'000);
    flatshard::kernels::thread_options waits;
    if (limit > 0) waits.deadline = std::chrono::seconds{limit};
    auto const bound = std::chrono::duration_cast<std::chrono::seconds>(waits.deadline).count();
    report.line(fmt::format("a rank waits {} s for the others", bound));
    report.set("deadline_seconds", bound);
    train_ranks(job, waits);
  } catch (std::bad_alloc const&) {
    throw too_large();
  } catch (std::length_error const&) {  // what a container says of a size that no memory could have
    throw too_large();
  } catch (std::system_error const& e) {
    if (e.code() != std::errc::resource_unavailable_try_again) throw;
    throw std::runtime_error{fmt::format(
        "cannot start a thread for each of {} ranks: a limit of processes and threads (ulimit -u, or one of "
        "the container) or of memory (ulimit -v) is reached; use a smaller --world",
        args.world)};
  }
  report.finish();
  if (auto const skipped = report.skipped_steps(); skipped > 0 && skipped == args.steps)
    throw std::runtime_error{
        fmt::format("nothing was trained{}: the gradients of {} were not finite, so no weight was updated",
                    args.save.empty() ? "" : " and nothing saved",
                    skipped == 1 ? "the one step" : fmt::format("all {} steps", skipped))};
  else if (skipped > 0)
    warn(fmt::format("warning: {} of {} steps updated nothing, as their gradients were not finite", skipped,
                     args.steps));
}

void run_adamw(arguments const& args) {
  check_dump(args, {});
  auto const start = read_tensor<float>(args.adamw, "start", flatshard::dtype::f32, 1);
  auto const grads = read_tensor<float>(args.adamw, "grads", flatshard::dtype::f32, 2);
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

}  // namespace trainer
