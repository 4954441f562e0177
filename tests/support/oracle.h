// The formulas of the ops as plain loops over any scalar type: double for the truth, float for the error that a naive
// evaluation makes. Shapes and names as in the headers of the ops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace sfa::oracle {

template <class T>
using Vec = std::vector<T>;

inline std::size_t z(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class T>
T gelu(T a) {
  const T c = static_cast<T>(std::sqrt(2.0 / 3.14159265358979323846));
  return T(0.5) * a * (T(1) + std::tanh(c * (a + T(0.044715) * a * a * a)));
}

template <class T>
T gelu_derivative(T a) {
  const T c = static_cast<T>(std::sqrt(2.0 / 3.14159265358979323846));
  const T t = std::tanh(c * (a + T(0.044715) * a * a * a));
  return T(0.5) * (T(1) + t) + T(0.5) * a * (T(1) - t * t) * c * (T(1) + T(3 * 0.044715) * a * a);
}

/// y [N,O] = x [N,I] w [O,I]^T + b (b may be empty).
template <class T>
Vec<T> linear(const Vec<T>& x, const Vec<T>& w, const Vec<T>& b, std::int64_t N, std::int64_t I, std::int64_t O) {
  Vec<T> y(z(N * O));
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t o = 0; o < O; ++o) {
      T sum = 0;
      for (std::int64_t i = 0; i < I; ++i) sum += x[z(n * I + i)] * w[z(o * I + i)];
      y[z(n * O + o)] = b.empty() ? sum : sum + b[z(o)];
    }
  return y;
}

template <class T>
Vec<T> map_gelu(Vec<T> a) {
  for (T& v : a) v = gelu(v);
  return a;
}

template <class T>
struct LinearGradients {
  Vec<T> x, weight, bias;
};

template <class T>
LinearGradients<T> linear_backward(const Vec<T>& d_y, const Vec<T>& x, const Vec<T>& w, const Vec<T>& pre_of_x,
                                   std::int64_t N, std::int64_t I, std::int64_t O) {
  LinearGradients<T> g{Vec<T>(z(N * I)), Vec<T>(z(O * I)), Vec<T>(z(O))};
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t o = 0; o < O; ++o) {
      const T d = d_y[z(n * O + o)];
      g.bias[z(o)] += d;
      for (std::int64_t i = 0; i < I; ++i) {
        g.x[z(n * I + i)] += d * w[z(o * I + i)];
        g.weight[z(o * I + i)] += d * x[z(n * I + i)];
      }
    }
  for (std::size_t i = 0; i < pre_of_x.size(); ++i) g.x[i] *= gelu_derivative(pre_of_x[i]);
  return g;
}

template <class T>
struct Norm {
  Vec<T> y, mean, rstd;
};

/// Layer norm of the rows of r [N,C].
template <class T>
Norm<T> layer_norm(const Vec<T>& r, const Vec<T>& w, const Vec<T>& b, std::int64_t N, std::int64_t C, T eps) {
  Norm<T> out{Vec<T>(z(N * C)), Vec<T>(z(N)), Vec<T>(z(N))};
  for (std::int64_t n = 0; n < N; ++n) {
    T mean = 0, var = 0;
    for (std::int64_t c = 0; c < C; ++c) mean += r[z(n * C + c)];
    mean /= static_cast<T>(C);
    for (std::int64_t c = 0; c < C; ++c) var += (r[z(n * C + c)] - mean) * (r[z(n * C + c)] - mean);
    const T rstd = T(1) / std::sqrt(var / static_cast<T>(C) + eps);
    for (std::int64_t c = 0; c < C; ++c) out.y[z(n * C + c)] = (r[z(n * C + c)] - mean) * rstd * w[z(c)] + b[z(c)];
    out.mean[z(n)] = mean;
    out.rstd[z(n)] = rstd;
  }
  return out;
}

template <class T>
struct NormGradients {
  Vec<T> r, weight, bias;
};

