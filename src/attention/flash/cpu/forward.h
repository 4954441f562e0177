// One tile of queries of one head, forward: O = softmax(S) V and the log-sum-exp of every row, with the softmax taken
// online over tiles of keys (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691). The product
// of queries and keys is the policy:
//   dense    S = Q K^T by the matrix product, over a feature-major tile of keys
//   sparse   a row of S is the sum of k rows of the feature-major tile of keys, scaled by the query's values (exact
//   SFA, Eq. 5)
// The product with V is the matrix product on P, or, where few pairs share a feature, exact by lists: a pair without a
// common feature has weight 2^-m, so that a row of O over one tile is 2^-m * (sum of the tile's V) + sum over listed
// pairs of (2^(s-m) - 2^-m) V_j. A row takes that form only while at least a fifth of the tile scores zero, which
// bounds the cancellation.
#pragma once

#include "attention/flash/cpu/gemm.h"
#include "attention/flash/cpu/pack.h"

namespace sfa::flash_cpu {

/// Hands out parts of a workspace; without memory it counts.
struct Workspace {
  float* base = nullptr;
  std::int64_t used = 0;
  [[gnu::always_inline]] float* take(std::int64_t floats) {
    float* part = base ? base + used : nullptr;
    used += (floats + 15) / 16 * 16;
    return part;
  }
  [[gnu::always_inline]] std::int32_t* take_int(std::int64_t n) { return reinterpret_cast<std::int32_t*>(take(n)); }
};

inline constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

template <class V>
struct ForwardTile {
  using F = typename V::F;
  static constexpr int kVectors = kTileKeys / V::kLanes;
  static constexpr float kMinusInfinity = -__builtin_inff();
  static constexpr int kCountedRows = 8;
  static_assert(kTileKeys == 64, "the listed keys of a row are the bits of one word");

  const Problem& p;
  std::int64_t b = 0, h = 0, g = 0, first_query = 0;
  int rows = 0, width = 0;  // width: padded Dv

  float *keys = nullptr, *values = nullptr,
        *values_sum = nullptr;                             // tiles [Dqk][kTileKeys], [kTileKeys][width], [width]
  float* queries = nullptr;                                // [rows][padded Dqk], or [rows][k_q]
  std::int32_t* offsets = nullptr;                         // sparse: [rows][k_q]
  float* scores = nullptr;                                 // [rows][kTileKeys]: S, then P, or the listed weights
  std::uint64_t* listed = nullptr;                         // sparse: [rows] the keys of the listed weights, a bit each
  float* base = nullptr;                                   // sparse: [rows] weight of the keys that are not listed
  float *out = nullptr, *top = nullptr, *total = nullptr;  // [rows][width], [rows], [rows][lanes]
  std::int32_t *lo = nullptr, *hi = nullptr;               // [rows]
  const float* ahead = nullptr;                            // rows of V of the next tile, when that is whole

  std::int64_t bind(Workspace w) {
    width = padded<V>(p.Dv);
    keys = w.take(std::int64_t{p.Dqk} * kTileKeys);
    values = w.take(std::int64_t{kTileKeys} * width);
    scores = w.take(std::int64_t{rows} * kTileKeys);
    out = w.take(std::int64_t{rows} * width);
    top = w.take(rows);
    total = w.take(std::int64_t{rows} * V::kLanes);
    lo = w.take_int(rows);
    hi = w.take_int(rows);
    if (p.sparse) {
      queries = w.take(std::int64_t{rows} * p.q_sparse.active);
      offsets = w.take_int(std::int64_t{rows} * p.q_sparse.active);
      listed = reinterpret_cast<std::uint64_t*>(w.take(std::int64_t{rows} * 2));
      base = w.take(rows);
      values_sum = w.take(width);
    } else {
      queries = w.take(std::int64_t{rows} * padded<V>(p.Dqk));
    }
    return w.used;
  }

  // A new maximum of a row rescales what the row has gathered.
  void raise(int r, F highest_of) {
    if (!V::any_greater(highest_of, V::set(top[r]))) return;
    const float now = V::highest(highest_of), before = top[r];
    top[r] = now;
    if (before == kMinusInfinity) return;
    const F factor = V::exp2(V::set(before - now));
    V::store(total + r * V::kLanes, V::mul(factor, V::load(total + r * V::kLanes)));
    for (int c = 0; c < width; c += V::kLanes)
      V::store(out + r * width + c, V::mul(factor, V::load(out + r * width + c)));
  }

