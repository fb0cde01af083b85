// SPDX-License-Identifier: Apache-2.0
/// train_llama: trains a Llama-family checkpoint on several ranks of this machine, as a configuration of DeepSpeed or
/// LLaMA-Factory asks for it. A user of the public headers, and an example of them. This file is the command line.
/// Where to read on:
///
/// - training: what is refused, then what is printed, around a training as a whole
///
/// - training_setup: what the configuration decides; the files are read by the tool's own readers (tools/frontend.hpp)
///
/// - rank_training: decisions become types; one rank from loading to the last file
///
/// - sharded_trainer: a unit a layer, gathered, used, released, reduce-scattered, updated; rank_trainer: without types
///
/// - sequence_model: the model, forward and backward of one sequence, from layer_operations and matrix_products
///
/// From the tool it also has what any program of this project prints and heeds: tools/report.hpp,
/// tools/noted_signals.hpp.
#include "../../tools/noted_signals.hpp"
#include "../../tools/report.hpp"
#include "adamw.hpp"
#include "arguments.hpp"
#include "training.hpp"

#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace {

/// Throws nothing where stderr is closed or full, as it is called where exceptions end.
void report_error(std::string_view text) {
  std::fputs(fmt::format("train_llama: {}\n", tool::every_line(text)).c_str(), stderr);
}

/// After a flush that failed.
std::string unwritable_output() { return "cannot write to standard output: " + std::generic_category().message(errno); }

}  // namespace

int main(int argc, char** argv) {
  tool::fail_large_writes();
  trainer::arguments args;
  CLI::App app{"Trains a Llama-family checkpoint on ranks of this machine, as a training configuration asks for it",
               "train_llama"};
  app.footer(
      "FLATSHARD_MATMUL in the environment says what computes matrix products: loops (the program's own) or onednn;\n"
      "unset, oneDNN where this build has it and the processor multiplies the type with it, else the loops. The two\n"
      "differ in the last bits.\n"
      "Exit codes: 0 done, 1 bad input or environment, 2 wrong usage.");
  auto* const model = app.add_option("--model", args.model, "folder with config.json and safetensors files");
  auto* const config =
      app.add_option("--config", args.setup.config, "DeepSpeed JSON, or LLaMA-Factory's settings as YAML or JSON");
  // A leading zero would make an octal number of it.
  auto const at_least = [](std::size_t low, std::size_t high = 999999999) {
    return CLI::Validator{[low, high](std::string& text) {
                            if (text.size() > 1 && text.front() == '0')
                              return fmt::format("must be written without leading zeros, found {}", text);
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
  for (auto const* const option : {"--model", "--config", "--data", "--save", "--dump", "--tokens", "--adamw"})
    app.get_option(option)->check(named);
  for (auto const* const option :
       {"--model", "--config", "--world", "--steps", "--batch", "--seq", "--seed", "--data", "--tokens", "--sum-order",
        "--profile", "--bf16", "--layout", "--save", "--final-loss", "--json"})
    adamw->excludes(option);  // which it does not read
  try {
    app.parse(argc, argv);
    for (auto const* const option : {model, config})
      if (args.adamw.empty() && !*option) throw CLI::RequiredError(option->get_name());
    if (args.setup.config == "-")
      throw CLI::ValidationError("--config", "standard input is not read here; a file of that name is ./-");
    if (!args.adamw.empty() && args.dump.empty()) throw CLI::RequiredError("--dump");
    if (!args.tokens.empty() && !args.data.empty()) throw CLI::ExcludesError("--tokens", "--data");
    for (auto const& [name, number] :
         {std::pair{"--lr", args.lr}, {"--max-grad-norm", args.max_grad_norm}, {"--grad-scale", args.grad_scale}})
      if (!trainer::not_negative(number))
        throw CLI::ValidationError(name, fmt::format("must be a finite number of at least 0, found {}", number));
  } catch (CLI::CallForHelp const&) {
    fmt::print("{}", app.help());
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
    report_error(unwritable_output());
    return 1;
  } catch (CLI::ParseError const& e) {
    report_error(tool::one_line(e.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError)
                                    ? tool::not_expected(app.remaining())
                                    : e.what()));
    std::fputs("Run `train_llama --help` for the options.\n", stderr);
    return 2;
  }
  args.setup.lr = args.lr;
  args.batch_given = batch->count() > 0;
  args.tokens_given = seq->count() > 0;
  try {
    if (!args.adamw.empty()) {
      trainer::run_adamw(args);
    } else {
      trainer::train(args);
    }
    tool::stop_if_interrupted();  // too late to stop anything, but asked for
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw std::runtime_error{unwritable_output() +
                               (args.save.empty() ? std::string{} : "; " + args.save + " is complete and stays")};
    return 0;
  } catch (tool::interrupted const&) {
    tool::end_by_signal("train_llama");
    return 1;
  } catch (flatshard::bad_input const& e) {
    for (auto const& p : e.error.problems) report_error(to_string(p));
    return 1;
  } catch (std::filesystem::filesystem_error const& e) {
    report_error(e.path1().string() + ": " + e.code().message());
    return 1;
  } catch (std::exception const& e) {
    report_error(e.what());
    return 1;
  }
}
