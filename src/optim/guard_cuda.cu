// decide_step: one block; sums in a fixed order, medians by counting ranks, then one thread decides (guard_rule.h).
// locate_gradient, note_gradients: a launch each, which end at once unless this step has an event.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "optim/guard_cuda.h"
#include "optim/guard_rule.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;

__device__ double sum_of(const double* partials) {
  static_assert(kNormPartials % kThreads == 0);
  double sum = 0;
  for (std::int64_t p = threadIdx.x; p < kNormPartials; p += kThreads) sum += partials[p];
  return block_sum<kThreads>(sum);
}

// The value of rank n / 2, averaged with the one below it when n is even. Equal values are ranked by their place, so
// that every rank is taken once. All threads of the block call it; `x` lies in shared memory.
__device__ float median(const float* x, int n) {
  __shared__ float middle[2];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const float mine = x[i];
    int rank = 0;
    for (int j = 0; j < n; ++j) rank += x[j] < mine || (x[j] == mine && j < i) ? 1 : 0;
    if (rank == n / 2) middle[1] = mine;
    if (rank == n / 2 - 1) middle[0] = mine;
  }
  __syncthreads();
  return n % 2 == 1 ? middle[1] : 0.5f * (middle[0] + middle[1]);
}

__device__ RobustSpread spread_of(const float* values, int n) {
  __shared__ float x[kGuardWindow];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) x[i] = values[i];
  RobustSpread s;
  s.median = median(x, n);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) x[i] = fabsf(x[i] - s.median);
  s.deviation = median(x, n);
  return s;
}

struct DecisionMemory {
  const double *partials, *small_partials, *loss;  // the last two may be null
  StepState* state;
  GuardState* guard;
  float* window;  // null: no window
  std::int64_t window_size;
};

__global__ void decide_kernel(const DecisionMemory a, const DecisionRule rule) {
  StepInputs in;
  in.square = sum_of(a.partials);
  in.measure_noise = a.small_partials != nullptr;
  if (in.measure_noise) in.small_square = sum_of(a.small_partials);
  in.window_size = a.window_size;
  if (window_full(*a.guard, in.window_size)) {
    in.losses = spread_of(a.window, static_cast<int>(in.window_size));
    in.norms = spread_of(a.window + in.window_size, static_cast<int>(in.window_size));
  }
  __syncthreads();  // all have read what the one below changes
  if (threadIdx.x != 0) return;
  if (a.loss != nullptr) in.loss = static_cast<float>(*a.loss * a.state->loss_scale);
  decide(in, rule, *a.state, *a.guard, a.window);
}

// Block (part, parameter).
template <class G>
__global__ void locate_sums_kernel(const G* __restrict__ grad, const std::int64_t* __restrict__ spans, double* sums,
                                   const StepState* state) {
  if (state->event < 0) return;
  const G* g = grad + spans[2 * blockIdx.y];
  const std::int64_t n = spans[2 * blockIdx.y + 1];
  double sum = 0;
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < n; i += kLocateParts * kThreads) {
    const double x = to_float(g[i]);
    sum += x * x;
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) sums[blockIdx.y * kLocateParts + blockIdx.x] = sum;
}

__global__ void locate_finish_kernel(const double* __restrict__ sums, std::int64_t parameters, const StepState* state,
                                     GuardState* guard) {
  if (state->event < 0) return;
  GuardEvent e = guard->events[state->event % kGuardEvents];
  for (std::int64_t p = 0; p < parameters; ++p) {
    double square = 0;
    for (std::int64_t i = 0; i < kLocateParts; ++i) square += sums[p * kLocateParts + i];
    note_gradient(e, static_cast<std::int32_t>(p), square);
  }
  guard->events[state->event % kGuardEvents] = e;
}

}  // namespace

void decide_step(Context& ctx, const StepDecision& args) {
  const DecisionMemory memory{.partials = data_of<const double>(args.partials),
                              .small_partials = data_of<const double>(args.small_partials),
                              .loss = data_of<const double>(args.loss),
                              .state = data_of<StepState>(args.state),
                              .guard = data_of<GuardState>(args.guard),
                              .window = data_of<float>(args.window),
                              .window_size = args.window.empty() ? 0 : args.window.dim(1)};
  decide_kernel<<<1, kThreads, 0, ctx.cuda().stream>>>(memory, args.rule);
  SFA_LAUNCH_CHECK();
}

void locate_gradient(Context& ctx, const LocateGradient& args) {
  cudaStream_t stream = ctx.cuda().stream;
  const auto* spans = data_of<const std::int64_t>(args.spans);
  const auto* state = data_of<const StepState>(args.state);
  const std::int64_t parameters = args.spans.dim(0);
  require(parameters > 0 && parameters <= 65535, "internal error: locate_gradient: {} parameters", parameters);
  for_float_type(args.grad.dtype, "locate_gradient", [&]<class G>() {
    const dim3 grid(kLocateParts, static_cast<unsigned>(parameters));
    locate_sums_kernel<<<grid, kThreads, 0, stream>>>(data_of<const G>(args.grad), spans, data_of<double>(args.sums),
                                                      state);
  });
  SFA_LAUNCH_CHECK();
}

void note_gradients(Context& ctx, const LocateGradient& args) {
  const auto* state = data_of<const StepState>(args.state);
  locate_finish_kernel<<<1, 1, 0, ctx.cuda().stream>>>(data_of<const double>(args.sums), args.spans.dim(0), state,
                                                       data_of<GuardState>(args.guard));
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