template <class T>
NormGradients<T> layer_norm_backward(const Vec<T>& d_y, const Vec<T>& r, const Vec<T>& w, std::int64_t N,
                                     std::int64_t C, T eps) {
  const Norm<T> saved = layer_norm(r, w, Vec<T>(z(C)), N, C, eps);
  NormGradients<T> g{Vec<T>(z(N * C)), Vec<T>(z(C)), Vec<T>(z(C))};
  for (std::int64_t n = 0; n < N; ++n) {
    T sum = 0, along = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      const T d = d_y[z(n * C + c)], x = (r[z(n * C + c)] - saved.mean[z(n)]) * saved.rstd[z(n)];
      g.weight[z(c)] += d * x;
      g.bias[z(c)] += d;
      sum += d * w[z(c)];
      along += d * w[z(c)] * x;
    }
    for (std::int64_t c = 0; c < C; ++c) {
      const T x = (r[z(n * C + c)] - saved.mean[z(n)]) * saved.rstd[z(n)];
      g.r[z(n * C + c)] =
          saved.rstd[z(n)] * (d_y[z(n * C + c)] * w[z(c)] - sum / static_cast<T>(C) - x * along / static_cast<T>(C));
    }
  }
  return g;
}

template <class T>
struct Classified {
  Vec<T> losses, d_x, d_weight;  // [N], [N,C], [Vp,C]
};

/// Cross entropy over the first V of Vp columns of x w^T, with the gradient of scale * sum of losses.
template <class T>
Classified<T> classifier(const Vec<T>& x, const Vec<T>& w, const std::vector<std::int32_t>& targets, std::int64_t C,
                         std::int64_t V, T scale) {
  const std::int64_t N = static_cast<std::int64_t>(targets.size());
  Classified<T> out{Vec<T>(z(N)), Vec<T>(z(N * C)), Vec<T>(w.size())};
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t target = targets[z(n)];
    if (target < 0) continue;
    Vec<T> logits(z(V));
    for (std::int64_t v = 0; v < V; ++v)
      for (std::int64_t c = 0; c < C; ++c) logits[z(v)] += x[z(n * C + c)] * w[z(v * C + c)];
    const T top = *std::max_element(logits.begin(), logits.end());
    T total = 0;
    for (T l : logits) total += std::exp(l - top);
    out.losses[z(n)] = std::log(total) + top - logits[z(target)];
    for (std::int64_t v = 0; v < V; ++v) {
      const T d = scale * (std::exp(logits[z(v)] - top) / total - (v == target ? T(1) : T(0)));
      for (std::int64_t c = 0; c < C; ++c) {
        out.d_x[z(n * C + c)] += d * w[z(v * C + c)];
        out.d_weight[z(v * C + c)] += d * x[z(n * C + c)];
      }
    }
  }
  return out;
}

struct AttentionShape {
  std::int64_t B, Tq, Tk, H, G, Dqk, Dv;
  [[nodiscard]] std::size_t q(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return z(((b * Tq + i) * H + h) * Dqk);
  }
  [[nodiscard]] std::size_t k(std::int64_t b, std::int64_t j, std::int64_t h) const {
    return z(((b * Tk + j) * G + h / (H / G)) * Dqk);
  }
  [[nodiscard]] std::size_t v(std::int64_t b, std::int64_t j, std::int64_t h) const {
    return z(((b * Tk + j) * G + h / (H / G)) * Dv);
  }
  [[nodiscard]] std::size_t out(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return z(((b * Tq + i) * H + h) * Dv);
  }
  [[nodiscard]] std::size_t row(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return z((b * H + h) * Tq + i);
  }
};

template <class T>
struct AttentionResult {
  Vec<T> out, lse;  // [B,Tq,H,Dv], [B,H,Tq]
};

