// Checks and times the backward of the flash core on the card it runs on.
//   flash_backward_check                 every case, then timings
//   flash_backward_check check [D [T]]   cases only: of head size D (0: all), of at most T tokens (for
//                                        compute-sanitizer)
//   flash_backward_check sm80 [T]        those of the sm_80 kernels alone
//   flash_backward_check sm90 [T]        those of the kernels for sm_90a alone
//   flash_backward_check time [D [heads together ...]]   timings only, "backward D N TFLOPs ms" a line and
//                                        "sfa D N ..." from sparse rows, the making of full ones included
//   flash_backward_check once D H N heads together ...  one sequence, one run each, "once D N TFLOPs ms" a line
//   flash_backward_check time_sizes      all head sizes on the kernels for sm_90a and on those for every card,
//                                        "sm90 DxDV N TFLOPs ms" or "sm80 ..." a line
// A case passes when no output element is left unwritten, nothing else is written, the error against the f64 oracle is
// at most twice that of a plain bf16 program (maximum and root mean square), and a second run with other rubbish in the
// workspace and another order of blocks gives the same bits. Exit code 1 when anything fails.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "attention/flash/flash_backward.h"
#include "attention/flash/flash_sm80.h"
#include "gpu/flash_backward_cases.cuh"
#include "gpu/flash_backward_reference.cuh"
#include "gpu/flash_backward_sparse.cuh"

namespace {

using namespace sfa::test;

struct HostResults {
  std::vector<double> out, lse, d_q, d_k, d_v;
  explicit HostResults(const Shape& s)
      : out(std::size_t(s.B) * s.H * s.Tq * s.Dv),
        lse(std::size_t(s.B) * s.H * s.Tq),
        d_q(std::size_t(s.B) * s.H * s.Tq * s.Dqk),
        d_k(std::size_t(s.B) * s.G * s.Tk * s.Dqk),
        d_v(std::size_t(s.B) * s.G * s.Tk * s.Dv) {}
  Results view() { return {out.data(), lse.data(), d_q.data(), d_k.data(), d_v.data()}; }
};

HostResults run_reference(const Problem& p, bool rounded) {
  const Shape& s = p.shape;
  HostResults host(s);
  DeviceArray<double> out(host.out.size()), lse(host.lse.size()), d_q(host.d_q.size()), d_k(host.d_k.size()),
      d_v(host.d_v.size()), scores(std::size_t(s.Tq) * s.Tk), gradients(scores.count);
  reference(p, rounded, {out.data, lse.data, d_q.data, d_k.data, d_v.data}, scores.data, gradients.data);
  check_cuda(cudaDeviceSynchronize(), "the reference");
  host.out = out.get(), host.lse = lse.get(), host.d_q = d_q.get(), host.d_k = d_k.get(), host.d_v = d_v.get();
  return host;
}

struct Error {
  double max = 0, rms = 0;
  std::size_t worst = 0;
  bool nan = false;
};

Error difference(const std::vector<double>& x, const std::vector<double>& exact) {
  Error e;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double d = std::abs(x[i] - exact[i]);
    if (!(d >= 0) && !e.nan) e.nan = true, e.worst = i;
    if (d > e.max && !e.nan) e.max = d, e.worst = i;
    e.rms += d * d;
  }
  e.rms = std::sqrt(e.rms / static_cast<double>(std::max<std::size_t>(x.size(), 1)));
  return e;
}

/// One gradient out of its packed buffer, as [B, heads, T, D].
std::vector<double> unpack(const std::vector<bf16>& packed, int batch, int tokens, int heads, int features, int row,
                           int column) {
  std::vector<double> x;
  x.reserve(std::size_t(batch) * heads * tokens * features);
  for (int b = 0; b < batch; ++b)
    for (int h = 0; h < heads; ++h)
      for (int t = 0; t < tokens; ++t)
        for (int c = 0; c < features; ++c)
          x.push_back(__bfloat162float(packed[(std::size_t(b) * tokens + t) * row + column + h * features + c]));
  return x;
}