  // s -> P of one row, keys outside [begin, end) of the tile excluded.
  void softmax_row(int r, F (&s)[kVectors], int begin, int end) {
    float* weights = scores + r * kTileKeys;
    if (begin >= end) return set_zero<V>(weights, kTileKeys);
    if (begin > 0 || end < kTileKeys)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        s[v] = V::select(V::range(begin - v * V::kLanes, end - v * V::kLanes), s[v], V::set(kMinusInfinity));
    F highest = s[0];
#pragma GCC unroll 8
    for (int v = 1; v < kVectors; ++v) highest = V::max(highest, s[v]);
    raise(r, highest);
    const F m = V::set(top[r]);
    F sum = V::load(total + r * V::kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const F e = V::exp2(V::sub(s[v], m));
      V::store(weights + v * V::kLanes, e);
      sum = V::add(sum, e);
    }
    V::store(total + r * V::kLanes, sum);
  }

  // s -> weights of the listed pairs beyond that of the others (zero for these), the set of the former, the weight of
  // the latter.
  void list_row(int r, F (&s)[kVectors], std::uint64_t overlap) {
    F highest = V::zero();  // of the pairs without a common feature
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) highest = V::max(highest, s[v]);
    raise(r, highest);
    const F m = V::set(top[r]);
    const bool all = static_cast<float>(__builtin_popcountll(overlap)) > kListShareRow * kTileKeys;
    const F rest = all ? V::zero() : V::exp2(V::sub(V::zero(), m));
    float* weights = scores + r * kTileKeys;
    F sum = V::fma(rest, V::set(kVectors), V::load(total + r * V::kLanes));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const F w = V::sub(V::exp2(V::sub(s[v], m)), rest);
      V::store(weights + v * V::kLanes, w);
      sum = V::add(sum, w);
    }
    V::store(total + r * V::kLanes, sum);
    listed[r] = all ? ~std::uint64_t{0} : overlap;
    V::store_masked(V::range(0, 1), base + r, rest);
  }

  // Rows of S from row r. Two at a time keep the processor busy over the latency of their sums.
  template <int Rows>
  void sparse_scores(int r, F (&s)[Rows][kVectors]) const {
    const int active = p.q_sparse.active;
    const float* value = queries + r * active;
    const std::int32_t* offset = offsets + r * active;
#pragma GCC unroll 2
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) s[i][v] = V::zero();
    for (int t = 0; t < active; ++t)
