// The arithmetic of QK-norm and rotation on a GPU, step by step as it is rounded, for every kernel that does it:
// products and sums are spelled out, so that no two kernels differ in which of them the compiler fuses. Bits are the
// same where a head's features are shared among threads alike: each sums its own pairs in ascending order, then
// warp_sum.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/reduce.cuh"
#include "ops/qk_norm_rope/qk_norm_rope.h"

namespace sfa::cuda_ops {

inline constexpr int kMaxHalf = 128;  // pairs of a head: D up to 256

/// Turns of the pairs from one position to the next, f_i / (2 pi).
struct Turns {
  double per_position[kMaxHalf];
};

inline Turns turns_of(std::int64_t D, double theta) {
  Turns turns{};
  const std::vector<double> radians = rope_frequencies(D, theta);
  for (std::size_t i = 0; i < radians.size(); ++i) turns.per_position[i] = radians[i] / (2 * 3.14159265358979323846);
  return turns;
}

/// The angle of a pair that turns so far from one position to the next; whole turns are taken off in f64.
__device__ __forceinline__ void angle_at(double position, double turns, float& sine, float& cosine) {
  const double turn = __dmul_rn(position, turns);
  sincospif(2.0f * static_cast<float>(__dsub_rn(turn, rint(turn))), &sine, &cosine);
}

/// Adds one pair to a thread's share of a head's sum of squares.
__device__ __forceinline__ float add_squares(float sum, float low, float high) {
  return __fadd_rn(sum, __fmaf_rn(low, low, __fmul_rn(high, high)));
}

/// 1/sqrt(mean of squares + eps) from the shares of the LANES threads of a head; per_feature: 1/D.
template <int LANES>
__device__ __forceinline__ float rstd_of(float squares, float per_feature, float eps) {
  return __frsqrt_rn(__fmaf_rn(warp_sum<LANES>(squares), per_feature, eps));
}

/// One pair as projected becomes normed, weighted and rotated; not yet rounded.
__device__ __forceinline__ void norm_and_rotate(float& low, float& high, float rstd, float low_weight,
                                                float high_weight, float cosine, float sine) {
  const float a = __fmul_rn(__fmul_rn(low, rstd), low_weight), b = __fmul_rn(__fmul_rn(high, rstd), high_weight);
  low = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
  high = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
}

}  // namespace sfa::cuda_ops
