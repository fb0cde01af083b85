// SPDX-License-Identifier: Apache-2.0
// Places: whatever a decision or a problem points at exists in its document, at the line and column that it says. Every
// golden configuration is written as a text, read, and resolved under every profile that may read it.
#include "../tools/frontend.hpp"
#include "../tools/resolver.hpp"
#include "golden_config.hpp"

#include <flatshard/json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace places_golden_test {

using namespace flatshard;
using golden::verdict;

namespace {

/// Whether a text stands where `found` says: the value, or its key.
bool stands_at(document const& d, place const& found, value const& held) {
  auto const same = [&](text_place const& at) { return at.line == found.line && at.column == found.column; };
  if (same(held.at())) return true;
  auto const slash = found.pointer.rfind('/');
  if (slash == std::string::npos) return false;
  auto const parent = d.at(std::string_view{found.pointer}.substr(0, slash));
  for (auto const& m : parent->members())
    if (parent[m].pointer() == found.pointer && same(m.key_at)) return true;
  return false;
}

/// What is wrong with a place; nothing for one that holds. `files`: every document that it may name.
verdict judge(place const& found, std::span<document const* const> files) {
  if (found.file.empty()) return found == place{} ? verdict{} : verdict{"a place without a file: " + found.pointer};
  auto const named =
      std::find_if(files.begin(), files.end(), [&](document const* d) { return d->file() == found.file; });
  if (named == files.end()) return "no such file: " + to_string(found);
  if (found.pointer.empty() && found.line == 0) return {};  // the file as a whole
  auto const at = (*named)->at(found.pointer);
  if (!at.present() && !(found.pointer.empty() && (*named)->value_of_root().kind() == value_kind::absent))
    return "nothing stands there: " + to_string(found);
  return stands_at(**named, found, *at) ? verdict{} : "it stands elsewhere: " + to_string(found);
}

/// Every place of a resolution.
verdict judge(resolution const& r, std::span<document const* const> files) {
  verdict all;
  auto const look = [&](place const& at, std::string_view what) {
    if (auto const v = judge(at, files); !v.empty() && all.size() < 1000) all += std::string{what} + ": " + v + "; ";
  };
  for (auto const& d : r.decisions) look(d.source, d.key);
  for (auto const& p : r.problems) look(p.where, name(p.code));
  look(r.policies.load.where, "the trigger of loading");
  return all.empty() ? all : std::string{name(r.front_end)} + ": " + all;
}

facts some_facts() {
  facts f{.world = 4, .hidden_size = 64};
  f.accelerator.dataloader_batch_sizes = {4};
  return f;
}

/// A DeepSpeed configuration under all that read one.
verdict judge_deepspeed(value const& config, bool strict) {
  auto const read = parse_json(to_json(config), "case.json");
  if (!read) return strict ? to_string(read.error()) : verdict{"skip: no JSON text"};
  std::array<document const*, 1> const files{&*read};
  auto f = some_facts();
  f.form = config_form::deepspeed;
  verdict all;
  for (auto const p : {profile::llamafactory, profile::llamafactory_review, profile::accelerate,
                       profile::transformers_v4, profile::transformers_v5, profile::deepspeed})
    all += judge(decide(*read, p, f), files);
  return all;
}

/// A front end's own file with what it names.
verdict judge_front_end(std::string_view front_end, value const& in) {
  auto f = some_facts();
  std::vector<document> named;
  for (auto const& m : in["files"].members()) {
    auto read = parse_json(to_json(m.held), m.key);
    if (!read) return "skip: no JSON text";
    named.push_back(std::move(*read));
    f.files.push_back({m.key, named.back(), {}});
  }
  for (auto const& m : in["env"].members()) f.environment.emplace_back(m.key, m.held.text());
  for (auto const& word : in["arguments"].elements()) f.accelerator.launcher.emplace_back(word.text());
  std::vector<document const*> files;
  for (auto const& d : named) files.push_back(&d);
  auto const resolved = [&](document const& d, profile p) {
    files.push_back(&d);
    return judge(decide(d, p, f), files);
  };
  if (front_end == "torch") {
    auto call = in;
    call.erase("world_size");
    call.erase("policy");
    if (in.has("policy")) call.set("mp_policy", in["policy"]);  // the argument's name
    auto const read = parse_json(to_json(call), "call.json");
    return read ? resolved(*read, profile::torch) : to_string(read.error());
  }
  if (!in.has("text")) return "skip: no text";
#if defined(FLATSHARD_YAML)
  std::vector<std::string> overrides;
  for (auto const& o : in["overrides"].elements()) overrides.emplace_back(o.text());
  auto const file = in.has("file_name") ? in["file_name"].text() : std::string_view{"config.yaml"};
  bool const accelerate = front_end == "accelerate";
  auto const read = accelerate ? frontend::parse_accelerate(in["text"].text(), file)
                               : frontend::parse_llamafactory(in["text"].text(), file, overrides);
  if (!read) {
    verdict all;
    for (auto const& p : read.error().problems)
      if (p.where.file != file) all += "no such file: " + to_string(p.where);
    return all;
  }
  return resolved(*read, accelerate ? profile::accelerate : profile::llamafactory);
#else
  return "skip: built without yaml-cpp";
#endif
}

}  // namespace

TEST_CASE("places: DeepSpeed's configurations under every profile") {
  for (std::string_view const file :
       {"auto.json", "batch.json", "load.json", "precision.json", "roles.json", "top_keys.json", "zero_keys.json"})
    golden::run(
        file, {"llamafactory", "llamafactory-review", "accelerate", "transformers-v4", "transformers-v5", "deepspeed"},
        [](auto, value const& in, value const&) {
          return in.has("config") ? judge_deepspeed(in["config"], true) : verdict{"skip: no configuration"};
        });
  golden::run("json_level.json",
              {"llamafactory", "llamafactory-review", "accelerate", "transformers-v4", "transformers-v5", "deepspeed"},
              [](auto, value const&, value const& expect) {
                return expect.has("parsed") ? judge_deepspeed(expect["parsed"], false)
                                            : verdict{"skip: no configuration"};
              });
}

TEST_CASE("places: the files of front ends, and calls of fully_shard") {
  golden::run("front_ends.json", {"llamafactory", "accelerate", "torch"},
              [](auto front_end, value const& in, value const&) { return judge_front_end(front_end, in); });
}

}  // namespace places_golden_test
