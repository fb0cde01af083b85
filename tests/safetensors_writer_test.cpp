// SPDX-License-Identifier: Apache-2.0
#include <flatshard/safetensors_writer.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace safetensors_writer_test {

using namespace flatshard;
namespace fs = std::filesystem;

namespace {

struct folder {
  fs::path path = fs::temp_directory_path() / ("flatshard-writer-" + std::to_string(::getpid()));
  folder() { fs::create_directories(path); }
  ~folder() { fs::remove_all(path); }
};
std::string content(fs::path const& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}
std::size_t entries(fs::path const& path) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator{path}, fs::directory_iterator{}));
}
std::vector<std::byte> counting(std::size_t n) {
  std::vector<std::byte> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::byte>(i + 1);
  return out;
}
std::string const file_header{"\x90\0\0\0\0\0\0\0", 8};

}  // namespace

TEST_CASE("the file has the bytes that the official writer makes") {
  folder here;
  auto const path = here.path / "a.safetensors";
  {
    safetensors_writer out{path, {{"a", dtype::bf16, {2, 3}}, {"b", dtype::f32, {1}}}};
    auto const a = counting(12), b = counting(4);
    out.write("a", std::span{a}.first(5));
    out.write("b", b);
    out.write("a", std::span{a}.subspan(5));
    CHECK(out.data_size() == bytes{16});
    CHECK(!fs::exists(path));
    out.commit();
  }
  auto const text = content(path);
  CHECK(text.substr(0, 8) == file_header);
  CHECK(text.substr(8, 0x90) ==
        R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
        R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]}}  )");
  CHECK(text.substr(8 + 0x90) == std::string{"\1\2\3\4\1\2\3\4\5\6\7\x08\x09\x0a\x0b\x0c"});
  CHECK(entries(here.path) == 1);
  // Source: tests of safetensors@000a16f4:safetensors/src/tensor.rs (test_empty, test_serialization_forced_alignement)
  CHECK(safetensors_header_text({}, {}) == "{}      ");
  std::vector<tensor_spec> const one{{"attn0", dtype::f32, {1, 1, 2, 3}}};
  CHECK(safetensors_header_text(one, {}) ==
        R"({"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}}       )");
}

TEST_CASE("without a commit nothing is left, and an older file is untouched") {
  folder here;
  auto const path = here.path / "a.safetensors";
  { std::ofstream{path} << "older"; }
  {
    safetensors_writer out{path, {{"a", dtype::u8, {3}}}};
    CHECK(entries(here.path) == 2);
    CHECK_THROWS_AS(out.commit(), broken_rule);  // not all written
    auto const data = counting(4);
    CHECK_THROWS_AS(out.write("a", data), broken_rule);
    CHECK_THROWS_AS(out.write("b", data), broken_rule);
  }
  CHECK(content(path) == "older");
  CHECK(entries(here.path) == 1);
  CHECK_THROWS_AS((safetensors_writer{here.path / "no" / "x", {}}), file_error);
  for (auto const& taken : {here.path, std::filesystem::path{"/dev/null"}})
    CHECK_THROWS_WITH_AS((safetensors_writer{taken, {{"a", dtype::u8, {3}}}}), doctest::Contains("is no regular file"),
                         file_error);
  std::vector<tensor_spec> const twice{{"a", dtype::u8, {}}, {"a", dtype::u8, {}}};
  CHECK_THROWS_AS((safetensors_writer{path, twice}), broken_rule);
  std::vector<tensor_spec> const wide{{"a", dtype::u8, {std::size_t{1} << 40, std::size_t{1} << 40}}};
  CHECK_THROWS_AS((safetensors_writer{path, wide}), broken_rule);
  CHECK(entries(here.path) == 1);
}

TEST_CASE("a link stays, and what it leads to is replaced or made") {
  folder here;
  fs::create_directories(here.path / "far/links");
  fs::create_symlink("far/links/second", here.path / "first");
  fs::create_symlink("../file", here.path / "far/links/second");
  for (std::string const written : {"one", "another"}) {
    replacing_file file{here.path / "first", {written.size()}};
    CHECK(fs::equivalent(file.path().parent_path(), here.path / "far"));
    file.write_at(std::as_bytes(std::span{written}), {});
    file.commit();
    CHECK(content(here.path / "far/file") == written);
    CHECK(fs::is_symlink(here.path / "first"));
    CHECK(fs::is_symlink(here.path / "far/links/second"));
  }
  CHECK(entries(here.path) == 2);
  CHECK(entries(here.path / "far") == 2);
  fs::create_symlink("folder", here.path / "no");
  fs::create_directory(here.path / "folder");
  CHECK_THROWS_WITH_AS((replacing_file{here.path / "no", {}}), doctest::Contains("is no regular file"), file_error);
  fs::create_symlink("round", here.path / "round");
  CHECK_THROWS_WITH_AS((replacing_file{here.path / "round", {}}),
                       doctest::Contains("Too many levels of symbolic links"), file_error);
}

TEST_CASE("a sparse file has its full size and no blocks; names are escaped; the given order stays") {
  folder here;
  auto const path = here.path / "a.safetensors";
  safetensors_options options;
  options.sparse = true;
  options.order = tensor_order::given;
  options.metadata.clear();
  safetensors_writer out{path, {{"a\n\"\\", dtype::u8, {std::size_t{1} << 34}}, {"z", dtype::f64, {}}}, options};
  out.commit();
  CHECK(fs::file_size(path) == out.file_size().value);
  struct stat s {};
  REQUIRE(::stat(path.c_str(), &s) == 0);
  CHECK(s.st_blocks < 100);
  std::ifstream in{path, std::ios::binary};
  std::string head(30, ' ');
  in.read(head.data(), 30);
  CHECK(head.substr(8) == R"({"a\u000a\"\\":{"dtype)");
}

TEST_CASE("the index lists files by tensor and replaces an older one") {
  folder here;
  auto const path = here.path / "model.safetensors.index.json";
  write_index(path, {{"b", "2.safetensors"}, {"a", "1.safetensors"}}, {12});
  write_index(path, {{"b", "2.safetensors"}, {"a", "1.safetensors"}}, {34});
  CHECK(content(path) ==
        "{\n  \"metadata\": {\n    \"total_size\": 34\n  },\n  \"weight_map\": {\n    \"a\": \"1.safetensors\",\n    "
        "\"b\": "
        "\"2.safetensors\"\n  }\n}\n");
  CHECK(entries(here.path) == 1);
}

}  // namespace safetensors_writer_test
