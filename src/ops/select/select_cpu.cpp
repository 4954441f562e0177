#include "ops/select/select_cpu.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace sfa::cpu_ops {
namespace {

// Orders rows of features as the contract wants: larger magnitude first, then lower index. The magnitude's bits (sign
// cleared) order like the magnitude itself, NaN above infinity; the complemented index below them breaks ties.
inline std::uint64_t sort_key(float x, std::int64_t index) {
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x) & 0x7fffffffu;
  return (std::uint64_t{magnitude} << 8) | static_cast<std::uint64_t>(255 - index);
}

struct Row {
  std::array<std::uint64_t, 256> keys;
  std::array<bool, 256> chosen;
};

void choose(Row& row, const float* x, std::int64_t D, std::int64_t k, bool two_of_four) {
  for (std::int64_t d = 0; d < D; ++d) row.keys[static_cast<std::size_t>(d)] = sort_key(x[d], d);
  row.chosen.fill(false);
  const auto begin = row.keys.begin(), end = begin + D;
  if (!two_of_four) {
    if (k < D) std::nth_element(begin, begin + k - 1, end, std::greater<>());
    for (std::int64_t i = 0; i < k; ++i) row.chosen[255 - (row.keys[static_cast<std::size_t>(i)] & 0xff)] = true;
    return;
  }
  std::sort(begin, end, std::greater<>());
  std::array<std::uint8_t, 64> in_group{};
  std::int64_t taken = 0;
  for (auto key = begin; taken < k; ++key) {
    const std::size_t d = 255 - (*key & 0xff);
    if (in_group[d / 4] == 2) continue;
    ++in_group[d / 4];
    row.chosen[d] = true;
    ++taken;
  }
}

}  // namespace

void select_topk(Context&, const Select& args) {
  const std::int64_t B = args.x.dim(0), T = args.x.dim(1), heads = args.x.dim(2), D = args.x.dim(3), k = args.k;
  const Tensor &x = args.x, &dense = args.dense;
  const float* in = x.as<float>();
  float* values = args.values.as<float>();
  std::uint8_t* indices = args.indices.as<std::uint8_t>();
  float* out = dense.empty() ? nullptr : dense.as<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t) {
      Row row;
      for (std::int64_t h = 0; h < heads; ++h) {
        const float* from = in + b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
        choose(row, from, D, k, args.two_of_four);
        const std::int64_t at = ((b * T + t) * heads + h) * k;
        std::int64_t n = 0;
        float* full = out ? out + b * dense.stride[0] + t * dense.stride[1] + h * dense.stride[2] : nullptr;
        for (std::int64_t d = 0; d < D; ++d) {
          const bool keep = row.chosen[static_cast<std::size_t>(d)];
          const float value = from[d];
          if (keep) {
            values[at + n] = value;
            indices[at + n] = static_cast<std::uint8_t>(d);
            ++n;
          }
          if (full) full[d] = keep ? value : 0.0f;
        }
      }
    }
}

void select_mask_gradient(Context&, const Tensor& d_x, const Tensor& indices) {
  const std::int64_t B = d_x.dim(0), T = d_x.dim(1), heads = d_x.dim(2), D = d_x.dim(3), k = indices.dim(3);
  float* g = d_x.as<float>();
  const std::uint8_t* support = indices.as<std::uint8_t>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        float* row = g + b * d_x.stride[0] + t * d_x.stride[1] + h * d_x.stride[2];
        const std::uint8_t* own = support + ((b * T + t) * heads + h) * k;
        std::int64_t n = 0;
        for (std::int64_t d = 0; d < D; ++d) {
          if (n < k && own[n] == d)
            ++n;
          else
            row[d] = 0.0f;
        }
      }
}

void select_expand(Context&, const Tensor& values, const Tensor& indices, const Tensor& dense) {
  const std::int64_t B = dense.dim(0), T = dense.dim(1), heads = dense.dim(2), D = dense.dim(3), k = values.dim(3);
  const float* from = values.as<float>();
  const std::uint8_t* support = indices.as<std::uint8_t>();
  float* out = dense.as<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        float* row = out + b * dense.stride[0] + t * dense.stride[1] + h * dense.stride[2];
        std::fill_n(row, D, 0.0f);
        const std::int64_t v = b * values.stride[0] + t * values.stride[1] + h * values.stride[2];
        const std::int64_t i = b * indices.stride[0] + t * indices.stride[1] + h * indices.stride[2];
        for (std::int64_t n = 0; n < k; ++n) row[support[i + n]] = from[v + n];
      }
}

}  // namespace sfa::cpu_ops
