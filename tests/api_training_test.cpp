// SPDX-License-Identifier: Apache-2.0
// The second program of the public API: a sharded training step inside someone else's framework, which brings its own
// model, data and optimizer.
#include <flatshard/flatshard.hpp>
#include <flatshard/json.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/safetensors_writer.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>
#include <unistd.h>

namespace api_training_test {

using namespace flatshard;
using namespace std::chrono_literals;

namespace {

// The framework: blocks that scale a vector, y = w * x, with the loss (y - target)^2 / 2 summed over the elements.
struct block {
  std::string weight_name;
  std::vector<parameter> list{{weight_name, {6}}};
  explicit block(std::string name) : weight_name{std::move(name)} {}
  block(block const&) = delete;
  [[nodiscard]] std::span<parameter const> parameters() const { return list; }
};
using vector6 = std::array<float, 6>;

template <class T>
vector6 forward(std::span<T const> w, vector6 const& x) {
  vector6 y;
  for (std::size_t i = 0; i < 6; ++i) y[i] = widen(w[i]) * x[i];
  return y;
}
template <class T, class G>
vector6 backward(std::span<T const> w, std::span<G> gradient, vector6 const& x, vector6 const& upstream) {
  vector6 down;
  for (std::size_t i = 0; i < 6; ++i) {
    gradient[i] = narrow<G>(widen(gradient[i]) + upstream[i] * x[i]);
    down[i] = upstream[i] * widen(w[i]);
  }
  return down;
}
template <class G>
void my_descent(std::span<float> master, std::span<G> gradient, float step) {
  for (std::size_t i = 0; i < master.size(); ++i) master[i] -= step * widen(gradient[i]);
}
template <dtype Type>
using element = std::conditional_t<Type == dtype::bf16, bf16, float>;

struct folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("flatshard_api_" + std::to_string(::getpid()));
  folder() { std::filesystem::create_directories(path); }
  ~folder() { std::filesystem::remove_all(path); }
};

// One training run on W ranks; returns the losses of rank 0, and how many bytes of the checkpoint all ranks read.
struct outcome {
  std::vector<float> losses;
  std::size_t bytes_read = 0;
};
outcome train(std::filesystem::path const& config, std::filesystem::path const& model, std::size_t ranks) {
  outcome seen;
  std::atomic<std::size_t> read = 0;
  kernels::thread_group{world{ranks}, {.deadline = 60s}}.run([&](kernels::thread_communicator& comm) {
    auto const W = static_cast<std::size_t>(comm.size());
    auto const r =
        resolve(parse_file(config.string()).value(), profile::llamafactory, {.world = W, .hidden_size = 6}).value();
    std::array<block, 2> const blocks{block{"a.weight"}, block{"b.weight"}};
    with_static(r, [&](auto prec, auto shard) {
      if constexpr (!requires { decltype(prec)::value; }) {
        throw std::logic_error{"this framework is compiled for the named precisions"};
      } else {
        using T = element<prec(role::compute)>;
        using G = element<prec(role::reduce)>;
        using A = element<prec(role::grad_accum)>;
        kernels::page_buffer memory{bytes{1 << 20}};
        memory_arena arena{memory.span()};
        std::vector<sharded_unit<decltype(prec), decltype(shard)>> units;
        for (auto& b : blocks) units.emplace_back(b.parameters(), world{W}, prec, shard, arena);
        inline_stream const s;
        agree(comm, r, units);
        read += load(units, model, comm).bytes_read.value;
        vector6 const x{1, 2, 1, 2, 1, 2}, target{3, 2, 1, 3, 2, 1};
        for (int step = 0; step < 8; ++step) {
          std::vector<vector6> inputs{x};
          for (auto& u : units) {
            auto w = gather(u, comm, s);
            inputs.push_back(forward(w[0].template data<T>(), inputs.back()));
            release(u, s);
          }
          vector6 upstream{};
          float loss = 0;
          for (std::size_t i = 0; i < 6; ++i) {
            upstream[i] = inputs.back()[i] - target[i];
            loss += upstream[i] * upstream[i] / 2;
          }
          if (index(comm.self()) == 0) seen.losses.push_back(loss);
          for (std::size_t at = units.size(); at-- > 0;) {
            auto& u = units[at];
            auto w = gather(u, comm, s);
            upstream = backward(w[0].template data<T>(), u.gradients()[0].template data<G>(), inputs[at], upstream);
            reduce_scatter(u, comm, {.scale = 1.f / static_cast<float>(W)}, s);
            release(u, s);
          }
          auto const k = static_cast<float>(clip_factor(global_norm(units, comm, s), 1.0));
          for (auto& u : units) my_descent(u.master(), u.template grad<A>(), 0.1f * k);
        }
      }
    });
  });
  seen.bytes_read = read;
  return seen;
}

std::filesystem::path write_model(folder const& in) {
  std::array<float, 6> const a{1, 1, 1, 1, 1, 1}, b{0.5f, 1, 1.5f, 2, 1, 0.5f};
  safetensors_writer out{in.path / "model.safetensors", {{"a.weight", dtype::f32, {6}}, {"b.weight", dtype::f32, {6}}}};
  out.write("a.weight", std::as_bytes(std::span{a}));
  out.write("b.weight", std::as_bytes(std::span{b}));
  out.commit();
  return in.path / "model.safetensors";
}

}  // namespace

TEST_CASE("configuration, policies as types, a checkpoint loaded into shards, and steps with falling loss") {
  folder const here;
  auto const model = write_model(here);
  auto const config = here.path / "ds_z3.json";
  for (auto const* enabled : {"true", "false"}) {
    std::ofstream{config} << "{\"bf16\": {\"enabled\": " << enabled << "}, \"zero_optimization\": {\"stage\": 3}}";
    auto const alone = train(config, model, 1);
    REQUIRE(alone.losses.size() == 8);
    CHECK(alone.losses.back() < alone.losses.front() / 2);
    auto const headers = std::filesystem::file_size(model) - 48;
    for (std::size_t const ranks : {2u, 4u, 8u}) {
      auto const many = train(config, model, ranks);
      CHECK(many.losses == alone.losses);  // equal gradients on 2^k ranks: sums and means are exact
      CHECK(many.bytes_read <= 48 + ranks * headers);
    }
  }
}

TEST_CASE("what every rank would refuse is refused before the first collective, on every rank") {
  folder const here;
  auto const model = write_model(here);
  auto const config = here.path / "ds_z3.json";
  std::ofstream{config} << R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 3}})";
  CHECK_THROWS_AS(train(config, model, 2), bad_input);
  std::ofstream{config} << R"({"zero_optimization": {"stage": 3}})";
  CHECK_THROWS_AS(train(config, here.path / "absent.safetensors", 2), bad_input);
}

TEST_CASE("ranks that resolved different configurations disagree on every rank") {
  std::atomic<int> told = 0;
  auto const run = [&] {
    kernels::thread_group{world{2}, {.deadline = 60s}}.run([&](kernels::thread_communicator& comm) {
      auto const text = index(comm.self()) == 0 ? R"({"zero_optimization": {"stage": 3}})"
                                                : R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": false}})";
      auto const r = resolve(parse_json(text).value(), profile::llamafactory, {.world = 2, .hidden_size = 6});
      std::vector<sharded_unit<precision, zero3>> units;
      try {
        agree(comm, r, units);
      } catch (mismatch const&) {
        ++told;
        throw;
      }
    });
  };
  CHECK_THROWS_AS(run(), mismatch);
  CHECK(told == 2);
}

}  // namespace api_training_test
