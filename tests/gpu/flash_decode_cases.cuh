// A decoding problem out of an attention problem: the same keys dense, or reduced to their k largest features by plain
// loops, stored as a cache stores them.
#pragma once

#include <memory>

#include "attention/flash/decode.h"
#include "gpu/flash_forward_cases.cuh"
#include "ops/select/support_format.h"

namespace sfa::test {

/// Rows [B, T, heads, D] reduced to their k largest magnitudes, ties to the lowest index. `crowded`: a row prefers one
/// stretch of 32 features, whatever their magnitudes, so that words of masks stay empty. A thread a row.
static __global__ void reduce_rows(const __nv_bfloat16* x, flash::Strides at, int B, int T, int heads, int D, int k,
                                   bool crowded, __nv_bfloat16* dense, __nv_bfloat16* values, std::uint8_t* indices,
                                   flash::Strides sparse_at) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= B * T * heads) return;
  const int h = n % heads, t = n / heads % T, b = n / heads / T;
  const __nv_bfloat16* row = x + b * at.batch + t * at.token + h * at.head;
  __nv_bfloat16* full = dense + static_cast<std::int64_t>(n) * D;
  const std::int64_t to = b * sparse_at.batch + t * sparse_at.token + h * sparse_at.head;
  for (int c = 0; c < D; ++c) full[c] = __float2bfloat16(0.0f);
  const auto rank = [&](int c) {
    const bool preferred = crowded && c / 32 == n % ((D + 31) / 32);
    return fabsf(__bfloat162float(row[c])) + (preferred ? 1000.0f : 0.0f);
  };
  int stored = 0;
  for (int c = 0; c < D; ++c) {
    const float mine = rank(c);
    int before = 0;
    for (int o = 0; o < D; ++o) {
      const float other = rank(o);
      before += other > mine || (other == mine && o < c);
    }
    if (before >= k) continue;
    full[c] = values[to + stored] = row[c];
    indices[to + stored++] = static_cast<std::uint8_t>(c);
  }
}

/// Rows of k feature numbers to rows of one bit a feature, both at a constant distance.
static __global__ void pack_masks(const std::uint8_t* numbers, std::size_t rows, int k, std::uint8_t* masks,
                                  int bytes) {
  for (std::size_t n = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; n < rows;
       n += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    for (int c = 0; c < bytes; ++c) masks[n * bytes + c] = 0;
    for (int i = 0; i < k; ++i) {
      const int f = numbers[n * k + i];
      if (f < 8 * bytes) masks[n * bytes + f / 8] |= 1u << f % 8;  // tokens that are not there have none
    }
  }
}

/// Sparse queries, token by token, and keys, head by head, with the dense rows that they stand for.
struct SparseProblem {
  int k, mask_bytes;
  DeviceBuffer<__nv_bfloat16> q_dense, k_dense, q_values, k_values;
  DeviceBuffer<std::uint8_t> q_indices, k_indices, k_masks;
  std::int64_t capacity;  // of the cache, a multiple of 16

  static std::size_t rows(const flash::Shape& s, int T, int heads) { return static_cast<std::size_t>(s.B) * T * heads; }
  SparseProblem(const flash::ForwardParams& p, int active, bool crowded = false)
      : k(active),
        mask_bytes(static_cast<int>(sfa::mask_bytes(p.shape.Dqk))),
        q_dense(rows(p.shape, p.shape.Tq, p.shape.H) * p.shape.Dqk),
        k_dense(rows(p.shape, p.shape.Tk, p.shape.G) * p.shape.Dqk),
        q_values(rows(p.shape, p.shape.Tq, p.shape.H) * active),
        k_values(rows(p.shape, p.shape.Tk + 24, p.shape.G) * active),
        q_indices(q_values.count()),
        k_indices(k_values.count()),
        k_masks(rows(p.shape, p.shape.Tk + 24, p.shape.G) * static_cast<std::size_t>(mask_bytes)),
        capacity((p.shape.Tk + 17) / 16 * 16) {
    const flash::Shape& s = p.shape;
    k_values.poison();
    k_indices.poison();
    const auto reduce = [&](const void* x, const flash::Strides& at, int T, int heads, __nv_bfloat16* dense,
                            __nv_bfloat16* values, std::uint8_t* indices, const flash::Strides& sparse_at) {
      const int n = s.B * T * heads;
      reduce_rows<<<(n + 127) / 128, 128>>>(static_cast<const __nv_bfloat16*>(x), at, s.B, T, heads, s.Dqk, k, crowded,
                                            dense, values, indices, sparse_at);
      SFA_CHECK_CUDA(cudaGetLastError());
    };
    reduce(p.q, p.q_stride, s.Tq, s.H, q_dense.get(), q_values.get(), q_indices.get(), q_stride(s));
    reduce(p.k, p.k_stride, s.Tk, s.G, k_dense.get(), k_values.get(), k_indices.get(), k_stride(s));
    pack_masks<<<128, 256>>>(k_indices.get(), static_cast<std::size_t>(s.B) * s.G * capacity, k, k_masks.get(),
                             mask_bytes);
    SFA_CHECK_CUDA(cudaGetLastError());
  }
  [[nodiscard]] flash::Strides q_stride(const flash::Shape& s) const {
    return {std::int64_t{s.Tq} * s.H * k, std::int64_t{s.H} * k, k};
  }
  [[nodiscard]] flash::Strides k_stride(const flash::Shape& s) const { return by_head(s, k); }
  [[nodiscard]] flash::Strides by_head(const flash::Shape& s, std::int64_t width) const {
    return {s.G * capacity * width, width, capacity * width};
  }

