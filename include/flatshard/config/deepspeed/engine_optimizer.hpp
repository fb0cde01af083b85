// SPDX-License-Identifier: Apache-2.0
/// What DeepSpeed's engine refuses about the optimizer: a name of the section that it does not know, and an optimizer
/// of the program that ZeRO does not know or that keeps its states on the device.
#pragma once

#include <flatshard/config/deepspeed/native_reading.hpp>
#include <flatshard/config/deepspeed/top_sections.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The optimizers of torch.optim 2.15, which the section may name too, in their own letters.
inline constexpr std::array<std::string_view, 15> torch_optimizers{
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam",  "AdamW", "Adamax",    "LBFGS",
    "Muon", "NAdam",    "RAdam",     "RMSprop", "Rprop", "SGD",   "SparseAdam"};
/// The classes that ZeRO is tested with. Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/utils.py:45-63.
inline constexpr std::array<std::string_view, 10> zero_optimizers{
    "Adam",           "AdamW",          "FusedAdam",           "DeepSpeedCPUAdam",
    "ZenFlowCPUAdam", "Adagrad",        "DeepSpeedCPUAdagrad", "DeepSpeedCPULion",
    "FusedLion",      "MuonWithAuxAdam"};

/// Whether the engine can build an optimizer of that name, as upstream keeps it: DeepSpeed's own are lower-cased.
[[nodiscard]] constexpr bool is_known_optimizer(std::string_view name, std::optional<version_number> const& deepspeed) {
  return is_deepspeed_optimizer(name, deepspeed) ||
         std::find(torch_optimizers.begin(), torch_optimizers.end(), name) != torch_optimizers.end();
}
static_assert(is_known_optimizer("adamw", std::nullopt) && is_known_optimizer("SGD", std::nullopt));
static_assert(!is_known_optimizer("sgd", std::nullopt));

/// Reports what the engine refuses. Where accelerate runs in front, it replaces an optimizer of the program by
/// DeepSpeed's own on the host and allows untested ones. Source: DeepSpeed@edaa7221:deepspeed/runtime/engine.py:
/// 1690-1700, 1985-2045; accelerate@16cb6eb8:src/accelerate/accelerator.py, _prepare_deepspeed.
inline void check_engine_optimizer(node const& root, native_reading const& read, profile p, facts const& f,
                                   findings& out) {
  auto const type = root["optimizer"]["type"];
  auto const& named = read.attributes["optimizer_name"];
  bool const from_section = is_transformers(p) || !f.client_optimizer || f.accelerator.placeholder_optimizer;
  if (named.is(value_kind::string) && !is_known_optimizer(named.text(), f.upstream.deepspeed) &&
      (from_section || p == profile::deepspeed)) {
    constexpr std::array<std::string_view, 12> words{"Adagrad", "Adam", "AdamW", "Lamb",    "MuAdam", "MuAdamW",
                                                     "MuSGD",   "Lion", "Muon",  "RMSprop", "SGD",    "NAdam"};
    auto const detail = "found " + detail::shown(*type) +
                        ", a name of DeepSpeed's optimizers or of torch.optim is needed" +
                        out.suggest(named.text(), words);
    auto const message = std::string{named.text()} + " is not a supported DeepSpeed Optimizer";
    if (from_section)
      out.error(errc::unsupported_optimizer, type.where(), at_engine, detail, {"AssertionError", "deepspeed", message});
    else
      out.warn(errc::trap, type.where(), at_engine, detail,
               "AssertionError (deepspeed): " + message + ", if the optimizer is built from this section");
  }
  // asked of the name alone, whoever brings the optimizer. Source: DeepSpeed@edaa7221:deepspeed/runtime/engine.py:1697
  if ((named.is_text("lamb") || named.is_text("onebitlamb")) && read.fp16.loss_scale.scale != 0) {
    auto const scale = root["fp16"]["loss_scale"];
    out.error(errc::assertion_error, scale.where(), at_engine,
              "found " + detail::shown(*scale) + ", allowed beside the optimizer " + std::string{named.text()} +
                  ": 0, a dynamic loss scale",
              {"AssertionError", "deepspeed",
               "DeepSpeed " + std::string{named.text()} + " optimizer requires dynamic loss scaling"});
  }
  bool const client = p == profile::deepspeed && f.client_optimizer;
  if (!client || f.optimizer_class.empty()) return;
  auto const& used = f.optimizer_class;
  bool const tested = std::find(zero_optimizers.begin(), zero_optimizers.end(), used) != zero_optimizers.end();
  if (read.zero.stage.number > 0 && !tested && !truthy(*root["zero_allow_untested_optimizer"]))
    out.error(
        errc::untested_optimizer, root["zero_optimization"].where(), at_engine,
        "the program's optimizer is " + used + ", which ZeRO is not tested with; set zero_allow_untested_optimizer",
        {"AssertionError", "deepspeed",
         "You are using an untested ZeRO Optimizer. Please add <\"zero_allow_untested_optimizer\": true> in the "
         "configuration file to use it."});
  auto const device = read.zero.offload_optimizer ? read.zero.offload_optimizer->device : offload_device::none;
  auto const forced = root["zero_force_ds_cpu_optimizer"];
  if (device != offload_device::none && used != "DeepSpeedCPUAdam" && used != "DeepSpeedCPULion" &&
      (!forced.present() || truthy(*forced)))
    out.warn(errc::trap, root["zero_optimization"]["offload_optimizer"].where(), at_engine,
             "the program's optimizer is " + used +
                 ", and offloading it wants DeepSpeedCPUAdam or DeepSpeedCPULion; "
                 "use one of them, or set zero_force_ds_cpu_optimizer to false",
             "ZeRORuntimeException (deepspeed): You are using ZeRO-Offload with a client provided optimizer which in "
             "most cases will yield poor performance.");
}

}  // namespace v0
}  // namespace flatshard
