// Products by cuBLASLt. What its epilogues cannot do for the types at hand (f32, odd widths) runs as a pass of its own
// behind the product.
#include "cuda/columns.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "ops/linear/linear_cuda.h"

namespace sfa::cuda_ops {
namespace {

__device__ __forceinline__ float gelu_inner_tanh(float a) {
  return tanhf(0.7978845608028654f * (a + 0.044715f * a * a * a));
}
__device__ __forceinline__ float gelu(float a) {
  return 0.5f * a * (1.0f + gelu_inner_tanh(a));
}
__device__ __forceinline__ float gelu_derivative(float a) {
  const float t = gelu_inner_tanh(a);
  return 0.5f * (1.0f + t) + 0.5f * a * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 3.0f * 0.044715f * a * a);
}

// For what is rounded to bf16 anyway: tanh through ex2.approx and a fast division, good to about 1e-6. (For large
// arguments the exponential overflows to infinity and the quotient is 0, as it should.)
__device__ __forceinline__ float gelu_inner_tanh_fast(float a) {
  constexpr float kTwoLog2e = 2.8853900817779268f;
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(kTwoLog2e * 0.7978845608028654f * (a + 0.044715f * a * a * a)));
  return 1.0f - __fdividef(2.0f, fminf(e, 1e30f) + 1.0f);
}
__device__ __forceinline__ float gelu_derivative_fast(float a) {
  const float t = gelu_inner_tanh_fast(a);
  return 0.5f * (1.0f + t) + 0.5f * a * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 3.0f * 0.044715f * a * a);
}

// a [N,O] += bias, in place.
template <class T>
__global__ void add_bias_kernel(T* a, const T* __restrict__ bias, std::int64_t n, std::int64_t O) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < n) a[i] = from_float<T>(to_float(a[i]) + to_float(bias[i % O]));
}

template <class T, int WIDTH>
__global__ void gelu_kernel(const T* __restrict__ pre, T* __restrict__ y, std::int64_t n) {
  const std::int64_t i = (blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x) * WIDTH;
  if (i >= n) return;
  float a[WIDTH];
  load(a, pre + i);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j)
    a[j] = sizeof(T) == 2 ? 0.5f * a[j] * (1.0f + gelu_inner_tanh_fast(a[j])) : gelu(a[j]);
  store(y + i, a);
}

// d *= gelu'(pre), in place.
template <class T>
__global__ void gelu_backward_kernel(const T* __restrict__ pre, T* d, std::int64_t n) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < n) d[i] = from_float<T>(to_float(d[i]) * gelu_derivative(to_float(pre[i])));
}

constexpr int kSumRows = 8;       // rows that a block works on at a time
constexpr int kSumColumns = 256;  // 32 lanes of eight

// The same on rows of C, with partial sums of every column over chunks of rows: [chunks][C]. A lane owns eight
// columns. The last chunks come first: the product before has just left them in the L2 cache.
__global__ void __launch_bounds__(32 * kSumRows)
    gelu_backward_sums_kernel(const __nv_bfloat16* __restrict__ pre, __nv_bfloat16* __restrict__ d,
                              float* __restrict__ partials, std::int64_t N, std::int64_t C, std::int64_t chunk_rows) {
  __shared__ float part[kSumRows][kSumColumns];
  const std::int64_t c = blockIdx.x * std::int64_t{kSumColumns} + threadIdx.x * 8, chunk = gridDim.y - 1 - blockIdx.y;
  const std::int64_t begin = chunk * chunk_rows, end = min(N, begin + chunk_rows);
  float sum[8] = {};
  if (c < C) {
#pragma unroll 4
    for (std::int64_t n = begin + threadIdx.y; n < end; n += kSumRows) {
      float a[8], g[8];
      load(a, pre + n * C + c);
      load(g, d + n * C + c);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        g[j] = rounded<__nv_bfloat16>(g[j] * gelu_derivative_fast(a[j]));
        sum[j] += g[j];
      }
      store(d + n * C + c, g);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) part[threadIdx.y][j * 32 + threadIdx.x] = sum[j];
  __syncthreads();
  if (threadIdx.y != 0 || c >= C) return;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float total = 0;
#pragma unroll
    for (int y = 0; y < kSumRows; ++y) total += part[y][j * 32 + threadIdx.x];
    sum[j] = total;
  }
  store(partials + chunk * C + c, sum);
}

constexpr int kThreads = 256;

void product_with_bias(CudaState& state, Gemm g, const Tensor& bias, const Tensor& out) {
  if (!bias.empty()) {
    g.epilogue = Epilogue::bias;
    g.bias = bias.data;
    if (gemm(state, g)) return;
    g.epilogue = Epilogue::none;
  }
  gemm(state, g);
  if (bias.empty()) return;
  const std::int64_t n = out.numel();
  for_float_type(out.dtype, "linear_forward", [&]<class T>() {
    add_bias_kernel<T><<<blocks_for(n, kThreads), kThreads, 0, state.stream>>>(data_of<T>(out), data_of<const T>(bias),
                                                                               n, out.dim(1));
  });
  SFA_LAUNCH_CHECK();
}

Matrix matrix(const Tensor& t) {
  return {t.data, t.dtype, t.stride[0]};
}

