// SPDX-License-Identifier: Apache-2.0
/// A file that an option of the command line names: written whole, or not at all.
#pragma once

#include "report.hpp"

#include <flatshard/quantity.hpp>
#include <flatshard/replacing_file.hpp>

#include <cerrno>
#include <span>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace tool {

/// Throws `failure` with the option, the file and the system's reason.
inline void write_output(std::string_view option, std::string const& path, std::string_view text) {
  try {
    flatshard::replacing_file file{path, flatshard::bytes{text.size()}};
    file.write_at(std::as_bytes(std::span{text}), {});
    file.commit();
  } catch (flatshard::file_error const& e) {
    if (e.code().value() == EEXIST)
      throw failure{fmt::format("{}: is there and is no regular file, which {} would replace: name another",
                                one_line(path), option)};
    throw failure{fmt::format("{} cannot be written: {}", option, one_line(e.what()))};
  }
}

}  // namespace tool
