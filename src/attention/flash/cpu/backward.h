// Backward of one key head, or of a share of its key tiles, from O and the log-sum-exp alone (FlashAttention-2, arXiv
// 2307.08691, Alg. 2):
//   P = 2^(S - lse2);  dP = dO V^T;  dS = P (dP - delta), delta_i = sum_c dO_ic O_ic
//   dV += P^T dO;  dK += scale dS^T Q;  dQ += scale dS K
// A tile of keys is the outer loop and holds dK and dV; rows of dQ are added to in the order of key tiles. Sums over
// the query heads that share the key head run in the order of heads. Nothing of Tq x Tk is kept. Sparse (SFA, Eq. 6): S
// as in the forward; dQ is a dot product of a row of dS with each of the k rows of the feature-major tile of keys that
// the query's support names, dK is gathered feature-major (k scaled rows a query) and read out at the supports of the
// keys.
#pragma once

#include "attention/flash/cpu/forward.h"

namespace sfa::flash_cpu {

/// The sums of eight vectors.
template <class V>
void store_sums(const typename V::F (&x)[8], float* to) {
  __m256 a[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = V::half(x[i]);
  const __m256 s0 = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  const __m256 s1 = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
  _mm256_storeu_ps(to, _mm256_add_ps(_mm256_permute2f128_ps(s0, s1, 0x20), _mm256_permute2f128_ps(s0, s1, 0x31)));
}

template <class V>
struct BackwardTile {
  using F = typename V::F;
  static constexpr int kVectors = kTileKeys / V::kLanes;

  const Problem& p;
  const BackwardUnit& unit;
  int rows = 0;  // queries a tile
  int qk_width = 0, v_width = 0;

  float *keys_t = nullptr, *keys = nullptr,
        *values_t = nullptr;  // [Dqk][kTileKeys], [kTileKeys][qk_width], [Dv][kTileKeys]
  float *d_keys = nullptr,
        *d_values = nullptr;  // [kTileKeys][qk_width] (sparse: [Dqk][kTileKeys]), [kTileKeys][v_width]
  float *queries = nullptr, *d_out = nullptr,
        *d_queries = nullptr;                     // [rows][qk_width], [rows][v_width], [rows][qk_width]
  std::int32_t* offsets = nullptr;                // sparse: queries is [rows][k_q]
  float *weights = nullptr, *d_scores = nullptr;  // [rows][kTileKeys]: S, then P; dP, then dS
  std::int32_t *lo = nullptr, *hi = nullptr;      // [rows]

  std::int64_t bind(Workspace w) {
    qk_width = padded<V>(p.Dqk);
    v_width = padded<V>(p.Dv);
    keys_t = w.take(std::int64_t{p.Dqk} * kTileKeys);
    values_t = w.take(std::int64_t{p.Dv} * kTileKeys);
    d_keys = w.take(std::int64_t{qk_width} * kTileKeys);
    d_values = w.take(std::int64_t{kTileKeys} * v_width);
    d_out = w.take(std::int64_t{rows} * v_width);
    weights = w.take(std::int64_t{rows} * kTileKeys);
    d_scores = w.take(std::int64_t{rows} * kTileKeys);
    lo = w.take_int(rows);
    hi = w.take_int(rows);
    if (p.sparse) {
      queries = w.take(std::int64_t{rows} * p.q_sparse.active + 8);
      offsets = w.take_int(std::int64_t{rows} * p.q_sparse.active + 8);
    } else {
      queries = w.take(std::int64_t{rows} * qk_width);
      keys = w.take(std::int64_t{kTileKeys} * qk_width);
      d_queries = w.take(std::int64_t{rows} * qk_width);
    }
    return w.used;
  }

  static int clip(std::int64_t key, std::int64_t first) { return ForwardTile<V>::clip(key, first); }

  void scores(int r0, int r1, std::int64_t first) {
    if (p.sparse) {
      const int active = p.q_sparse.active;
      for (int r = r0; r < r1; ++r) {
        F s[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) s[v] = V::zero();
        for (int t = 0; t < active; ++t) {
          const F x = V::set(queries[r * active + t]);
          const float* row = keys_t + offsets[r * active + t];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) s[v] = V::fma(x, V::load(row + v * V::kLanes), s[v]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) V::store(weights + r * kTileKeys + v * V::kLanes, s[v]);
      }
      return;
    }
    gemm<V>({queries + r0 * qk_width, qk_width, 1, keys_t, kTileKeys, weights + r0 * kTileKeys, kTileKeys, 0, false},
            r1 - r0, kTileKeys, [&](int r, int n) {
              return Extent{0, p.Dqk, clip(lo[r0 + r], first), clip(hi[r0 + r + n - 1], first)};
            });
  }

  // S, dP -> P, dS, zero where a key is not seen.
  void probabilities(int r0, int r1, std::int64_t first, const float* lse, const float* delta) {
    for (int r = r0; r < r1; ++r) {
      float *w = weights + r * kTileKeys, *d = d_scores + r * kTileKeys;
      const int begin = clip(lo[r], first), end = clip(hi[r], first);
      const F lse2 = V::set(lse[r] * kLog2e), mean = V::set(delta[r]);
      const bool whole = begin == 0 && end == kTileKeys;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        F e = V::exp2(V::sub(V::load(w + v * V::kLanes), lse2));
        F ds = V::mul(e, V::sub(V::load(d + v * V::kLanes), mean));
        if (!whole) {
          const auto seen = V::range(begin - v * V::kLanes, end - v * V::kLanes);
          e = V::select(seen, e, V::zero());
          ds = V::select(seen, ds, V::zero());
        }
        V::store(w + v * V::kLanes, e);
        V::store(d + v * V::kLanes, ds);
      }
    }
  }

  // The rows that see any of the keys [j, j + n) of the tile: blocks of P^T and dS^T skip the others.
  Extent rows_of(int r0, int r1, std::int64_t first, int j, int n, int width) const {
    int begin = r0, end = r1;
    while (begin < end && hi[begin] <= first + j) ++begin;
    while (end > begin && lo[end - 1] >= first + j + n) --end;
    return {begin - r0, end - r0, 0, width};
  }

  void sparse_gradients(std::int64_t h, std::int64_t first_query, int r0, int r1) {
    const int active = p.q_sparse.active;
    for (int r = r0; r < r1; ++r) {
      F ds[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) ds[v] = V::load(d_scores + r * kTileKeys + v * V::kLanes);
      const std::int32_t* offset = offsets + r * active;
      float* d_q = unit.d_q.at(unit.b, first_query + r, h);
      for (int t = 0; t < active; t += 8) {
        F part[8];
        const int n = active - t < 8 ? active - t : 8;
        for (int u = 0; u < 8; ++u) {
          if (u >= n) {
            part[u] = V::zero();
            continue;
          }
          const F x = V::set(queries[r * active + t + u]);
          const float* row = keys_t + offset[t + u];
          float* d_row = d_keys + offset[t + u];
          F dot = V::zero();
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            dot = V::fma(ds[v], V::load(row + v * V::kLanes), dot);
            V::store(d_row + v * V::kLanes, V::fma(x, ds[v], V::load(d_row + v * V::kLanes)));
          }
          part[u] = dot;
        }
        float sums[8];
        store_sums<V>(part, sums);
        for (int u = 0; u < n; ++u) d_q[offset[t + u] / kTileKeys] += p.scale * sums[u];
      }
    }
  }

