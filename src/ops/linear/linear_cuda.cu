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

// a [N,O] += bias, in place.
template <class T>
__global__ void add_bias_kernel(T* a, const T* __restrict__ bias, std::int64_t n, std::int64_t O) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < n) a[i] = from_float<T>(to_float(a[i]) + to_float(bias[i % O]));
}

template <class T>
__global__ void gelu_kernel(const T* __restrict__ pre, T* __restrict__ y, std::int64_t n) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < n) y[i] = from_float<T>(gelu(to_float(pre[i])));
}

// d *= gelu'(pre), in place.
template <class T>
__global__ void gelu_backward_kernel(const T* __restrict__ pre, T* d, std::int64_t n) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < n) d[i] = from_float<T>(to_float(d[i]) * gelu_derivative(to_float(pre[i])));
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

void input_gradient(CudaState& state, const LinearBackward& args) {
  const std::int64_t N = args.x.dim(0), I = args.x.dim(1), O = args.weight.dim(0);
  Gemm g{.M = N, .N = I, .K = O, .a = matrix(args.d_y), .b = matrix(args.weight), .d = matrix(args.d_x)};
  const bool through_gelu = !args.pre_of_x.empty();
  if (through_gelu && args.d_x.dtype == DType::bf16 && I % 8 == 0) {
    g.epilogue = Epilogue::gelu_derivative;
    g.pre = matrix(args.pre_of_x);
    if (gemm(state, g)) return;
    g.epilogue = Epilogue::none;
  }
  gemm(state, g);
  if (!through_gelu) return;
  const std::int64_t n = N * I;
  for_float_type(args.d_x.dtype, "linear_backward", [&]<class T>() {
    gelu_backward_kernel<T><<<blocks_for(n, kThreads), kThreads, 0, state.stream>>>(data_of<const T>(args.pre_of_x),
                                                                                    data_of<T>(args.d_x), n);
  });
  SFA_LAUNCH_CHECK();
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
  const std::int64_t n = N * O;
  for_float_type(args.y.dtype, "linear_forward", [&]<class T>() {
    gelu_kernel<T>
        <<<blocks_for(n, kThreads), kThreads, 0, state.stream>>>(data_of<const T>(args.pre), data_of<T>(args.y), n);
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
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  {
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
  input_gradient(state, args);
}

}  // namespace sfa::cuda_ops