  /// What the oracle multiplies.
  [[nodiscard]] flash::ForwardParams oracle(flash::ForwardParams p) const {
    const flash::Shape& s = p.shape;
    p.q = q_dense.get();
    p.q_stride = {std::int64_t{s.Tq} * s.H * s.Dqk, std::int64_t{s.H} * s.Dqk, s.Dqk};
    p.k = k_dense.get();
    p.k_stride = {std::int64_t{s.Tk} * s.G * s.Dqk, std::int64_t{s.G} * s.Dqk, s.Dqk};
    return p;
  }
  /// Keys with numbers, or with masks.
  void fill(flash::DecodeParams& d, bool masks) const {
    const flash::Shape& s = d.shape;
    d.q = d.k = nullptr;
    d.q_sparse = {q_values.get(), q_indices.get(), k, q_stride(s), q_stride(s)};
    if (masks)
      d.k_sparse = {k_values.get(), k_masks.get(), k, k_stride(s), by_head(s, mask_bytes), mask_bytes};
    else
      d.k_sparse = {k_values.get(), k_indices.get(), k, k_stride(s), k_stride(s)};
  }
  [[nodiscard]] bool fits(const flash::Shape& s, bool masks) const {
    return flash::decode_sparse_fits(s, 2 * k + (masks ? mask_bytes : k));
  }
};

/// Rows as int8 with a scale, and the bf16 rows that they stand for: products of an int8 and a scale with a short
/// mantissa, so that they are bf16 numbers exactly. A thread a row.
static __global__ void quantize_rows(const __nv_bfloat16* x, flash::Strides at, int B, int T, int G, int width,
                                     __nv_bfloat16* exact, std::int8_t* values, __nv_bfloat16* scales,
                                     std::int64_t capacity, int row) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= B * T * G) return;
  const int g = n % G, t = n / G % T, b = n / G / T;
  const __nv_bfloat16* from = x + b * at.batch + t * at.token + g * at.head;
  float most = 0;
  for (int c = 0; c < width; ++c) most = fmaxf(most, fabsf(__bfloat162float(from[c])));
  const float scale = exp2f(ceilf(log2f(fmaxf(most, 1e-20f) / 127.0f)));
  const std::int64_t to = (static_cast<std::int64_t>(b) * G + g) * capacity + t;
  scales[to] = __float2bfloat16(scale);
  for (int c = 0; c < width; ++c) {
    const int stored = __float2int_rn(__bfloat162float(from[c]) / scale);
    values[to * row + c] = static_cast<std::int8_t>(stored);
    exact[static_cast<std::int64_t>(n) * width + c] = __float2bfloat16(scale * static_cast<float>(stored));
  }
}

/// Keys or values of `width` features as a cache in 8 bits has them, head by head.
struct Int8Cache {
  int width, row;  // features; bytes of a row
  std::int64_t G, Tk, capacity;
  DeviceBuffer<__nv_bfloat16> exact, scales;
  DeviceBuffer<std::int8_t> values;

  Int8Cache(const flash::Shape& s, const void* x, const flash::Strides& at, int features)
      : width(features),
        row((features + 15) / 16 * 16),
        G(s.G),
        Tk(s.Tk),
        capacity((s.Tk + 17) / 16 * 16),
        exact(static_cast<std::size_t>(s.B) * s.Tk * s.G * features),
        scales(static_cast<std::size_t>(s.B * s.G * capacity)),
        values(scales.count() * static_cast<std::size_t>(row)) {
    scales.poison();
    values.poison();
    const int n = s.B * s.Tk * s.G;
    quantize_rows<<<(n + 127) / 128, 128>>>(static_cast<const __nv_bfloat16*>(x), at, s.B, s.Tk, s.G, width,
                                            exact.get(), values.get(), scales.get(), capacity, row);
    SFA_CHECK_CUDA(cudaGetLastError());
  }
  [[nodiscard]] flash::Strides exact_stride() const { return {Tk * G * width, G * width, width}; }
  [[nodiscard]] flash::Strides stride() const { return {G * capacity * row, row, capacity * row}; }
  [[nodiscard]] flash::Strides scale_stride() const { return {G * capacity, 1, capacity}; }
};

/// Values, or keys too, in 8 bits: what the oracle reads, and what the kernel reads.
inline void oracle_values(const Int8Cache& v, flash::ForwardParams& p) {
  p.v = v.exact.get();
  p.v_stride = v.exact_stride();
}
inline void oracle_keys(const Int8Cache& k, flash::ForwardParams& p) {
  p.k = k.exact.get();
  p.k_stride = k.exact_stride();
}
inline void fill_values(const Int8Cache& v, flash::DecodeParams& d) {
  d.v = v.values.get();
  d.v_scale = v.scales.get();
  d.v_stride = v.stride();
  d.v_scale_stride = v.scale_stride();
}
inline void fill_keys(const Int8Cache& k, flash::DecodeParams& d) {
  d.k = k.values.get();
  d.k_scale = k.scales.get();
  d.k_stride = k.stride();
  d.k_scale_stride = k.scale_stride();
}

inline flash::DecodeParams decode_params(const flash::ForwardParams& p, void* workspace) {
  flash::DecodeParams d;
  d.shape = p.shape;
  d.ranges = p.ranges;
  d.scale = p.scale;
  d.q = p.q;
  d.k = p.k;
  d.v = p.v;
  d.out = p.out;
  d.lse = p.lse;
  d.q_stride = p.q_stride;
  d.k_stride = p.k_stride;
  d.v_stride = p.v_stride;
  d.out_stride = p.out_stride;
  d.workspace = workspace;
  return d;
}

}  // namespace sfa::test
