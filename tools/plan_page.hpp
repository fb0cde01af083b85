// SPDX-License-Identifier: Apache-2.0
/// `flatshard plan --html`: one page with inline style and pictures, readable without scripts, light and dark.
#pragma once

#include "plan_findings.hpp"
#include "report.hpp"

#include <string>

namespace tool {

/// The whole page. Every picture has a title, a description and its numbers as a table.
[[nodiscard]] std::string page_text(plan_findings const& f);

/// Writes the page, whole or not at all. Throws `failure` where the path cannot be written or names something that is
/// no regular file.
void write_page(std::string const& path, plan_findings const& f);

}  // namespace tool
