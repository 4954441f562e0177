// One attention problem on the device, its oracle and the comparison; shared by the forward checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gpu/flash_reference.cuh"

namespace sfa::test {

#define SFA_CHECK_CUDA(call)                                                                  \
  do {                                                                                        \
    const cudaError_t status_ = (call);                                                       \
    if (status_ != cudaSuccess) {                                                             \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_)); \
      std::exit(1);                                                                           \
    }                                                                                         \
  } while (false)

template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t count) : count_(count) { SFA_CHECK_CUDA(cudaMalloc(&data_, bytes() + 16)); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  T* get() const { return data_; }
  std::size_t count() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  void poison() const { SFA_CHECK_CUDA(cudaMemset(data_, 0xff, bytes())); }
  void zero() const { SFA_CHECK_CUDA(cudaMemset(data_, 0, bytes())); }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    SFA_CHECK_CUDA(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return host;
  }
  void upload(const std::vector<T>& host) const {
    SFA_CHECK_CUDA(cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice));
  }

 private:
  std::size_t count_;
  T* data_ = nullptr;
};

static __global__ void fill_normal(__nv_bfloat16* x, std::size_t count, std::uint32_t seed, float amplitude) {
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    std::uint32_t a = static_cast<std::uint32_t>(i) * 2654435761u ^ seed * 0x9E3779B9u;
    float u[2];
    for (float& f : u) {
      a ^= a >> 16, a *= 0x7feb352du, a ^= a >> 15, a *= 0x846ca68bu, a ^= a >> 16;
      f = ((a >> 8) + 0.5f) / 16777216.0f;
      a += 0x9E3779B9u;
    }
    x[i] = __float2bfloat16(amplitude * sqrtf(-2.0f * logf(u[0])) * cospif(2.0f * u[1]));
  }
}

struct Case {
  std::string name;
  flash::Shape shape;
  bool causal = true;
  int window = 0;
  int query_offset = 0;
  int document = 0;  // mean document length; 0: none
  float amplitude = 1.0f;
  int k = 0;  // features selected; 0: dense
};

/// Buffers of a problem: q, k, v packed side by side when Tq == Tk, otherwise apart; out rows padded by 8 elements that
/// the kernel must leave alone.
struct Problem {
  flash::ForwardParams params;
  DeviceBuffer<__nv_bfloat16> q, kv, out;
  DeviceBuffer<float> lse;
  DeviceBuffer<std::int32_t> first_key;
  DeviceBuffer<std::int32_t> counter{2};

  static std::size_t q_row(const flash::Shape& s) {
    return s.Tq == s.Tk ? static_cast<std::size_t>(s.H + s.G) * s.Dqk + s.G * s.Dv
                        : static_cast<std::size_t>(s.H) * s.Dqk;
  }
  static std::size_t kv_row(const flash::Shape& s) { return static_cast<std::size_t>(s.G) * (s.Dqk + s.Dv); }

