// Feature selection against a plain sort on the CPU: values, indices and zero-filled rows must be equal bit for bit;
// the compressed operand is checked by unpacking it.
#pragma once

#include <algorithm>
#include <numeric>

#include "attention/flash/select24.h"
#include "gpu/flash_forward_cases.cuh"

namespace sfa::test {

struct SelectCase {
  int B, T, heads, D, k;
  flash::Selection rule;
  bool ties;  // few distinct magnitudes, rows of zeros; otherwise some rows hold NaN and infinities
};

/// Indices chosen for one row, ascending.
inline std::vector<int> select_on_cpu(const std::uint16_t* row, const SelectCase& c) {
  std::vector<int> order(static_cast<std::size_t>(c.D)), chosen;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return (row[a] & 0x7fff) > (row[b] & 0x7fff); });
  std::vector<int> in_group(static_cast<std::size_t>(c.D / 4), 0);
  for (const int i : order) {
    if (static_cast<int>(chosen.size()) == c.k) break;
    if (c.rule == flash::Selection::topk_2of4 && in_group[static_cast<std::size_t>(i / 4)] == 2) continue;
    ++in_group[static_cast<std::size_t>(i / 4)];
    chosen.push_back(i);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

/// Feature `feature` of row `row` (0..63) as the sparse product reads it from a compressed block.
inline std::uint16_t decompress(const unsigned char* block, int D, int row, int feature) {
  const int step = feature / 32, group = feature % 32 / 4, g = row % 8, half = row / 8 % 2, warp = row / 16;
  const int value_thread = warp * 32 + g * 4 + group % 4;
  std::uint16_t values[2];
  std::memcpy(values, block + (step * 128 + value_thread) * 16 + (group / 4 * 2 + half) * 4, 4);
  const int meta_thread = warp * 32 + g * 4 + step % 2 * 2 + group / 4;
  std::uint32_t meta;
  std::memcpy(&meta, block + D / 32 * 2048 + (step / 2 * 128 + meta_thread) * 4, 4);
  const std::uint32_t nibble = meta >> (16 * half + 4 * (group % 4)) & 15u;
  const std::uint32_t first = nibble & 3u, second = nibble >> 2;
  if (first >= second) return 0xdead;
  const auto place = static_cast<std::uint32_t>(feature % 4);
  return place == first ? values[0] : place == second ? values[1] : std::uint16_t{0};
}

inline bool check_selection(const SelectCase& c, bool beside) {
  const std::size_t width = static_cast<std::size_t>(c.heads) * c.D + 16, rows = static_cast<std::size_t>(c.B) * c.T;
  std::mt19937 random(3);
  std::vector<std::uint16_t> x(rows * width);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<std::uint16_t>(c.ties ? (0x3f80 + random() % 3) | (random() % 2) << 15
                                             : (random() & 0x80ffu) | ((0x3d + random() % 4) << 8));
    if (c.ties && i / width % 5 == 0) x[i] &= 0x8000u;
    if (!c.ties && i / width % 7 == 0 && random() % 9 == 0)
      x[i] = static_cast<std::uint16_t>(0x7f80u | (random() & 0x807fu));
  }
  DeviceBuffer<std::uint16_t> input(x.size()), values(rows * c.heads * c.k), dense(rows * c.heads * c.D);
  DeviceBuffer<std::uint8_t> indices(rows * c.heads * c.k);
  const int blocks = (c.T + 63) / 64, block_bytes = flash::compressed_block_bytes(c.D);
  DeviceBuffer<unsigned char> compressed(static_cast<std::size_t>(c.B) * c.heads * blocks * block_bytes);
  input.upload(x);
  values.poison(), dense.poison(), indices.poison(), compressed.poison();
  flash::SelectParams p;
  p.B = c.B, p.T = c.T, p.heads = c.heads, p.D = c.D, p.k = c.k, p.rule = c.rule;
  p.x = input.get();
  p.x_stride = {static_cast<std::int64_t>(c.T * width), static_cast<std::int64_t>(width), c.D};
  p.values = values.get(), p.indices = indices.get(), p.dense = dense.get();
  p.dense_stride = {static_cast<std::int64_t>(c.T) * c.heads * c.D, static_cast<std::int64_t>(c.heads) * c.D, c.D};
  const bool packs = c.rule == flash::Selection::topk_2of4;
  if (packs) p.compressed = compressed.get();
  if (beside) {  // the second of two in one launch; the first is another case, whose results nobody reads
    DeviceBuffer<__nv_bfloat16> other_dense(x.size());
    flash::SelectParams other = p;
    other.rule = packs ? flash::Selection::topk : flash::Selection::topk_2of4;
    other.k = 1, other.heads = 1, other.values = nullptr, other.indices = nullptr, other.compressed = nullptr;
    other.dense = other_dense.get(), other.dense_stride = p.x_stride;
    flash::select_features(other, p, {}, nullptr);
    SFA_CHECK_CUDA(cudaDeviceSynchronize());
  } else {
    flash::select_features(p, nullptr);
    SFA_CHECK_CUDA(cudaDeviceSynchronize());
  }
  const auto got_values = values.download(), got_dense = dense.download();
  const auto got_indices = indices.download();
  const auto got_blocks = compressed.download();
  long long wrong = 0, wrong_packed = 0;
  for (std::size_t t = 0; t < rows; ++t)
    for (int h = 0; h < c.heads; ++h) {
      const std::uint16_t* row = &x[t * width + static_cast<std::size_t>(h) * c.D];
      const std::vector<int> chosen = select_on_cpu(row, c);
      const std::size_t at = t * c.heads + h;
      std::vector<std::uint16_t> expected(static_cast<std::size_t>(c.D), 0);
      for (int i = 0; i < c.k; ++i) {
        const int feature = chosen[static_cast<std::size_t>(i)];
        expected[static_cast<std::size_t>(feature)] = row[feature];
        wrong += got_indices[at * c.k + i] != feature || got_values[at * c.k + i] != row[feature];
      }
      const int b = static_cast<int>(t) / c.T, token = static_cast<int>(t) % c.T;
      for (int f = 0; f < c.D; ++f) {
        wrong += got_dense[at * c.D + f] != expected[static_cast<std::size_t>(f)];
        if (packs)
          wrong_packed +=
              decompress(&got_blocks[((static_cast<std::size_t>(b) * c.heads + h) * blocks + token / 64) * block_bytes],
                         c.D, token % 64, f) != expected[static_cast<std::size_t>(f)];
      }
    }
  const bool good = wrong == 0 && wrong_packed == 0;
  std::printf("%-4s select %s D%d k%d T%d%s%s: %lld wrong, %lld wrong in the compressed operand\n",
              good ? "ok" : "FAIL", packs ? "topk_2of4" : "topk", c.D, c.k, c.T, c.ties ? " ties" : "",
              beside ? " beside another" : "", wrong, wrong_packed);
  return good;
}

}  // namespace sfa::test