bool compare(const char* what, const std::vector<double>& ours, const std::vector<double>& exact,
             const std::vector<double>& plain, int tokens, int features, std::string& report) {
  const Error mine = difference(ours, exact), theirs = difference(plain, exact);
  double size = 0;
  for (double x : exact) size = std::max(size, std::abs(x));
  const double floor =
      size * 1e-6 + 2e-5;  // f32 sums of Dv products of size 1: what is left where dP - D should vanish
  const bool good = !mine.nan && mine.max <= 2 * theirs.max + floor && mine.rms <= 2 * theirs.rms + floor;
  char text[256];
  std::snprintf(text, sizeof text, "  %s max %.2fx rms %.2fx", what, mine.max / (theirs.max + floor),
                mine.rms / (theirs.rms + floor));
  report += text;
  if (!good) {
    std::snprintf(text, sizeof text, " [%s at head-row %zu token %zu feature %zu: %g, exact %g]",
                  mine.nan ? "NaN" : "bad", mine.worst / features / tokens, mine.worst / features % tokens,
                  mine.worst % features, ours[mine.worst], exact[mine.worst]);
    report += text;
  }
  return good;
}

bool run_case(const Case& c) {
  const Shape& s = c.shape;
  std::mt19937 engine(1234u + s.Tq * 7 + s.Tk * 3 + s.H);
  const Layout layout(s);
  Arrays a(c, layout);
  a.queries.set(random_values(a.queries.count, engine));
  a.keys.set(random_values(a.keys.count, engine));
  a.d_out.set(random_values(a.d_out.count, engine));
  if (c.documents > 0) a.first_key.set(document_starts(c, engine));
  BackwardParams p = a.params(c, layout);
  const Problem problem = a.problem(p);
  const HostResults exact = run_reference(problem, false), plain = run_reference(problem, true);

  std::vector<bf16> out(a.out.count);
  std::vector<float> lse(exact.lse.begin(), exact.lse.end());
  for (int b = 0; b < s.B; ++b)
    for (int h = 0; h < s.H; ++h)
      for (int t = 0; t < s.Tq; ++t)
        for (int f = 0; f < s.Dv; ++f)
          out[((std::size_t(b) * s.Tq + t) * s.H + h) * s.Dv + f] =
              __float2bfloat16(static_cast<float>(exact.out[((std::size_t(b) * s.H + h) * s.Tq + t) * s.Dv + f]));
  a.out.set(out);
  a.lse.set(lse);

  std::vector<bf16> d_queries[2], d_keys[2];
  for (int run = 0; run < 2; ++run) {
    a.d_queries.fill(0xff), a.d_keys.fill(0xff);
    a.workspace.fill(run == 0 ? 0xff : 0x7f);
    p.heads_together = run == 0 ? 0 : 1;
    run_backward(c, p);
    check_cuda(cudaGetLastError(), "launch");
    check_cuda(cudaDeviceSynchronize(), c.name);
    d_queries[run] = a.d_queries.get(), d_keys[run] = a.d_keys.get();
  }
  const bool same = std::memcmp(d_queries[0].data(), d_queries[1].data(), d_queries[0].size() * 2) == 0 &&
                    std::memcmp(d_keys[0].data(), d_keys[1].data(), d_keys[0].size() * 2) == 0;
  const int k_column = layout.k_column(s), v_column = layout.v_column(s);
  const bool clean =
      untouched(d_queries[0], layout.row, 0, k_column) && untouched(d_keys[0], layout.row, k_column, layout.row);
  std::string report;
  bool good = compare("dQ", unpack(d_queries[0], s.B, s.Tq, s.H, s.Dqk, layout.row, 0), exact.d_q, plain.d_q, s.Tq,
                      s.Dqk, report);
  good &= compare("dK", unpack(d_keys[0], s.B, s.Tk, s.G, s.Dqk, layout.row, k_column), exact.d_k, plain.d_k, s.Tk,
                  s.Dqk, report);
  good &= compare("dV", unpack(d_keys[0], s.B, s.Tk, s.G, s.Dv, layout.row, v_column), exact.d_v, plain.d_v, s.Tk, s.Dv,
                  report);
  good = good && same && clean;
  std::printf("%-4s %s%-22s B%d Tq%-5d Tk%-5d H%d G%d D%d/%d%s%s%s\n", good ? "ok" : "FAIL", c.sm80 ? "sm80 " : "",
              c.name, s.B, s.Tq, s.Tk, s.H, s.G, s.Dqk, s.Dv, report.c_str(), same ? "" : "  NOT REPEATABLE",
              clean ? "" : "  WROTE OUTSIDE");
  std::fflush(stdout);
  return good;
}

