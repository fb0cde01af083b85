// SPDX-License-Identifier: Apache-2.0
/// What a DeepSpeed configuration says about the optimizer: its section, and the clipping of gradients.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Decides the norm that gradients are clipped to. `filled` is the key's value in the configuration that DeepSpeed
/// gets.
[[nodiscard]] inline value decide_clipping(value const& filled, node const& root, facts const& f, profile p,
                                           findings& out) {
  auto const clip = root["gradient_clipping"];
  auto const since = is_since(f.upstream.deepspeed, {0, 19, 3}, true);
  auto norm = clip.present() ? filled : value{since ? 1.0 : 0.0};
  std::string reason;
  if (!clip.present())
    reason = absent_default(since ? "DeepSpeed since 0.19.3" : "DeepSpeed before 0.19.3");
  else if (!clip->is_text("auto") || p == profile::deepspeed)
    reason = "gradient_clipping is " + to_json(*clip);
  else if (is_transformers(p))
    reason = "\"auto\", filled with the training argument max_grad_norm";
  else if (f.variable("ACCELERATE_GRADIENT_CLIPPING"))
    reason = "\"auto\", filled by ACCELERATE_GRADIENT_CLIPPING";
  else
    reason =
        std::string{"\"auto\", filled with accelerate's 1.0"} + (is_llamafactory(p) ? ", not with max_grad_norm" : "");
  out.decide("gradient_clipping", python_text(norm), std::move(reason), rule_of(p, "gradient_clipping"), clip.where());
  if (clip.present() && !norm.number())
    out.error(errc::wrong_type, clip.where(), at_first_step,
              "found " + to_json(*clip) + ", a number is needed" +
                  (clip->is_text("auto") ? ": nothing replaces \"auto\", because no front end reads the file" : ""),
              {"TypeError", "deepspeed",
               "'>' not supported between instances of '" + std::string{python_name(norm.kind())} + "' and 'float'"});
  else if (clip.present() && !(*norm.number() >= 0))
    out.warn(errc::trap, clip.where(), at_first_step,
             "gradient_clipping is " + python_text(norm) +
                 ", a number that is not negative is needed: DeepSpeed clips only where the norm is above 0, so "
                 "nothing is clipped; write 0 for that");
  return norm;
}

/// Decides what the section `optimizer` sets; none without it.
[[nodiscard]] inline std::optional<optimizer_policy> decide_optimizer(node const& root, profile p, findings& out);

// ---- definitions

namespace detail {
/// One number of `optimizer.params`; none if it is absent, "auto" or refused.
inline std::optional<double> decide_optimizer_number(node const& params, std::string const& key, profile p,
                                                     findings& out) {
  auto const at = params[key];
  if (!at.present() || at->is_text("auto")) return std::nullopt;
  auto const number = at->number();
  if (number && at->is(value_kind::boolean))
    out.warn(errc::odd_truth_value, at.where(), at_train,
             "found " + to_json(*at) + " for a number; it counts as " + (at->is_true() ? "1" : "0"));
  if (!number) {
    out.error(errc::wrong_type, at.where(), at_train, "found " + to_json(*at) + ", a number is needed",
              {"TypeError", "torch",
               "'<=' not supported between instances of 'float' and '" + std::string{python_name(at->kind())} + "'"});
    return std::nullopt;
  }
  out.decide("optimizer." + key, to_json(*at), "optimizer.params." + key + " is set", rule_of(p, "optimizer." + key),
             at.where());
  return number;
}
}  // namespace detail

inline std::optional<optimizer_policy> decide_optimizer(node const& root, profile p, findings& out) {
  auto const section = root["optimizer"], type = section["type"], params = section["params"];
  if (!section->is(value_kind::object)) return std::nullopt;
  optimizer_policy o;
  bool const named = type.present() && !type->is(value_kind::null);
  o.type = named ? python_text(*type) : "none";
  out.decide("optimizer.type", o.type,
             named ? "optimizer.type is " + to_json(*type)
                   : std::string{"optimizer.type is "} + (type.present() ? "null" : "absent") +
                         ": DeepSpeed builds no optimizer from the section, its params count for nothing",
             rule_of(p, "optimizer.type"), type.where());
  o.learning_rate = detail::decide_optimizer_number(params, "lr", p, out);
  o.eps = detail::decide_optimizer_number(params, "eps", p, out);
  o.weight_decay = detail::decide_optimizer_number(params, "weight_decay", p, out);
  auto const betas = params["betas"];
  if (!betas.present() || betas->is_text("auto")) return o;
  auto const both = betas->elements();
  if (both.size() != 2 || !both[0].is_number() || !both[1].is_number()) {
    out.error(errc::wrong_type, betas.where(), at_train, "found " + to_json(*betas) + ", two numbers are needed",
              {"TypeError", "torch", ""});
    return o;
  }
  o.betas = std::array{*both[0].number(), *both[1].number()};
  out.decide("optimizer.betas", to_json(*betas), "optimizer.params.betas is set", rule_of(p, "optimizer.betas"),
             betas.where());
  return o;
}

}  // namespace v0
}  // namespace flatshard
