#include "attention/flash/cpu/driver.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "attention/flash/cpu/tuning.h"
#include "core/dtype.h"

namespace sfa::flash_cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// `floats` of workspace for each of `units` or as many threads as there are, whichever is less.
struct Workspaces {
  Workspaces(Arena& scratch, std::int64_t units, std::int64_t floats)
      : threads(static_cast<int>(std::clamp<std::int64_t>(units, 1, omp_get_max_threads()))),
        memory(scratch.take(DType::f32, {threads, divide_up(floats, 64) * 64})) {}
  [[nodiscard]] float* mine() const { return memory.as<float>() + omp_get_thread_num() * memory.stride[0]; }
  int threads;
  Tensor memory;  // [threads, floats]
};

// Keys of a decode unit: a multiple of the tile that gives at most kDecodeParts units a head.
std::int64_t decode_stretch(std::int64_t Tk) {
  return std::max<std::int64_t>(kDecodeKeys, divide_up(divide_up(Tk, kDecodeParts), kTileKeys) * kTileKeys);
}

// Joins the stretches of each row by their highest scores (in units of log2), in order.
void join_stretches(const Problem& p, const float* partials, std::int64_t parts) {
  const std::int64_t group = p.group(), row = p.Dv + 2, rows = group * p.Tq;
#pragma omp for collapse(2) schedule(static)
  for (std::int64_t bg = 0; bg < p.B * p.G; ++bg)
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t b = bg / p.G, h = bg % p.G * group + r / p.Tq, i = r % p.Tq;
      const float* first = partials + (bg * parts * rows + r) * row;
      float top = kMinusInfinity, total = 0;
      for (std::int64_t s = 0; s < parts; ++s) top = std::max(top, first[s * rows * row + p.Dv]);
      float* out = p.out.at(b, i, h);
      std::fill_n(out, p.Dv, 0.0f);
      for (std::int64_t s = 0; s < parts; ++s) {
        const float* part = first + s * rows * row;
        if (part[p.Dv] == kMinusInfinity) continue;
        const float weight = std::exp2(part[p.Dv] - top);
        total += weight * part[p.Dv + 1];
        for (std::int64_t c = 0; c < p.Dv; ++c) out[c] += weight * part[c];
      }
      const bool empty = top == kMinusInfinity && total == 0;
      for (std::int64_t c = 0; c < p.Dv; ++c) {
        const float value = empty ? 0.0f : out[c] / total;
        out[c] = p.round_bf16 ? round_to_bf16(value) : value;
      }
      p.lse[(b * p.H + h) * p.Tq + i] = empty ? kMinusInfinity : (top + std::log2(total)) * std::numbers::ln2_v<float>;
    }
}

void decode(const Problem& p, const Workspaces& workspaces, float* partials) {
  const std::int64_t stretch = decode_stretch(p.Tk), parts = divide_up(p.Tk, stretch), rows = p.group() * p.Tq;
  const auto unit_kernel = kernels().decode;
#pragma omp parallel num_threads(workspaces.threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t u = 0; u < p.B * p.G * parts; ++u) {
      const std::int64_t bg = u / parts, s = u % parts;
      const DecodeUnit unit{bg / p.G, bg % p.G, s * stretch, std::min(p.Tk, (s + 1) * stretch),
                            partials + u * rows * (p.Dv + 2)};
      unit_kernel(p, unit, workspaces.mine());
    }
    join_stretches(p, partials, parts);
  }
}

void tiled(const Problem& p, const Workspaces& workspaces) {
  const std::int64_t tiles = divide_up(p.Tq, kForwardQueries), heads = p.B * p.H;
  const auto unit_kernel = kernels().forward;
  // Later queries see more keys: the long units come first.
#pragma omp parallel for num_threads(workspaces.threads) schedule(dynamic, 1)
  for (std::int64_t u = 0; u < tiles * heads; ++u) {
    const std::int64_t first = (tiles - 1 - u / heads) * kForwardQueries, bh = u % heads;
    unit_kernel(p, {bh / p.H, bh % p.H, first, static_cast<int>(std::min<std::int64_t>(kForwardQueries, p.Tq - first))},
                workspaces.mine());
  }
}

