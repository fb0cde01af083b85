// SPDX-License-Identifier: Apache-2.0
/// AdamW with decoupled weight decay on flat fp32 shards, in the order of torch.optim.AdamW.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/require.hpp>

#include <cmath>
#include <cstddef>
#include <span>

namespace trainer {

/// What learning rates, decays and other settings of the optimizer are.
[[nodiscard]] inline bool not_negative(double number) { return std::isfinite(number) && number >= 0; }

/// The defaults are those of torch.optim.AdamW.
struct adamw_options {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, decay = 0.01;
};

/// One step on `p`, the copy that the optimizer updates: decay, first moment, second moment, update. Step numbers count
/// from 1. Every gradient is multiplied by `factor` (clipping) first. The scalars are computed in double and rounded
/// once; build without contraction (-ffp-contract=off) to get the same bits everywhere.
template <class G>
void adamw_step(std::span<float> p, std::span<G const> g, std::span<float> m, std::span<float> v, float factor,
                adamw_options const& o, std::size_t step) {
  flatshard::require(p.size() == g.size() && p.size() == m.size() && p.size() == v.size(),
                     "the optimizer's shards must have one size");
  auto const t = static_cast<double>(step);
  auto const keep = static_cast<float>(1.0 - o.lr * o.decay);
  auto const towards = static_cast<float>(1.0 - o.beta1);
  auto const beta2 = static_cast<float>(o.beta2), fresh = static_cast<float>(1.0 - o.beta2);
  auto const rate = static_cast<float>(o.lr / (1.0 - std::pow(o.beta1, t)));
  auto const correction = static_cast<float>(std::sqrt(1.0 - std::pow(o.beta2, t)));
  auto const epsilon = static_cast<float>(o.epsilon);
  for (std::size_t i = 0; i < p.size(); ++i) {
    auto const gradient = flatshard::widen(g[i]) * factor;
    m[i] = m[i] + towards * (gradient - m[i]);
    v[i] = beta2 * v[i] + fresh * gradient * gradient;
    p[i] = p[i] * keep - rate * m[i] / (std::sqrt(v[i]) / correction + epsilon);
  }
}

}  // namespace trainer
