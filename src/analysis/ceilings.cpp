#include "analysis/ceilings.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/timeline.h"
#include "ops/linear/linear.h"

namespace sfa {
namespace {

// The least of a few turns, in milliseconds, each of `count` repetitions.
template <class F>
double least_ms(Context& ctx, int count, F&& f) {
  f();
  double least = 0;
  for (int turn = 0; turn < 3; ++turn) {
    Timeline watch(ctx);
    watch.mark();
    for (int i = 0; i < count; ++i) f();
    watch.mark();
    const double ms = watch.milliseconds()[1] / count;
    least = turn == 0 ? ms : std::min(least, ms);
  }
  return least;
}

// Numbers in [-1, 1), a block of them over and over.
void fill(Context& ctx, const Tensor& t) {
  constexpr std::int64_t kBlock = 1 << 16;
  std::vector<float> block(kBlock);
  for (std::size_t i = 0; i < block.size(); ++i)
    block[i] = static_cast<float>((i * 2654435761u >> 8) % 65536) / 32768.0f - 1.0f;
  std::vector<std::uint16_t> rounded(block.size());
  std::transform(block.begin(), block.end(), rounded.begin(), bf16_bits);
  const void* from = t.dtype == DType::bf16 ? static_cast<const void*>(rounded.data()) : block.data();
  for (std::int64_t begin = 0; begin < t.numel(); begin += kBlock) {
    const std::size_t n = static_cast<std::size_t>(std::min(kBlock, t.numel() - begin));
    ctx.copy(static_cast<std::byte*>(t.data) + static_cast<std::size_t>(begin) * size_of(t.dtype), t.device, from,
             Device::cpu, n * size_of(t.dtype));
  }
  ctx.synchronize();
}

}  // namespace

Ceilings measure_ceilings(Context& ctx, DType dtype, std::size_t free_bytes) {
  const bool gpu = ctx.on_cuda();
  std::int64_t n = gpu ? 8192 : 2048;
  while (n > 256 && 3 * static_cast<std::size_t>(n * n) * size_of(dtype) > free_bytes) n /= 2;
  Ceilings out;
  Arena arena("measurement", ctx.device());
  OpObserver* observer = std::exchange(ctx.observer, nullptr);
  const auto take = [&] { return arena.take(dtype, {n, n}); };
  for (int i = 0; i < 3; ++i) take();
  arena.bind();
  const Tensor x = take(), weight = take(), y = take();
  fill(ctx, x);
  fill(ctx, weight);
  // Long enough for the card to come down to the clock that it can hold.
  const double product = least_ms(ctx, gpu ? 30 : 1, [&] { linear_forward(ctx, {x, weight, {}, y, {}}); });
  out.tflops = 2 * std::pow(static_cast<double>(n), 3) / product * 1e-9;
  const double copy = least_ms(
      ctx, gpu ? 30 : 5, [&] { ctx.copy(y.data, y.device, x.data, x.device, static_cast<std::size_t>(x.bytes())); });
  out.gb_per_sec = 2 * static_cast<double>(x.bytes()) / copy * 1e-6;
  if (dtype == DType::bf16) out.card_tflops = stated_bf16_tflops(ctx.device_name());
  ctx.observer = observer;
  return out;
}

double stated_bf16_tflops(const std::string& device_name) {
  constexpr std::pair<const char*, double> kCards[] = {{"H200", 989.4}, {"H100 PCIe", 756.0}, {"H100", 989.4},
                                                       {"A100", 311.9}, {"L40S", 362.0},      {"4090", 165.2}};
  for (const auto& [name, tflops] : kCards)
    if (device_name.find(name) != std::string::npos) return tflops;
  return 0;
}

}  // namespace sfa
