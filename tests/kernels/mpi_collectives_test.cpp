// SPDX-License-Identifier: Apache-2.0
/// The suite of the collectives between processes: started by mpirun, every process runs every case, and a case of a
/// smaller world leaves some of them out.
#include "kernels/collective_suite.hpp"
#include "tier.hpp"

#include <flatshard/kernels/mpi.hpp>

#include <algorithm>
#include <optional>
#include <string_view>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

namespace {

using namespace suite;

struct processes {
  int size = 0, self = 0;
};
processes here() {
  processes p;
  MPI_Comm_size(MPI_COMM_WORLD, &p.size);
  MPI_Comm_rank(MPI_COMM_WORLD, &p.self);
  return p;
}

/// The first `ranks` processes, while it lives; the others have no communicator.
class part_of_world {
 public:
  explicit part_of_world(std::size_t ranks) {
    auto const p = here();
    MPI_Comm_split(MPI_COMM_WORLD, static_cast<std::size_t>(p.self) < ranks ? 0 : MPI_UNDEFINED, p.self, &comm_);
  }
  part_of_world(part_of_world const&) = delete;
  ~part_of_world() {
    if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
    MPI_Barrier(MPI_COMM_WORLD);  // the next case begins together
  }
  [[nodiscard]] MPI_Comm comm() const { return comm_; }
  /// MPI still works on it when the case ends.
  MPI_Comm leave() { return std::exchange(comm_, MPI_COMM_NULL); }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

template <class Kind>
struct mpi_ranks {
  static constexpr bool names_lost = true;
  static constexpr int repeats = 3;
  static std::vector<std::size_t> worlds() {
    std::vector<std::size_t> all;
    for (std::size_t r = Kind::least; r <= static_cast<std::size_t>(here().size); ++r) all.push_back(r);
    return all;
  }
  template <class F>
  static outcome run(std::size_t ranks, deadline limit, F const& f) {
    part_of_world part{ranks};
    if (part.comm() == MPI_COMM_NULL) return {};
    outcome out{{static_cast<std::size_t>(here().self), {}}};
    auto const call = [&](kernels::mpi_ref view) {
      host_rank<kernels::mpi_ref> rank{view};
      f(rank);
    };
    try {
      Kind::run(part.comm(), limit, call);
    } catch (std::exception const& e) {
      out[0].second = e.what();
      part.leave();  // messages may still be on their way, and MPI may give its number to the next one
    }
    return out;
  }
};

template <bool Window, std::size_t Staging, int NodeRanks = 0>
struct owned {
  static constexpr std::size_t least = 1;
  template <class F>
  static void run(MPI_Comm comm, deadline limit, F const& f) {
    kernels::mpi_communicator owner{
        comm, {.deadline = 20s, .shared_window = Window, .staging = {Staging}, .node_ranks = NodeRanks}};
    owner.run([&](kernels::mpi_communicator& c) { f(c.with_deadline(limit)); });
    bool failed = false;
    try {
      owner.close();
    } catch (peer_lost const&) {  // another rank threw or aborted after this one was through
      failed = true;
    }
    if (failed) throw std::runtime_error{"a peer failed before the end"};
  }
};
struct window_ranks : mpi_ranks<owned<true, std::size_t{1} << 16>> {};
struct message_ranks : mpi_ranks<owned<false, 4096>> {};
struct nodes_of_two : mpi_ranks<owned<true, 8192, 2>> {
  static std::vector<std::size_t> worlds() {  // smaller worlds are one node
    auto const size = static_cast<std::size_t>(here().size);
    if (size < 3) return {size};
    return {3, size};
  }
};
struct large_window_ranks : mpi_ranks<owned<true, std::size_t{1} << 20>> {};

/// A communicator of someone else, used as it is.
struct borrowed {
  static constexpr std::size_t least = 2;
  template <class F>
  static void run(MPI_Comm comm, deadline limit, F const& f) {
    kernels::mpi_ref ref{comm, {.deadline = limit, .staging = {8192}}};
    try {
      f(ref);
      ref.barrier({});
    } catch (std::exception const& e) {
      ref.abort(e.what());
      throw;
    }
  }
};
struct borrowed_ranks : mpi_ranks<borrowed> {};

}  // namespace

FLATSHARD_COLLECTIVE_SUITE(window_ranks, message_ranks, nodes_of_two);
TEST_CASE_TEMPLATE_INVOKE(gathers, borrowed_ranks);
TEST_CASE_TEMPLATE_INVOKE(reduces, borrowed_ranks);
TEST_CASE_TEMPLATE_INVOKE(rounds, borrowed_ranks);
TEST_CASE_TEMPLATE_INVOKE(others, borrowed_ranks);
TEST_CASE_TEMPLATE_INVOKE(late, borrowed_ranks);
TEST_CASE_TEMPLATE_INVOKE(disagree, borrowed_ranks);
TEST_CASE_TEMPLATE_INVOKE(wide, large_window_ranks);

TEST_CASE("ranks of one node share a window, and options that differ are told on every rank") {
  auto const size = static_cast<std::size_t>(here().size);
  part_of_world const all{size};
  kernels::mpi_communicator c{all.comm(), {.deadline = 20s}};
  CHECK(c.window_ranks() == here().size);
  CHECK(c.size() == here().size);
  CHECK(index(c.self()) == static_cast<std::size_t>(here().self));
  c.close();
  CHECK_THROWS_WITH_AS(c.barrier({}), "a closed communicator makes no calls", broken_rule);
  CHECK_THROWS_WITH_AS(c.close(), "a communicator is closed once", broken_rule);
  for (int field = 0; field < 3; ++field) {
    bool const odd = here().self == here().size - 1;
    kernels::mpi_options o{.deadline = 20s};
    if (odd && field == 0) o.staging = {4096};
    if (odd && field == 1) o.shared_window = false;
    if (odd && field == 2) o.node_ranks = 1;
    try {
      kernels::mpi_communicator const other{all.comm(), o};
      FAIL("no mismatch");
    } catch (mismatch const& e) {
      CHECK(e.ranks == std::array{rank_at(0), rank_at(size - 1)});
      auto const staged = std::to_string(kernels::mpi_options{}.staging.value);
      CHECK(e.values[0] == std::array<std::string, 3>{staged, "1", "0"}[static_cast<std::size_t>(field)]);
    }
  }
}

TEST_CASE("a communicator that is destroyed without close says so to its peers") {
  part_of_world const all{static_cast<std::size_t>(here().size)};
  bool const leaves = here().self == 0;
  std::optional<kernels::mpi_communicator> c{std::in_place, all.comm(), kernels::mpi_options{.deadline = 20s}};
  c->barrier({});
  if (leaves)
    c.reset();
  else
    CHECK_THROWS_WITH(c->barrier({}), doctest::Contains("rank 0 destroyed its communicator without closing it"));
}

TEST_CASE("a rank that does not come to the construction is waited for until the deadline") {
  part_of_world all{static_cast<std::size_t>(here().size)};
  if (here().self == 0) std::this_thread::sleep_for(600ms);
  auto const start = std::chrono::steady_clock::now();
  try {
    kernels::mpi_communicator c{all.leave(), {.deadline = 200ms}};
    CHECK(here().self == 0);  // it may have found everyone there
  } catch (peer_lost const& e) {
    CHECK(has(e.what(), "not every rank came to make the communicator before the deadline of 200 ms"));
  }
  CHECK(std::chrono::steady_clock::now() - start < 5s);
}

TEST_CASE("the level of threads of MPI: what a communicator needs is named where it is not given") {
  int level = 0;
  MPI_Query_thread(&level);
  auto const said = [](auto const& make) {
    std::string text;
    try {
      make();
    } catch (broken_rule const& e) {
      text = e.what();
    }
    return text;
  };
  auto const owner = [&] { return said([] { kernels::mpi_communicator{MPI_COMM_SELF}.close(); }); };
  auto const borrower = [&] { return said([] { static_cast<void>(kernels::mpi_ref{MPI_COMM_SELF}); }); };
  std::array<std::string, 2> elsewhere;
  std::jthread{[&] { elsewhere = {owner(), borrower()}; }}.join();
  std::string here_needs, elsewhere_needs;
  if (level == MPI_THREAD_SINGLE)
    here_needs = elsewhere_needs =
        "a communicator needs MPI_THREAD_FUNNELED: MPI must be initialised by MPI_Init_thread, which asks for it";
  if (level == MPI_THREAD_FUNNELED)
    elsewhere_needs = "a communicator on another thread than that of MPI_Init_thread needs MPI_THREAD_SERIALIZED";
  CHECK(owner() == here_needs);
  CHECK(borrower() == here_needs);
  CHECK(elsewhere == std::array{elsewhere_needs, elsewhere_needs});
}

TEST_CASE("odd options are broken rules") {
  CHECK_THROWS_WITH_AS((kernels::mpi_communicator{MPI_COMM_SELF, {.staging = {0}}}),
                       "the staging area of a communicator must not be empty", broken_rule);
  CHECK_THROWS_WITH_AS((kernels::mpi_communicator{MPI_COMM_SELF, {.node_ranks = -1}}),
                       "the number of ranks that share a window cannot be negative", broken_rule);
}

int main(int argc, char** argv) {
  // What the program is started with says how MPI is initialised, for the test of the level of threads.
  auto const has_word = [&](std::string_view word) { return std::find(argv, argv + argc, word) != argv + argc; };
  int level = 0;
  if (has_word("single"))
    MPI_Init(&argc, &argv);
  else
    MPI_Init_thread(&argc, &argv, has_word("serialized") ? MPI_THREAD_SERIALIZED : MPI_THREAD_FUNNELED, &level);
  doctest::Context context{argc, argv};
  int failed = context.run();
  MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed;
}
