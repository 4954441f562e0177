#include <cmath>
#include <limits>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "optim/adamw_cuda.h"
#include "optim/update_rule.h"

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

// master and ema may be null: every thread of a launch takes the same branch.
template <class G, class P>
struct Pointers {
  const G* grad;
  float *master, *m, *v, *ema;
  P* param;
  const StepState* state;
  std::int64_t n, first;
  std::uint64_t seed;
  float beta1, beta2, eps, weight_decay, ema_decay;
  bool stochastic;
};

template <int WIDTH>
__device__ __forceinline__ void round_stochastically(float (&w)[WIDTH], std::uint64_t seed, std::int64_t update,
                                                     std::int64_t element) {
  const Random4 r =
      philox4(seed, kPurposeRounding, static_cast<std::uint64_t>(update), static_cast<std::uint32_t>(element / 4));
  if constexpr (WIDTH == 4) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) w[j] = stochastic_bf16(w[j], r.v[j]);
  } else {
    static_assert(WIDTH == 1);
    w[0] = stochastic_bf16(w[0], r.v[element % 4]);
  }
}

template <int WIDTH>
__device__ __forceinline__ void average(float* ema, const float (&w)[WIDTH], float share) {
  float e[WIDTH];
  load(e, ema);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) e[j] += share * (w[j] - e[j]);
  store(ema, e);
}

template <int WIDTH, class G, class P>
__device__ __forceinline__ void update(const Pointers<G, P>& p, const StepState& s, std::int64_t i) {
  float g[WIDTH], w[WIDTH], m[WIDTH], v[WIDTH];
  load(g, p.grad + i);
  if (p.master != nullptr)
    load(w, p.master + i);
  else
    load(w, p.param + i);
  load(m, p.m + i);
  load(v, p.v + i);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) {
    g[j] *= s.clip;
    m[j] = p.beta1 * m[j] + (1.0f - p.beta1) * g[j];
    v[j] = p.beta2 * v[j] + (1.0f - p.beta2) * g[j] * g[j];
    const float step = (m[j] * s.correction1) / (sqrtf(v[j] * s.correction2) + p.eps);
    w[j] -= s.lr * (step + p.weight_decay * w[j]);
  }
  store(p.m + i, m);
  store(p.v + i, v);
  const bool has_master = p.master != nullptr;
  const float share = p.ema != nullptr ? ema_weight(s.update, p.ema_decay) : 0.0f;
  if (has_master) {
    store(p.master + i, w);
    if (p.ema != nullptr) average<WIDTH>(p.ema + i, w, share);
  }
  if (p.stochastic) round_stochastically<WIDTH>(w, p.seed, s.update, p.first + i);
  if (static_cast<void*>(p.param) != static_cast<void*>(p.master)) store(p.param + i, w);
  if (!has_master && p.ema != nullptr) average<WIDTH>(p.ema + i, w, share);
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

template <int WIDTH, class P>
__global__ void round_kernel(const float* __restrict__ from, P* __restrict__ to, std::int64_t n, bool stochastic,
                             std::uint64_t seed, std::int64_t update, std::int64_t first) {
  const std::int64_t i = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * WIDTH;
  if (i >= n) return;
  if (i + WIDTH <= n) {
    float w[WIDTH];
    load(w, from + i);
    if (stochastic) round_stochastically<WIDTH>(w, seed, update, first + i);
    store(to + i, w);
    return;
  }
  for (std::int64_t j = i; j < n; ++j) {
    float w[1] = {from[j]};
    if (stochastic) round_stochastically<1>(w, seed, update, first + j);
    to[j] = from_float<P>(w[0]);
  }
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

void adamw_update(Context& ctx, const AdamW& args) {
  CudaState& state = ctx.cuda();
  const std::int64_t n = args.grad.numel();
  if (n == 0) return;
  for_float_type(args.grad.dtype, "adamw_update", [&]<class G>() {
    for_float_type(args.param.dtype, "adamw_update", [&]<class P>() {
      const Pointers<G, P> p{.grad = data_of<const G>(args.grad),
                             .master = data_of<float>(args.master),
                             .m = data_of<float>(args.m),
                             .v = data_of<float>(args.v),
                             .ema = data_of<float>(args.ema),
                             .param = data_of<P>(args.param),
                             .state = data_of<const StepState>(args.state),
                             .n = n,
                             .first = args.first,
                             .seed = args.seed,
                             .beta1 = args.beta1,
                             .beta2 = args.beta2,
                             .eps = args.eps,
                             .weight_decay = args.weight_decay,
                             .ema_decay = args.ema_decay,
                             .stochastic = args.stochastic};
      const bool vectors = aligned(p.grad, kWidth * sizeof(G)) && aligned(p.param, kWidth * sizeof(P)) &&
                           aligned(p.master, 16) && aligned(p.m, 16) && aligned(p.v, 16) && aligned(p.ema, 16);
      if (vectors)
        adamw_kernel<kWidth><<<blocks_for(n / kWidth + n % kWidth, kThreads), kThreads, 0, state.stream>>>(p);
      else
        adamw_kernel<1><<<blocks_for(n, kThreads), kThreads, 0, state.stream>>>(p);
    });
  });
  SFA_LAUNCH_CHECK();
}

void round_weights(Context& ctx, const RoundWeights& args) {
  const std::int64_t n = args.from.numel();
  if (n == 0) return;
  const bool stochastic = args.stochastic && args.update > 0;
  for_float_type(args.to.dtype, "round_weights", [&]<class P>() {
    const float* from = data_of<const float>(args.from);
    P* to = data_of<P>(args.to);
    const auto launch = [&](auto kernel, int width) {
      kernel<<<blocks_for(n, kThreads * width), kThreads, 0, ctx.cuda().stream>>>(from, to, n, stochastic, args.seed,
                                                                                  args.update, args.first);
    };
    aligned(from, 16) && aligned(to, kWidth * sizeof(P)) ? launch(round_kernel<kWidth, P>, kWidth)
                                                         : launch(round_kernel<1, P>, 1);
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
