// SPDX-License-Identifier: Apache-2.0
/// train_llama: trains a Llama-family checkpoint on several ranks of this machine, as a configuration of DeepSpeed or
/// LLaMA-Factory asks for it. A user of the public headers, and an example of them.
#include "matmul.hpp"
#include "memory.hpp"
#include "model_config.hpp"
#include "sharded_trainer.hpp"
#include "tokens.hpp"
#include "training_setup.hpp"
#include "unfinished_folder.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/communicator.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/file.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/safetensors_writer.hpp>
#include <flatshard/unit.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <concepts>
#include <csignal>
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
    signals_noted const noted;
    flatshard::safetensors_writer out{path, specs_};
    for (auto const& [name, raw] : data_) {
      stop_if_interrupted();
      out.write(name, raw);
    }
    stop_if_interrupted();
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
  std::optional<signals_noted> noted;
  std::optional<unfinished_folder> folder;
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
        stop_if_interrupted();
        out->write(tables.tensors[u][t].name, std::as_bytes(std::span{whole[t]}));
      }
    });
  }
  if (writes) {
    out->commit();
    stop_if_interrupted();
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
    fmt::print("{}\n", text);
    std::fflush(stdout);
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
  load_units(units, args.model, job.setup, comm);

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

/// Refuses a target whose nearest folder that exists cannot be written to: after the training it would be too late.
void check_writable(char const* option, fs::path const& target) {
  auto folder = fs::absolute(target).parent_path();
  while (!fs::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    refuse(
        flatshard::errc::path, target.string(),
        fmt::format("{} cannot be written: {} is not a folder that this user may write to", option, folder.string()));
}

/// Everything that can be refused is refused here, before a rank starts.
void train(arguments const& args) {
  auto const backend = chosen_backend();
  reporter report{args.json};
  auto const config_path = fs::path{args.model} / "config.json";
  auto const config = flatshard::parse_file(config_path.string()).value();
  auto const model = read_model(config).value();
  check_sizes(config, model, flatshard::open_checkpoint(args.model).value()).value();
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
  if (!args.save.empty() && fs::exists(args.save) && !(fs::is_directory(args.save) && fs::is_empty(args.save)))
    refuse(flatshard::errc::path, args.save, "--save needs a name that is free, or an empty folder");
  for (auto const& [option, target] : {std::pair{"--save", &args.save}, std::pair{"--dump", &args.dump}})
    if (!target->empty()) check_writable(option, *target);

  std::size_t parameters = 0;
  for (auto const& list : unit_tables{model}.parameters)
    for (auto const& p : list) parameters += p.dims.numel();
  report.line(fmt::format("model {}: {}, {} parameters, {} layers, vocabulary {}", args.model, model.type, parameters,
                          model.layers, model.vocabulary));
  report.line(fmt::format("world {}, layout {}, batch {} x {} tokens, sums {}, products by {}", args.world,
                          setup.layout, options.batch, options.tokens, args.sum_order, name(backend)));
  for (auto const& line : setup.lines) report.line(line);
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
    training const job{args, setup, config.value_of_root(), model, tokens, options, backend, report, logits};
    with_policies(setup, [&]<class A>(A, auto precision, auto sharding) {
      flatshard::kernels::thread_group const ranks{flatshard::world{args.world}};
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

}  // namespace

int main(int argc, char** argv) {
  arguments args;
  CLI::App app{"Trains a Llama-family checkpoint on ranks of this machine, as a training configuration asks for it."};
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
    if (!std::isfinite(args.lr) || args.lr < 0) throw CLI::ValidationError("--lr", "must be a number of at least 0");
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
    stop_if_interrupted();  // too late to stop anything, but asked for
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw std::runtime_error{"cannot write to standard output"};
    return 0;
  } catch (interrupted const&) {
    fmt::print(stderr, "train_llama: interrupted; nothing unfinished was left behind\n");
    std::fflush(nullptr);
    ::raise(caught_signal);  // ends as the signal would have
    return 1;
  } catch (std::exception const& e) {
    fmt::print(stderr, "train_llama: {}\n", e.what());
    return 1;
  }
}
