// The backward from sparse rows against the same kernels on the full rows that they stand for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "gpu/flash_backward_cases.cuh"

namespace sfa::test {

/// Rows that keep k random features; the first row keeps zeros alone.
struct HostSparse {
  int k;
  std::vector<bf16> values;
  std::vector<std::uint8_t> indices;

  HostSparse(int rows, int D, int kept, std::mt19937& engine)
      : k(kept), values(random_values(std::size_t(rows) * kept, engine)) {
    std::vector<int> order(D);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < D; ++c) order[c] = c;
      std::shuffle(order.begin(), order.end(), engine);
      std::sort(order.begin(), order.begin() + k);
      for (int i = 0; i < k; ++i) indices.push_back(static_cast<std::uint8_t>(order[i]));
    }
    for (int i = 0; i < k; ++i) values[i] = __float2bfloat16(0.0f);
  }
  /// Row r's features, or `poison` everywhere, into packed rows.
  void fill(std::vector<bf16>& packed, int row, int column, int heads, int D, bool poison) const {
    for (std::size_t r = 0; r < values.size() / k; ++r) {
      bf16* to = &packed[r / heads * row + column + r % heads * D];
      std::fill_n(to, D, __ushort_as_bfloat16(poison ? 0xffff : 0));
      for (int i = 0; i < k && !poison; ++i) to[indices[r * k + i]] = values[r * k + i];
    }
  }
  /// `masked` is `full` with exact zeros outside the features, bit by bit.
  bool masks(const std::vector<bf16>& masked, const std::vector<bf16>& full, int row, int column, int heads,
             int D) const {
    for (std::size_t r = 0; r < values.size() / k; ++r) {
      const std::size_t at = r / heads * row + column + r % heads * D;
      std::vector<bf16> expected(D, __float2bfloat16(0.0f));
      for (int i = 0; i < k; ++i) expected[indices[r * k + i]] = full[at + indices[r * k + i]];
      if (std::memcmp(&masked[at], expected.data(), std::size_t(D) * 2) != 0) return false;
    }
    return true;
  }
};

