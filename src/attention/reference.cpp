#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/reference_cuda.h"
#include "core/build_config.h"

namespace sfa {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

const float* row_of(const Tensor& t, std::int64_t b, std::int64_t i, std::int64_t h) {
  return t.as<float>() + b * t.stride[0] + i * t.stride[1] + h * t.stride[2];
}
float* mutable_row_of(const Tensor& t, std::int64_t b, std::int64_t i, std::int64_t h) {
  return const_cast<float*>(row_of(t, b, i, h));
}

float dot(const float* a, const float* b, std::int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Do the ascending supports of a query and a key row share a feature?
bool overlap(const Tensor& qi, const Tensor& ki, std::int64_t b, std::int64_t i, std::int64_t h, std::int64_t j,
             std::int64_t g) {
  const std::uint8_t* a = qi.as<std::uint8_t>() + b * qi.stride[0] + i * qi.stride[1] + h * qi.stride[2];
  const std::uint8_t* c = ki.as<std::uint8_t>() + b * ki.stride[0] + j * ki.stride[1] + g * ki.stride[2];
  const std::int64_t na = qi.dim(3), nc = ki.dim(3);
  for (std::int64_t x = 0, y = 0; x < na && y < nc;) {
    if (a[x] == c[y]) return true;
    a[x] < c[y] ? ++x : ++y;
  }
  return false;
}

// The scores of one query row over its visible keys, -inf where masked by support.
void score_row(const ReferenceForward& a, std::int64_t b, std::int64_t i, std::int64_t h, Ranges::Span span, float* s) {
  const std::int64_t g = h / (a.q.dim(2) / a.k.dim(2)), D = a.q.dim(3);
  const float* q = row_of(a.q, b, i, h);
  const bool masked = !a.q_indices.empty();
  for (std::int64_t j = span.lo; j < span.hi; ++j) {
    s[j] = a.scale * dot(q, row_of(a.k, b, j, g), D);
    if (masked && j != i + a.ranges.query_offset && !overlap(a.q_indices, a.k_indices, b, i, h, j, g))
      s[j] = kMinusInfinity;
  }
}

void forward_row(const ReferenceForward& a, std::int64_t b, std::int64_t h, std::int64_t i, std::vector<float>& s,
                 bool round) {
  const std::int64_t g = h / (a.q.dim(2) / a.k.dim(2)), Dv = a.v.dim(3), Tq = a.q.dim(1);
  const Ranges::Span span = a.ranges.at(b, i, a.k.dim(1));
  score_row(a, b, i, h, span, s.data());
  float top = kMinusInfinity, total = 0;
  for (std::int64_t j = span.lo; j < span.hi; ++j) top = std::max(top, s[static_cast<std::size_t>(j)]);
  float* out = mutable_row_of(a.out, b, i, h);
  std::fill_n(out, Dv, 0.0f);
  float& lse = a.lse.as<float>()[(b * a.q.dim(2) + h) * Tq + i];
  if (top == kMinusInfinity) {
    lse = kMinusInfinity;
    return;
  }
  for (std::int64_t j = span.lo; j < span.hi; ++j) {
    const float p = std::exp(s[static_cast<std::size_t>(j)] - top);
    total += p;
    const float* v = row_of(a.v, b, j, g);
#pragma omp simd
    for (std::int64_t c = 0; c < Dv; ++c) out[c] += p * v[c];
  }
  for (std::int64_t c = 0; c < Dv; ++c) out[c] = round ? round_to_bf16(out[c] / total) : out[c] / total;
  lse = top + std::log(total);
}

// One query head's contribution; d_k and d_v of its group are added to.
void backward_head(const ReferenceBackward& a, std::int64_t b, std::int64_t h, std::vector<float>& s) {
  const ReferenceForward& f = a.forward;
  const std::int64_t g = h / (f.q.dim(2) / f.k.dim(2)), D = f.q.dim(3), Dv = f.v.dim(3), Tq = f.q.dim(1);
  for (std::int64_t i = 0; i < Tq; ++i) {
    const Ranges::Span span = f.ranges.at(b, i, f.k.dim(1));
    const float lse = f.lse.as<float>()[(b * f.q.dim(2) + h) * Tq + i];
    float* d_q = mutable_row_of(a.d_q, b, i, h);
    std::fill_n(d_q, D, 0.0f);
    if (lse == kMinusInfinity) continue;
    score_row(f, b, i, h, span, s.data());
    const float *d_out = row_of(a.d_out, b, i, h), *q = row_of(f.q, b, i, h);
    const float delta = dot(d_out, row_of(f.out, b, i, h), Dv);
    for (std::int64_t j = span.lo; j < span.hi; ++j) {
      const float p = std::exp(s[static_cast<std::size_t>(j)] - lse);
      const float *k = row_of(f.k, b, j, g), *v = row_of(f.v, b, j, g);
      const float d_s = f.scale * p * (dot(d_out, v, Dv) - delta);
      float *d_k = mutable_row_of(a.d_k, b, j, g), *d_v = mutable_row_of(a.d_v, b, j, g);
#pragma omp simd
      for (std::int64_t c = 0; c < Dv; ++c) d_v[c] += p * d_out[c];
#pragma omp simd
      for (std::int64_t c = 0; c < D; ++c) {
        d_q[c] += d_s * k[c];
        d_k[c] += d_s * q[c];
      }
    }
  }
}

void round_rows(const Tensor& t) {
  for (std::int64_t b = 0; b < t.dim(0); ++b)
    for (std::int64_t i = 0; i < t.dim(1); ++i)
      for (std::int64_t h = 0; h < t.dim(2); ++h) {
        float* row = mutable_row_of(t, b, i, h);
        for (std::int64_t c = 0; c < t.dim(3); ++c) row[c] = round_to_bf16(row[c]);
      }
}

void merge_cpu(const Context& ctx, const Tensor& out, const Tensor& lse, const Tensor& other_out,
               const Tensor& other_lse) {
  const std::int64_t B = out.dim(0), T = out.dim(1), H = out.dim(2), Dv = out.dim(3);
#pragma omp parallel for collapse(3) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t h = 0; h < H; ++h)
      for (std::int64_t i = 0; i < T; ++i) {
        float& mine = lse.as<float>()[b * lse.stride[0] + h * lse.stride[1] + i];
        const float theirs = other_lse.as<float>()[b * other_lse.stride[0] + h * other_lse.stride[1] + i];
        const float top = std::max(mine, theirs);
        if (top == kMinusInfinity) continue;
        const float joint = top + std::log(std::exp(mine - top) + std::exp(theirs - top));
        const float wa = std::exp(mine - joint), wb = std::exp(theirs - joint);
        float* o = mutable_row_of(out, b, i, h);
        const float* p = row_of(other_out, b, i, h);
        for (std::int64_t c = 0; c < Dv; ++c) {
          const float value = wa * o[c] + wb * p[c];
          o[c] = ctx.round_bf16 ? round_to_bf16(value) : value;
        }
        mine = joint;
      }
}

}  // namespace

void attention_reference_forward(Context& ctx, const ReferenceForward& args) {
  if (ctx.planning) return;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::attention_reference_forward(ctx, args);
  }
  const std::int64_t B = args.q.dim(0), Tq = args.q.dim(1), H = args.q.dim(2);
#pragma omp parallel
  {
    std::vector<float> scores(static_cast<std::size_t>(args.k.dim(1)));
#pragma omp for collapse(3) schedule(static)
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < Tq; ++i) forward_row(args, b, h, i, scores, ctx.round_bf16);
  }
}

