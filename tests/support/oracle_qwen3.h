// The formulas of what Qwen3 has and GPT-2 has not, as in oracle.h: plain loops over any scalar type.
#pragma once

#include "support/oracle.h"

namespace sfa::oracle {

template <class T>
struct RmsNorm {
  Vec<T> y, rstd;
};

/// RMS norm of the rows of r [N,C].
template <class T>
RmsNorm<T> rms_norm(const Vec<T>& r, const Vec<T>& w, std::int64_t N, std::int64_t C, T eps) {
  RmsNorm<T> out{Vec<T>(z(N * C)), Vec<T>(z(N))};
  for (std::int64_t n = 0; n < N; ++n) {
    T squares = 0;
    for (std::int64_t c = 0; c < C; ++c) squares += r[z(n * C + c)] * r[z(n * C + c)];
    out.rstd[z(n)] = T(1) / std::sqrt(squares / static_cast<T>(C) + eps);
    for (std::int64_t c = 0; c < C; ++c) out.y[z(n * C + c)] = r[z(n * C + c)] * out.rstd[z(n)] * w[z(c)];
  }
  return out;
}

template <class T>
struct RmsNormGradients {
  Vec<T> r, weight;
};

template <class T>
RmsNormGradients<T> rms_norm_backward(const Vec<T>& d_y, const Vec<T>& r, const Vec<T>& w, std::int64_t N,
                                      std::int64_t C, T eps) {
  const RmsNorm<T> saved = rms_norm(r, w, N, C, eps);
  RmsNormGradients<T> g{Vec<T>(z(N * C)), Vec<T>(z(C))};
  for (std::int64_t n = 0; n < N; ++n) {
    const T rstd = saved.rstd[z(n)];
    T along = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      const T d = d_y[z(n * C + c)], x = r[z(n * C + c)] * rstd;
      g.weight[z(c)] += d * x;
      along += d * w[z(c)] * x;
    }
    for (std::int64_t c = 0; c < C; ++c)
      g.r[z(n * C + c)] = rstd * (d_y[z(n * C + c)] * w[z(c)] - r[z(n * C + c)] * rstd * along / static_cast<T>(C));
  }
  return g;
}

template <class T>
T sigmoid(T a) {
  return T(1) / (T(1) + std::exp(-a));
}

/// y [N,F] of gate_up [N,2F].
template <class T>
Vec<T> swiglu(const Vec<T>& gate_up, std::int64_t N, std::int64_t F) {
  Vec<T> y(z(N * F));
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t f = 0; f < F; ++f) {
      const T gate = gate_up[z(n * 2 * F + f)];
      y[z(n * F + f)] = gate * sigmoid(gate) * gate_up[z((n * 2 + 1) * F + f)];
    }
  return y;
}

template <class T>
Vec<T> swiglu_backward(const Vec<T>& gate_up, const Vec<T>& d_y, std::int64_t N, std::int64_t F) {
  Vec<T> d(gate_up.size());
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t f = 0; f < F; ++f) {
      const T gate = gate_up[z(n * 2 * F + f)], up = gate_up[z((n * 2 + 1) * F + f)], s = sigmoid(gate);
      d[z(n * 2 * F + f)] = d_y[z(n * F + f)] * up * (s + gate * s * (T(1) - s));
      d[z((n * 2 + 1) * F + f)] = d_y[z(n * F + f)] * gate * s;
    }
  return d;
}

struct HeadsShape {
  std::int64_t B, T, H, G, D, Dv;
  double theta;
  std::int64_t first_position;
  [[nodiscard]] std::int64_t row() const { return (H + G) * D + G * Dv; }
  [[nodiscard]] std::int64_t heads() const { return H + G; }
};

/// Turns pair (low, high) = (i, i + D/2) of a head at position p by `sign` times its angle. The angle is double's
/// whatever T: what is compared is the arithmetic on values.
template <class T>
void turn_pair(T& low, T& high, const HeadsShape& s, std::int64_t p, std::int64_t i, int sign) {
  const double angle =
      sign * static_cast<double>(p) * std::pow(s.theta, -2.0 * static_cast<double>(i) / static_cast<double>(s.D));
  const T c = static_cast<T>(std::cos(angle)), d = static_cast<T>(std::sin(angle)), a = low, b = high;
  low = a * c - b * d;
  high = b * c + a * d;
}

template <class T>
struct Rope {
  Vec<T> y, rstd;
};

/// RMS norm over each query and key head and rotation; x and y [B,T,row].
template <class T>
Rope<T> qk_norm_rope(const HeadsShape& s, const Vec<T>& x, const Vec<T>& q_weight, const Vec<T>& k_weight, T eps) {
  Rope<T> out{x, Vec<T>(z(s.B * s.T * s.heads()))};
  for (std::int64_t n = 0; n < s.B * s.T; ++n)
    for (std::int64_t h = 0; h < s.heads(); ++h) {
      const auto first = x.begin() + n * s.row() + h * s.D;
      const auto norm = rms_norm(Vec<T>(first, first + s.D), h < s.H ? q_weight : k_weight, 1, s.D, eps);
      T* y = &out.y[z(n * s.row() + h * s.D)];
      std::copy(norm.y.begin(), norm.y.end(), y);
      for (std::int64_t i = 0; i < s.D / 2; ++i) turn_pair(y[i], y[i + s.D / 2], s, s.first_position + n % s.T, i, 1);
      out.rstd[z(n * s.heads() + h)] = norm.rstd[0];
    }
  return out;
}

template <class T>
struct RopeGradients {
  Vec<T> x, q_weight, k_weight;
};

template <class T>
RopeGradients<T> qk_norm_rope_backward(const HeadsShape& s, const Vec<T>& d_y, const Vec<T>& x, const Vec<T>& q_weight,
                                       const Vec<T>& k_weight, T eps) {
  RopeGradients<T> g{d_y, Vec<T>(z(s.D)), Vec<T>(z(s.D))};
  for (std::int64_t n = 0; n < s.B * s.T; ++n)
    for (std::int64_t h = 0; h < s.heads(); ++h) {
      const std::int64_t at = n * s.row() + h * s.D;
      Vec<T> d(d_y.begin() + at, d_y.begin() + at + s.D);
      for (std::int64_t i = 0; i < s.D / 2; ++i)
        turn_pair(d[z(i)], d[z(i + s.D / 2)], s, s.first_position + n % s.T, i, -1);
      const auto norm = rms_norm_backward(d, Vec<T>(x.begin() + at, x.begin() + at + s.D),
                                          h < s.H ? q_weight : k_weight, 1, s.D, eps);
      std::copy(norm.r.begin(), norm.r.end(), g.x.begin() + at);
      Vec<T>& weight = h < s.H ? g.q_weight : g.k_weight;
      for (std::int64_t i = 0; i < s.D; ++i) weight[z(i)] += norm.weight[z(i)];
    }
  return g;
}

}  // namespace sfa::oracle