/// The gradients of sparse rows are those of the full rows that they stand for, masked; nothing else is written.
inline bool run_sparse_case(const Case& c, int kept_q, int kept_k) {
  const Shape& s = c.shape;
  std::mt19937 engine(99u + s.Tq * 5 + s.Tk + kept_q);
  const Layout layout(s);
  Arrays a(c, layout);
  const HostSparse q(s.B * s.Tq * s.H, s.Dqk, kept_q, engine), k(s.B * s.Tk * s.G, s.Dqk, kept_k, engine);
  std::vector<bf16> queries = random_values(a.queries.count, engine), keys = random_values(a.keys.count, engine);
  a.d_out.set(random_values(a.d_out.count, engine));
  a.out.set(random_values(a.out.count, engine));
  a.lse.set(std::vector<float>(a.lse.count, 3.0f));
  if (c.documents > 0) a.first_key.set(document_starts(c, engine));
  DeviceArray<bf16> q_values(q.values.size()), k_values(k.values.size());
  DeviceArray<std::uint8_t> q_indices(q.indices.size()), k_indices(k.indices.size());
  q_values.set(q.values), k_values.set(k.values), q_indices.set(q.indices), k_indices.set(k.indices);
  BackwardParams p = a.params(c, layout);

  std::vector<bf16> d_queries[3], d_keys[3];
  bool clean = true;
  for (int run = 0; run < 3; ++run) {  // full, sparse, sparse again
    q.fill(queries, layout.row, 0, s.H, s.Dqk, run > 0);
    k.fill(keys, layout.row, layout.k_column(s), s.G, s.Dqk, run > 0);
    a.queries.set(queries), a.keys.set(keys);
    a.d_queries.fill(0xff), a.d_keys.fill(0xff), a.workspace.fill(run == 2 ? 0x7f : 0xff);
    if (run > 0) {
      p.q_sparse = {q_values.data, q_indices.data, kept_q};
      p.k_sparse = {k_values.data, k_indices.data, kept_k};
    }
    p.heads_together = run == 2 ? 1 : 0;
    run_backward(c, p);
    check_cuda(cudaGetLastError(), "launch");
    check_cuda(cudaDeviceSynchronize(), c.name);
    d_queries[run] = a.d_queries.get(), d_keys[run] = a.d_keys.get();
    std::vector<bf16> after_q = a.queries.get(), after_k = a.keys.get();
    q.fill(after_q, layout.row, 0, s.H, s.Dqk, run > 0);
    k.fill(after_k, layout.row, layout.k_column(s), s.G, s.Dqk, run > 0);
    clean = clean && std::memcmp(after_q.data(), queries.data(), queries.size() * 2) == 0 &&
            std::memcmp(after_k.data(), keys.data(), keys.size() * 2) == 0;
  }
  const bool same = std::memcmp(d_queries[1].data(), d_queries[2].data(), d_queries[1].size() * 2) == 0 &&
                    std::memcmp(d_keys[1].data(), d_keys[2].data(), d_keys[1].size() * 2) == 0;
  const int k_column = layout.k_column(s), v_column = layout.v_column(s);
  const bool q_good = q.masks(d_queries[1], d_queries[0], layout.row, 0, s.H, s.Dqk);
  const bool k_good = k.masks(d_keys[1], d_keys[0], layout.row, k_column, s.G, s.Dqk);
  clean = clean && untouched(d_queries[1], layout.row, 0, k_column) &&
          untouched(d_keys[1], layout.row, k_column, layout.row);
  bool v_good = true;
  for (std::size_t i = 0; i < d_keys[0].size(); ++i)
    if (static_cast<int>(i % layout.row) >= v_column)
      v_good = v_good && std::memcmp(&d_keys[0][i], &d_keys[1][i], 2) == 0;
  const bool good = same && clean && q_good && k_good && v_good;
  std::printf("%-4s sparse %d/%d %-22s B%d Tq%-5d Tk%-5d H%d G%d D%d/%d%s%s%s%s%s\n", good ? "ok" : "FAIL", kept_q,
              kept_k, c.name, s.B, s.Tq, s.Tk, s.H, s.G, s.Dqk, s.Dv, q_good ? "" : "  dQ", k_good ? "" : "  dK",
              v_good ? "" : "  dV", same ? "" : "  NOT REPEATABLE", clean ? "" : "  WROTE OUTSIDE");
  std::fflush(stdout);
  return good;
}

/// Every range and length over some numbers of features, and every number of features over one shape.
inline int check_sparse(int only, int longest) {
  int failures = 0, run = 0;
  const auto one = [&](const Case& c, int kept_q, int kept_k) {
    if (std::max(c.shape.Tq, c.shape.Tk) > longest || (only != 0 && only != c.shape.Dqk)) return;
    ++run;
    failures += run_sparse_case(c, kept_q, kept_k) ? 0 : 1;
  };
  for (int d : {64, 128})
    for (const Case& c : cases_of(d, d)) one(c, d / 8, d / 8);
  for (int kept = 1; kept <= 32; kept += 3) one({"features", {2, 150, 150, 3, 3, 64, 64}}, kept, 33 - kept);
  for (int kept : {1, 7, 16, 64, 128}) one({"features", {1, 200, 200, 4, 2, 128, 128}}, kept, 129 - kept);
  one({"values of 64", {2, 300, 300, 4, 2, 128, 64}}, 16, 8);
  one({"filled up", {2, 300, 300, 2, 1, 96, 96}}, 12, 5);
  one({"filled up", {1, 129, 300, 2, 2, 32, 64}}, 4, 16);
  one({"filled up", {1, 300, 129, 2, 2, 16, 16}}, 2, 2);
  std::printf("%d of %d sparse cases failed\n", failures, run);
  return failures;
}

}  // namespace sfa::test