void attention_reference_backward(Context& ctx, const ReferenceBackward& args) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::attention_reference_backward(ctx, args);
  }
  if (ctx.planning) return;
  const ReferenceForward& f = args.forward;
  const std::int64_t B = f.q.dim(0), Tk = f.k.dim(1), H = f.q.dim(2), G = f.k.dim(2);
#pragma omp parallel
  {
    std::vector<float> scores(static_cast<std::size_t>(Tk));
    // A thread owns a key head, so that its sums over query heads and rows run in a fixed order.
#pragma omp for collapse(2) schedule(static)
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t g = 0; g < G; ++g) {
        for (std::int64_t j = 0; j < Tk; ++j) {
          std::fill_n(mutable_row_of(args.d_k, b, j, g), f.k.dim(3), 0.0f);
          std::fill_n(mutable_row_of(args.d_v, b, j, g), f.v.dim(3), 0.0f);
        }
        for (std::int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) backward_head(args, b, h, scores);
      }
  }
  if (ctx.round_bf16)
    for (const Tensor& t : {args.d_q, args.d_k, args.d_v}) round_rows(t);
}

void attention_merge(Context& ctx, const Tensor& out, const Tensor& lse, const Tensor& other_out,
                     const Tensor& other_lse) {
  require(out.shape == other_out.shape && (out.dtype == other_out.dtype || out.dtype == DType::f32),
          "internal error: attention_merge: {} into {}", other_out, out);
  if (ctx.planning) return;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::attention_merge(ctx, out, lse, other_out, other_lse);
  }
  merge_cpu(ctx, out, lse, other_out, other_lse);
}

void cache_append(Context& ctx, const Tensor& from, const Tensor& cache, std::int64_t at) {
  ctx.copy_rows(cache.slice(1, at, from.dim(1)), from);
}

}  // namespace sfa
