// SPDX-License-Identifier: Apache-2.0
// A configuration of the usual size: reading its text, resolving it under each front end, and both, on one core.
// Limits: 100 us to resolve, 30 ms for the whole process of `flatshard explain` (bench/explain_process.sh).
#include "../tools/resolver.hpp"

#include <flatshard/json.hpp>

#include <string>
#include <string_view>

#include <benchmark/benchmark.h>

using namespace flatshard;

namespace {

constexpr std::string_view text = R"({
  "train_micro_batch_size_per_gpu": "auto",
  "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto",
  "bf16": { "enabled": true },
  "zero_optimization": {
    "stage": 3,
    "overlap_comm": true,
    "contiguous_gradients": true,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_gather_16bit_weights_on_model_save": true
  }
}
)";
/// The same without "auto", which DeepSpeed alone would refuse at top level.
constexpr std::string_view concrete = R"({
  "train_micro_batch_size_per_gpu": 1,
  "gradient_accumulation_steps": 1,
  "gradient_clipping": 1.0,
  "bf16": { "enabled": true },
  "zero_optimization": {
    "stage": 3,
    "overlap_comm": true,
    "contiguous_gradients": true,
    "reduce_bucket_size": 16777216,
    "stage3_prefetch_bucket_size": 15099494,
    "stage3_param_persistence_threshold": 40960,
    "stage3_gather_16bit_weights_on_model_save": true
  }
}
)";

/// Arguments of fully_shard, for the profile torch.
constexpr std::string_view call = R"({
  "mesh": [8],
  "reshard_after_forward": true,
  "mp_policy": { "param_dtype": "bf16", "reduce_dtype": "fp32" },
  "storage": "fp32"
}
)";

facts eight_ranks() {
  facts f{.world = 8, .hidden_size = 4096};
  f.training.bf16 = true;
  f.accelerator.mixed_precision = "bf16";
  f.accelerator.dataloader_batch_sizes = {1};
  return f;
}

void parse(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(parse_json(text, "ds.json"));
}

void resolve_as(benchmark::State& state, profile front_end) {
  auto const config = parse_json(front_end == profile::deepspeed ? concrete
                                 : front_end == profile::torch   ? call
                                                                 : text,
                                 "ds.json")
                          .value();
  auto const f = eight_ranks();
  if (auto const r = decide(config, front_end, f); r.has_errors()) {
    for (auto const& p : r.problems)
      if (p.level == severity::error) state.SkipWithError(to_string(p).c_str());
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(decide(config, front_end, f));
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::RegisterBenchmark("parse", parse)->Unit(benchmark::kMicrosecond);
  for (auto const p : profiles)
    benchmark::RegisterBenchmark(("resolve/" + std::string{name(p)}).c_str(), resolve_as, p)
        ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
