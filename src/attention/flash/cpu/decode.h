// Few queries over many keys (generation over a KV cache): keys and values are read once, where they lie, without
// packing. A unit serves all queries of one key head over one stretch of keys and leaves a partial result; the driver
// joins the stretches in order. Sparse keys are k values and k feature numbers: a score is k gathers from the query's
// full-width row, which stays in cache.
#pragma once

#include "attention/flash/cpu/backward.h"

namespace sfa::flash_cpu {

template <class V>
struct DecodeTile {
  using F = typename V::F;
  static constexpr int kVectors = kTileKeys / V::kLanes;
  static constexpr float kMinusInfinity = -__builtin_inff();

  const Problem& p;
  const DecodeUnit& unit;
  int rows = 0, qk_width = 0, v_width = 0;  // rows: query heads of the group x Tq

  float *queries = nullptr, *scores = nullptr, *out = nullptr;  // [rows][qk_width], [kTileKeys], [rows][v_width]
  float *top = nullptr, *total = nullptr;                       // [rows]
  std::int32_t *lo = nullptr, *hi = nullptr;                    // [Tq]

  std::int64_t bind(Workspace w) {
    qk_width = padded<V>(p.Dqk);
    v_width = padded<V>(p.Dv);
    queries = w.take(std::int64_t{rows} * qk_width);
    scores = w.take(kTileKeys);
    out = w.take(std::int64_t{rows} * v_width);
    top = w.take(rows);
    total = w.take(rows);
    lo = w.take_int(rows);
    hi = w.take_int(rows);
    return w.used;
  }

  void load_query(int r, std::int64_t i, std::int64_t h) {
    float* to = queries + r * qk_width;
    if (!p.sparse) return pack_rows<V>(p.q.at(unit.b, i, h), 0, 1, p.Dqk, p.scale * kLog2e, to);
    set_zero<V>(to, qk_width);
    const float* value = p.q_sparse.value_at(unit.b, i, h);
    const std::uint8_t* index = p.q_sparse.index_at(unit.b, i, h);
    for (int t = 0; t < p.q_sparse.active; ++t) to[index[t]] = p.scale * kLog2e * value[t];
  }

  // Eight keys at a time, their sums taken together.
  void dense_scores(const float* q, std::int64_t first, int n) {
    const int whole = p.Dqk / V::kLanes * V::kLanes;
    const auto tail = V::range(0, p.Dqk - whole);
    const float* k = p.k.at(unit.b, first, unit.g);
    for (int j = 0; j < n; j += 8) {
      F part[8];
#pragma GCC unroll 8
      for (int u = 0; u < 8; ++u) part[u] = V::zero();
      const int last = n - 1 - j;  // keys behind the end repeat the last one and are not looked at
      for (int c = 0; c < qk_width; c += V::kLanes) {
        const F x = V::load(q + c);
#pragma GCC unroll 8
        for (int u = 0; u < 8; ++u) {
          const float* row = k + (j + (u < last ? u : last)) * p.k.token + c;
          part[u] = V::fma(x, c < whole ? V::load(row) : V::load_masked(tail, row), part[u]);
        }
      }
      store_sums<V>(part, scores + j);
    }
  }

  void sparse_scores(const float* q, std::int64_t first, int n) {
    const int active = p.k_sparse.active;
    std::uint8_t room[256];
    for (int j = 0; j < n; ++j) {
      const float* value = p.k_sparse.value_at(unit.b, first + j, unit.g);
      const std::uint8_t* index = p.k_sparse.numbers_at(unit.b, first + j, unit.g, room);
      float sum = 0;
      int t = 0;
      if (active >= 8) {
        __m256 part = _mm256_setzero_ps();
        for (; t + 8 <= active; t += 8) {
          const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(index + t)));
          part = _mm256_fmadd_ps(_mm256_i32gather_ps(q, lanes, 4), _mm256_loadu_ps(value + t), part);
        }
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(part), _mm256_extractf128_ps(part, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        sum = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
      }
      for (; t < active; ++t) sum += value[t] * q[index[t]];
      scores[j] = sum;
    }
  }

