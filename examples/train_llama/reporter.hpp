// SPDX-License-Identifier: Apache-2.0
/// What a training prints and, with --json, collects.
#pragma once

#include "../../tools/report.hpp"
#include "rank_trainer.hpp"

#include <flatshard/config/resolution.hpp>
#include <flatshard/json.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/value.hpp>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/core.h>

namespace trainer {

using flatshard::value;

/// What a load did, on all ranks together.
struct loaded {
  flatshard::load_mode mode;
  std::size_t bytes_read;
};

/// Most memory that this process ever had resident. Units: bytes; 0 if the system does not tell.
[[nodiscard]] inline std::size_t peak_resident() {
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  return 0;
}
[[nodiscard]] inline std::string mebibytes(std::size_t n) {
  return fmt::format("{:.1f} MiB", static_cast<double>(n) / (1024.0 * 1024.0));
}

/// What a training prints and, with --json, collects. Rank 0's thread alone uses it while ranks run.
class reporter {
 public:
  explicit reporter(bool json) : json_{json} { object_.set("schema", 1); }
  void line(std::string const& text) {
    if (json_) return;
    fmt::print("{}\n", tool::one_line(text));
    std::fflush(stdout);
  }
  /// How the weights were loaded, from the report of the load; why, from the configuration.
  void load(loaded const& done, std::size_t file_bytes, flatshard::loading_choice const& why) {
    bool const whole = done.mode == flatshard::load_mode::whole;
    auto const where = to_string(why.where);
    line(fmt::format("loaded {}{}{}; all ranks together read {} of files of {}",
                     whole ? "whole on every rank" : "each rank's own ranges",
                     why.reason.empty() ? "" : ": " + why.reason, where.empty() ? "" : " (" + where + ")",
                     tool::human(done.bytes_read), tool::human(file_bytes)));
    set("load", value::object({{"partitioned", !whole},
                               {"whole", whole},
                               {"reason", why.reason},
                               {"where", where},
                               {"bytes_read", done.bytes_read},
                               {"file_bytes", file_bytes}}));
  }
  void set(std::string_view key, value v) { object_.set(key, std::move(v)); }
  void step(std::size_t number, step_report const& done, double seconds) {
    skipped_ += done.updated ? 0 : 1;
    line(fmt::format("step {:4}  loss {:.6f}  grad norm {:.6f}  {:.3f} s{}", number, done.loss, done.norm, seconds,
                     done.updated ? "" : "  not finite, no update"));
    auto const finite = [](double x) { return std::isfinite(x) ? value{x} : value{nullptr}; };  // JSON has no NaN
    steps_.push_back(value::object({{"step", number},
                                    {"loss", finite(done.loss)},
                                    {"grad_norm", finite(done.norm)},
                                    {"seconds", seconds},
                                    {"updated", done.updated}}));
  }
  /// Steps that updated nothing.
  [[nodiscard]] std::size_t skipped_steps() const { return skipped_; }
  void finish() {
    object_.set("steps", steps_);
    if (json_) fmt::print("{}\n", flatshard::to_json(object_));
  }

 private:
  bool json_;
  std::size_t skipped_ = 0;
  value object_ = value::object(), steps_ = value::array();
};

}  // namespace trainer
