#include "ops/linear/linear_cpu.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/simd.h"

// OpenBLAS has it; another BLAS is told through its own environment.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace sfa::cpu_ops {
namespace {

constexpr float kSqrt2OverPi = 0.7978845608028654f;
constexpr float kCubic = 0.044715f;

// tanh through one exponential, which the compiler vectorises where std::tanh stays scalar.
inline float tanh_fast(float x) {
  const float e = simd::exp(-2.0f * std::fabs(x));
  const float t = (1.0f - e) / (1.0f + e);
  return std::copysign(t, x);
}

inline float gelu(float a) {
  return 0.5f * a * (1.0f + tanh_fast(kSqrt2OverPi * (a + kCubic * a * a * a)));
}

inline float gelu_derivative(float a) {
  const float t = tanh_fast(kSqrt2OverPi * (a + kCubic * a * a * a));
  return 0.5f * (1.0f + t) + 0.5f * a * (1.0f - t * t) * kSqrt2OverPi * (1.0f + 3.0f * kCubic * a * a);
}

void add_row(float* row, const float* bias, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) row[i] += bias[i];
}

void gelu_row(float* row, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) row[i] = gelu(row[i]);
}

void round_row(float* row, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) row[i] = round_to_bf16(row[i]);
}

// d_bias [O] += sums over the rows of d_y [N,O]. Each column is one fixed-order sum, whatever the number of threads.
void bias_gradient(const float* d_y, std::int64_t N, std::int64_t O, float* d_bias) {
  constexpr std::int64_t kColumns = 64;
#pragma omp parallel for schedule(static)
  for (std::int64_t o0 = 0; o0 < O; o0 += kColumns) {
    float sum[kColumns] = {};
    const std::int64_t width = std::min(kColumns, O - o0);
    for (std::int64_t n = 0; n < N; ++n)
#pragma omp simd
      for (std::int64_t o = 0; o < width; ++o) sum[o] += d_y[n * O + o0 + o];
    for (std::int64_t o = 0; o < width; ++o) d_bias[o0 + o] += sum[o];
  }
}

}  // namespace

// Threads share out the rows of C and call BLAS for their own part, which therefore runs on one thread: one team of
// threads serves the whole program. BLAS with a team of its own (OpenBLAS on pthreads) fights the spinning threads of
// OpenMP for the cores.
void gemm(const Gemm& g) {
  if (g.M == 0 || g.N == 0) return;
  static const bool single = [] {
    const int team = omp_get_max_threads();
    if (openblas_set_num_threads) openblas_set_num_threads(1);
    omp_set_num_threads(team);  // OpenBLAS on OpenMP passes its number on to OpenMP itself
    return true;
  }();
  (void)single;
  constexpr std::int64_t kLeastRows = 32, kRound = 16;  // rows of a part: at the least, and a multiple of
  constexpr double kLeastWork = 4e5;  // multiply-adds a part, below which a thread is not worth waking
  const double work = static_cast<double>(g.M) * static_cast<double>(g.N) * static_cast<double>(g.K);
  const std::int64_t threads = std::max<std::int64_t>(
      1,
      std::min<std::int64_t>({omp_get_max_threads(), g.M / kLeastRows, static_cast<std::int64_t>(work / kLeastWork)}));
  const std::int64_t rows = ((g.M + threads - 1) / threads + kRound - 1) / kRound * kRound;
#pragma omp parallel for schedule(static) num_threads(static_cast <int>(threads)) if (threads > 1)
  for (std::int64_t m = 0; m < g.M; m += rows)
    cblas_sgemm(CblasRowMajor, g.transpose_a ? CblasTrans : CblasNoTrans, g.transpose_b ? CblasTrans : CblasNoTrans,
                static_cast<int>(std::min(rows, g.M - m)), static_cast<int>(g.N), static_cast<int>(g.K), g.alpha,
                g.transpose_a ? g.a + m : g.a + m * g.lda, static_cast<int>(g.lda), g.b, static_cast<int>(g.ldb),
                g.beta, g.c + m * g.ldc, static_cast<int>(g.ldc));
}

void linear_forward(Context& ctx, const LinearForward& args) {
  const std::int64_t N = args.x.dim(0), I = args.x.dim(1), O = args.weight.dim(0);
  float* y = args.y.as<float>();
  gemm({.transpose_b = true,
        .M = N,
        .N = O,
        .K = I,
        .a = args.x.as<float>(),
        .lda = I,
        .b = args.weight.as<float>(),
        .ldb = I,
        .c = y,
        .ldc = O});
  const float* bias = args.bias.empty() ? nullptr : args.bias.as<float>();
  float* pre = args.pre.empty() ? nullptr : args.pre.as<float>();
  if (bias == nullptr && pre == nullptr) return round_output(ctx, args.y);
  const bool round = ctx.round_bf16;
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    float* row = y + n * O;
    if (bias) add_row(row, bias, O);
    if (pre) {
      float* kept = pre + n * O;
      std::copy_n(row, O, kept);
      if (round) round_row(kept, O);
      gelu_row(row, O);
    }
    if (round) round_row(row, O);
  }
}

void gelu_forward(Context& ctx, const Tensor& pre, const Tensor& y) {
  const std::int64_t N = y.dim(0), O = y.dim(1);
  const float* from = pre.as<float>();
  float* to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    std::copy_n(from + n * O, O, to + n * O);
    gelu_row(to + n * O, O);
    if (ctx.round_bf16) round_row(to + n * O, O);
  }
}

void linear_backward(Context& ctx, const LinearBackward& args) {
  if (ctx.planning) return;
  const std::int64_t N = args.x.dim(0), I = args.x.dim(1), O = args.weight.dim(0);
  const float* d_y = args.d_y.as<float>();
  if (!args.d_bias.empty()) {
    const OpScope scope(ctx, [&] { return d_bias_work(args); });
    bias_gradient(d_y, N, O, args.d_bias.as<float>());
  }
  if (!args.d_weight.empty()) {
    const OpScope scope(ctx, [&] { return d_weight_work(args); });
    gemm({.transpose_a = true,
          .M = O,
          .N = I,
          .K = N,
          .a = d_y,
          .lda = O,
          .b = args.x.as<float>(),
          .ldb = I,
          .beta = 1.0f,
          .c = args.d_weight.as<float>(),
          .ldc = I});
  }
  if (args.d_x.empty()) return;
  const OpScope scope(ctx, [&] { return d_x_work(args); });
  float* d_x = args.d_x.as<float>();
  gemm({.M = N, .N = I, .K = O, .a = d_y, .lda = O, .b = args.weight.as<float>(), .ldb = I, .c = d_x, .ldc = I});
  if (!args.pre_of_x.empty()) {
    const float* pre = args.pre_of_x.as<float>();
    const std::int64_t n = N * I;
#pragma omp parallel for simd schedule(static)
    for (std::int64_t i = 0; i < n; ++i) d_x[i] *= gelu_derivative(pre[i]);
  }
  round_output(ctx, args.d_x);
  if (!args.d_pre_bias.empty()) bias_gradient(d_x, N, I, args.d_pre_bias.as<float>());
}

}  // namespace sfa::cpu_ops