// delta_i = sum_c d_out[i,c] out[i,c]
void row_products(const Problem& p, float* delta) {
#pragma omp for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t h = 0; h < p.H; ++h)
      for (std::int64_t i = 0; i < p.Tq; ++i) {
        const float *x = p.d_out.at(b, i, h), *y = p.out.at(b, i, h);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < p.Dv; ++c) sum += x[c] * y[c];
        delta[(b * p.H + h) * p.Tq + i] = sum;
      }
}

// d_q = the sum of its parts, in order. Part 0 was written in place.
void join_parts(const Problem& p, const float* parts, std::int64_t count) {
#pragma omp for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t i = 0; i < p.Tq; ++i)
      for (std::int64_t h = 0; h < p.H; ++h) {
        float* row = p.d_q.at(b, i, h);
        for (std::int64_t s = 0; s + 1 < count; ++s) {
          const float* part = parts + (((s * p.B + b) * p.Tq + i) * p.H + h) * p.Dqk;
          for (int c = 0; c < p.Dqk; ++c) row[c] += part[c];
        }
        if (p.round_bf16)
          for (int c = 0; c < p.Dqk; ++c) row[c] = round_to_bf16(row[c]);
      }
}

}  // namespace

void forward(const Problem& p, Arena& scratch, bool planning) {
  ArenaScope scope(scratch);
  const std::int64_t tile = std::min<std::int64_t>(p.Tq, kForwardQueries),
                     few = std::min<std::int64_t>(p.Tq, kDecodeQueries);
  const std::int64_t most_parts = std::min<std::int64_t>(kDecodeParts, divide_up(p.Tk, kDecodeKeys));
  const Kernels& k = kernels();
  const std::int64_t units = std::max(p.B * p.H * divide_up(p.Tq, kForwardQueries), p.B * p.G * most_parts);
  const Workspaces workspaces(
      scratch, units,
      std::max(k.forward_workspace(p, static_cast<int>(tile)), k.decode_workspace(p, static_cast<int>(few))));
  const Tensor partials = scratch.take(DType::f32, {p.B * p.H * few, most_parts, p.Dv + 2});
  if (planning) return;
  if (p.Tq <= kDecodeQueries && p.Tk > kTileKeys)
    decode(p, workspaces, partials.as<float>());
  else
    tiled(p, workspaces);
}

void backward(const Problem& p, Arena& scratch, bool planning) {
  ArenaScope scope(scratch);
  const std::int64_t tiles = divide_up(p.Tk, kTileKeys);
  // Few heads: the key tiles of a head are dealt to several units, each with its own sums for d_q.
  const std::int64_t parts =
      std::clamp<std::int64_t>(divide_up(kBackwardUnits, p.B * p.G), 1,
                               std::min<std::int64_t>(kBackwardParts, std::max<std::int64_t>(tiles / 2, 1)));
  const Tensor delta = scratch.take(DType::f32, {p.B, p.H, p.Tq});
  const Tensor d_q = scratch.take(DType::f32, {parts - 1, p.B, p.Tq, p.H, p.Dqk});
  const Workspaces workspaces(
      scratch, p.B * p.G * parts,
      kernels().backward_workspace(p, static_cast<int>(std::min<std::int64_t>(p.Tq, kBackwardQueries))));
  if (planning) return;
  const auto unit_kernel = kernels().backward;
#pragma omp parallel num_threads(workspaces.threads)
  {
    row_products(p, delta.as<float>());
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t u = 0; u < p.B * p.G * parts; ++u) {
      const std::int64_t part = u / (p.B * p.G), bg = u % (p.B * p.G);
      Rows sums = p.d_q;
      if (part > 0) sums = {d_q.as<float>() + (part - 1) * d_q.stride[0], d_q.stride[1], d_q.stride[2], d_q.stride[3]};
      unit_kernel(p, {bg / p.G, bg % p.G, static_cast<int>(part), static_cast<int>(parts), sums, delta.as<float>()},
                  workspaces.mine());
    }
    if (parts > 1 || p.round_bf16) join_parts(p, d_q.as<float>(), parts);
  }
}

}  // namespace sfa::flash_cpu
