// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_folder.hpp"
#include "tier.hpp"

#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/segment_loader.hpp>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>

using namespace flatshard;
namespace fs = std::filesystem;

static_assert(loadable(dtype::bf16, dtype::f32) && loadable(dtype::i64, dtype::i64) && loadable(dtype::f4, dtype::f4));
static_assert(!loadable(dtype::i64, dtype::bf16) && !loadable(dtype::f8_e4m3, dtype::bf16) &&
              !loadable(dtype::f64, dtype::f32) && !loadable(dtype::boolean, dtype::u8));

namespace {

std::vector<std::vector<tensor_spec>> const models{
    {{"a", dtype::bf16, {10}}, {"b", dtype::bf16, {7, 1}}, {"c", dtype::bf16, {3}}},
    {{"one", dtype::bf16, {1}}},
    {{"empty", dtype::bf16, {0, 4}},
     {"some", dtype::bf16, {5, 3}},
     {"none", dtype::bf16, {2, 0}},
     {"tail", dtype::bf16, {2}}},
    {{"thousand", dtype::bf16, {1000}},
     {"large", dtype::bf16, {300, 257}},
     {"odd", dtype::bf16, {129, 33}},
     {"next", dtype::bf16, {11, 13}}},
};

float file_value(dtype type, std::string const& name, std::size_t i) {
  if (type == dtype::f32) {
    std::uint32_t b = 0;
    for (std::size_t k = 0; k < 4; ++k) b |= std::uint32_t{test_byte(name, 4 * i + k)} << (8 * k);
    return std::bit_cast<float>(b);
  }
  auto const b = static_cast<std::uint16_t>(test_byte(name, 2 * i) | test_byte(name, 2 * i + 1) << 8);
  return type == dtype::bf16 ? widen(bf16{b}) : widen(f16{b});
}
std::uint32_t stored_bits(dtype type, std::byte const* storage, std::size_t i) {
  std::uint32_t b = 0;
  auto const es = bits(type) / 8;
  std::memcpy(&b, storage + i * es, es);
  return b;
}
std::uint32_t narrowed_bits(dtype type, float x) {
  if (type == dtype::f32) return std::bit_cast<std::uint32_t>(x);
  return type == dtype::bf16 ? narrow<bf16>(x).bits : narrow<f16>(x).bits;
}

std::vector<parameter> parameters_of(std::vector<tensor_spec> const& tensors) {
  std::vector<parameter> out;
  for (auto const& t : tensors) out.push_back({t.name, shape{std::span<std::size_t const>{t.dims}}});
  return out;
}

template <class Policy>
void check_model(checkpoint_files const& from, std::vector<tensor_spec> const& tensors, std::size_t w,
                 dtype storage_type, bool with_master, load_options const& options) {
  layout const l{Policy{}, parameters_of(tensors), world{w}};
  std::size_t needed = 0, total = 0;
  for (auto const& t : tensors) total += size_of(t).value;
  for (std::size_t r = 0; r < w; ++r) {
    std::vector<float> storage_words(l.segment().value, 7777.0f), master(with_master ? l.segment().value : 0, 7777.0f);
    auto const storage =
        std::as_writable_bytes(std::span{storage_words}).first(size_of(l.segment(), storage_type).value);
    auto const done = load_segment(from, l, rank_at(r), {storage, storage_type, master}, options);
    REQUIRE(done.has_value());
    needed += done->bytes_needed.value;
    if (options.mode == load_mode::ranges)
      CHECK(done->data_bytes == done->bytes_needed);
    else
      CHECK(done->data_bytes.value == total);
    CHECK(done->bytes_read == done->data_bytes + from.header_size());
    CHECK(done->ring.value <= options.chunk.value);
    std::size_t wrong = 0;
    for (std::size_t j = 0; j < l.segment().value; ++j) {
      auto const place = l.at(rank_at(r), {j});
      auto const got = stored_bits(storage_type, storage.data(), j);
      if (place.padding) {
        wrong += got != 0 || (with_master && std::bit_cast<std::uint32_t>(master[j]) != 0);
        continue;
      }
      auto const& t = tensors[place.tensor];
      auto const value = file_value(t.type, t.name, place.index.value);
      auto expected = narrowed_bits(storage_type, value);
      if (storage_type == t.type && !with_master) {  // the file's own bits, NaN included
        expected = 0;
        for (std::size_t k = 0; k < bits(t.type) / 8; ++k)
          expected |= std::uint32_t{test_byte(t.name, place.index.value * bits(t.type) / 8 + k)} << (8 * k);
      }
      wrong += got != expected;
      if (with_master) {
        wrong += std::bit_cast<std::uint32_t>(master[j]) != std::bit_cast<std::uint32_t>(value);
        if (value == value)
          wrong += stored_bits(storage_type, storage.data(), j) != narrowed_bits(storage_type, master[j]);
      }
    }
    CHECK(wrong == 0);
  }
  CHECK(needed == total);
}

std::vector<errc> codes(std::vector<problem> const& problems) {
  std::vector<errc> out;
  for (auto const& p : problems) out.push_back(p.code);
  std::sort(out.begin(), out.end());
  return out;
}
std::vector<errc> sorted(std::vector<errc> all) {
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("every element lands where the layout says, cast by the one rule; padding is zero", Policy, native,
                   zero3, fsdp2) {
  test_folder here{"loader"};
  std::size_t number = 0;
  for (auto const& model : models)
    for (auto const file_type : {dtype::bf16, dtype::f32, dtype::f16}) {
      auto tensors = model;
      for (auto& t : tensors) t.type = file_type;
      auto with_odd = tensors;  // three bytes first: nothing is aligned in the file
      with_odd.insert(with_odd.begin(), {"odd bytes", dtype::u8, {3}});
      auto const path = here.path / (std::to_string(number++) + ".safetensors");
      write_test_file(path, with_odd);
      auto const from = open_checkpoint(path).value();
      CHECK(from.header_size().value == fs::file_size(path) - from.data_size().value);
      load_options small;
      small.chunk = {4096};
      small.request = {10'000};
      load_options whole = small;
      whole.mode = load_mode::whole;
      for (std::size_t w = 1; w <= 8; w += sanitized ? 3 : 1) {
        for (auto const storage : {dtype::bf16, dtype::f32, dtype::f16})
          for (bool const with_master : {false, true})
            check_model<Policy>(from, tensors, w, storage, with_master, small);
        check_model<Policy>(from, tensors, w, file_type, false, {});
        check_model<Policy>(from, tensors, w, dtype::f32, false, whole);
      }
    }
}

TEST_CASE("integers and narrow types are loaded as they are") {
  test_folder here{"loader-int"};
  std::vector<tensor_spec> const tensors{{"i", dtype::i64, {9}}, {"j", dtype::i64, {4, 3}}};
  write_test_file(here.path / "model.safetensors", tensors);
  auto const from = open_checkpoint(here.path).value();
  layout const l{native{}, parameters_of(tensors), world{2}};
  std::vector<std::int64_t> storage(l.segment().value, -1);
  auto const bytes_of = std::as_writable_bytes(std::span{storage});
  REQUIRE(load_segment(from, l, rank_at(0), {bytes_of, dtype::i64}).has_value());
  for (std::size_t i = 0; i < 9; ++i)
    for (std::size_t k = 0; k < 8; ++k)
      CHECK(std::to_integer<std::uint8_t>(bytes_of[8 * i + k]) == test_byte("i", 8 * i + k));
  auto const cast = load_segment(from, l, rank_at(0), {bytes_of.first(l.segment().value * 2), dtype::bf16});
  REQUIRE(!cast.has_value());
  CHECK(codes(cast.error().problems) == std::vector{errc::dtype_mismatch, errc::dtype_mismatch});
}

TEST_CASE("neighbours of other types and units share a chunk: nothing is read twice or out of place") {
  test_folder here{"loader-mixed"};
  std::vector<tensor_spec> const bytes_unit{{"u", dtype::u8, {3}}},
      mixed{
          {"f", dtype::f32, {10}}, {"b", dtype::bf16, {50'000}}, {"c", dtype::bf16, {50'000}}, {"h", dtype::f16, {7}}};
  auto all = bytes_unit;
  all.insert(all.end(), mixed.begin(), mixed.end());
  write_test_file(here.path / "model.safetensors", all);
  auto const from = open_checkpoint(here.path).value();
  auto const first = parameters_of(bytes_unit), second = parameters_of(mixed);
  listed_layout<native> const small{native{}, std::span{first}, world{1}}, large{native{}, std::span{second}, world{1}};
  std::vector<std::byte> u(small.segment().value);
  std::vector<bf16> storage(large.segment().value, bf16{0x7777});
  load_options options;
  options.chunk = {4096};
  std::vector<segment_job<listed_layout<native>>> const jobs{
      {&small, rank_at(0), {u, dtype::u8}},
      {&large, rank_at(0), {std::as_writable_bytes(std::span{storage}), dtype::bf16}}};
  auto const done = load_segments(from, jobs, options);
  REQUIRE(done.has_value());
  CHECK(done->data_bytes == from.data_size());
  CHECK(done->bytes_read == from.file_size());
  CHECK(done->bytes_needed == from.data_size());
  CHECK(done->merged > 0);
  for (std::size_t i = 0; i < 3; ++i) CHECK(std::to_integer<std::uint8_t>(u[i]) == test_byte("u", i));
  std::size_t wrong = 0;
  for (std::size_t j = 0; j < storage.size(); ++j) {
    auto const place = large.at(rank_at(0), {j});
    if (place.padding) {
      wrong += storage[j].bits != 0;
      continue;
    }
    auto const& t = mixed[place.tensor];
    auto const value = file_value(t.type, t.name, place.index.value);
    wrong += t.type == dtype::bf16 && value != value ? false : storage[j] != narrow<bf16>(value);
  }
  CHECK(wrong == 0);
}

TEST_CASE("a range that ends at the offset where another file's begins is not read on") {
  test_folder here{"loader-touching"};
  std::vector<tensor_spec> const a{{"a", dtype::bf16, {40}}};
  write_test_file(here.path / "x-1.safetensors", a);
  auto const end = open_checkpoint(here.path / "x-1.safetensors").value().header_size().value + 80;
  bool found = false;
  for (std::size_t odd = 0; odd < 200 && !found; ++odd) {
    std::vector<tensor_spec> const b{{"odd", dtype::u8, {odd}}, {"b", dtype::bf16, {40}}};
    write_test_file(here.path / "x-2.safetensors", b);
    found = open_checkpoint(here.path / "x-2.safetensors").value().header_size().value + odd == end;
    if (!found) continue;
    write_index(here.path / "model.safetensors.index.json",
                {{"a", "x-1.safetensors"}, {"odd", "x-2.safetensors"}, {"b", "x-2.safetensors"}}, {160 + odd});
    auto const from = open_checkpoint(here.path).value();
    for (std::size_t const w : {1u, 2u, 3u})
      for (auto const storage : {dtype::bf16, dtype::f32})
        check_model<native>(from, {a[0], b[1]}, w, storage, false, {});
  }
  REQUIRE(found);
}

TEST_CASE("several files: each byte is read once over all ranks, long ranges straight into the segment") {
  test_folder here{"loader-files"};
  std::vector<tensor_spec> const first{{"l.0.a", dtype::bf16, {512, 1024}}, {"l.0.b", dtype::bf16, {64}}},
      second{{"l.1.b", dtype::bf16, {64}}, {"l.1.a", dtype::bf16, {512, 1024}}};
  write_test_file(here.path / "x-1.safetensors", first);
  write_test_file(here.path / "x-2.safetensors", second);
  write_index(here.path / "model.safetensors.index.json",
              {{"l.0.a", "x-1.safetensors"},
               {"l.0.b", "x-1.safetensors"},
               {"l.1.a", "x-2.safetensors"},
               {"l.1.b", "x-2.safetensors"}},
              {2 * (1024 * 1024 + 128)});
  auto const from = open_checkpoint(here.path).value();
  CHECK(from.files().size() == 2);
  CHECK(from.warnings().empty());
  auto const index = fs::file_size(here.path / "model.safetensors.index.json");
  CHECK(from.header_size().value == index + from.file_size().value - from.data_size().value);
  auto const model = std::vector{parameters_of(first), parameters_of(second)};
  std::size_t read = 0;
  std::uint64_t seen = 0;
  for (std::size_t r = 0; r < 3; ++r) {
    std::vector<listed_layout<native>> layouts;
    for (auto const& unit : model) layouts.emplace_back(native{}, std::span{unit}, world{3});
    std::vector<std::vector<std::byte>> segments;
    std::vector<segment_job<listed_layout<native>>> jobs;
    for (auto const& l : layouts) {
      segments.emplace_back(l.segment().value * 2);
      jobs.push_back({&l, rank_at(r), {segments.back(), dtype::bf16}});
    }
    load_options options;
    bytes last;
    options.progress = [&](bytes now) {
      CHECK(now > last);
      last = now;
    };
    auto const done = load_segments(from, jobs, options);
    REQUIRE(done.has_value());
    CHECK(last == done->bytes_read);
    CHECK(done->requests <= 4);
    read += done->data_bytes.value;
    CHECK(done->bytes_read == done->data_bytes + from.header_size());
    CHECK((seen == 0 || seen == done->header_hash));
    seen = done->header_hash;
    for (std::size_t u = 0; u < 2; ++u)
      for (auto const& piece : layouts[u].pieces(rank_at(r))) {
        auto const& name = model[u][piece.tensor].name;
        CHECK(std::to_integer<std::uint8_t>(segments[u][2 * piece.local.value]) ==
              test_byte(std::string{name}, 2 * piece.begin.value));
      }
  }
  CHECK(read == from.data_size().value);  // and with the headers on each rank, the promise:
  CHECK(50 * (read + 3 * from.header_size().value) <= 51 * from.file_size().value);
}

TEST_CASE("everything that does not fit is listed before a byte is read") {
  test_folder here{"loader-bad"};
  write_test_file(here.path / "model.safetensors", {{"a", dtype::bf16, {4}},
                                                    {"b", dtype::bf16, {2, 3}},
                                                    {"c", dtype::i64, {2}},
                                                    {"d", dtype::bf16, {1}},
                                                    {"s", dtype::bf16, {}}});
  auto const from = open_checkpoint(here.path).value();
  auto const unit = parameters({{"a", {4}}, {"b", {3, 2}}, {"c", {2}}, {"missing", {3}}, {"lost\n", {}}, {"s", {1}}});
  layout const l{native{}, unit, world{2}};
  std::vector<std::byte> storage(l.segment().value * 2, std::byte{0x5A});
  load_options options;
  options.progress = [](bytes) { FAIL("data were read"); };
  options.unexpected_is_error = true;
  auto const done = load_segment(from, l, rank_at(1), {storage, dtype::bf16}, options);
  REQUIRE(!done.has_value());
  auto const problems = done.error().problems;
  CHECK(codes(problems) == sorted({errc::shape_mismatch, errc::dtype_mismatch, errc::tensor_missing,
                                   errc::tensor_missing, errc::shape_mismatch, errc::tensor_unexpected}));
  std::string all;
  for (auto const& p : problems) all += to_string(p) + "\n";
  for (auto const* part :
       {"\"missing\"", "\"lost\\x0a\"", "[2, 3]", "[3, 2]", "\"d\"", "int64", "model.safetensors", "[1]", "[]"})
    CHECK_MESSAGE(all.find(part) != std::string::npos, part);
  CHECK(std::count(storage.begin(), storage.end(), std::byte{0x5A}) == static_cast<std::ptrdiff_t>(storage.size()));

  // broken rules of the caller
  CHECK_THROWS_AS(static_cast<void>(load_segment(from, l, rank_at(2), {storage, dtype::bf16})), broken_rule);
  CHECK_THROWS_AS(static_cast<void>(load_segment(from, l, rank_at(0), {std::span{storage}.first(2), dtype::bf16})),
                  broken_rule);
  std::vector<float> master(3);
  CHECK_THROWS_AS(static_cast<void>(load_segment(from, l, rank_at(0), {storage, dtype::bf16, master})), broken_rule);
}

TEST_CASE("tensors that a layout cannot cut are problems, before there is a layout and where one would cut a byte") {
  test_folder here{"loader-cut"};
  write_test_file(here.path / "model.safetensors", {{"fine", dtype::bf16, {3, 3}},
                                                    {"nine", dtype::bf16, {1, 1, 1, 1, 1, 1, 1, 1, 1}},
                                                    {"s", dtype::bf16, {}},
                                                    {"four", dtype::f4, {3, 2}},
                                                    {"six", dtype::f6_e2m3, {4, 4}},
                                                    {"none", dtype::f4, {0, 3}}});
  auto const from = open_checkpoint(here.path).value();
  auto const of = [&](auto policy, std::size_t w) {
    std::string all;
    for (auto const& p : cut_problems(from, policy, world{w})) {
      CHECK(p.where.file == (here.path / "model.safetensors").string());
      all += std::string{name(p.code)} + ' ' + p.detail + '\n';
    }
    return all;
  };
  std::string const nine =
      "shape_mismatch tensor \"nine\" has 9 dimensions, every layout takes at most 8; save it with fewer\n";
  std::string const four = "not_byte_sized tensor \"four\" is fp4, 4 bits an element, and ";
  CHECK(of(native{}, 2) == nine);
  CHECK(of(zero3{}, 1) == nine);
  CHECK(of(zero3{}, 2) == nine + four + "zero3 over 2 ranks cuts it at element 3, inside a byte\n");
  CHECK(of(zero3{}, 3) == nine +
                              "not_byte_sized tensor \"six\" is fp6_e2m3, 6 bits an element, and zero3 over 3 "
                              "ranks cuts it at element 6, inside a byte\n");
  CHECK(of(fsdp2{}, 2) == nine +
                              "shape_mismatch tensor \"s\" is a scalar, which fsdp2 cannot cut along its first "
                              "dimension\n");

  // The same where units are given: two halves of bytes are a whole number of them, but not each.
  auto const unit = parameters({{"four", {3, 2}}, {"four", {3, 2}}});
  for (std::size_t const w : {1u, 2u}) {
    layout const l{zero3{}, unit, world{w}};
    std::vector<std::byte> storage(size_of(l.segment(), dtype::f4).value);
    auto const done = load_segment(from, l, rank_at(0), {storage, dtype::f4});
    CHECK(done.has_value() == (w == 1));
    if (done) continue;
    REQUIRE(done.error().problems.size() == 2);
    CHECK(done.error().problems[0].code == errc::not_byte_sized);
    CHECK(done.error().problems[0].detail ==
          "tensor \"four\" is fp4, 4 bits an element, and the layout cuts it at element 3, inside a byte");
  }
}

TEST_CASE("files that change between header and data are errors") {
  test_folder here{"loader-change"};
  auto const path = here.path / "model.safetensors";
  std::vector<tensor_spec> const tensors{{"a", dtype::bf16, {100'000}}};
  auto const unit = parameters_of(tensors);
  layout const l{native{}, unit, world{1}};
  std::vector<std::byte> storage(l.segment().value * 2);
  auto const attempt = [&](auto change) {
    write_test_file(path, tensors);
    auto const from = open_checkpoint(here.path).value();
    change();
    auto const done = load_segment(from, l, rank_at(0), {storage, dtype::bf16});
    REQUIRE(!done.has_value());
    auto const problems = done.error().problems;
    CHECK(problems.front().where.file == path.string());
    CHECK(problems.front().detail.size() > 20);
    return problems.front().code;
  };
  auto const size = [&] { return fs::file_size(path); };
  CHECK(attempt([&] { fs::resize_file(path, size() - 1); }) == errc::short_read);
  CHECK(attempt([&] { fs::resize_file(path, 100); }) == errc::short_read);
  CHECK(attempt([&] { fs::resize_file(path, 0); }) == errc::short_read);
  CHECK(attempt([&] { fs::resize_file(path, size() + 1); }) == errc::file_changed);
  CHECK(attempt([&] { write_test_file(path, tensors); }) == errc::file_changed);
  CHECK(attempt([&] { fs::remove(path); }) == errc::file_changed);
}

TEST_CASE("a directory without a checkpoint: links to nothing and what may be meant are named") {
  test_folder here{"loader-nothing"};
  auto const told = [&] { return to_string(open_checkpoint(here.path).error()); };
  auto const says = [&](std::string const& text) {
    auto const found = told();
    CHECK_MESSAGE(found.find(text) != std::string::npos, found);
  };
  says("model.safetensors nor model.safetensors.index.json [file_missing]");
  std::ofstream{here.path / "pytorch_model.bin"} << 1;
  says("index.json; convert its pytorch_model.bin to safetensors [file_missing]");
  std::ofstream{here.path / "b.safetensors"} << 1;
  says("index.json; it holds \"b.safetensors\", whose own path is taken too [file_missing]");
  std::ofstream{here.path / "a.safetensors"} << 1;
  says("it holds 2 safetensors files, the first \"a.safetensors\", without the index");
  fs::create_symlink("../blobs/index", here.path / "model.safetensors.index.json");
  says("index.json: error: this is a link to \"../blobs/index\", which is not there");
  fs::remove(here.path / "model.safetensors.index.json");
  fs::create_symlink("../blobs/1", here.path / "model.safetensors");
  says("model.safetensors: error: this is a link to \"../blobs/1\", which is not there [file_missing]");
  std::ofstream{here.path / "model.safetensors.index.json"} << "{}";  // an index that is there is read all the same
  CHECK(told().find("model.safetensors.index.json") != std::string::npos);
  CHECK(told().find("link") == std::string::npos);
}

TEST_CASE("checkpoint directories and indexes: rows 40 and 41") {
  test_folder here{"loader-index"};
  auto const index = here.path / "model.safetensors.index.json";
  auto const found = [&](std::string const& text, safetensors_limits const& limits = {}) {
    std::ofstream{index} << text;
    auto const opened = open_checkpoint(here.path, limits);
    return opened ? std::vector<errc>{} : codes(opened.error().problems);
  };
  CHECK(codes(open_checkpoint(here.path).error().problems) == std::vector{errc::file_missing});
  write_test_file(here.path / "f.safetensors", {{"a", dtype::bf16, {2}}, {"b", dtype::bf16, {2}}});
  REQUIRE(::mkfifo((here.path / "fifo").c_str(), 0600) == 0);
  fs::create_directory(here.path / "dir");
  auto const map = [](std::string const& entries) { return R"({"weight_map":{)" + entries + "}}"; };
  auto const good = map(R"("a":"f.safetensors","b":"f.safetensors")");
  CHECK(found(good).empty());
  for (auto const* file : {"../../x", "/etc/passwd", "a/b", "a\\u0000b", "", "..", "a\\\\b", "x..y"})
    CHECK_MESSAGE(found(map("\"a\":\"" + std::string{file} + "\"")) == std::vector{errc::path}, file);
  CHECK(found(map(R"("a":"../x","b":"/y")")) == std::vector{errc::path, errc::path});
  CHECK(found(map(R"("a":"fifo")")) == std::vector{errc::file_type});
  CHECK(found(map(R"("a":"dir")")) == std::vector{errc::file_type});
  CHECK(found(map(R"("a":".")")) == std::vector{errc::file_type});
  CHECK(found(map(R"("a":"f.safetensors","z":"f.safetensors","y":"f.safetensors")")) ==
        std::vector{errc::tensor_missing, errc::tensor_missing});
  CHECK(found(map(R"("a":"f.safetensors","a":"f.safetensors")")) == std::vector{errc::duplicate_key});
  CHECK(found(map(R"("a":"f.safetensors","\u0061":"f.safetensors")")) == std::vector{errc::duplicate_key});
  CHECK(found(R"({"weight_map":{},"weight_map":{}})") == std::vector{errc::duplicate_key});
  CHECK(found(R"({"metadata":{"x":1,"x":2},"weight_map":{}})") == std::vector{errc::duplicate_key});
  for (auto const* text :
       {"[]", "3", "{}", R"({"weight_map":3})", R"({"weight_map":[]})", R"({"weight_map":{"a":3}})",
        R"({"weight_map":{"a":{}}})", R"({"weight_map":{"a":["f"]}})", R"({"weight_map":{"a":null}})"})
    CHECK_MESSAGE(found(text) == std::vector{errc::entry_shape}, text);
  for (auto const* text : {"", "{", "{}x", "\xEF\xBB\xBF{}", "{\"a\":\"\xFF\"}", "{\"weight_map\":{},}"})
    CHECK_MESSAGE(found(text) == std::vector{errc::json_syntax}, text);

  std::ofstream{index} << map(R"("a":"gone","b":"gone","c":"gone","d":"gone","e":"f.safetensors")");
  auto const problems = open_checkpoint(index).error().problems;
  CHECK(codes(problems) == sorted({errc::file_missing, errc::tensor_missing}));
  CHECK(to_string(config_error{problems}).find(R"(needed by "a", "b", "c" and 1 more)") != std::string::npos);

  fs::create_symlink("blobs/7", here.path / "gone");
  auto const linked = to_string(open_checkpoint(index).error());
  CHECK_MESSAGE(linked.find(R"(gone: error: this is a link to "blobs/7", which is not there, needed by "a")") !=
                    std::string::npos,
                linked);

  // in a file but not in the index: reported, an error when strict; total_size is compared, in any spelling
  std::ofstream{index} << R"({"metadata":{"total_size":4.0,"other":[1]},"weight_map":{"a":"f.safetensors"}})";
  auto const some = open_checkpoint(here.path).value();
  CHECK(some.size() == 1);
  CHECK(!some.find("b"));
  CHECK(codes(some.warnings()) == std::vector{errc::tensor_unexpected});
  safetensors_limits strict;
  strict.strict = true;
  CHECK(found(map(R"("a":"f.safetensors")"), strict) == std::vector{errc::tensor_unexpected});
  std::ofstream{index} << R"({"metadata":{"total_size":9},"weight_map":{"a":"f.safetensors","b":"f.safetensors"}})";
  auto const odd = open_checkpoint(here.path).value().warnings();
  CHECK(codes(odd) == std::vector{errc::total_size});
  CHECK(odd.front().detail == "total_size is 9, the tensors have 8 bytes");
  std::ofstream{index} << R"({"metadata":{"total_size":8e0},"weight_map":{"a":"f.safetensors","b":"f.safetensors"}})";
  CHECK(open_checkpoint(here.path).value().warnings().empty());

  // a single file comes first; paths to either work
  write_test_file(here.path / "model.safetensors", {{"only", dtype::bf16, {2}}});
  CHECK(open_checkpoint(here.path).value().find("only").has_value());
  CHECK(open_checkpoint(index).value().find("a").has_value());
  CHECK(open_checkpoint(here.path / "f.safetensors").value().find("b").has_value());
  auto const one = open_checkpoint(here.path).value(), other = open_checkpoint(here.path / "f.safetensors").value();
  CHECK(one.hash() != other.hash());
  CHECK(one.hash() == open_checkpoint(here.path / "model.safetensors").value().hash());
}

TEST_CASE("an index cut at every byte is a clean error") {
  test_folder here{"loader-cut"};
  write_test_file(here.path / "f.safetensors", {{"a", dtype::bf16, {2}}, {"b", dtype::bf16, {2}}});
  std::string const text = R"({"metadata":{"total_size":8},"weight_map":{"a":"f.safetensors","b":"f.safetensors"}})";
  REQUIRE(parse_index(text, "index").has_value());
  for (std::size_t cut = 0; cut < text.size(); ++cut) CHECK(!parse_index(text.substr(0, cut), "index").has_value());
  for (std::size_t i = 0; i < text.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      auto flipped = text;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      auto const parsed = parse_index(flipped, "index");
      if (!parsed) continue;
      for (auto const& [name, file] : parsed->tensors) REQUIRE(file < parsed->files.size());
      for (auto const& file : parsed->files) CHECK(file.find('/') == std::string::npos);
    }
}

namespace {

/// A line of /proc/self/status. Units: bytes.
std::size_t process_status(std::string const& key) {
  std::ifstream in{"/proc/self/status"};
  for (std::string word; in >> word;)
    if (word == key) {
      std::size_t kib = 0;
      in >> kib;
      return kib << 10;
    }
  return 0;
}

}  // namespace

TEST_CASE("peak memory of a rank of a sparse 16 GB model: its shard, a chunk and little else") {
  test_folder here{"loader-sparse"};
  std::vector<tensor_spec> tensors;
  for (int i = 0; i < 64; ++i) tensors.push_back({"h." + std::to_string(i) + ".w", dtype::bf16, {8192, 16384}});
  safetensors_options options;
  options.sparse = true;
  safetensors_writer{here.path / "model.safetensors", tensors, options}.commit();
  CHECK(fs::file_size(here.path / "model.safetensors") > 16'000'000'000u);
  for (auto const type : {dtype::bf16, dtype::f32}) {
    auto const child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      auto const before = process_status("VmHWM:");
      auto const from = open_checkpoint(here.path).value();
      layout const l{native{}, parameters_of(tensors), world{256}};
      std::vector<std::byte> storage(size_of(l.segment(), type).value);
      auto const done = load_segment(from, l, rank_at(255), {storage, type});
      auto const peak = process_status("VmHWM:");
      auto const right =
          done && done->data_bytes == done->bytes_needed && done->bytes_needed.value == l.segment().value * 2;
#if defined(__SANITIZE_ADDRESS__)
      auto const lean = peak > 0;
#else
      auto const lean = peak <= before + storage.size() + (8u << 20);  // the promise is 64 MiB
#endif
      ::_exit(before > 0 && right && lean ? 0 : 1);
    }
    int how = 0;
    REQUIRE(::waitpid(child, &how, 0) == child);
    CHECK(how == 0);
  }
}