// d_x *= gelu'(pre) and d_pre_bias += its sums over rows, in one pass. cuBLASLt's own epilogue for the derivative costs
// more than the pass, and the sums come for nothing here.
void gelu_backward(Context& ctx, const LinearBackward& args) {
  const std::int64_t N = args.d_x.dim(0), I = args.d_x.dim(1);
  // Enough chunks to fill the card, fixed by the shape alone.
  const std::int64_t chunks = std::min<std::int64_t>(ceil_div(N, 64), 256), chunk_rows = ceil_div(N, chunks);
  ArenaScope scope(args.scratch);
  const Tensor partials = args.scratch.take(DType::f32, {chunks, I});
  if (ctx.planning) {
    if (!args.d_pre_bias.empty()) add_column_sums(ctx, args.d_x, args.d_pre_bias, args.scratch);
    return;
  }
  CudaState& state = ctx.cuda();
  if (args.d_x.dtype == DType::bf16 &&
      vectors_of_eight(I, data_of<const __nv_bfloat16>(args.d_x), data_of<const __nv_bfloat16>(args.pre_of_x))) {
    const dim3 grid(blocks_for(I, kSumColumns), static_cast<unsigned>(chunks));
    gelu_backward_sums_kernel<<<grid, dim3(32, kSumRows), 0, state.stream>>>(
        data_of<const __nv_bfloat16>(args.pre_of_x), data_of<__nv_bfloat16>(args.d_x), data_of<float>(partials), N, I,
        chunk_rows);
    SFA_LAUNCH_CHECK();
    if (!args.d_pre_bias.empty())
      fold_partials(state, data_of<const float>(partials), static_cast<int>(chunks), I, args.d_pre_bias, I);
    return;
  }
  const std::int64_t n = N * I;
  for_float_type(args.d_x.dtype, "linear_backward", [&]<class T>() {
    gelu_backward_kernel<T><<<blocks_for(n, kThreads), kThreads, 0, state.stream>>>(data_of<const T>(args.pre_of_x),
                                                                                    data_of<T>(args.d_x), n);
  });
  SFA_LAUNCH_CHECK();
  if (!args.d_pre_bias.empty()) add_column_sums(ctx, args.d_x, args.d_pre_bias, args.scratch);
}

}  // namespace

void linear_forward(Context& ctx, const LinearForward& args) {
  CudaState& state = ctx.cuda();
  const std::int64_t N = args.x.dim(0), I = args.x.dim(1), O = args.weight.dim(0);
  if (N == 0) return;
  Gemm g{
      .transpose_b = true, .M = N, .N = O, .K = I, .a = matrix(args.x), .b = matrix(args.weight), .d = matrix(args.y)};
  if (args.pre.empty()) return product_with_bias(state, g, args.bias, args.y);
  if (args.y.dtype == DType::bf16 && O % 8 == 0 && !args.bias.empty()) {
    g.epilogue = Epilogue::gelu;
    g.bias = args.bias.data;
    g.pre = matrix(args.pre);
    if (gemm(state, g)) return;
    g.epilogue = Epilogue::none;
  }
  g.d = matrix(args.pre);
  product_with_bias(state, g, args.bias, args.pre);
  cuda_ops::gelu_forward(ctx, args.pre, args.y);
}

void gelu_forward(Context& ctx, const Tensor& pre, const Tensor& y) {
  CudaState& state = ctx.cuda();
  const std::int64_t n = y.numel();
  if (n == 0) return;
  for_float_type(y.dtype, "gelu_forward", [&]<class T>() {
    const T* from = data_of<const T>(pre);
    const auto launch = [&](auto kernel, int width) {
      kernel<<<blocks_for(n / width, kThreads), kThreads, 0, state.stream>>>(from, data_of<T>(y), n);
    };
    if (vectors_of_eight(n, from, data_of<const T>(y)))
      launch(gelu_kernel<T, 8>, 8);
    else
      launch(gelu_kernel<T, 1>, 1);
  });
  SFA_LAUNCH_CHECK();
}

void linear_backward(Context& ctx, const LinearBackward& args) {
  const std::int64_t N = args.x.dim(0), I = args.x.dim(1), O = args.weight.dim(0);
  if (N == 0) return;
  if (!args.d_bias.empty()) {
    const OpScope scope(ctx, [&] { return d_bias_work(args); });
    add_column_sums(ctx, args.d_y, args.d_bias, args.scratch);
  }
  if (ctx.planning) {
    if (!args.pre_of_x.empty() && !args.d_x.empty()) gelu_backward(ctx, args);
    return;
  }
  CudaState& state = ctx.cuda();
  if (!args.d_weight.empty()) {
    const OpScope scope(ctx, [&] { return d_weight_work(args); });
    gemm(state, {.transpose_a = true,
                 .accumulate = true,
                 .M = O,
                 .N = I,
                 .K = N,
                 .a = matrix(args.d_y),
                 .b = matrix(args.x),
                 .d = matrix(args.d_weight)});
  }
  if (args.d_x.empty()) return;
  const OpScope scope(ctx, [&] { return d_x_work(args); });
  gemm(state, {.M = N, .N = I, .K = O, .a = matrix(args.d_y), .b = matrix(args.weight), .d = matrix(args.d_x)});
  if (!args.pre_of_x.empty()) gelu_backward(ctx, args);
}

}  // namespace sfa::cuda_ops
