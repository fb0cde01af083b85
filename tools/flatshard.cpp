// SPDX-License-Identifier: Apache-2.0
/// The command-line tool. Exit codes: 0 done, 1 bad input or environment, 2 wrong usage; errors go to stderr.
#include "explain.hpp"
#include "load.hpp"
#include "make_model.hpp"
#include "noted_signals.hpp"
#include "plan.hpp"
#include "report.hpp"

#include <flatshard/config/findings.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/version.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace {

/// Throws nothing where stderr is closed or full, as it is called where exceptions end.
void report_error(std::string const& text) {
  std::fputs(fmt::format("{} {}\n", tool::paint("flatshard:", tool::colour::red, stderr), text).c_str(), stderr);
}

/// `; did you mean "--world"?` for a word that is nearly an option of a command, else empty.
std::string near_option(CLI::App const& command, std::string_view word) {
  if (!word.starts_with("--")) return {};
  std::vector<std::string> names;
  for (auto const* const option : command.get_options())
    for (auto const& name : option->get_lnames()) names.push_back("--" + name);
  return flatshard::did_you_mean(word.substr(0, word.find('=')), names);
}

/// What is wrong with a command line that CLI11 refuses, in words of our own where its own do not say it.
std::string usage_text(CLI::App const& app, CLI::ParseError const& e) {
  auto const chosen = app.get_subcommands();
  auto const words = app.remaining(true);
  auto const is = [&](CLI::ExitCodes code) { return e.get_exit_code() == static_cast<int>(code); };
  if (chosen.empty()) {
    std::vector<std::string> commands;
    for (auto const* const one : app.get_subcommands([](auto const*) { return true; }))
      commands.push_back(one->get_name());
    auto const all = fmt::format("{}", fmt::join(commands, ", "));
    if (words.empty()) return is(CLI::ExitCodes::RequiredError) ? "a command is required: " + all : e.what();
    return fmt::format("no such command or option: '{}'{}; commands are {}", words.front(),
                       flatshard::did_you_mean(words.front(), commands), all);
  }
  auto const& command = *chosen.front();
  std::string near;  // of the first word that is nearly an option
  std::string_view misspelt;
  for (std::size_t i = 0; i < words.size() && near.empty(); ++i) {
    near = near_option(command, words[i]);
    misspelt = words[i];
  }
  if (is(CLI::ExitCodes::ExtrasError)) return tool::not_expected(words) + near;
  std::string text = e.what();
  if (is(CLI::ExitCodes::RequiredError) && !near.empty())
    return fmt::format("{}, and {} is no option{}", text, misspelt, near);
  if (is(CLI::ExitCodes::ArgumentMismatch)) {
    auto const name = text.substr(0, text.find(": "));
    auto const* const option = command.get_option_no_throw(name);
    if (option != nullptr && text.ends_with(" missing"))
      return fmt::format("{} needs a value: {} {}", name, name, option->get_type_name());
    if (option != nullptr && option->count() > 1)
      return fmt::format("{} is given {} times, and taken once", name, option->count());
  }
  return text;
}

int run(int count, char** arguments) {
  int code = tool::exit_fine;
  CLI::App app{"Training configurations to precision and sharding policies, checkpoints to shards", "flatshard"};
  app.set_version_flag("--version", fmt::format("flatshard {}.{}.{}", FLATSHARD_VERSION_MAJOR, FLATSHARD_VERSION_MINOR,
                                                FLATSHARD_VERSION_PATCH));
  app.require_subcommand(1);
  app.footer("Exit codes: 0 done, 1 bad input or environment, 2 wrong usage.");
  tool::add_explain(app, code);
  tool::add_load(app, code);
  tool::add_make_model(app, code);
  tool::add_plan(app, code);
  try {
    app.parse(count, arguments);
  } catch (CLI::CallForHelp const&) {
    fmt::print("{}", app.help());
    return tool::exit_fine;
  } catch (CLI::CallForVersion const& e) {
    fmt::print("{}\n", e.what());
    return tool::exit_fine;
  } catch (CLI::ParseError const& e) {
    auto const chosen = app.get_subcommands();
    report_error(tool::one_line(usage_text(app, e)));
    std::fputs(fmt::format("Run `flatshard {}--help` for the options.\n",
                           chosen.empty() ? "" : chosen.front()->get_name() + ' ')
                   .c_str(),
               stderr);
    return tool::exit_usage;
  }
  return code;
}

}  // namespace

int main(int count, char** arguments) try {
  tool::fail_large_writes();
  auto const code = run(count, arguments);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    report_error(fmt::format("cannot write to standard output: {}", std::generic_category().message(errno)));
    return tool::exit_input;
  }
  return code;
} catch (tool::wrong_usage const& e) {
  report_error(tool::every_line(e.what()));
  return tool::exit_usage;
} catch (flatshard::bad_input const& e) {
  for (auto const& p : e.error.problems) report_error(tool::one_line(to_string(p)));
  return tool::exit_input;
} catch (std::bad_alloc const&) {
  std::string asked = "flatshard";
  for (int i = 1; i < count; ++i) asked += ' ' + tool::one_line(arguments[i]);
  report_error("out of memory while it did what was asked for: " + asked);
  return tool::exit_input;
} catch (std::filesystem::filesystem_error const& e) {
  report_error(fmt::format("{}: {}", tool::one_line(e.path1().string()), e.code().message()));
  return tool::exit_input;
} catch (std::system_error const& e) {
  // fmt's, whose words name no file
  report_error(std::ferror(stdout) != 0 ? "cannot write to standard output: " + e.code().message()
                                        : tool::every_line(e.what()));
  return tool::exit_input;
} catch (std::exception const& e) {
  report_error(tool::every_line(e.what()));
  return tool::exit_input;
}