  explicit Problem(const Case& c)
      : q(static_cast<std::size_t>(c.shape.B) * c.shape.Tq * q_row(c.shape)),
        kv(c.shape.Tq == c.shape.Tk ? 8 : static_cast<std::size_t>(c.shape.B) * c.shape.Tk * kv_row(c.shape)),
        out(static_cast<std::size_t>(c.shape.B) * c.shape.Tq * (static_cast<std::size_t>(c.shape.H) * c.shape.Dv + 8)),
        lse(static_cast<std::size_t>(c.shape.B) * c.shape.H * c.shape.Tq),
        first_key(static_cast<std::size_t>(c.shape.B) * c.shape.Tq) {
    const flash::Shape& s = c.shape;
    fill_normal<<<1024, 256>>>(q.get(), q.count(), 1u, c.amplitude);
    fill_normal<<<1024, 256>>>(kv.get(), kv.count(), 2u, c.amplitude);
    params.shape = s;
    params.scale = 1.0f / std::sqrt(static_cast<float>(s.Dqk));
    params.ranges.causal = c.causal;
    params.ranges.window = c.window;
    params.ranges.query_offset = c.query_offset;
    if (c.document > 0) {
      std::mt19937 random(7);
      std::vector<std::int32_t> host(first_key.count());
      for (int b = 0; b < s.B; ++b) {
        std::int32_t start = 0;
        for (int i = 0; i < s.Tq; ++i) {
          if (random() % static_cast<unsigned>(c.document) == 0) start = std::max(0, i + c.query_offset);
          host[static_cast<std::size_t>(b) * s.Tq + i] = start;
        }
      }
      first_key.upload(host);
      params.ranges.first_key = first_key.get();
    }
    const auto row = static_cast<std::int64_t>(q_row(s));
    params.q = q.get();
    params.q_stride = {s.Tq * row, row, s.Dqk};
    const bool packed = s.Tq == s.Tk;
    const auto kv_width = packed ? row : static_cast<std::int64_t>(kv_row(s));
    __nv_bfloat16* keys = packed ? q.get() + s.H * s.Dqk : kv.get();
    params.k = keys;
    params.k_stride = {s.Tk * kv_width, kv_width, s.Dqk};
    params.v = keys + s.G * s.Dqk;
    params.v_stride = {s.Tk * kv_width, kv_width, s.Dv};
    params.out = out.get();
    const std::int64_t out_row = static_cast<std::int64_t>(s.H) * s.Dv + 8;
    params.out_stride = {s.Tq * out_row, out_row, s.Dv};
    params.lse = lse.get();
    counter.zero();
  }
};

struct Errors {
  double max = 0, square = 0, plain_max = 0, plain_square = 0, lse_max = 0, plain_lse_max = 0;
  double out_max = 0, ref_lse_max = 0;
  long long bad = 0;  // not finite, wrong sign of infinity, padding written
  std::string first_bad, worst;
};

inline Errors compare(const Case& c, const Problem& problem, const OracleOutput& oracle) {
  const flash::Shape& s = c.shape;
  const std::size_t rows = static_cast<std::size_t>(s.B) * s.Tq * s.H, outs = rows * s.Dv;
  std::vector<double> ref(outs), ref_lse(rows);
  std::vector<float> plain(outs), plain_lse(rows);
  SFA_CHECK_CUDA(cudaMemcpy(ref.data(), oracle.out, outs * 8, cudaMemcpyDeviceToHost));
  SFA_CHECK_CUDA(cudaMemcpy(ref_lse.data(), oracle.lse, rows * 8, cudaMemcpyDeviceToHost));
  SFA_CHECK_CUDA(cudaMemcpy(plain.data(), oracle.plain_out, outs * 4, cudaMemcpyDeviceToHost));
  SFA_CHECK_CUDA(cudaMemcpy(plain_lse.data(), oracle.plain_lse, rows * 4, cudaMemcpyDeviceToHost));
  const auto out = problem.out.download();
  const auto lse = problem.lse.download();
  Errors e;
  const auto bad = [&](const std::string& what) {
    if (e.bad++ == 0) e.first_bad = what;
  };
  const std::size_t row_elements = static_cast<std::size_t>(s.H) * s.Dv;
  for (std::size_t t = 0; t < static_cast<std::size_t>(s.B) * s.Tq; ++t) {
    for (std::size_t i = 0; i < row_elements + 8; ++i) {
      const __nv_bfloat16 raw = out[t * (row_elements + 8) + i];
      if (i >= row_elements) {
        std::uint16_t bits;
        std::memcpy(&bits, &raw, 2);
        if (bits != 0xffff) bad("padding written at token " + std::to_string(t));
        continue;
      }
      const double x = __bfloat162float(raw), r = ref[t * row_elements + i];
      if (!std::isfinite(x)) {
        bad("out not finite at token " + std::to_string(t) + " head " + std::to_string(i / s.Dv) + " column " +
            std::to_string(i % s.Dv));
        continue;
      }
      e.out_max = std::max(e.out_max, std::fabs(x));
      if (std::fabs(x - r) > e.max) {
        e.max = std::fabs(x - r);
        e.worst = "token " + std::to_string(t) + " head " + std::to_string(i / s.Dv) + " column " +
                  std::to_string(i % s.Dv) + ": " + std::to_string(x) + ", expected " + std::to_string(r);
      }
      e.square += (x - r) * (x - r);
      const double p = plain[t * row_elements + i];
      e.plain_max = std::max(e.plain_max, std::fabs(p - r));
      e.plain_square += (p - r) * (p - r);
    }
  }
  for (std::size_t i = 0; i < rows; ++i) {
    if (std::isinf(ref_lse[i])) {
      if (lse[i] != -INFINITY) bad("LSE of an empty row is " + std::to_string(lse[i]) + " at " + std::to_string(i));
      continue;
    }
    if (!std::isfinite(lse[i])) {
      bad("LSE not finite at " + std::to_string(i));
      continue;
    }
    e.ref_lse_max = std::max(e.ref_lse_max, std::fabs(ref_lse[i]));
    e.lse_max = std::max(e.lse_max, std::fabs(lse[i] - ref_lse[i]));
    e.plain_lse_max = std::max(e.plain_lse_max, std::fabs(plain_lse[i] - ref_lse[i]));
  }
  e.square = std::sqrt(e.square / outs);
  e.plain_square = std::sqrt(e.plain_square / outs);
  return e;
}

