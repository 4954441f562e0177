// A projection with selection on the device, its oracle and the comparison.
//   exact    small integers, so that every sum is exact in f32: each output equals, bit for bit, the oracle's rounded
//            product put through a plain sort; ties abound, rows are zero, some features are infinite or NaN
//   random   against the product in double: stored values within rounding, and no feature left out that is larger than
//            a stored one by more than rounding
#pragma once

#include "attention/flash/project_select.h"
#include "gpu/select_check.cuh"

namespace sfa::test {

struct ProjectCase {
  int B, T, I, H, G, D, Dv, k_q, k_k;
  flash::Selection rule;
  bool compressed;
  bool exact;
  bool bias = true;

  int row() const { return (H + G) * D + G * Dv; }
  std::size_t tokens() const { return static_cast<std::size_t>(B) * T; }
  int blocks() const { return (T + 63) / 64; }
  std::string name() const {
    return fmt::format("B{} T{} I{} H{}/{} D{}v{} k{},{} {}{}{}{}", B, T, I, H, G, D, Dv, k_q, k_k,
                       rule == flash::Selection::topk ? "topk" : "topk_2of4", compressed ? " compressed" : "",
                       exact ? " exact" : " random", bias ? "" : " no bias");
  }
};

/// y in double, and the sum of magnitudes behind it, which bounds what f32 may lose. A thread an element.
static __global__ void product_in_double(const __nv_bfloat16* x, const __nv_bfloat16* w, const __nv_bfloat16* bias,
                                         double* y, double* magnitudes, int I, int row) {
  const int o = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const std::size_t n = blockIdx.y;
  if (o >= row) return;
  double sum = 0, all = 0;
  for (int i = 0; i < I; ++i) {
    const double term =
        static_cast<double>(__bfloat162float(x[n * I + i])) * __bfloat162float(w[std::size_t{1} * o * I + i]);
    sum += term;
    all += fabs(term);
  }
  const double b = bias != nullptr ? __bfloat162float(bias[o]) : 0.0;
  y[n * row + o] = sum + b;
  magnitudes[n * row + o] = all + fabs(b);
}

static __global__ void round_rows(const double* y, __nv_bfloat16* rounded, std::size_t count) {
  const std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x;
  if (i < count) rounded[i] = __float2bfloat16(static_cast<float>(y[i]));
}

inline float bf16_value(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

/// What the kernel leaves, on the host.
struct ProjectOutputs {
  std::vector<std::uint16_t> rows, v, q_values, k_values;
  std::vector<std::uint8_t> q_indices, k_indices, compressed;
  bool operator==(const ProjectOutputs&) const = default;
};

struct ProjectProblem {
  ProjectCase c;
  DeviceBuffer<std::uint16_t> x, w, bias, rows, v, q_values, k_values;
  DeviceBuffer<std::uint8_t> q_indices, k_indices, compressed;
  DeviceBuffer<double> y, magnitudes;
  flash::ProjectSelectParams params;

  explicit ProjectProblem(const ProjectCase& one)
      : c(one),
        x(c.tokens() * c.I),
        w(static_cast<std::size_t>(c.row()) * c.I),
        bias(static_cast<std::size_t>(c.row())),
        rows(c.tokens() * c.row()),
        v(c.tokens() * c.G * c.Dv),
        q_values(c.tokens() * c.H * c.k_q),
        k_values(c.tokens() * c.G * c.k_k),
        q_indices(c.tokens() * c.H * c.k_q),
        k_indices(c.tokens() * c.G * c.k_k),
        compressed(static_cast<std::size_t>(c.B) * c.H * c.blocks() * flash::compressed_block_bytes(c.D)),
        y(c.tokens() * c.row()),
        magnitudes(c.tokens() * c.row()) {
    if (c.exact)
      fill_integers();
    else
      fill_random();
    const std::int64_t row = c.row();
    flash::ProjectSelectParams& p = params;
    p.B = c.B, p.T = c.T, p.I = c.I, p.H = c.H, p.G = c.G, p.D = c.D, p.Dv = c.Dv;
    p.x = x.get(), p.weight = w.get(), p.bias = c.bias ? bias.get() : nullptr;
    p.k_q = c.k_q, p.k_k = c.k_k, p.rule = c.rule;
    p.q_values = q_values.get(), p.q_indices = q_indices.get();
    p.k_values = k_values.get(), p.k_indices = k_indices.get();
    p.q_dense = c.compressed ? nullptr : rows.get();
    p.q_compressed = c.compressed ? compressed.get() : nullptr;
    p.k_dense = rows.get() + c.H * c.D;
    p.v = v.get();
    p.q_stride = p.k_stride = {c.T * row, row, c.D};
    p.v_stride = {std::int64_t{c.T} * c.G * c.Dv, std::int64_t{c.G} * c.Dv, c.Dv};
    const dim3 grid(static_cast<unsigned>((c.row() + 127) / 128), static_cast<unsigned>(c.tokens()));
    product_in_double<<<grid, 128>>>(as_bf16(x), as_bf16(w), c.bias ? as_bf16(bias) : nullptr, y.get(),
                                     magnitudes.get(), c.I, c.row());
    SFA_CHECK_CUDA(cudaGetLastError());
  }

  ProjectOutputs run() const {
    rows.poison(), v.poison(), q_values.poison(), k_values.poison();
    q_indices.poison(), k_indices.poison(), compressed.poison();
    flash::project_select(params, nullptr);
    SFA_CHECK_CUDA(cudaDeviceSynchronize());
    return {rows.download(),      v.download(),         q_values.download(),  k_values.download(),
            q_indices.download(), k_indices.download(), compressed.download()};
  }

 private:
  static const __nv_bfloat16* as_bf16(const DeviceBuffer<std::uint16_t>& b) {
    return reinterpret_cast<const __nv_bfloat16*>(b.get());
  }
  static std::uint16_t bits_of(float f) {
    const __nv_bfloat16 b = __float2bfloat16(f);
    std::uint16_t bits;
    std::memcpy(&bits, &b, 2);
    return bits;
  }
  /// |sums| stay below 2^24; every fifth token is zero, and so is the bias of every third group of 64 features.
  void fill_integers() const {
    std::mt19937 random(5);
    std::vector<std::uint16_t> hx(x.count()), hw(w.count()), hb(bias.count());
    for (std::size_t i = 0; i < hx.size(); ++i)
      hx[i] = bits_of(i / static_cast<std::size_t>(c.I) % 5 == 3 ? 0.0f : static_cast<float>(random() % 5) - 2.0f);
    for (auto& e : hw) e = bits_of(static_cast<float>(random() % 5) - 2.0f);
    for (std::size_t i = 0; i < hb.size(); ++i) {
      hb[i] = bits_of(i / 64 % 3 == 1 ? 0.0f : static_cast<float>(random() % 41) - 20.0f);
      if (i / 64 % 3 == 2 && random() % 23 == 0)
        hb[i] = static_cast<std::uint16_t>(0x7f80u | (random() % 2) << 15 | (random() % 3 == 0 ? 1u : 0u));
    }
    x.upload(hx), w.upload(hw), bias.upload(hb);
  }
  void fill_random() const {
    const auto fill = [](const DeviceBuffer<std::uint16_t>& b, std::uint32_t seed, float amplitude) {
      fill_normal<<<1024, 256>>>(reinterpret_cast<__nv_bfloat16*>(b.get()), b.count(), seed, amplitude);
    };
    fill(x, 1u, 1.0f);
    fill(w, 2u, 1.0f / std::sqrt(static_cast<float>(c.I)));
    fill(bias, 3u, 0.5f);
  }
};

/// One head's rows of queries or keys in the outputs.
struct ProjectHead {
  int heads, head, column, k;
  flash::Selection rule;
  bool rows_written;
  const std::vector<std::uint16_t>& values;
  const std::vector<std::uint8_t>& indices;
};

template <class Fn>
void each_head(const ProjectCase& c, const ProjectOutputs& got, const Fn& fn) {
  for (int h = 0; h < c.H; ++h)
    fn(ProjectHead{c.H, h, h * c.D, c.k_q, c.rule, !c.compressed, got.q_values, got.q_indices});
  for (int g = 0; g < c.G; ++g)
    fn(ProjectHead{c.G, g, (c.H + g) * c.D, c.k_k, flash::Selection::topk, true, got.k_values, got.k_indices});
}

/// Elements that differ from the oracle's rows, sorted and zero-filled, and from its V.
inline long long count_wrong(const ProjectCase& c, const ProjectOutputs& got, const std::vector<std::uint16_t>& want) {
  long long wrong = 0;
  const std::size_t row = static_cast<std::size_t>(c.row());
  for (std::size_t t = 0; t < c.tokens(); ++t) {
    each_head(c, got, [&](const ProjectHead& h) {
      const std::uint16_t* own = &want[t * row + static_cast<std::size_t>(h.column)];
      const auto chosen = select_on_cpu(own, {c.B, c.T, h.heads, c.D, h.k, h.rule, false});
      std::vector<std::uint16_t> expected(static_cast<std::size_t>(c.D), 0);
      for (int i = 0; i < h.k; ++i) {
        const std::size_t at = (t * h.heads + h.head) * h.k + i;
        const int feature = chosen[static_cast<std::size_t>(i)];
        expected[static_cast<std::size_t>(feature)] = own[feature];
        wrong += h.indices[at] != feature || h.values[at] != own[feature];
      }
      for (int f = 0; f < c.D; ++f)
        wrong += got.rows[t * row + h.column + f] != (h.rows_written ? expected[static_cast<std::size_t>(f)] : 0xffff);
    });
    const std::size_t width = static_cast<std::size_t>(c.G) * c.Dv, at = row - width;
    for (std::size_t i = 0; i < width; ++i)
      wrong += got.v[t * width + i] != want[t * row + at + i] || got.rows[t * row + at + i] != 0xffff;
  }
  return wrong;
}

/// Elements outside the bounds: bf16 rounds by 2^-8 of the value at the most, the sum in f32 loses at most 2^-23 of the
/// magnitudes an addition. Features that are not stored must not exceed by more than that the least that is (under
/// topk_2of4: or the lesser of the two stored beside them).
inline long long count_outside(const ProjectCase& c, const ProjectOutputs& got, const std::vector<double>& y,
                               const std::vector<double>& magnitudes) {
  long long wrong = 0;
  const std::size_t row = static_cast<std::size_t>(c.row());
  const auto bound = [&](std::size_t at) {
    return 0x1p-8 * std::fabs(y[at]) + (c.I + 2) * 0x1p-23 * magnitudes[at] * (1 + 0x1p-8);
  };
  for (std::size_t t = 0; t < c.tokens(); ++t) {
    each_head(c, got, [&](const ProjectHead& h) {
      std::vector<double> stored(static_cast<std::size_t>(c.D), -1.0);
      double least = 1e300;
      int before = -1;
      for (int i = 0; i < h.k; ++i) {
        const std::size_t at = (t * h.heads + h.head) * h.k + i, value = t * row + h.column + h.indices[at];
        const int feature = h.indices[at];
        if (feature <= before || feature >= c.D) return void(++wrong);
        before = feature;
        const double x = bf16_value(h.values[at]);
        wrong += !(std::fabs(x - y[value]) <= bound(value));
        if (h.rows_written) wrong += got.rows[value] != h.values[at];
        stored[static_cast<std::size_t>(feature)] = std::fabs(x);
        least = std::min(least, std::fabs(x));
      }
      for (int f = 0; f < c.D; ++f) {
        if (stored[static_cast<std::size_t>(f)] >= 0) continue;
        if (h.rows_written) wrong += got.rows[t * row + h.column + f] != 0;
        double limit = least;
        if (h.rule == flash::Selection::topk_2of4) {
          int beside = 0;
          double lesser = 1e300;
          for (int i = f / 4 * 4; i < f / 4 * 4 + 4; ++i) {
            const double s = stored[static_cast<std::size_t>(i)];
            if (s >= 0) ++beside, lesser = std::min(lesser, s);
          }
          if (beside > 2) ++wrong;
          if (beside == 2) limit = std::max(limit, lesser);
        }
        const std::size_t at = t * row + h.column + f;
        wrong += !(std::fabs(y[at]) - bound(at) <= limit);
      }
    });
    const std::size_t width = static_cast<std::size_t>(c.G) * c.Dv, v_at = row - width;
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t at = t * row + v_at + i;
      wrong += !(std::fabs(bf16_value(got.v[t * width + i]) - y[at]) <= bound(at));
    }
  }
  return wrong;
}

/// Bytes of the compressed operand that differ from what select_features makes of the oracle's rounded rows (exact), or
/// features that it does not hold as the values and indices say (random).
inline long long count_wrong_packed(const ProjectProblem& problem, const ProjectOutputs& got,
                                    const DeviceBuffer<std::uint16_t>& rounded) {
  const ProjectCase& c = problem.c;
  const auto block_bytes = static_cast<std::size_t>(flash::compressed_block_bytes(c.D));
  long long wrong = 0;
  if (c.exact) {
    flash::SelectParams p;
    p.B = c.B, p.T = c.T, p.heads = c.H, p.D = c.D, p.k = c.k_q, p.rule = c.rule;
    p.x = rounded.get();
    p.x_stride = problem.params.q_stride;
    DeviceBuffer<std::uint8_t> packed(problem.compressed.count());
    packed.poison();
    p.compressed = packed.get();
    flash::select_features(p, nullptr);
    SFA_CHECK_CUDA(cudaDeviceSynchronize());
    const auto want = packed.download();
    for (std::size_t i = 0; i < want.size(); ++i) wrong += want[i] != got.compressed[i];
    return wrong;
  }
  for (int b = 0; b < c.B; ++b)
    for (int h = 0; h < c.H; ++h)
      for (int t = 0; t < c.blocks() * 64; ++t) {
        std::vector<std::uint16_t> want(static_cast<std::size_t>(c.D), 0);
        for (int i = 0; i < c.k_q && t < c.T; ++i) {
          const std::size_t at = ((static_cast<std::size_t>(b) * c.T + t) * c.H + h) * c.k_q + i;
          want[got.q_indices[at]] = got.q_values[at];
        }
        const auto* block =
            &got.compressed[((static_cast<std::size_t>(b) * c.H + h) * c.blocks() + t / 64) * block_bytes];
        for (int f = 0; f < c.D; ++f) wrong += decompress(block, c.D, t % 64, f) != want[static_cast<std::size_t>(f)];
      }
  return wrong;
}

inline bool check_projection(const ProjectCase& c) {
  const ProjectProblem problem(c);
  const ProjectOutputs got = problem.run();
  const bool same = problem.run() == got;
  const DeviceBuffer<std::uint16_t> rounded(c.tokens() * c.row());
  round_rows<<<static_cast<unsigned>((rounded.count() + 255) / 256), 256>>>(
      problem.y.get(), reinterpret_cast<__nv_bfloat16*>(rounded.get()), rounded.count());
  SFA_CHECK_CUDA(cudaDeviceSynchronize());
  const long long wrong = c.exact ? count_wrong(c, got, rounded.download())
                                  : count_outside(c, got, problem.y.download(), problem.magnitudes.download());
  const long long packed = c.compressed ? count_wrong_packed(problem, got, rounded) : 0;
  const bool good = wrong == 0 && packed == 0 && same;
  std::printf("%-4s %s: %lld wrong, %lld wrong in the compressed operand%s\n", good ? "ok" : "FAIL", c.name().c_str(),
              wrong, packed, same ? "" : ", two runs differ");
  std::fflush(stdout);
  return good;
}

}  // namespace sfa::test
