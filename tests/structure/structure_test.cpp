// The rules that keep the tree readable, checked over the sources: who may include whom, where CUDA and conditional
// compilation may stand, how long a file may be, and that it opens by saying what it is.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "golden/golden_file.h"

namespace sfa::test {
namespace {

struct Source {
  std::string path;    // under src/, "ops/linear/linear.h"
  std::string folder;  // "ops"
  std::string extension;
  std::vector<std::string> lines;
};

std::vector<Source> read_tree(const std::string& top, const std::set<std::string>& extensions) {
  std::vector<Source> all;
  const std::filesystem::path root = std::filesystem::path(source_dir()) / top;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (!entry.is_regular_file() || !extensions.contains(entry.path().extension().string())) continue;
    Source s;
    s.path = std::filesystem::relative(entry.path(), root).generic_string();
    s.folder = s.path.substr(0, s.path.find('/'));
    s.extension = entry.path().extension().string();
    std::ifstream in(entry.path());
    for (std::string line; std::getline(in, line);) s.lines.push_back(line);
    all.push_back(std::move(s));
  }
  return all;
}

const std::vector<Source>& sources() {
  static const std::vector<Source> all = read_tree("src", {".h", ".cpp", ".cu", ".cuh"});
  return all;
}

bool is_cuda(const Source& s) {
  return s.extension == ".cu" || s.extension == ".cuh" || s.folder == "cuda";
}

// The path inside #include "..." or <...>, or nothing.
std::string included(const std::string& line) {
  std::size_t at = line.find_first_not_of(" \t");
  if (at == std::string::npos || line.compare(at, 8, "#include") != 0) return "";
  const std::size_t begin = line.find_first_of("\"<", at);
  if (begin == std::string::npos) return "";
  const std::size_t end = line.find_first_of("\">", begin + 1);
  return line.substr(begin + 1, end - begin - 1);
}

// Higher layers lean on lower ones, never the other way. `cuda` holds helpers for .cu files on top of core.
const std::map<std::string, int> kLayers{{"core", 0},       {"cuda", 1},      {"ops", 2},      {"attention", 3},
                                         {"models", 4},     {"data", 4},      {"optim", 4},    {"dist", 4},
                                         {"checkpoint", 4}, {"tokenizer", 4}, {"config", 5},   {"hf", 5},
                                         {"train", 6},      {"eval", 6},      {"analysis", 6}, {"app", 7}};

TEST(Structure, IncludesPointDownwards) {
  ASSERT_GT(sources().size(), 50u) << "the sources were not found under " << source_dir();
  std::map<std::string, std::set<std::string>> leans_on;
  for (const Source& s : sources()) {
    ASSERT_TRUE(kLayers.contains(s.folder))
        << "src/" << s.path << ": the folder has no layer; give it one here and in docs/architecture.md";
    for (const std::string& line : s.lines) {
      const std::string what = included(line), folder = what.substr(0, what.find('/'));
      if (!kLayers.contains(folder) || what.find('/') == std::string::npos || folder == s.folder) continue;
      if (folder != "cuda" || !is_cuda(s)) {
        EXPECT_LE(kLayers.at(folder), kLayers.at(s.folder))
            << "src/" << s.path << " includes " << what << ", which lies above it";
      }
      leans_on[s.folder].insert(folder);
    }
  }
  // Folders of one layer may lean on each other, but not in a circle; core's .cu files use src/cuda, which stands on
  // core.
  leans_on["core"].erase("cuda");
  std::set<std::string> done, open;
  const std::function<void(const std::string&, const std::string&)> visit = [&](const std::string& folder,
                                                                                const std::string& trail) {
    if (done.contains(folder)) return;
    EXPECT_FALSE(open.contains(folder)) << "folders include each other in a circle:" << trail << " -> " << folder;
    if (open.contains(folder)) return;
    open.insert(folder);
    for (const std::string& next : leans_on[folder]) visit(next, trail + " -> " + folder);
    open.erase(folder);
    done.insert(folder);
  };
  for (const auto& [folder, layer] : kLayers) visit(folder, "");
}

TEST(Structure, CudaStaysInCudaFiles) {
  const std::vector<std::string> headers{"cuda", "cublas", "cudnn", "nccl", "cutlass", "nvtx"};
  for (const Source& s : sources()) {
    if (is_cuda(s)) continue;
    for (const std::string& line : s.lines) {
      const std::string what = included(line);
      // Our own *_cuda.h declare entry points without any CUDA type.
      if (what.empty() || (what.find('/') != std::string::npos && what.rfind("cuda/", 0) != 0)) continue;
      for (const std::string& header : headers)
        EXPECT_NE(what.rfind(header, 0), 0u) << "src/" << s.path << " includes " << what;
    }
  }
}

TEST(Structure, HardwareAndFormatLibrariesStayInTheirFolders) {
  // What may be included where, besides the standard library: models and ops know no file format and no network.
  const std::map<std::string, std::set<std::string>> allowed{{"hdf5.h", {"core", "data", "checkpoint"}},
                                                             {"mpi.h", {"dist"}},
                                                             {"cblas.h", {"ops", "attention", "core"}},
                                                             {"yaml-cpp/yaml.h", {"config"}},
                                                             {"CLI/CLI.hpp", {"app"}}};
  for (const Source& s : sources())
    for (const std::string& line : s.lines) {
      const auto rule = allowed.find(included(line));
      if (rule != allowed.end()) {
        EXPECT_TRUE(rule->second.contains(s.folder)) << "src/" << s.path << " includes " << rule->first;
      }
    }
}

TEST(Structure, NoConditionalCompilation) {
  for (const Source& s : sources()) {
    int allowed = s.path == "core/host_device.h" ? 1 : 0;  // SFA_HOST_DEVICE
    for (const std::string& line : s.lines) {
      std::string text = line;
      text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\t'; }), text.end());
      if (text.rfind("#if", 0) != 0 && text.rfind("#elif", 0) != 0) continue;
      EXPECT_GE(--allowed, 0) << "src/" << s.path << ": " << line
                              << "  (the generated core/build_config.h decides with if constexpr)";
    }
  }
}

TEST(Structure, FilesStayShort) {
  for (const char* top : {"src", "tests"})
    for (const Source& s : read_tree(top, {".h", ".cpp", ".cu", ".cuh"}))
      EXPECT_LE(s.lines.size(), 600u) << top << "/" << s.path << " has outgrown one file";
}

// A .cpp or .cu whose header of the same name explains it may go without.
TEST(Structure, FilesOpenByWhatTheyAre) {
  std::set<std::string> commented;
  const auto stem = [](const Source& s) { return s.path.substr(0, s.path.size() - s.extension.size()); };
  for (const Source& s : sources())
    if (!s.lines.empty() && s.lines[0].rfind("//", 0) == 0) commented.insert(s.path);
  for (const Source& s : sources()) {
    const bool by_header = (s.extension == ".cpp" || s.extension == ".cu") && commented.contains(stem(s) + ".h");
    EXPECT_TRUE(commented.contains(s.path) || by_header) << "src/" << s.path << " has no opening comment";
    if (s.extension == ".h" || s.extension == ".cuh") {
      EXPECT_TRUE(std::find(s.lines.begin(), s.lines.end(), "#pragma once") != s.lines.end()) << "src/" << s.path;
    }
  }
}

}  // namespace
}  // namespace sfa::test
