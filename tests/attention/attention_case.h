// One case of attention for tests: shapes, which keys are visible, inputs on a device, and the same in double for the
// oracle.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "attention/attention.h"
#include "attention/reference.h"
#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle.h"
#include "support/selection.h"

namespace sfa::test {

struct RangeCase {
  bool causal = true;
  std::int64_t query_offset = 0, window = 0;
  std::vector<std::int32_t> first_key;  // [B, Tq] or empty
};

using Visible = std::function<bool(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)>;

/// The definition in attention.h, key by key.
inline Visible visible(const RangeCase& r, std::int64_t Tq) {
  return [r, Tq](std::int64_t b, std::int64_t, std::int64_t i, std::int64_t j) {
    const std::int64_t p = i + r.query_offset;
    if (r.causal && j > p) return false;
    if (r.window > 0 && j < p + 1 - r.window) return false;
    return r.first_key.empty() || j >= r.first_key[static_cast<std::size_t>(b * Tq + i)];
  };
}

/// First keys of documents that start at uneven places; `offset` shifts the queries.
inline std::vector<std::int32_t> documents(std::int64_t B, std::int64_t Tq, std::int64_t offset) {
  std::vector<std::int32_t> first;
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t i = 0; i < Tq; ++i) {
      const std::int64_t p = i + offset, length = 3 + 2 * b;
      first.push_back(static_cast<std::int32_t>(p / length * length));
    }
  return first;
}

struct AttentionInputs {
  oracle::AttentionShape s;
  std::vector<float> q, k, v, d_out;
  explicit AttentionInputs(const oracle::AttentionShape& shape, float spread = 1.0f)
      : s(shape),
        q(normal(s.B * s.Tq * s.H * s.Dqk, 1, spread)),
        k(normal(s.B * s.Tk * s.G * s.Dqk, 2, spread)),
        v(normal(s.B * s.Tk * s.G * s.Dv, 3)),
        d_out(normal(s.B * s.Tq * s.H * s.Dv, 4)) {}
};

/// A layer's attention with its memory, planned as a model plans it.
struct PlannedLayer {
  std::unique_ptr<Attention> attention;
  Arena saved, scratch;
  AttentionState state;

  PlannedLayer(Context& ctx, const AttentionConfig& config, const AttentionDims& dims, std::int64_t B, std::int64_t T,
               DType type = DType::f32)
      : attention(make_attention(config, dims, ctx.device(), type)),
        saved("saved", ctx.device()),
        scratch("scratch", ctx.device()) {
    Context counting = Context::for_planning(ctx.device());
    if (config.k_from > 0) attention->activate({config.k_from, config.k_from});  // as training plans its steps
    const Tensor d_out(nullptr, type, ctx.device(), {B, T, dims.H, dims.Dv}),
        d_qkv(nullptr, type, ctx.device(), {B, T, dims.row()});
    state = attention->plan(saved, scratch, B, T);
    attention_forward(counting, *attention, state, {}, scratch);
    attention_backward(counting, *attention, state, {}, d_out, d_qkv, scratch);
    saved.bind();
    scratch.bind();
    state = attention->plan(saved, scratch, B, T);
  }
};

inline Ranges ranges_of(Pool& pool, const RangeCase& r, std::int64_t B, std::int64_t Tq) {
  return {.causal = r.causal,
          .query_offset = r.query_offset,
          .window = r.window,
          .first_key = r.first_key.empty() ? Tensor{} : pool.integers(r.first_key, {B, Tq})};
}

/// lse with -inf where no key is visible: compared apart, since a norm has no use for infinities.
inline void expect_lse(const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  std::vector<float> finite_got;
  std::vector<double> finite_want;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(want[i])) {
      ASSERT_EQ(got[i], -std::numeric_limits<float>::infinity()) << "row " << i << " sees no key";
      continue;
    }
    finite_got.push_back(got[i]);
    finite_want.push_back(want[i]);
  }
  EXPECT_TRUE(near_in_norm(finite_got, finite_want, tolerance));
}

/// The finite part of a naive lse, for tolerances.
inline double lse_tolerance(const std::vector<float>& naive, const std::vector<double>& exact) {
  std::vector<float> a;
  std::vector<double> b;
  for (std::size_t i = 0; i < naive.size(); ++i)
    if (!std::isinf(exact[i])) {
      a.push_back(naive[i]);
      b.push_back(exact[i]);
    }
  return derived_tolerance(a, b);
}

/// The gradient of a row that selection has zeroed outside its support.
inline std::vector<double> masked_by(std::vector<double> gradient, const std::vector<float>& support) {
  for (std::size_t i = 0; i < gradient.size(); ++i)
    if (support[i] == 0.0f) gradient[i] = 0.0;
  return gradient;
}

}  // namespace sfa::test