/// The same problem on the CPU in double, against the oracle kernel; returns the largest difference.
inline double oracle_against_cpu(const Problem& problem, const OracleOutput& oracle) {
  const flash::ForwardParams& p = problem.params;
  const flash::Shape& s = p.shape;  // packed: Tq == Tk
  const auto data = problem.q.download();
  const std::size_t outs = static_cast<std::size_t>(s.B) * s.Tq * s.H * s.Dv;
  std::vector<double> ref(outs);
  SFA_CHECK_CUDA(cudaMemcpy(ref.data(), oracle.out, outs * 8, cudaMemcpyDeviceToHost));
  flash::Ranges ranges = p.ranges;
  std::vector<std::int32_t> first;
  if (ranges.first_key != nullptr) {
    first = problem.first_key.download();
    ranges.first_key = first.data();
  }
  const std::int64_t k_at = s.H * s.Dqk, v_at = k_at + s.G * s.Dqk;
  double worst = 0;
  for (int b = 0; b < s.B; ++b)
    for (int h = 0; h < s.H; ++h)
      for (int i = 0; i < s.Tq; ++i) {
        int lo, hi;
        visible_keys(s, ranges, b, i, lo, hi);
        const int g = h / (s.H / s.G);
        std::vector<double> weight(static_cast<std::size_t>(std::max(hi - lo, 0)));
        double best = -INFINITY, sum = 0;
        for (int j = lo; j < hi; ++j) {
          double dot = 0;
          for (int c = 0; c < s.Dqk; ++c)
            dot += static_cast<double>(
                       __bfloat162float(data[b * p.q_stride.batch + i * p.q_stride.token + h * s.Dqk + c])) *
                   __bfloat162float(data[b * p.q_stride.batch + j * p.q_stride.token + k_at + g * s.Dqk + c]);
          weight[static_cast<std::size_t>(j - lo)] = dot * p.scale;
          best = std::max(best, dot * p.scale);
        }
        for (double& w : weight) sum += w = std::exp(w - best);
        for (int c = 0; c < s.Dv; ++c) {
          double o = 0;
          for (int j = lo; j < hi; ++j)
            o += weight[static_cast<std::size_t>(j - lo)] *
                 __bfloat162float(data[b * p.q_stride.batch + j * p.q_stride.token + v_at + g * s.Dv + c]);
          if (hi > lo) o /= sum;
          worst = std::max(worst, std::fabs(o - ref[((static_cast<std::size_t>(b) * s.Tq + i) * s.H + h) * s.Dv + c]));
        }
      }
  return worst;
}

/// Scores of this amplitude leave f32 an absolute error that exp turns into any factor: no weight is known any more.
inline constexpr float kHugeAmplitude = 1e3f;

