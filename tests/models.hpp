// SPDX-License-Identifier: Apache-2.0
/// One decoder layer of published architectures, for tests and benchmarks: the shapes of their config.json files.
#pragma once

#include <flatshard/policy.hpp>

#include <vector>

namespace test_models {

struct model {
  char const* name;
  std::vector<flatshard::parameter> unit;
};
/// Llama-3-8B, Qwen3-0.6B, Qwen2.5-0.5B, Qwen3-30B-A3B (experts apart and stacked), GPT-OSS-20B.
inline std::vector<model> five() {
  using flatshard::parameter;
  std::vector<model> m;
  m.push_back({"llama-3-8b",
               {{"q", {4096, 4096}},
                {"k", {1024, 4096}},
                {"v", {1024, 4096}},
                {"o", {4096, 4096}},
                {"gate", {14336, 4096}},
                {"up", {14336, 4096}},
                {"down", {4096, 14336}},
                {"n1", {4096}},
                {"n2", {4096}}}});
  m.push_back({"qwen3-0.6b",
               {{"q", {2048, 1024}},
                {"k", {1024, 1024}},
                {"v", {1024, 1024}},
                {"o", {1024, 2048}},
                {"qn", {128}},
                {"kn", {128}},
                {"gate", {3072, 1024}},
                {"up", {3072, 1024}},
                {"down", {1024, 3072}},
                {"n1", {1024}},
                {"n2", {1024}}}});
  m.push_back({"qwen2.5-0.5b",
               {{"q", {896, 896}},
                {"k", {128, 896}},
                {"v", {128, 896}},
                {"o", {896, 896}},
                {"qb", {896}},
                {"kb", {128}},
                {"vb", {128}},
                {"gate", {4864, 896}},
                {"up", {4864, 896}},
                {"down", {896, 4864}},
                {"n1", {896}},
                {"n2", {896}}}});
  model q{"qwen3-30b-a3b",
          {{"q", {4096, 2048}},
           {"k", {512, 2048}},
           {"v", {512, 2048}},
           {"o", {2048, 4096}},
           {"qn", {128}},
           {"kn", {128}},
           {"n1", {2048}},
           {"n2", {2048}},
           {"router", {128, 2048}}}};
  auto s = q;
  s.name = "qwen3-30b-a3b stacked";
  for (int i = 0; i < 128; ++i) {
    q.unit.push_back({"eg", {768, 2048}});
    q.unit.push_back({"eu", {768, 2048}});
    q.unit.push_back({"ed", {2048, 768}});
  }
  s.unit.push_back({"eg", {128, 768, 2048}});
  s.unit.push_back({"eu", {128, 768, 2048}});
  s.unit.push_back({"ed", {128, 2048, 768}});
  m.push_back(q);
  m.push_back(s);
  m.push_back({"gpt-oss-20b",
               {{"q", {4096, 2880}},
                {"k", {512, 2880}},
                {"v", {512, 2880}},
                {"o", {2880, 4096}},
                {"qb", {4096}},
                {"kb", {512}},
                {"vb", {512}},
                {"ob", {2880}},
                {"sinks", {64}},
                {"n1", {2880}},
                {"n2", {2880}},
                {"router", {32, 2880}},
                {"rb", {32}},
                {"gu", {32, 2880, 5760}},
                {"gub", {32, 5760}},
                {"dn", {32, 2880, 2880}},
                {"dnb", {32, 2880}}}});
  return m;
}

}  // namespace test_models
