#include <cmath>
#include <limits>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "optim/adamw_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;

bool aligned(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

// Block p adds into partials[p] the squares of the vectors p * kThreads + thread, + kNormPartials * kThreads, ...
template <int WIDTH, class G>
__global__ void norm_accumulate_kernel(const G* __restrict__ grad, std::int64_t n, double* partials) {
  constexpr std::int64_t kStride = kNormPartials * kThreads;
  const std::int64_t first = blockIdx.x * std::int64_t{kThreads} + threadIdx.x, vectors = n / WIDTH;
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = first; i < vectors; i += kStride) {
    float g[WIDTH];
    load(g, grad + i * WIDTH);
    double part = 0;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) part += static_cast<double>(g[j]) * static_cast<double>(g[j]);
    sum += part;
  }
  if (const std::int64_t i = vectors * WIDTH + first; i < n) {
    const double g = to_float(grad[i]);
    sum += g * g;
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] += sum;
}

__global__ void norm_finish_kernel(const double* __restrict__ partials, StepState* state) {
  static_assert(kNormPartials % kThreads == 0);
  double sum = 0;
  for (std::int64_t p = threadIdx.x; p < kNormPartials; p += kThreads) sum += partials[p];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  const float norm = static_cast<float>(sqrt(sum));
  state->grad_norm = norm;
  state->skip = isfinite(norm) ? 0 : 1;
  state->clip = state->max_norm > 0 ? fminf(1.0f, state->max_norm / (norm + 1e-6f)) : 1.0f;
}

template <class G, class P>
struct Pointers {
  const G* grad;
  float *master, *m, *v;
  P* param;
  const StepState* state;
  std::int64_t n;
  float beta1, beta2, eps, weight_decay;
};

template <int WIDTH, class G, class P>
__device__ __forceinline__ void update(const Pointers<G, P>& p, const StepState& s, std::int64_t i) {
  float g[WIDTH], master[WIDTH], m[WIDTH], v[WIDTH];
  load(g, p.grad + i);
  load(master, p.master + i);
  load(m, p.m + i);
  load(v, p.v + i);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) {
    g[j] *= s.clip;
    m[j] = p.beta1 * m[j] + (1.0f - p.beta1) * g[j];
    v[j] = p.beta2 * v[j] + (1.0f - p.beta2) * g[j] * g[j];
    const float step = (m[j] * s.correction1) / (sqrtf(v[j] * s.correction2) + p.eps);
    master[j] -= s.lr * (step + p.weight_decay * master[j]);
  }
  store(p.m + i, m);
  store(p.v + i, v);
  store(p.master + i, master);
  store(p.param + i, master);
}

// A thread owns one vector, the threads beyond the last whole vector one element each.
template <int WIDTH, class G, class P>
__global__ void adamw_kernel(const Pointers<G, P> p) {
  const StepState s = *p.state;
  if (s.skip != 0) return;
  const std::int64_t thread = blockIdx.x * std::int64_t{kThreads} + threadIdx.x, vectors = p.n / WIDTH;
  if (thread < vectors)
    update<WIDTH>(p, s, thread * WIDTH);
  else if (const std::int64_t i = vectors * WIDTH + (thread - vectors); i < p.n)
    update<1>(p, s, i);
}

}  // namespace

void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials) {
  CudaState& state = ctx.cuda();
  const std::int64_t n = grad.numel();
  for_float_type(grad.dtype, "gradient_norm_accumulate", [&]<class G>() {
    const G* g = data_of<const G>(grad);
    const auto launch = [&](auto kernel) {
      kernel<<<kNormPartials, kThreads, 0, state.stream>>>(g, n, data_of<double>(partials));
    };
    aligned(g, kWidth * sizeof(G)) ? launch(norm_accumulate_kernel<kWidth, G>) : launch(norm_accumulate_kernel<1, G>);
  });
  SFA_LAUNCH_CHECK();
}

void gradient_norm_finish(Context& ctx, const Tensor& partials, const Tensor& state) {
  norm_finish_kernel<<<1, kThreads, 0, ctx.cuda().stream>>>(data_of<const double>(partials), data_of<StepState>(state));
  SFA_LAUNCH_CHECK();
}

void adamw_update(Context& ctx, const AdamW& args) {
  CudaState& state = ctx.cuda();
  const std::int64_t n = args.master.numel();
  if (n == 0) return;
  for_float_type(args.grad.dtype, "adamw_update", [&]<class G>() {
    for_float_type(args.param.dtype, "adamw_update", [&]<class P>() {
      const Pointers<G, P> p{.grad = data_of<const G>(args.grad),
                             .master = data_of<float>(args.master),
                             .m = data_of<float>(args.m),
                             .v = data_of<float>(args.v),
                             .param = data_of<P>(args.param),
                             .state = data_of<const StepState>(args.state),
                             .n = n,
                             .beta1 = args.beta1,
                             .beta2 = args.beta2,
                             .eps = args.eps,
                             .weight_decay = args.weight_decay};
      const bool vectors = aligned(p.grad, kWidth * sizeof(G)) && aligned(p.param, kWidth * sizeof(P)) &&
                           aligned(p.master, 16) && aligned(p.m, 16) && aligned(p.v, 16);
      if (vectors)
        adamw_kernel<kWidth><<<blocks_for(n / kWidth + n % kWidth, kThreads), kThreads, 0, state.stream>>>(p);
      else
        adamw_kernel<1><<<blocks_for(n, kThreads), kThreads, 0, state.stream>>>(p);
    });
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
