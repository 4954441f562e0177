// What the checkpoint tests share: folders that vanish, a small model's tensors with contents that depend on the step,
// whole-file reads and writes, and code run in a forked child.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "core/error.h"

namespace sfa::test {
namespace fs = std::filesystem;

class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "sfa-checkpoint-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// A tensor with contents that no other step and no other tensor has.
struct Sample {
  CheckpointTensor tensor;
  std::vector<unsigned char> data;

  Sample(std::string name, DType dtype, std::vector<std::int64_t> shape, std::uint64_t seed) {
    tensor = {std::move(name), dtype, std::move(shape)};
    data.resize(static_cast<std::size_t>(tensor.numel()) * size_of(dtype));
    std::uint64_t x = seed * 0x9E3779B97F4A7C15u + tensor.name.size() * 77 + static_cast<unsigned char>(tensor.name[0]);
    for (auto& byte : data) {
      x = x * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<unsigned char>(x >> 56);
    }
  }
  [[nodiscard]] const unsigned char* at(std::int64_t element) const {
    return data.data() + static_cast<std::size_t>(element) * size_of(tensor.dtype);
  }
};

/// `width` sets the size: about 36 * width bytes.
inline std::vector<Sample> samples(std::uint64_t step, std::int64_t width) {
  std::vector<Sample> all;
  all.emplace_back("param/h.0.attn.qkv.weight", DType::f32, std::vector<std::int64_t>{width, 3}, step);
  all.emplace_back("adam_m/h.0.attn.qkv.weight", DType::f32, std::vector<std::int64_t>{width, 3}, step);
  all.emplace_back("compute/ln.weight", DType::bf16, std::vector<std::int64_t>{width}, step);
  all.emplace_back("rng/counter", DType::i64, std::vector<std::int64_t>{}, step);
  all.emplace_back("bytes", DType::u8, std::vector<std::int64_t>{3, width}, step);
  all.emplace_back("nothing", DType::f32, std::vector<std::int64_t>{0, 7}, step);
  return all;
}

inline nlohmann::json state_of(std::uint64_t step) {
  return {{"next_sample", step * 12}, {"lr", 0.1}};
}

/// Writes samples(step) as the checkpoint of `step`; the contents are those of `content_step` where it is given.
inline fs::path save(const fs::path& run, std::int64_t step, std::int64_t width = 100, std::uint64_t content_step = 0) {
  const std::uint64_t content = content_step == 0 ? static_cast<std::uint64_t>(step) : content_step;
  CheckpointWriter writer(run, step);
  for (const Sample& sample : samples(content, width))
    writer.add(sample.tensor, 0, sample.tensor.numel(), sample.data.data());
  return writer.publish({writer.finish_file()}, state_of(content), "seed: 1\n");
}

/// True when every tensor reads back as samples(content).
inline bool holds(CheckpointReader& reader, std::uint64_t content, std::int64_t width = 100) {
  if (reader.state() != state_of(content) || reader.config_yaml() != "seed: 1\n") return false;
  for (const Sample& sample : samples(content, width)) {
    reader.expect(sample.tensor);
    std::vector<unsigned char> out(sample.data.size());
    reader.read(sample.tensor.name, 0, sample.tensor.numel(), out.data());
    if (out != sample.data) return false;
  }
  return true;
}

inline std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

/// The sentence of the Error that `work` throws; "" when it throws none.
inline std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_ERROR(statement, part)                                       \
  do {                                                                      \
    const std::string sentence = ::sfa::test::error_of([&] { statement; }); \
    EXPECT_NE(sentence, "") << "no error where one was expected";           \
    EXPECT_NE(sentence.find(part), std::string::npos) << sentence;          \
    EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;          \
  } while (false)

/// Starts `work` in a forked child, which ends through exit() so that libraries shut down as in a program: 0, or 1 on
/// an exception.
inline pid_t start_child(const std::function<void()>& work) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  int code = 0;
  try {
    work();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
    code = 1;
  }
  std::exit(code);
}

/// A random time for `child` to live, up to three times what `once` takes here and now: so that kills meet every moment
/// on fast and slow disks.
class RandomLife {
 public:
  explicit RandomLife(const std::function<void()>& once) {
    const auto begin = std::chrono::steady_clock::now();
    once();
    longest_ = 3 * std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin) +
               std::chrono::milliseconds(5);
  }
  void sleep() {
    std::this_thread::sleep_for(std::chrono::microseconds(static_cast<std::int64_t>(random_()) % longest_.count()));
  }

 private:
  std::chrono::microseconds longest_{};
  std::mt19937 random_{20};
};

/// The status of waitpid.
inline int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

inline bool child_succeeds(const std::function<void()>& work) {
  const int status = wait_for(start_child(work));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// Folders and files of a run folder that are no finished checkpoint.
inline std::vector<std::string> leftovers(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".step_")) names.push_back(name);
  }
  return names;
}

}  // namespace sfa::test
