// One problem of the attention backward on the device, in packed rows, and the problems that the checks go through.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "attention/flash/flash_backward.h"
#include "attention/flash/flash_sm80.h"
#include "gpu/flash_backward_reference.cuh"

namespace sfa::test {

using flash::BackwardParams;

inline void check_cuda(cudaError_t status, const char* what) {
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

inline std::size_t workspace_bytes(const Case& c) {
  return c.sm80 ? sfa::flash::sm80_backward_workspace_bytes(c.shape) : sfa::flash::backward_workspace_bytes(c.shape);
}
inline void run_backward(const Case& c, const BackwardParams& p) {
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

inline std::vector<bf16> random_values(std::size_t count, std::mt19937& engine) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<bf16> values(count);
  for (auto& x : values) x = __float2bfloat16(normal(engine));
  return values;
}

inline std::vector<std::int32_t> document_starts(const Case& c, std::mt19937& engine) {
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

/// Columns outside [begin, end) must still hold the poison.
inline bool untouched(const std::vector<bf16>& packed, int row, int begin, int end) {
  for (std::size_t i = 0; i < packed.size(); ++i) {
    const int column = static_cast<int>(i % row);
    std::uint16_t bits;
    std::memcpy(&bits, &packed[i], 2);
    if ((column < begin || column >= end) && bits != 0xffff) return false;
  }
  return true;
}

/// All kinds of ranges and lengths for one pair of head sizes.
inline std::vector<Case> cases_of(int d, int v) {
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

}  // namespace sfa::test
