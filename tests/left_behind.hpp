// SPDX-License-Identifier: Apache-2.0
/// A look at what each test case left behind, once its own variables are gone.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <doctest/doctest.h>

/// `Found` says what is left, or nothing, and forgets it. For doctest a case is over by then, so what was found is
/// printed with the name of the case, and the program ends with 1.
template <std::string (*Found)()>
struct left_behind : doctest::IReporter {
  explicit left_behind(doctest::ContextOptions const&) {}
  void test_case_start(doctest::TestCaseData const& one) override { name_ = one.m_name; }
  void test_case_end(doctest::CurrentTestCaseStats const&) override {
    auto const found = Found();
    if (found.empty()) return;
    std::printf("TEST CASE:  %s\nleft behind: %s\n", name_.c_str(), found.c_str());
    ++cases_;
  }
  void test_run_end(doctest::TestRunStats const&) override {
    if (cases_ == 0) return;
    std::printf("FAILED: %zu test cases left something behind\n", cases_);
    std::exit(1);
  }
  void report_query(doctest::QueryData const&) override {}
  void test_run_start() override {}
  void test_case_reenter(doctest::TestCaseData const&) override {}
  void test_case_exception(doctest::TestCaseException const&) override {}
  void subcase_start(doctest::SubcaseSignature const&) override {}
  void subcase_end() override {}
  void log_assert(doctest::AssertData const&) override {}
  void log_message(doctest::MessageData const&) override {}
  void test_case_skipped(doctest::TestCaseData const&) override {}

 private:
  std::string name_;
  std::size_t cases_ = 0;
};
