// SPDX-License-Identifier: Apache-2.0
/// The names that a training will write under.
#pragma once

#include "../../tools/noted_signals.hpp"
#include "../../tools/report.hpp"
#include "arguments.hpp"
#include "refusal.hpp"

#include <flatshard/file.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/unfinished_folder.hpp>

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include <fmt/core.h>

namespace trainer {

namespace fs = std::filesystem;

/// Refuses a --dump over what this run reads, `named` by its files or by its arguments.
inline void check_dump(arguments const& args, std::vector<std::string> const& named) {
  auto inputs = args.data;
  inputs.insert(inputs.end(), named.begin(), named.end());
  inputs.insert(inputs.end(), {args.model, args.setup.config, args.tokens, args.adamw});
  if (!args.dump.empty() && tool::replaces_input(args.dump, inputs))
    refuse(flatshard::errc::path, args.dump, "--dump names a file that is read here; give another name");
}

/// Refuses targets that cannot be written, as after the training it would be too late: begins what the end will write,
/// and takes it away again.
inline void check_targets(arguments const& args, std::vector<std::string> const& named) {
  check_dump(args, named);
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
    auto const there = fs::status(args.dump, unseen);
    if (fs::exists(there) && !fs::is_regular_file(there))
      refuse(flatshard::errc::path, args.dump, "--dump needs a name that is free or a regular file's");
    attempt("--dump", args.dump, [&] { flatshard::replacing_file const file{args.dump, {}}; });
    auto const whole = [](std::string const& path) {
      auto const all = fs::weakly_canonical(fs::absolute(flatshard::detail::behind_links(path)));
      return all.has_filename() ? all : all.parent_path();
    };
    if (auto const save = args.save.empty() ? fs::path{} : whole(args.save), dump = whole(args.dump); !save.empty())
      if (std::mismatch(save.begin(), save.end(), dump.begin(), dump.end()).first == save.end())
        refuse(flatshard::errc::path, args.dump, "--dump and --save need two names, neither in the other");
  }
  tool::stop_if_interrupted();
}

}  // namespace trainer
