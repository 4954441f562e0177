// The online softmax of the forward core on one warpgroup's scores, in registers and in base 2. Fragments are those of
// cuda/sm90_wgmma.cuh: a thread holds columns of two rows, 8 apart, which it shares with the other threads of its quad.
#pragma once

#include <cstdint>

#include "attention/flash/forward_schedule.cuh"
#include "cuda/exp2.cuh"

namespace sfa::flash {

/// A score that loses against every real one. A power of two: c S - c m is then exactly 0 for S = m = kMasked.
inline constexpr float kMasked = -0x1p100f;
inline constexpr float kRescaleBits = 8.0f;

/// Running maximum and sum of the two rows that a thread shares with its quad.
struct SoftmaxState {
  float maximum[2] = {kMasked, kMasked};
  float sum[2] = {0.0f, 0.0f};  // this thread's columns only
};

template <int kPeriod>
__device__ __forceinline__ float exp2_split(float x, int i) {
  if constexpr (kPeriod > 0)
    if (i % kPeriod == kPeriod - 1) return exp2_fma(x);
  return exp2_mufu(x);
}

/// Turns scores into unnormalised probabilities in place; factor[h] is what O's rows have to be multiplied by.
template <int kColumns, int kFmaPeriod>
__device__ __forceinline__ void softmax_step(float (&s)[kColumns / 2], SoftmaxState& state, float scale_log2,
                                             float (&factor)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float partial[4] = {s[2 * h], s[2 * h + 1], s[4 + 2 * h], s[5 + 2 * h]};
#pragma unroll
    for (int j = 2; j < kColumns / 8; j += 2) {
      partial[0] = fmaxf(partial[0], s[4 * j + 2 * h]);
      partial[1] = fmaxf(partial[1], s[4 * j + 2 * h + 1]);
      partial[2] = fmaxf(partial[2], s[4 * j + 4 + 2 * h]);
      partial[3] = fmaxf(partial[3], s[4 * j + 5 + 2 * h]);
    }
    float m = fmaxf(fmaxf(partial[0], partial[1]), fmaxf(partial[2], partial[3]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const bool grows = (m - state.maximum[h]) * scale_log2 > kRescaleBits;
    m = grows ? m : state.maximum[h];
    factor[h] = grows ? exp2_mufu((state.maximum[h] - m) * scale_log2) : 1.0f;
    state.maximum[h] = m;
    const float shift = -m * scale_log2;
    float total[4] = {state.sum[h] * factor[h], 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[4 * j + 2 * h + c];
        x = exp2_split<kFmaPeriod>(fmaf(x, scale_log2, shift), 2 * j + c);
        total[(2 * j + c) & 3] += x;
      }
    }
    state.sum[h] = (total[0] + total[1]) + (total[2] + total[3]);
  }
}

template <int kCount>
__device__ __forceinline__ void rescale(float (&o)[kCount], const float (&factor)[2]) {
  if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) o[i] *= factor[(i >> 1) & 1];
  }
}

/// Hides the keys that a row does not see; `row` is this thread's first query row, `column` the key of s[0].
template <int kColumns>
__device__ __forceinline__ void apply_mask(float (&s)[kColumns / 2], const ForwardArgs& args, int batch, int row,
                                           int column) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const KeyRange range = key_range(args, batch, row + 8 * h);
    const int first = range.lo - column;
    const unsigned count = static_cast<unsigned>(max(range.hi - range.lo, 0));
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (static_cast<unsigned>(8 * j + c - first) >= count) s[4 * j + 2 * h + c] = kMasked;
    }
  }
}

/// Columns beyond kColumns get probability 0.
template <int kKeys, int kColumns>
__device__ __forceinline__ void pack_probabilities(std::uint32_t (&p)[kKeys / 16][4], const float (&s)[kColumns / 2]) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[step][i] = step < kColumns / 16 ? pack_bf16(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]) : 0u;
  }
}

}  // namespace sfa::flash