  void dense_gradients(std::int64_t h, std::int64_t first_query, int r0, int r1, std::int64_t first, int n) {
    gemm<V>({d_scores + r0 * kTileKeys, kTileKeys, 1, keys, qk_width, d_queries, qk_width, 0, false}, r1 - r0, qk_width,
            [&](int r, int m) {
              return Extent{clip(lo[r0 + r], first), clip(hi[r0 + r + m - 1], first), 0, qk_width};
            });
    unpack_rows<V>(d_queries, r1 - r0, p.Dqk, p.scale, true, unit.d_q.at(unit.b, first_query + r0, h), unit.d_q.token);
    gemm<V>({d_scores + r0 * kTileKeys, 1, kTileKeys, queries + r0 * qk_width, qk_width, d_keys, qk_width, 0, true}, n,
            qk_width, [&](int j, int m) { return rows_of(r0, r1, first, j, m, qk_width); });
  }

  void query_tile(std::int64_t h, std::int64_t first_query, int r0, int r1, std::int64_t first, int n) {
    const std::int64_t place = (unit.b * p.H + h) * p.Tq + first_query;
    if (p.sparse)
      pack_sparse_queries<V>(p.q_sparse, unit.b, h, first_query, r1, p.scale * kLog2e, queries, offsets);
    else
      pack_rows<V>(p.q.at(unit.b, first_query, h), p.q.token, r1, p.Dqk, p.scale * kLog2e, queries);
    pack_rows<V>(p.d_out.at(unit.b, first_query, h), p.d_out.token, r1, p.Dv, 1.0f, d_out);
    scores(r0, r1, first);
    gemm<V>({d_out + r0 * v_width, v_width, 1, values_t, kTileKeys, d_scores + r0 * kTileKeys, kTileKeys, 0, false},
            r1 - r0, kTileKeys, [&](int r, int m) {
              return Extent{0, p.Dv, clip(lo[r0 + r], first), clip(hi[r0 + r + m - 1], first)};
            });
    probabilities(r0, r1, first, p.lse + place, unit.delta + place);
    gemm<V>({weights + r0 * kTileKeys, 1, kTileKeys, d_out + r0 * v_width, v_width, d_values, v_width, 0, true}, n,
            v_width, [&](int j, int m) { return rows_of(r0, r1, first, j, m, v_width); });
    p.sparse ? sparse_gradients(h, first_query, r0, r1) : dense_gradients(h, first_query, r0, r1, first, n);
  }