bool check_reference_itself() {
  const Case c{"reference against host", {1, 5, 7, 2, 1, 64, 64}, true, 4, 2};
  std::mt19937 engine(7);
  const Layout layout(c.shape);
  Arrays a(c, layout);
  const auto queries = random_values(a.queries.count, engine), keys = random_values(a.keys.count, engine),
             d_out = random_values(a.d_out.count, engine);
  a.queries.set(queries), a.keys.set(keys), a.d_out.set(d_out);
  const BackwardParams p = a.params(c, layout);
  Problem problem = a.problem(p);
  const HostResults device = run_reference(problem, false);
  problem.q.data = queries.data();
  problem.k.data = keys.data() + layout.k_column(c.shape);
  problem.v.data = keys.data() + layout.v_column(c.shape);
  problem.d_out.data = d_out.data();
  HostResults host(c.shape);
  reference_on_host(problem, host.view());
  const double worst = std::max({difference(device.out, host.out).max, difference(device.lse, host.lse).max,
                                 difference(device.d_q, host.d_q).max, difference(device.d_k, host.d_k).max,
                                 difference(device.d_v, host.d_v).max});
  const bool good = worst < 1e-12;
  std::printf("%-4s %-22s largest difference %.2g\n", good ? "ok" : "FAIL", c.name, worst);
  return good;
}

using HeadSizes = std::vector<std::pair<int, int>>;

/// A few cases of sizes that are filled up with zeros to those of an instance.
void add_filled_sizes(std::vector<Case>& cases, const HeadSizes& sizes) {
  for (const auto& [d, v] : sizes)
    for (const Case& c : cases_of(d, v))
      if (c.shape.Tq <= 17 || c.shape.Tq == 129 || c.documents == 9) cases.push_back(c);
}

std::vector<Case> sm90_cases() {
  std::vector<Case> cases;
  for (int d : {64, 128, 96})
    for (const Case& c : cases_of(d, d)) cases.push_back(c);
  for (int t : {1, 129, 1000}) cases.push_back({"values of 64", {2, t, t, 4, 2, 128, 64}});
  add_filled_sizes(cases, {{16, 16}, {32, 32}, {48, 48}, {32, 64}, {64, 128}});
  add_filled_sizes(cases, {{80, 48}, {112, 112}, {128, 16}, {16, 128}});
  return cases;
}

/// Every instance of the sm_80 kernels over all cases (the longest for two), and sizes that are filled up to one over a
/// few.
std::vector<Case> sm80_cases() {
  std::vector<Case> cases;
  for (const auto& [d, v] :
       HeadSizes{{32, 32}, {32, 64}, {64, 64}, {64, 128}, {96, 96}, {128, 64}, {128, 128}, {192, 192}, {256, 256}})
    for (const Case& c : cases_of(d, v))
      if (c.shape.Tq < 2000 || (d == v && (d == 64 || d == 96))) cases.push_back(c);
  add_filled_sizes(cases, {{16, 16}, {48, 48}, {80, 80}, {16, 64}, {64, 96}, {112, 112}});
  add_filled_sizes(cases, {{160, 128}, {256, 16}, {16, 256}});
  for (Case& c : cases) c.sm80 = true;
  return cases;
}

int check_all(const std::vector<Case>& cases, int only, int longest) {
  int failures = check_reference_itself() ? 0 : 1;
  int run = 1;
  for (const Case& c : cases) {
    if (std::max(c.shape.Tq, c.shape.Tk) > longest || (only != 0 && only != c.shape.Dqk)) continue;
    ++run;
    failures += run_case(c) ? 0 : 1;
  }
  std::printf("%d of %d cases failed\n", failures, run);
  return failures;
}