/// The probabilities of one query row: scores over the keys for which visible(b, h, i, j); empty sum = all zero.
template <class T, class Visible>
Vec<T> probabilities(const AttentionShape& s, const Vec<T>& q, const Vec<T>& k, Visible visible, std::int64_t b,
                     std::int64_t h, std::int64_t i, T& lse) {
  const T scale = T(1) / std::sqrt(static_cast<T>(s.Dqk));
  Vec<T> p(z(s.Tk));
  T top = -std::numeric_limits<T>::infinity(), total = 0;
  for (std::int64_t j = 0; j < s.Tk; ++j) {
    T sum = 0;
    for (std::int64_t d = 0; d < s.Dqk; ++d) sum += q[s.q(b, i, h) + z(d)] * k[s.k(b, j, h) + z(d)];
    p[z(j)] = visible(b, h, i, j) ? scale * sum : -std::numeric_limits<T>::infinity();
    top = std::max(top, p[z(j)]);
  }
  lse = top;
  for (T& value : p) {
    value = top == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(value - top);
    total += value;
  }
  if (total == T(0)) return p;
  lse = top + std::log(total);
  for (T& value : p) value /= total;
  return p;
}

template <class T, class Visible>
AttentionResult<T> attention(const AttentionShape& s, const Vec<T>& q, const Vec<T>& k, const Vec<T>& v,
                             Visible visible) {
  AttentionResult<T> r{Vec<T>(z(s.B * s.Tq * s.H * s.Dv)), Vec<T>(z(s.B * s.H * s.Tq))};
  for (std::int64_t b = 0; b < s.B; ++b)
    for (std::int64_t h = 0; h < s.H; ++h)
      for (std::int64_t i = 0; i < s.Tq; ++i) {
        const Vec<T> p = probabilities(s, q, k, visible, b, h, i, r.lse[s.row(b, i, h)]);
        for (std::int64_t j = 0; j < s.Tk; ++j)
          for (std::int64_t c = 0; c < s.Dv; ++c) r.out[s.out(b, i, h) + z(c)] += p[z(j)] * v[s.v(b, j, h) + z(c)];
      }
  return r;
}

template <class T>
struct AttentionGradients {
  Vec<T> q, k, v;
};

/// From the saved output and log-sum-exp, as every implementation that keeps no probabilities must do it.
template <class T, class Visible>
AttentionGradients<T> attention_backward(const AttentionShape& s, const Vec<T>& q, const Vec<T>& k, const Vec<T>& v,
                                         const Vec<T>& d_out, Visible visible) {
  const T scale = T(1) / std::sqrt(static_cast<T>(s.Dqk));
  const AttentionResult<T> saved = attention(s, q, k, v, visible);
  AttentionGradients<T> g{Vec<T>(q.size()), Vec<T>(k.size()), Vec<T>(v.size())};
  for (std::int64_t b = 0; b < s.B; ++b)
    for (std::int64_t h = 0; h < s.H; ++h)
      for (std::int64_t i = 0; i < s.Tq; ++i) {
        T along = 0;
        for (std::int64_t c = 0; c < s.Dv; ++c)
          along += d_out[s.out(b, i, h) + z(c)] * saved.out[s.out(b, i, h) + z(c)];
        for (std::int64_t j = 0; j < s.Tk; ++j) {
          if (!visible(b, h, i, j)) continue;
          T score = 0, d_p = 0;
          for (std::int64_t d = 0; d < s.Dqk; ++d) score += q[s.q(b, i, h) + z(d)] * k[s.k(b, j, h) + z(d)];
          const T p = std::exp(scale * score - saved.lse[s.row(b, i, h)]);
          for (std::int64_t c = 0; c < s.Dv; ++c) {
            d_p += d_out[s.out(b, i, h) + z(c)] * v[s.v(b, j, h) + z(c)];
            g.v[s.v(b, j, h) + z(c)] += p * d_out[s.out(b, i, h) + z(c)];
          }
          const T d_s = scale * p * (d_p - along);
          for (std::int64_t d = 0; d < s.Dqk; ++d) {
            g.q[s.q(b, i, h) + z(d)] += d_s * k[s.k(b, j, h) + z(d)];
            g.k[s.k(b, j, h) + z(d)] += d_s * q[s.q(b, i, h) + z(d)];
          }
        }
      }
  return g;
}

}  // namespace sfa::oracle
