// SPDX-License-Identifier: Apache-2.0
/// The program as a whole: help, version, usage errors, exit codes.
#include "tool_run.hpp"

#include <flatshard/version.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace tool_test_cases {

using namespace tool_test;

TEST_CASE("help and version go to stdout and are no error") {
  for (auto const& words : {std::vector<std::string>{"--help"}, {"-h"}, {"make-model", "--help"}}) {
    auto const r = run(words);
    CHECK(r.code == 0);
    CHECK(r.out.find("Usage: flatshard") != std::string::npos);
    CHECK(r.err.empty());
  }
  auto const r = run({"--version"});
  CHECK(r.code == 0);
  CHECK(r.out == "flatshard " + std::to_string(FLATSHARD_VERSION_MAJOR) + '.' +
                     std::to_string(FLATSHARD_VERSION_MINOR) + '.' + std::to_string(FLATSHARD_VERSION_PATCH) + '\n');
}

TEST_CASE("wrong usage is exit code 2 with a sentence on stderr") {
  struct wrong {
    std::vector<std::string> words;
    std::string_view says;
  };
  for (auto const& [words, says] : std::vector<wrong>{
           {{}, "a command is required: explain, load, make-model, plan\n"},
           {{"frob"}, "no such command or option: 'frob'; commands are explain, load, make-model, plan\n"},
           {{"lod", "x"}, "no such command or option: 'lod'; did you mean \"load\"?; commands are"},
           {{"load", "x", "--wrold", "2"},
            "--world is required, and --wrold is no option; did you mean \"--world\"?\n"},
           {{"load", "x", "--world", "2", "--jsno"}, "was not expected: --jsno; did you mean \"--json\"?\n"},
           {{"plan", "--world", "2", "--config", "x", "--micro-batch=2"}, "; did you mean \"--micro-batches\"?\n"},
           {{"load", "x", "--frob", "7"}, "--world is required\n"},
           {{"load", "x", "--world"}, "--world needs a value: --world N\n"},
           {{"load", "x", "--world", "2", "--world", "3"}, "--world is given 2 times, and taken once\n"},
           {{"--frob"}, "no such command or option: '--frob'"},
           {{"make-model"}, "DIR is required"},
           {{"make-model", "x"}, "--arch is required"},
           {{"make-model", "x", "--arch", "lama"}, "no such architecture: 'lama'; known: llama-3-8b, qwen3-0.6b"},
           {{"make-model", "x", "--arch", "llama", "--size", "abc"}, "'abc' is no size"},
           {{"make-model", "x", "--arch", "llama", "--size", "-1"}, "'-1' is no size"},
           {{"make-model", "x", "--arch", "llama", "--size", "2X"}, "'2X' is no size"},
           {{"make-model", "x", "--arch", "llama", "--size", "0"}, "'0' is no size"},
           {{"make-model", "x", "--arch", "llama", "--size", "17T"}, "'17T' is more than 16T"},
           {{"make-model", "x", "--arch", "llama", "--size", "1e9"}, "'1e9' is no size"},
           {{"make-model", "x", "--arch", "llama", "--size", "10K"}, "--size 10240 is too small"},
           {{"make-model", "x", "--arch", "llama-3-8b", "--size", "1G"}, "shapes are fixed"},
           {{"make-model", "x", "--arch", "llama", "--files", "0"}, "--files: must be a whole number from 1"},
           {{"make-model", "x", "--arch", "llama", "--files", "2.5"}, "found '2.5'"},
           {{"make-model", "x", "--arch", "llama", "--files", "010"}, "must be written without leading zeros"},
           {{"explain", "x", "--world", "08"}, "must be written without leading zeros, found '08'"},
           {{"make-model", "x", "--arch", "llama", "--size", "1M", "--files", "22"}, "more than the 21 tensors"},
           {{"make-model", "x", "--arch", "llama", "--seed", "-1"}, "--seed: must be a whole number"},
           {{"make-model", "x", "y", "--arch", "llama"}, "the following argument was not expected: y"},
           {{"load", "x", "--world", "2", "--seed", "1"}, "the following arguments were not expected: --seed 1"},
           {{"make-model", "x", "--arch", "llama", "--size", "99999999T"}, "'99999999T' is more than 16T"},
           {{"make-model", "x", "--arch", "llama", "--seed", "99999999999999999999"},
            "must be a whole number from 0 to 18446744073709551615, found '99999999999999999999'"},
           {{"make-model", "", "--arch", "llama"}, "DIR: must not be empty"},
           {{"explain", ""}, "CONFIG: must not be empty"},
           {{"load", "", "--world", "2"}, "DIR: must not be empty"},
           {{"load", "x", "--world", "2", "--config", ""}, "--config: must not be empty"},
           {{"plan", "--arch", "llama-3-8b", "--world", "2", "--config", ""}, "--config: must not be empty"},
           {{"\x1b[31m\nx"}, "'\\x1b[31m\\nx'"},
           {{"explain", "x", "\x1b[31m\nx"}, "\\x1b[31m\\nx"},
           {{"make-model", "x", "--arch", "\x1b[31m\nx"}, "\\x1b[31m\\nx"},
           {{"plan", "--arch", "\x1b[31m\nx", "--world", "2"}, "\\x1b[31m\\nx"},
           {{"load", "x", "--world", "\x1b[31m\nx"}, "\\x1b[31m\\nx"},
       }) {
    auto const shown_words = words.empty() ? std::string{} : words.back();
    CAPTURE(shown_words);
    auto const r = run(words);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.says(says), r.err);
    CHECK(r.err.find('\x1b') == std::string::npos);  // colour on terminals only, and no control of an argument
  }
  CHECK(!files::exists("x"));
}

}  // namespace tool_test_cases
