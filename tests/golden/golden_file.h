// Reads the golden files that make_golden.py writes (the format is described there).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"

namespace sfa::test {

struct GoldenTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> floats;           // of an f32 tensor
  std::vector<std::int32_t> integers;  // of an i32 tensor
};

using GoldenFile = std::map<std::string, GoldenTensor>;

/// The source tree; SFA_SOURCE_DIR in the environment names it where the binary runs on another machine than it was
/// built on.
inline std::string source_dir() {
  const char* there = std::getenv("SFA_SOURCE_DIR");
  return there ? there : SFA_SOURCE_DIR;
}

inline GoldenFile read_golden(const std::string& name) {
  const std::string path = source_dir() + "/tests/golden/" + name;
  std::ifstream in(path, std::ios::binary);
  const auto read = [&](void* to, std::size_t bytes) {
    in.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    require(in.good(), "{} is missing or too short; tests/golden/make_golden.py writes it", path);
  };
  const auto number = [&] {
    std::uint32_t n = 0;
    read(&n, sizeof(n));
    return n;
  };
  std::string magic(8, '\0');
  read(magic.data(), magic.size());
  require(magic == "sfagold1", "{} is no golden file", path);
  GoldenFile file;
  for (std::uint32_t left = number(); left > 0; --left) {
    std::string key(number(), '\0');
    read(key.data(), key.size());
    const bool integer = number() == 1;
    GoldenTensor& t = file[key];
    std::size_t count = 1;
    for (std::uint32_t rank = number(); rank > 0; --rank) {
      t.shape.push_back(number());
      count *= static_cast<std::size_t>(t.shape.back());
    }
    if (integer) {
      t.integers.resize(count);
      read(t.integers.data(), count * 4);
    } else {
      t.floats.resize(count);
      read(t.floats.data(), count * 4);
    }
  }
  return file;
}

}  // namespace sfa::test