/// What still holds then: the log-sum-exp is a score within a few units in its last place, and O, a mean of rows of V,
/// stays inside V's range but for two roundings to bf16, of the weights (whose sum is not rounded) and of O.
inline bool huge_scores_hold(const Problem& problem, const Errors& e) {
  const flash::Shape& s = problem.params.shape;  // packed: Tq == Tk
  const auto rows = problem.q.download();
  const std::size_t width = Problem::q_row(s), v_at = static_cast<std::size_t>(s.H + s.G) * s.Dqk;
  double v_max = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (i % width >= v_at) v_max = std::max(v_max, std::fabs(static_cast<double>(__bfloat162float(rows[i]))));
  return e.lse_max <= 8 * e.ref_lse_max * std::ldexp(1.0, -23) &&
         e.out_max <= v_max * std::pow(1 + std::ldexp(1.0, -8), 2);
}

/// Runs `launch(params)` twice on poisoned outputs and compares with the oracle. Prints one line; true when all is
/// well. `oracle_params` has the operands that the oracle multiplies (zero-filled when features were selected).
template <class Launch>
bool check_case(const Case& c, const Problem& problem, const flash::ForwardParams& oracle_params, const Launch& launch,
                bool cpu = false) {
  const flash::Shape& s = c.shape;
  const std::size_t rows = static_cast<std::size_t>(s.B) * s.Tq * s.H, outs = rows * s.Dv;
  DeviceBuffer<double> ref(outs), ref_lse(rows);
  DeviceBuffer<float> plain(outs), plain_lse(rows);
  const OracleOutput oracle{ref.get(), ref_lse.get(), plain.get(), plain_lse.get()};
  SFA_CHECK_CUDA(cudaFuncSetAttribute(oracle_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
  // Two doubles more than there are keys: the compiler fetches scores in pairs, ahead of knowing that there is one.
  oracle_kernel<<<static_cast<unsigned>(rows), 128, (s.Tk + 2) * sizeof(double)>>>(oracle_params, oracle);
  SFA_CHECK_CUDA(cudaGetLastError());
  SFA_CHECK_CUDA(cudaDeviceSynchronize());

  problem.out.poison();
  problem.lse.poison();
  launch(problem.params);
  SFA_CHECK_CUDA(cudaGetLastError());
  SFA_CHECK_CUDA(cudaDeviceSynchronize());
  const auto out = problem.out.download();
  const auto lse = problem.lse.download();
  const Errors e = compare(c, problem, oracle);
  problem.out.poison();
  problem.lse.poison();
  launch(problem.params);
  SFA_CHECK_CUDA(cudaDeviceSynchronize());
  const auto again = problem.out.download();
  const auto lse_again = problem.lse.download();
  const bool same = std::memcmp(out.data(), again.data(), problem.out.bytes()) == 0 &&
                    std::memcmp(lse.data(), lse_again.data(), problem.lse.bytes()) == 0;

  // LSE in f32: a polynomial exp2 may be off by 7.5e-5, a score by its f32 rounding.
  const double lse_tolerance = std::max(2 * e.plain_lse_max, 2e-4);
  const double cpu_difference = cpu ? oracle_against_cpu(problem, oracle) : 0.0;
  const bool close =
      c.amplitude >= kHugeAmplitude
          ? huge_scores_hold(problem, e)
          : e.max <= 2 * e.plain_max + 1e-6 && e.square <= 2 * e.plain_square + 1e-7 && e.lse_max <= lse_tolerance;
  const bool good = e.bad == 0 && same && close && cpu_difference < 1e-9;
  std::printf("%-4s %-58s max %.2e (plain %.2e) rms %.2e (plain %.2e) lse %.1e (plain %.1e)%s%s%s\n",
              good ? "ok" : "FAIL", c.name.c_str(), e.max, e.plain_max, e.square, e.plain_square, e.lse_max,
              e.plain_lse_max, same ? "" : " NOT REPEATABLE",
              e.bad == 0 ? "" : (" BAD " + std::to_string(e.bad) + ": " + e.first_bad).c_str(),
              cpu_difference < 1e-9 ? "" : " ORACLE DIFFERS FROM CPU");
  if (!good) std::printf("     worst: %s\n", e.worst.c_str());
  std::fflush(stdout);
  return good;
}

}  // namespace sfa::test
