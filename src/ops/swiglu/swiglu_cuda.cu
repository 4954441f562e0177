// One pass at the speed of memory: a thread takes vectors of eight features of gate and up.
#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "ops/swiglu/swiglu_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 2;  // vectors that a thread has on their way at once

// For what is rounded to bf16 the fast exponential and division are exact enough (and the quotient is 0 where the
// exponential is beyond 2^126); f32 gets the accurate ones.
template <class T>
__device__ __forceinline__ float sigmoid(float a) {
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-a));
  return 1.0f / (1.0f + expf(-a));
}

// Where vector i of [N,F] lies in [N,2F]: its offset of the gate half.
__device__ __forceinline__ std::int64_t gate_offset(unsigned i, unsigned row_vectors, int width) {
  const unsigned row = i / row_vectors;
  return (std::int64_t{i} + std::int64_t{row} * row_vectors) * width;
}

template <class T, int WIDTH>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ gate_up, T* __restrict__ y, unsigned vectors, unsigned row_vectors) {
  const std::int64_t F = std::int64_t{row_vectors} * WIDTH;
  const unsigned first = blockIdx.x * (kThreads * kVectors) + threadIdx.x;
  Vector<T, WIDTH> gate[kVectors], up[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const unsigned i = first + k * kThreads;
    if (i >= vectors) break;
    const T* from = gate_up + gate_offset(i, row_vectors, WIDTH);
    gate[k] = *reinterpret_cast<const Vector<T, WIDTH>*>(from);
    up[k] = *reinterpret_cast<const Vector<T, WIDTH>*>(from + F);
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const unsigned i = first + k * kThreads;
    if (i >= vectors) break;
    float out[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float a = to_float(gate[k].v[j]);
      out[j] = a * sigmoid<T>(a) * to_float(up[k].v[j]);
    }
    store(y + std::int64_t{i} * WIDTH, out);
  }
}

// Reads and writes that are not to stay in the caches: everything is touched once. Without the latter, writing three
// streams beside three that are read costs a quarter of the bandwidth.
template <class T, int WIDTH>
__device__ __forceinline__ void load_once(float (&to)[WIDTH], const T* from) {
  if constexpr (WIDTH * sizeof(T) == 16) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
    load(to, reinterpret_cast<const T*>(&words));
  } else {
    load(to, from);
  }
}
template <class T, int WIDTH>
__device__ __forceinline__ void store_once(T* to, const float (&from)[WIDTH]) {
  if constexpr (WIDTH * sizeof(T) == 16) {
    uint4 words;
    store(reinterpret_cast<T*>(&words), from);
    __stcs(reinterpret_cast<uint4*>(to), words);
  } else {
    store(to, from);
  }
}

// d_gate_up may be gate_up: a thread reads what it overwrites, and nobody else does.
template <class T, int WIDTH>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* gate_up, const T* d_y, T* d_gate_up, T* y, unsigned vectors, unsigned row_vectors) {
  const std::int64_t F = std::int64_t{row_vectors} * WIDTH;
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= vectors) return;
  const std::int64_t at = gate_offset(i, row_vectors, WIDTH);
  float gate[WIDTH], up[WIDTH], d[WIDTH], out[WIDTH];
  load_once(gate, gate_up + at);
  load_once(up, gate_up + at + F);
  load_once(d, d_y + std::int64_t{i} * WIDTH);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) {
    const float a = gate[j], s = sigmoid<T>(a);
    out[j] = a * s * up[j];
    gate[j] = d[j] * up[j] * s * (1.0f + a * (1.0f - s));
    up[j] = d[j] * a * s;
  }
  store_once(d_gate_up + at, gate);
  store_once(d_gate_up + at + F, up);
  if (y != nullptr) store_once(y + std::int64_t{i} * WIDTH, out);
}

// Calls f<WIDTH>(vectors, row_vectors) with the widest vectors that shapes and addresses allow.
template <class F, class... Pointers>
void for_width(const Tensor& y, F&& f, const Pointers*... pointers) {
  const std::int64_t N = y.dim(0), columns = y.dim(1);
  const bool wide = vectors_of_eight(columns, pointers...);
  const std::int64_t vectors = wide ? N * columns / 8 : N * columns;
  require(vectors < (std::int64_t{1} << 32) - kThreads * kVectors, "internal error: swiglu of {}", y);
  if (wide)
    f.template operator()<8>(static_cast<unsigned>(vectors), static_cast<unsigned>(columns / 8));
  else
    f.template operator()<1>(static_cast<unsigned>(vectors), static_cast<unsigned>(columns));
}

}  // namespace

void swiglu_forward(Context& ctx, const Tensor& gate_up, const Tensor& y) {
  CudaState& state = ctx.cuda();
  for_float_type(y.dtype, "swiglu_forward", [&]<class T>() {
    const T* from = data_of<const T>(gate_up);
    T* to = data_of<T>(y);
    for_width(
        y,
        [&]<int WIDTH>(unsigned vectors, unsigned row_vectors) {
          forward_kernel<T, WIDTH>
              <<<blocks_for(vectors, kThreads * kVectors), kThreads, 0, state.stream>>>(from, to, vectors, row_vectors);
        },
        from, to);
  });
  SFA_LAUNCH_CHECK();
}

void swiglu_backward(Context& ctx, const SwigluBackward& args) {
  CudaState& state = ctx.cuda();
  for_float_type(args.d_y.dtype, "swiglu_backward", [&]<class T>() {
    const T *from = data_of<const T>(args.gate_up), *d_y = data_of<const T>(args.d_y);
    T *to = data_of<T>(args.d_gate_up), *y = data_of<T>(args.y);
    for_width(
        args.d_y,
        [&]<int WIDTH>(unsigned vectors, unsigned row_vectors) {
          backward_kernel<T, WIDTH>
              <<<blocks_for(vectors, kThreads), kThreads, 0, state.stream>>>(from, d_y, to, y, vectors, row_vectors);
        },
        from, d_y, to, y);
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
