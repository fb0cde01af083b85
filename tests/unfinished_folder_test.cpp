// SPDX-License-Identifier: Apache-2.0
// A folder appears with everything in it, or not at all, and nothing else of the user's goes away.
#include <flatshard/unfinished_folder.hpp>

#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>
#include <stdlib.h>
#include <unistd.h>

namespace unfinished_folder_test {

using namespace flatshard;
namespace fs = std::filesystem;

namespace {

/// An empty folder for one test.
struct scratch {
  fs::path path;
  scratch() {
    std::string name = (fs::temp_directory_path() / "flatshard-folder-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  scratch(scratch const&) = delete;
  scratch& operator=(scratch const&) = delete;
  ~scratch() { fs::remove_all(path); }
  /// Everything below, by relative name.
  [[nodiscard]] std::set<std::string> all() const {
    std::set<std::string> found;
    for (auto const& e : fs::recursive_directory_iterator{path})
      found.insert(e.path().lexically_relative(path).string());
    return found;
  }
};

void write(fs::path const& to, std::string const& text) { std::ofstream{to} << text; }

}  // namespace

TEST_CASE("a finished folder has its name and its files, parents are made") {
  scratch const s;
  for (std::string const name : {"plain", "with/parents", "slash/"}) {
    unfinished_folder folder{s.path / name};
    CHECK_FALSE(fs::exists(s.path / name));
    write(folder.path() / "file", "text");
    folder.finish();
  }
  CHECK(s.all() == std::set<std::string>{"plain", "plain/file", "with", "with/parents", "with/parents/file", "slash",
                                         "slash/file"});
}

TEST_CASE("an unfinished folder leaves nothing, nor the parents that it made") {
  scratch const s;
  fs::create_directory(s.path / "mine");
  try {
    unfinished_folder const folder{s.path / "mine/made/too/model"};
    write(folder.path() / "file", "text");
    CHECK(s.all().size() == 5);
    throw std::runtime_error{"in between"};
  } catch (std::runtime_error const&) {
  }
  CHECK(s.all() == std::set<std::string>{"mine"});
  {
    unfinished_folder const folder{s.path / "shared/model"};
    write(s.path / "shared/theirs", "text");  // another process uses the parent by now
  }
  CHECK(s.all() == std::set<std::string>{"mine", "shared", "shared/theirs"});
}

TEST_CASE("an empty folder is replaced, anything else that has the name stays") {
  scratch const s;
  fs::create_directory(s.path / "empty");
  {
    unfinished_folder folder{s.path / "empty"};
    write(folder.path() / "file", "text");
    folder.finish();
  }
  write(s.path / "taken", "mine");
  for (std::string const name : {"empty", "taken"}) {
    unfinished_folder folder{s.path / name};
    CHECK_THROWS_AS(folder.finish(), file_error);
  }
  CHECK(s.all() == std::set<std::string>{"empty", "empty/file", "taken"});
}

TEST_CASE("a link stays, and the folder that it leads to is replaced or made") {
  scratch const s;
  fs::create_directories(s.path / "far/empty");
  fs::create_symlink("far/empty", s.path / "link");
  fs::create_directory_symlink("far/missing/folder", s.path / "dangling");
  for (std::string const name : {"slash", "dot"}) {  // what a shell completes to, what leads to it by itself
    fs::create_directory(s.path / ("far/" + name));
    fs::create_symlink("far/" + name + (name == "dot" ? "/." : "/"), s.path / name);
  }
  for (std::string const name : {"link/", "dangling", "slash", "dot"}) {
    unfinished_folder folder{s.path / name};
    write(folder.path() / "file", "text");
    folder.finish();
  }
  CHECK(fs::is_symlink(s.path / "link"));
  CHECK(fs::is_symlink(s.path / "dangling"));
  CHECK(s.all() == std::set<std::string>{"dangling", "dot", "far", "far/dot", "far/dot/file", "far/empty",
                                         "far/empty/file", "far/missing", "far/missing/folder",
                                         "far/missing/folder/file", "far/slash", "far/slash/file", "link", "slash"});
}

TEST_CASE("a folder that cannot be made is an error with its name") {
  scratch const s;
  write(s.path / "file", "text");
  CHECK_THROWS_WITH_AS(unfinished_folder{s.path / "file/model"}, doctest::Contains("file/model.tmp-"), file_error);
  write(s.path / ("model.tmp-" + std::to_string(::getpid())), "a file with the temporary name");
  CHECK_THROWS_WITH_AS(unfinished_folder{s.path / "model"}, doctest::Contains("File exists"), file_error);
  CHECK(s.all().size() == 2);
}

}  // namespace unfinished_folder_test
