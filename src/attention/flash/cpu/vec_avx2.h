// 8 floats a vector, 16 registers: AVX2 and FMA, the baseline of every build.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace sfa::flash_cpu {

struct Avx2 {
  using F = __m256;
  using Mask = __m256i;
  static constexpr int kLanes = 8;
  // Register blocks of the matrix product: rows for a panel of 1, 2 vectors (rows * vectors accumulators + vectors + 1
  // <= 16).
  static constexpr int kPanel = 2;
  static constexpr int kRowsOf[3] = {0, 8, 6};

  // Vectors of a row of O that the product by lists holds twice.
  static constexpr int kListPanel = 4;
  // Rows of sparse scores taken together.
  static constexpr int kScoreRows = 1;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(F x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float highest(F x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static bool any_greater(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }

  /// Lanes i with lo <= i < hi.
  static Mask range(int lo, int hi) {
    const __m256i iota = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), iota),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), iota));
  }
  static F select(Mask m, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
  static F load_masked(Mask m, const float* p) { return _mm256_maskload_ps(p, m); }
  static void store_masked(Mask m, float* p, F x) { _mm256_maskstore_ps(p, m, x); }
  static std::uint32_t nonzero(F x) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }

  /// 2^x as in vec_avx512.h.
  static F exp2(F x) {
    const F tiny = set(-100.0f);
    const F low = _mm256_cmp_ps(x, tiny, _CMP_LT_OQ);
    const F clamped =
        _mm256_max_ps(tiny, _mm256_min_ps(set(127.9f), x));  // NaN is the second operand, so it passes through both
    const F n = _mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F r = sub(clamped, n);
    F p = set(1.5345812e-4f);
    p = fma(p, r, set(1.3399931e-3f));
    p = fma(p, r, set(9.6184891e-3f));
    p = fma(p, r, set(5.5503286e-2f));
    p = fma(p, r, set(2.4022646e-1f));
    p = fma(p, r, set(6.9314718e-1f));
    p = fma(p, r, set(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_andnot_ps(low, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power)));
  }

  static __m256 half(F x) { return x; }
};

}  // namespace sfa::flash_cpu