  // The queries were packed times scale * log2(e), so that what they contributed to dK lacks 1 / log2(e).
  void write_keys(std::int64_t first, int n) {
    unpack_rows<V>(d_values, n, p.Dv, 1.0f, false, p.d_v.at(unit.b, first, unit.g), p.d_v.token);
    if (p.sparse) {
      for (int j = 0; j < n; ++j) {
        float* row = p.d_k.at(unit.b, first + j, unit.g);
        const std::uint8_t* index = p.k_sparse.index_at(unit.b, first + j, unit.g);
        for (int c = 0; c < p.Dqk; ++c) row[c] = 0.0f;
        for (int t = 0; t < p.k_sparse.active; ++t) row[index[t]] = kLn2 * d_keys[index[t] * kTileKeys + j];
      }
    } else {
      unpack_rows<V>(d_keys, n, p.Dqk, kLn2, false, p.d_k.at(unit.b, first, unit.g), p.d_k.token);
    }
    if (!p.round_bf16) return;
    for (int j = 0; j < n; ++j) {
      float *k = p.d_k.at(unit.b, first + j, unit.g), *v = p.d_v.at(unit.b, first + j, unit.g);
      for (int c = 0; c < p.Dqk; ++c) k[c] = to_bf16<V>(k[c]);
      for (int c = 0; c < p.Dv; ++c) v[c] = to_bf16<V>(v[c]);
    }
  }

  void key_tile(std::int64_t first) {
    const int n = static_cast<int>(p.Tk - first < kTileKeys ? p.Tk - first : kTileKeys);
    const float* v = p.v.at(unit.b, first, unit.g);
    pack_transposed<V>(v, p.v.token, n, p.Dv, values_t);
    if (p.sparse) {
      SparseTile<V>::scatter(p.k_sparse, unit.b, unit.g, first, n, keys_t);
    } else {
      const float* k = p.k.at(unit.b, first, unit.g);
      pack_transposed<V>(k, p.k.token, n, p.Dqk, keys_t);
      pack_rows<V>(k, p.k.token, n, p.Dqk, 1.0f, keys);
    }
    set_zero<V>(d_keys, std::int64_t{qk_width} * kTileKeys);
    set_zero<V>(d_values, std::int64_t{kTileKeys} * v_width);
    for (std::int64_t h = unit.g * p.group(); h < (unit.g + 1) * p.group(); ++h)
      for (std::int64_t first_query = 0; first_query < p.Tq; first_query += rows) {
        const int count = static_cast<int>(p.Tq - first_query < rows ? p.Tq - first_query : rows);
        // Spans never decrease: whole tiles of queries before or behind those that see the keys are passed over by
        // their last or first row.
        std::int32_t edge_lo, edge_hi;
        fill_spans<V>(p, unit.b, first_query + count - 1, 1, &edge_lo, &edge_hi);
        if (edge_hi <= first) continue;
        fill_spans<V>(p, unit.b, first_query, 1, &edge_lo, &edge_hi);
        if (edge_lo >= first + n) break;
        fill_spans<V>(p, unit.b, first_query, count, lo, hi);
        int r0 = 0, r1 = count;
        while (r0 < r1 && hi[r0] <= first) ++r0;
        while (r1 > r0 && lo[r1 - 1] >= first + n) --r1;
        if (r0 < r1) query_tile(h, first_query, r0, r1, first, n);
      }
    if (p.sparse) SparseTile<V>::clear(p.k_sparse, unit.b, unit.g, first, n, keys_t);
    write_keys(first, n);
  }

  void run() {
    for (std::int64_t h = unit.g * p.group(); h < (unit.g + 1) * p.group(); ++h)
      for (std::int64_t i = 0; i < p.Tq; ++i) {
        float* row = unit.d_q.at(unit.b, i, h);
        for (int c = 0; c < p.Dqk; ++c) row[c] = 0.0f;
      }
    if (p.sparse) set_zero<V>(keys_t, std::int64_t{p.Dqk} * kTileKeys);
    for (std::int64_t first = std::int64_t{unit.part} * kTileKeys; first < p.Tk;
         first += std::int64_t{unit.parts} * kTileKeys)
      key_tile(first);
  }
};

template <class V>
void backward_unit(const Problem& p, const BackwardUnit& unit, float* workspace) {
  BackwardTile<V> tile{p, unit};
  tile.rows = static_cast<int>(p.Tq < kBackwardQueries ? p.Tq : kBackwardQueries);
  tile.bind({workspace, 0});
  tile.run();
}

template <class V>
std::int64_t backward_workspace(const Problem& p, int queries) {
  const BackwardUnit unit{};
  BackwardTile<V> tile{p, unit};
  tile.rows = queries;
  return tile.bind({});
}

}  // namespace sfa::flash_cpu
