// What the GPU benchmark programs share: tensors that live as long as the program, and the median time of an op.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "core/rng.h"
#include "cuda/state.h"

namespace sfa {

/// Prints the median of 20 runs behind 3 that warm up, by CUDA events, of every op whose name holds argv[1].
class Bench {
 public:
  Bench(int argc, char** argv) : filter_(argc > 1 ? argv[1] : "") {}

  Tensor tensor(DType type, std::initializer_list<std::int64_t> dims) {
    Tensor t(nullptr, type, Device::cuda, dims);
    memory_.emplace_back(Device::cuda, static_cast<std::size_t>(t.bytes()), "the benchmark");
    t.data = memory_.back().data();
    return t;
  }

  // Small normal-like values: what a tensor holds changes the power that a product draws, so zeros would flatter it.
  Tensor random(DType type, std::initializer_list<std::int64_t> dims) {
    Tensor t = tensor(type, dims);
    constexpr std::size_t kPattern = std::size_t{1} << 20;
    std::vector<float> values(kPattern);
    for (std::size_t i = 0; i < kPattern; ++i) values[i] = normal_at(1, kPurposeTest, memory_.size(), i);
    std::vector<std::uint16_t> half(kPattern);
    for (std::size_t i = 0; i < kPattern; ++i) half[i] = bf16_bits(values[i]);
    const void* from =
        type == DType::f32 ? static_cast<const void*>(values.data()) : static_cast<const void*>(half.data());
    const std::size_t bytes = static_cast<std::size_t>(t.bytes()), block = kPattern * size_of(type);
    for (std::size_t at = 0; at < bytes; at += block)
      ctx.copy(static_cast<std::byte*>(t.data) + at, Device::cuda, from, Device::cpu, std::min(block, bytes - at));
    ctx.synchronize();
    return t;
  }

  using Run = std::function<void(Context&, Arena&)>;
  void time(const std::string& name, double bytes, double operations, const Run& run) {
    if (name.find(filter_) == std::string::npos) return;
    Arena scratch("scratch", Device::cuda);
    Context counting = Context::for_planning(Device::cuda);
    run(counting, scratch);
    scratch.bind();
    cudaEvent_t begin{}, end{};
    SFA_CUDA_CHECK(cudaEventCreate(&begin));
    SFA_CUDA_CHECK(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = 0; i < 23; ++i) {
      SFA_CUDA_CHECK(cudaEventRecord(begin, ctx.cuda().stream));
      run(ctx, scratch);
      SFA_CUDA_CHECK(cudaEventRecord(end, ctx.cuda().stream));
      ctx.synchronize();
      float ms = 0;
      SFA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 3) times.push_back(ms);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    const double ms = times[times.size() / 2];
    std::printf("%-34s %9.1f us %8.0f GB/s %8.1f TFLOP/s\n", name.c_str(), 1000 * ms, bytes / ms * 1e-6,
                operations / ms * 1e-9);
    std::fflush(stdout);
  }

  Context ctx{Device::cuda};

 private:
  std::string filter_;
  std::list<Buffer> memory_;
};

}  // namespace sfa
