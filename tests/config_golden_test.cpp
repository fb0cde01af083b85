// SPDX-License-Identifier: Apache-2.0
#include "golden_config.hpp"

using namespace flatshard;
using golden::same;

TEST_CASE("json_level: reading texts") {
  golden::run("json_level.json", {"llamafactory", "llamafactory-review"},
              [](auto, value const& in, value const& expect) {
                if (!in.has("text")) return golden::verdict{"skip: no text"};
                auto const read = parse_json(in["text"].text());
                if (expect.has("error")) {
                  if (read.has_value()) return "accepted: " + to_json(read->value_of_root());
                  auto const code = name(read.error().problems.at(0).code);
                  return code == expect["error"]["code"].text() ? golden::verdict{} : "code " + std::string{code};
                }
                if (!read.has_value()) return to_string(read.error());
                auto const& root = read->value_of_root();
                if (!(root == expect["parsed"])) return "read as " + to_json(root);  // kinds and order as well
                auto const kind = root.is(value_kind::object) ? "object" : python_name(root.kind());
                return kind == expect["root"].text() ? golden::verdict{} : golden::verdict{"root"};
              });
}
