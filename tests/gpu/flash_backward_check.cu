// Checks and times the backward of the flash core on the card it runs on.
//   flash_backward_check                 every case, then timings
//   flash_backward_check check [D [T]]   cases only: of head size D (0: all), of at most T tokens (for
//                                        compute-sanitizer)
//   flash_backward_check sm80 [T]        those of the sm_80 kernels alone
//   flash_backward_check time [D [heads together ...]]   timings only, "backward D N TFLOPs ms" a line
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
#include "gpu/flash_backward_reference.cuh"

namespace {

using namespace sfa::test;
using sfa::flash::BackwardParams;

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("CUDA error in %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <class T>
struct DeviceArray {
  T* data = nullptr;
  std::size_t count;

  explicit DeviceArray(std::size_t n) : count(std::max<std::size_t>(n, 1)) {
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T)), "cudaMalloc");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data); }
  void set(const std::vector<T>& host) {
    check_cuda(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  std::vector<T> get() const {
    std::vector<T> host(count);
    check_cuda(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copy back");
    return host;
  }
  void fill(int byte) { check_cuda(cudaMemset(data, byte, count * sizeof(T)), "cudaMemset"); }
};

struct Case {
  const char* name;
  Shape shape;
  bool causal = true;
  int window = 0;
  int query_offset = 0;
  int documents = 0;  // number of documents of random lengths; 0: no first_key
  bool sm80 = false;  // the kernels for every card instead of those for sm_90a
};

std::size_t workspace_bytes(const Case& c) {
  return c.sm80 ? sfa::flash::sm80_backward_workspace_bytes(c.shape) : sfa::flash::backward_workspace_bytes(c.shape);
}
void run_backward(const Case& c, const BackwardParams& p) {
  if (c.sm80)
    sfa::flash::sm80_backward(p, nullptr);
  else
    sfa::flash::backward(p, nullptr);
}

/// Packed rows [q heads | k heads | v heads] for queries and, when Tk differs, for keys; gradients lie the same way.
struct Layout {
  int row;
  Strides query, key, out;
  explicit Layout(const Shape& s) {
    row = (s.H + s.G) * s.Dqk + s.G * s.Dv;
    query = {std::int64_t{s.Tq} * row, row, s.Dqk};
    key = {std::int64_t{s.Tk} * row, row, s.Dqk};
    out = {std::int64_t{s.Tq} * s.H * s.Dv, std::int64_t{s.H} * s.Dv, s.Dv};
  }
  Strides value(const Shape& s) const { return {key.batch, key.token, s.Dv}; }
  int k_column(const Shape& s) const { return s.H * s.Dqk; }
  int v_column(const Shape& s) const { return (s.H + s.G) * s.Dqk; }
};

std::vector<bf16> random_values(std::size_t count, std::mt19937& engine) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<bf16> values(count);
  for (auto& x : values) x = __float2bfloat16(normal(engine));
  return values;
}

std::vector<std::int32_t> document_starts(const Case& c, std::mt19937& engine) {
  std::vector<std::int32_t> first;
  for (int b = 0; b < c.shape.B; ++b) {
    std::vector<int> cuts;
    for (int i = 1; i < c.documents; ++i) cuts.push_back(static_cast<int>(engine() % std::max(c.shape.Tk, 1)));
    std::sort(cuts.begin(), cuts.end());
    for (int i = 0; i < c.shape.Tq; ++i) {
      int start = 0;
      for (int cut : cuts)
        if (cut <= i + c.query_offset) start = cut;
      first.push_back(start);
    }
  }
  return first;
}

/// Everything of one case on the device.
struct Arrays {
  DeviceArray<bf16> queries, keys, d_queries, d_keys, out, d_out;
  DeviceArray<float> lse;
  DeviceArray<std::int32_t> first_key;
  DeviceArray<unsigned char> workspace;

  Arrays(const Case& c, const Layout& l) : Arrays(c.shape, l, workspace_bytes(c)) {}
  Arrays(const Shape& s, const Layout& l, std::size_t scratch)
      : queries(std::size_t(s.B) * s.Tq * l.row),
        keys(std::size_t(s.B) * s.Tk * l.row),
        d_queries(queries.count),
        d_keys(keys.count),
        out(std::size_t(s.B) * s.Tq * s.H * s.Dv),
        d_out(out.count),
        lse(std::size_t(s.B) * s.H * s.Tq),
        first_key(std::size_t(s.B) * s.Tq),
        workspace(scratch) {}

  BackwardParams params(const Case& c, const Layout& l) {
    const Shape& s = c.shape;
    BackwardParams p;
    p.shape = s;
    p.ranges = {c.causal, c.window, c.query_offset, c.documents > 0 ? first_key.data : nullptr};
    p.scale = 1.0f / std::sqrt(static_cast<float>(s.Dqk));
    p.q = queries.data;
    p.k = keys.data + l.k_column(s);
    p.v = keys.data + l.v_column(s);
    p.out = out.data;
    p.d_out = d_out.data;
    p.lse = lse.data;
    p.d_q = d_queries.data;
    p.d_k = d_keys.data + l.k_column(s);
    p.d_v = d_keys.data + l.v_column(s);
    p.q_stride = p.d_q_stride = l.query;
    p.k_stride = p.d_k_stride = l.key;
    p.v_stride = p.d_v_stride = l.value(s);
    p.out_stride = p.d_out_stride = l.out;
    p.workspace = workspace.data;
    return p;
  }
  Problem problem(const BackwardParams& p) const {
    return {p.shape,
            p.ranges,
            static_cast<double>(p.scale),
            {static_cast<const bf16*>(p.q), p.q_stride},
            {static_cast<const bf16*>(p.k), p.k_stride},
            {static_cast<const bf16*>(p.v), p.v_stride},
            {static_cast<const bf16*>(p.d_out), p.d_out_stride}};
  }
};

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

/// Columns outside [begin, end) must still hold the poison.
bool untouched(const std::vector<bf16>& packed, int row, int begin, int end) {
  for (std::size_t i = 0; i < packed.size(); ++i) {
    const int column = static_cast<int>(i % row);
    std::uint16_t bits;
    std::memcpy(&bits, &packed[i], 2);
    if ((column < begin || column >= end) && bits != 0xffff) return false;
  }
  return true;
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

/// All kinds of ranges and lengths for one pair of head sizes.
std::vector<Case> cases_of(int d, int v) {
  std::vector<Case> cases;
  auto add = [&](const char* name, int B, int Tq, int Tk, int H, int G, bool causal, int window, int offset,
                 int documents) {
    cases.push_back({name, {B, Tq, Tk, H, G, d, v}, causal, window, offset, documents});
  };
  add("one full tile", 1, 128, 128, 1, 1, false, 0, 0, 0);
  add("two by two tiles", 1, 256, 256, 1, 1, false, 0, 0, 0);
  for (int t : {1, 17, 127, 128, 129, 1000}) add("causal", 2, t, t, 4, 2, true, 0, 0, 0);
  add("causal", 1, 4097, 4097, 2, 1, true, 0, 0, 0);
  add("full", 2, 1000, 1000, 3, 3, false, 0, 0, 0);
  add("four heads a group", 1, 333, 333, 8, 2, true, 0, 0, 0);
  add("fewer queries", 2, 129, 1000, 2, 1, true, 0, 871, 0);
  add("fewer keys", 1, 1000, 129, 2, 2, true, 0, 0, 0);
  add("keys far behind", 1, 200, 300, 2, 1, true, 64, 500, 0);
  add("queries before keys", 2, 400, 300, 2, 1, true, 0, -150, 0);
  add("window 1", 1, 300, 300, 2, 2, true, 1, 0, 0);
  add("window 100", 2, 1000, 1000, 4, 2, true, 100, 0, 0);
  add("window 300, not causal", 1, 777, 777, 2, 2, false, 300, 0, 0);
  add("documents", 2, 1000, 1000, 4, 1, true, 0, 0, 9);
  add("documents, window", 2, 1000, 1100, 2, 2, true, 200, 100, 5);
  add("documents, not causal", 1, 500, 500, 2, 1, false, 0, 0, 4);
  add("many heads", 8, 300, 300, 12, 12, true, 0, 0, 0);
  return cases;
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
  for (int i = 0; i < 3; ++i) run_backward(c, p);
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

void time_shape(int d, int heads, int n, const std::vector<int>& together) {
  const Case c{"time", {std::max(1, 32768 / n), n, n, heads, heads, d, d}};
  TimedShape timed(c);
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
    if (mode == "sm80") failures = check_all(sm80_cases(), 0, argc > 2 ? only : 1 << 30);
    if (mode == "all" || mode == "check") {
      const int longest = mode == "check" && argc > 3 ? std::atoi(argv[3]) : 1 << 30;
      if (hopper) failures = check_all(sm90_cases(), only, longest);
      failures += check_all(sm80_cases(), only, longest);
    }
    if (mode == "all" || mode == "time")
      for (int d : {64, 128})
        if (only == 0 || only == d)
          for (int n : {1024, 4096, 16384, 65536}) {
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