__global__ void fill_random(bf16* x, std::size_t count, unsigned seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    unsigned h = static_cast<unsigned>(i) * 2654435761u + seed;
    h ^= h >> 16, h *= 0x7feb352du, h ^= h >> 15, h *= 0x846ca68bu, h ^= h >> 16;
    x[i] = __float2bfloat16((static_cast<float>(h & 0xffff) - 32767.5f) * (1.732f / 32768));
  }
}

double median_ms(const Case& c, const BackwardParams& p, int repetitions) {
  cudaEvent_t begin, end;
  check_cuda(cudaEventCreate(&begin), "event"), check_cuda(cudaEventCreate(&end), "event");
  for (int i = 0; i < (repetitions > 1 ? 3 : 0); ++i) run_backward(c, p);
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    cudaEventRecord(begin);
    run_backward(c, p);
    cudaEventRecord(end);
    check_cuda(cudaEventSynchronize(end), "timing");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// Causal, packed rows. The statistics are those of uniform attention, so that exponentials are of ordinary size.
struct TimedShape {
  const Case& c;
  Layout layout;
  Arrays arrays;
  BackwardParams params;

  explicit TimedShape(const Case& timed) : c(timed), layout(timed.shape), arrays(timed, layout) {
    Arrays& a = arrays;
    fill_random<<<1024, 256>>>(a.queries.data, a.queries.count, 1);
    fill_random<<<1024, 256>>>(a.keys.data, a.keys.count, 2);
    fill_random<<<1024, 256>>>(a.d_out.data, a.d_out.count, 3);
    fill_random<<<1024, 256>>>(a.out.data, a.out.count, 4);
    std::vector<float> lse(a.lse.count);
    for (std::size_t i = 0; i < lse.size(); ++i) lse[i] = std::log(static_cast<float>(i % c.shape.Tq + 1)) + 0.5f;
    a.lse.set(lse);
    params = a.params(c, layout);
  }
  /// Of 10 B H n^2 d / 2, d the mean of both head sizes.
  [[nodiscard]] double tflops(double ms) const {
    const Shape& s = c.shape;
    return 2.5 * 2 * s.B * s.H * double(s.Tq) * s.Tk * (s.Dqk + s.Dv) / 2 / ms * 1e-9;
  }
};

__global__ void fill_indices(std::uint8_t* indices, std::size_t rows, int k, int D) {
  const std::size_t r = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  if (r >= rows) return;
  const unsigned step = D / k, shift = static_cast<unsigned>(r * 2654435761u >> 16) % step;
  for (int i = 0; i < k; ++i) indices[r * k + i] = static_cast<std::uint8_t>(i * step + shift);
}

/// "sfa D N TFLOPs ms": rows that keep 8 features of 64, 16 of 128, their making included.
void time_sparse(TimedShape& timed, int repetitions) {
  const Shape& s = timed.c.shape;
  const int k = s.Dqk / 8;
  const std::size_t q_rows = std::size_t(s.B) * s.Tq * s.H, k_rows = std::size_t(s.B) * s.Tk * s.G;
  DeviceArray<bf16> q_values(q_rows * k), k_values(k_rows * k);
  DeviceArray<std::uint8_t> q_indices(q_rows * k), k_indices(k_rows * k);
  fill_random<<<1024, 256>>>(q_values.data, q_values.count, 5);
  fill_random<<<1024, 256>>>(k_values.data, k_values.count, 6);
  fill_indices<<<static_cast<unsigned>(q_rows / 256 + 1), 256>>>(q_indices.data, q_rows, k, s.Dqk);
  fill_indices<<<static_cast<unsigned>(k_rows / 256 + 1), 256>>>(k_indices.data, k_rows, k, s.Dqk);
  BackwardParams p = timed.params;
  p.q_sparse = {q_values.data, q_indices.data, k};
  p.k_sparse = {k_values.data, k_indices.data, k};
  const double ms = median_ms(timed.c, p, repetitions);
  std::printf("sfa %d %d %.1f TFLOP/s %.4f ms\n", s.Dqk, s.Tq, timed.tflops(ms), ms);
  std::fflush(stdout);
}

/// One length of one sequence, a single run for each number of heads together.
void time_once(int d, int heads, int n, const std::vector<int>& together) {
  const Case c{"time", {1, n, n, heads, heads, d, d}};
  TimedShape timed(c);
  for (int t : together) {
    timed.params.heads_together = t;
    const double ms = median_ms(c, timed.params, 1);
    std::printf("once %d %d %.1f TFLOP/s %.4f ms heads together %d\n", d, n, timed.tflops(ms), ms, t);
    std::fflush(stdout);
  }
}

void time_shape(int d, int heads, int n, const std::vector<int>& together) {
  const Case c{"time", {std::max(1, 32768 / n), n, n, heads, heads, d, d}};
  TimedShape timed(c);
  time_sparse(timed, 21);
  timed.params.heads_together = 0;
  for (int t : together) {
    timed.params.heads_together = t;
    const double ms = median_ms(c, timed.params, 21);
    std::printf("%s %d %d %.1f TFLOP/s %.4f ms", t == 0 ? "backward" : "  other", d, n, timed.tflops(ms), ms);
    std::printf(t == 0 ? "\n" : " heads together %d\n", t);
    std::fflush(stdout);
  }
}

void time_sizes(bool hopper) {
  for (int n : {1024, 4096, 16384})
    for (const auto& [d, v] :
         HeadSizes{{32, 32}, {32, 64}, {64, 64}, {64, 128}, {96, 96}, {128, 64}, {128, 128}, {192, 192}, {256, 256}}) {
      const int heads = 2048 / std::max(d, v);
      Case c{"time", {std::max(1, 32768 / n), n, n, heads, heads, d, v}};
      for (const bool sm80 : {false, true}) {
        if (!sm80 && !(hopper && sfa::flash::backward_supported(c.shape))) continue;
        c.sm80 = sm80;
        const TimedShape timed(c);
        const double ms = median_ms(c, timed.params, 11);
        std::printf("%s %dx%d %d %.1f TFLOP/s %.4f ms\n", sm80 ? "sm80" : "sm90", d, v, n, timed.tflops(ms), ms);
        std::fflush(stdout);
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU can be used\n");
    return 77;
  }
  const std::string mode = argc > 1 ? argv[1] : "all";
  const int only = argc > 2 ? std::atoi(argv[2]) : 0;
  cudaDeviceProp card{};
  const bool hopper = cudaGetDeviceProperties(&card, 0) == cudaSuccess && card.major == 9;
  if (!hopper && (mode == "time" || mode == "all")) {
    std::printf("these kernels need a card of compute capability 9.0\n");
    return 77;  // skipped
  }
  try {
    int failures = 0;
    if (mode == "time_sizes") time_sizes(hopper);
    if (mode == "sm90") {
      const int longest = argc > 2 ? only : 1 << 30;
      failures = check_all(sm90_cases(), 0, longest) + check_sparse(0, longest);
    }
    if (mode == "once" && argc > 4) {  // D heads N [heads together ...]
      std::vector<int> together;
      for (int i = 5; i < argc; ++i) together.push_back(std::atoi(argv[i]));
      time_once(only, std::atoi(argv[3]), std::atoi(argv[4]), together);
    }
    if (mode == "sm80") failures = check_all(sm80_cases(), 0, argc > 2 ? only : 1 << 30);
    if (mode == "all" || mode == "check") {
      const int longest = mode == "check" && argc > 3 ? std::atoi(argv[3]) : 1 << 30;
      if (hopper) failures = check_all(sm90_cases(), only, longest) + check_sparse(only, longest);
      failures += check_all(sm80_cases(), only, longest);
    }
    if (mode == "all" || mode == "time")
      for (int d : {64, 128})
        if (only == 0 || only == d)
          for (int n : {1024, 4096, 8192, 16384, 65536}) {
            std::vector<int> together{0};
            for (int i = 3; i < argc; ++i) together.push_back(std::atoi(argv[i]));
            time_shape(d, d == 64 ? 12 : 16, n, together);
          }
    return failures > 0 ? 1 : 0;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