#pragma GCC unroll 2
      for (int i = 0; i < Rows; ++i) {
        const F x = V::set(value[i * active + t]);
        const float* row = keys + offset[i * active + t];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) s[i][v] = V::fma(x, V::load(row + v * V::kLanes), s[i][v]);
      }
  }

  // While the scores of row r are taken, the next tile's rows of V are fetched, a share at a time.
  void fetch_ahead(int r, int r0, int r1) const {
    if (!ahead) return;
    const int step = V::kScoreRows;
    for (int j = (r - r0) * kTileKeys / (r1 - r0), end = (r + step - r0) * kTileKeys / (r1 - r0); j < end; ++j)
      for (int c = 0; c < p.Dv; c += 16) __builtin_prefetch(ahead + j * p.v.token + c, 0, 2);
  }

  static int clip(std::int64_t key, std::int64_t first) {
    const std::int64_t k = key - first;
    return static_cast<int>(k < 0 ? 0 : (k > kTileKeys ? kTileKeys : k));
  }

  void dense_scores(int r0, int r1, std::int64_t first) {
    const int D = p.Dqk, stride = padded<V>(D);
    gemm<V>({queries + r0 * stride, stride, 1, keys, kTileKeys, scores + r0 * kTileKeys, kTileKeys, 0, false}, r1 - r0,
            kTileKeys, [&](int r, int n) {
              return Extent{0, D, clip(lo[r0 + r], first), clip(hi[r0 + r + n - 1], first)};
            });
    for (int r = r0; r < r1; ++r) {
      F s[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) s[v] = V::load(scores + r * kTileKeys + v * V::kLanes);
      softmax_row(r, s, clip(lo[r], first), clip(hi[r], first));
    }
  }

  void product_with_values(int r0, int r1, std::int64_t first) {
    gemm<V>({scores + r0 * kTileKeys, kTileKeys, 1, values, width, out + r0 * width, width, 0, true}, r1 - r0, width,
            [&](int r, int n) {
              return Extent{clip(lo[r0 + r], first), clip(hi[r0 + r + n - 1], first), 0, width};
            });
  }

  // O of row r, a panel of `Vectors` vectors from column c, by lists.
  template <int Vectors>
  void list_product(int r, int c) {
    // Two sums, since one chain of additions is bound by its latency.
    F even[Vectors], odd[Vectors];
    const F rest = V::set(base[r]);
    float* row = out + r * width + c;
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      even[v] = V::load(row + v * V::kLanes);
      odd[v] = V::mul(rest, V::load(values_sum + c + v * V::kLanes));
    }
    const float* weights = scores + r * kTileKeys;
    const float* from = values + c;
    const std::int64_t stride = width;
    const auto add = [&](F(&o)[Vectors], std::uint64_t left) {
      const int j = __builtin_ctzll(left);
      const F w = V::set(weights[j]);
      const float* x = from + j * stride;
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) o[v] = V::fma(w, V::load(x + v * V::kLanes), o[v]);
    };
    std::uint64_t left = listed[r];
    for (std::uint64_t second; (second = left & (left - 1)) != 0; left = second & (second - 1)) {
      add(even, left);
      add(odd, second);
    }
    if (left != 0) add(even, left);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) V::store(row + v * V::kLanes, V::add(even[v], odd[v]));
  }
  template <int Vectors = V::kListPanel>
  void list_panel(int r0, int r1, int c, int vectors) {
    if (vectors == Vectors) {
      for (int r = r0; r < r1; ++r) list_product<Vectors>(r, c);
      return;
    }
    if constexpr (Vectors > 1) list_panel<Vectors - 1>(r0, r1, c, vectors);
  }
  void list_values(int r0, int r1) {
    set_zero<V>(values_sum, width);
    for (int j = 0; j < kTileKeys; ++j)
      for (int c = 0; c < width; c += V::kLanes)
        V::store(values_sum + c, V::add(V::load(values_sum + c), V::load(values + j * width + c)));
    for (int c = 0; c < width; c += V::kListPanel * V::kLanes) {
      const int vectors = (width - c) / V::kLanes;
      list_panel(r0, r1, c, vectors < V::kListPanel ? vectors : V::kListPanel);
    }
  }

  // Rows r ... r + Rows - 1 of a tile; returns how many of their pairs have a common feature. Without lists that is
  // taken of few rows.
  template <bool Lists, int Rows>
  int sparse_rows(int r, std::int64_t first, bool whole) {
    F s[Rows][kVectors];
    sparse_scores<Rows>(r, s);
    int pairs = 0;
#pragma GCC unroll 2
    for (int i = 0; i < Rows; ++i) {
      if (Lists || (r + i) % kCountedRows == 0) {
        std::uint64_t overlap = 0;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) overlap |= std::uint64_t{V::nonzero(s[i][v])} << (v * V::kLanes);
        pairs += __builtin_popcountll(overlap);
        if constexpr (Lists) list_row(r + i, s[i], overlap);
      }
      if constexpr (!Lists)
        softmax_row(r + i, s[i], whole ? 0 : clip(lo[r + i], first), whole ? kTileKeys : clip(hi[r + i], first));
    }
    return pairs;
  }

  // Returns the share of pairs with a common feature.
  template <bool Lists>
  float sparse_tile(int r0, int r1, std::int64_t first, bool whole) {
    std::int64_t pairs = 0;
    int r = r0;
    for (; r + V::kScoreRows <= r1; r += V::kScoreRows) {
      fetch_ahead(r, r0, r1);
      pairs += sparse_rows<Lists, V::kScoreRows>(r, first, whole);
    }
    for (; r < r1; ++r) pairs += sparse_rows<Lists, 1>(r, first, whole);
    const int counted = Lists ? r1 - r0 : (r1 - 1) / kCountedRows - (r0 - 1 + kCountedRows) / kCountedRows + 1;
    return counted > 0 ? static_cast<float>(pairs) / static_cast<float>(counted * kTileKeys) : 1.0f;
  }

  void finish() {
    for (int r = 0; r < rows; ++r) {
      const float sum = V::sum(V::load(total + r * V::kLanes));
      const bool empty = top[r] == kMinusInfinity && sum == 0.0f;
      float* to = p.out.at(b, first_query + r, h);
      unpack_rows<V>(out + r * width, 1, p.Dv, empty ? 0.0f : 1.0f / sum, false, to, 0);
      if (p.round_bf16)
        for (int c = 0; c < p.Dv; ++c) to[c] = to_bf16<V>(to[c]);
      p.lse[(b * p.H + h) * p.Tq + first_query + r] = empty ? kMinusInfinity : top[r] * kLn2 + __builtin_logf(sum);
    }
  }

  void run() {
    set_zero<V>(out, std::int64_t{rows} * width);
    set_zero<V>(total, std::int64_t{rows} * V::kLanes);
    for (int r = 0; r < rows; ++r) top[r] = kMinusInfinity;
    fill_spans<V>(p, b, first_query, rows, lo, hi);
    const float factor = p.scale * kLog2e;
    float share = 1.0f;
    if (p.sparse) {
      pack_sparse_queries<V>(p.q_sparse, b, h, first_query, rows, factor, queries, offsets);
      set_zero<V>(keys, std::int64_t{p.Dqk} * kTileKeys);
      const float shared = static_cast<float>(p.q_sparse.active * p.k_sparse.active) / static_cast<float>(p.Dqk);
      share = 1.0f - __builtin_expf(-shared);  // uniform supports; the first tile corrects it
    } else {
      pack_rows<V>(p.q.at(b, first_query, h), p.q.token, rows, p.Dqk, factor, queries);
    }
    int r0 = 0, r1 = 0;  // the rows that see any key of a tile
    for (std::int64_t first = lo[0] / kTileKeys * kTileKeys; first < hi[rows - 1]; first += kTileKeys) {
      const int n = static_cast<int>(p.Tk - first < kTileKeys ? p.Tk - first : kTileKeys);
      while (r0 < rows && hi[r0] <= first) ++r0;
      while (r1 < rows && lo[r1] < first + n) ++r1;
      if (r0 >= r1) continue;
      pack_rows<V>(p.v.at(b, first, g), p.v.token, n, p.Dv, 1.0f, values);
      ahead = first + 2 * kTileKeys <= p.Tk ? p.v.at(b, first + kTileKeys, g) : nullptr;
      if (p.sparse) {
        const bool whole = hi[r0] >= first + kTileKeys && lo[r1 - 1] <= first;
        const bool lists = whole && share <= kListShare;
        SparseTile<V>::scatter(p.k_sparse, b, g, first, n, keys);
        share = lists ? sparse_tile<true>(r0, r1, first, whole) : sparse_tile<false>(r0, r1, first, whole);
        SparseTile<V>::clear(p.k_sparse, b, g, first, n, keys);
        lists ? list_values(r0, r1) : product_with_values(r0, r1, first);
      } else {
        pack_transposed<V>(p.k.at(b, first, g), p.k.token, n, p.Dqk, keys);
        dense_scores(r0, r1, first);
        product_with_values(r0, r1, first);
      }
    }
    finish();
  }
};

template <class V>
void forward_unit(const Problem& p, const ForwardUnit& unit, float* workspace) {
  ForwardTile<V> tile{p};
  tile.b = unit.b, tile.h = unit.h, tile.g = unit.h / p.group(), tile.first_query = unit.first_query,
  tile.rows = unit.queries;
  tile.bind({workspace, 0});
  tile.run();
}

template <class V>
std::int64_t forward_workspace(const Problem& p, int queries) {
  ForwardTile<V> tile{p};
  tile.rows = queries;
  return tile.bind({});
}

}  // namespace sfa::flash_cpu