  template <int Vectors>
  void add_values(float* o, const float* v, int begin, int end, int features) {
    F acc[Vectors];
    const auto tail = V::range(0, features - (Vectors - 1) * V::kLanes);
#pragma GCC unroll 8
    for (int u = 0; u < Vectors; ++u) acc[u] = V::load(o + u * V::kLanes);
    for (int j = begin; j < end; ++j) {
      const F w = V::set(scores[j]);
      const float* row = v + j * p.v.token;
#pragma GCC unroll 8
      for (int u = 0; u + 1 < Vectors; ++u) acc[u] = V::fma(w, V::load(row + u * V::kLanes), acc[u]);
      acc[Vectors - 1] = V::fma(w, V::load_masked(tail, row + (Vectors - 1) * V::kLanes), acc[Vectors - 1]);
    }
#pragma GCC unroll 8
    for (int u = 0; u < Vectors; ++u) V::store(o + u * V::kLanes, acc[u]);
  }
  template <int Vectors = 8>
  void add_panel(int vectors, float* o, const float* v, int begin, int end, int features) {
    if (vectors == Vectors) return add_values<Vectors>(o, v, begin, end, features);
    if constexpr (Vectors > 1) add_panel<Vectors - 1>(vectors, o, v, begin, end, features);
  }

  void block(int r, std::int64_t first, int n, int begin, int end) {
    const float* q = queries + r * qk_width;
    p.sparse ? sparse_scores(q, first, n) : dense_scores(q, first, n);
    F s[kVectors], highest = V::set(kMinusInfinity);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      s[v] = V::select(V::range(begin - v * V::kLanes, end - v * V::kLanes), V::load(scores + v * V::kLanes),
                       V::set(kMinusInfinity));
      highest = V::max(highest, s[v]);
    }
    float* o = out + r * v_width;
    if (V::any_greater(highest, V::set(top[r]))) {
      const float now = V::highest(highest), before = top[r];
      top[r] = now;
      if (before != kMinusInfinity) {
        const F factor = V::exp2(V::set(before - now));
        for (int c = 0; c < v_width; c += V::kLanes) V::store(o + c, V::mul(factor, V::load(o + c)));
        float scaled[V::kLanes];
        V::store(scaled, factor);
        total[r] *= scaled[0];
      }
    }
    F sum = V::zero();
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const F e = V::exp2(V::sub(s[v], V::set(top[r])));
      V::store(scores + v * V::kLanes, e);
      sum = V::add(sum, e);
    }
    total[r] += V::sum(sum);
    const float* v = p.v.at(unit.b, first, unit.g);
    for (int c = 0; c < v_width; c += 8 * V::kLanes) {
      const int features = p.Dv - c < 8 * V::kLanes ? p.Dv - c : 8 * V::kLanes;
      add_panel(padded<V>(features) / V::kLanes, o + c, v + c, begin, end, features);
    }
  }

  void run() {
    const std::int64_t group = p.group();
    fill_spans<V>(p, unit.b, 0, static_cast<int>(p.Tq), lo, hi);
    set_zero<V>(out, std::int64_t{rows} * v_width);
    for (int r = 0; r < rows; ++r) {
      top[r] = kMinusInfinity;
      total[r] = 0;
      load_query(r, r % p.Tq, unit.g * group + r / p.Tq);
    }
    for (std::int64_t first = unit.first; first < unit.last; first += kTileKeys) {
      const int n = static_cast<int>(unit.last - first < kTileKeys ? unit.last - first : kTileKeys);
      for (int r = 0; r < rows; ++r) {
        const int begin = ForwardTile<V>::clip(lo[r % p.Tq], first), end = ForwardTile<V>::clip(hi[r % p.Tq], first);
        if (begin < end && begin < n) block(r, first, n, begin, end < n ? end : n);
      }
    }
    for (int r = 0; r < rows; ++r) {
      float* to = unit.partial + r * (p.Dv + 2);
      unpack_rows<V>(out + r * v_width, 1, p.Dv, 1.0f, false, to, 0);
      to[p.Dv] = top[r];
      to[p.Dv + 1] = total[r];
    }
  }
};

template <class V>
void decode_unit(const Problem& p, const DecodeUnit& unit, float* workspace) {
  DecodeTile<V> tile{p, unit};
  tile.rows = static_cast<int>(p.group() * p.Tq);
  tile.bind({workspace, 0});
  tile.run();
}

template <class V>
std::int64_t decode_workspace(const Problem& p, int queries) {
  const DecodeUnit unit{};
  DecodeTile<V> tile{p, unit};
  tile.rows = static_cast<int>(p.group()) * queries;
  return tile.bind({});
}

/// The table of one instruction set.
template <class V>
constexpr Kernels kernels_of(const char* name) {
  return {name,
          forward_unit<V>,
          backward_unit<V>,
          decode_unit<V>,
          forward_workspace<V>,
          backward_workspace<V>,
          decode_workspace<V>};
}

}  // namespace sfa::flash_cpu
