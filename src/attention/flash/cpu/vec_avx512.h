// 16 floats a vector, 32 registers: AVX-512 F, BW, DQ, VL. Only kernels_avx512.cpp includes this file; everything that
// is compiled with these instructions is a template over the vector type, so that the linker can't pick such code for
// another processor.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace sfa::flash_cpu {

struct Avx512 {
  using F = __m512;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  // Register blocks of the matrix product: rows for a panel of 1, 2, 3, 4 vectors (rows * vectors accumulators +
  // vectors + 1 <= 32).
  static constexpr int kPanel = 4;
  static constexpr int kRowsOf[5] = {0, 12, 12, 8, 6};

  // Vectors of a row of O that the product by lists holds twice.
  static constexpr int kListPanel = 8;
  // Rows of sparse scores taken together.
  static constexpr int kScoreRows = 2;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static float highest(F x) { return _mm512_reduce_max_ps(x); }
  static bool any_greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

  /// Lanes i with lo <= i < hi.
  static Mask range(int lo, int hi) {
    const auto below = [](int n) { return n <= 0 ? 0u : (n >= 16 ? 0xffffu : (1u << n) - 1u); };
    return static_cast<Mask>(below(hi) & ~below(lo));
  }
  static F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  static F load_masked(Mask m, const float* p) { return _mm512_maskz_loadu_ps(m, p); }
  static void store_masked(Mask m, float* p, F x) { _mm512_mask_storeu_ps(p, m, x); }
  static std::uint32_t nonzero(F x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ); }

  /// 2^x, minimax polynomial of degree 6 on [-1/2, 1/2], relative error below 2e-9 before rounding; 0 for x below -100
  /// and for -inf, so that no denormal number slows the products; NaN for NaN.
  static F exp2(F x) {
    const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F r = sub(x, n);
    F p = set(1.5345812e-4f);
    p = fma(p, r, set(1.3399931e-3f));
    p = fma(p, r, set(9.6184891e-3f));
    p = fma(p, r, set(5.5503286e-2f));
    p = fma(p, r, set(2.4022646e-1f));
    p = fma(p, r, set(6.9314718e-1f));
    p = fma(p, r, set(1.0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, set(-100.0f), _CMP_NLT_UQ), p, n);
  }

  /// The lower half plus the upper half.
  static __m256 half(F x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
};

}  // namespace sfa::flash_cpu
