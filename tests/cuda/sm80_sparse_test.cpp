// Packing for mma.sp m16n8k32 against a model of the instruction, written from the PTX ISA's words and figures and
// apart from the packing: what every lane holds becomes 16 x 32 values of A, 32 x 8 of B and 16 x 8 sums.
#include "cuda/sm80_sparse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <random>
#include <set>
#include <vector>

namespace sfa::test {
namespace {

float bf16_value(std::uint32_t bits) {
  return std::bit_cast<float>(bits << 16);
}
std::uint32_t bf16_bits(int x) {
  return std::bit_cast<std::uint32_t>(static_cast<float>(x)) >> 16;
}

struct Lane {
  std::array<std::uint32_t, 4> a{}, b{};
  std::uint32_t metadata = 0;
  std::array<float, 4> c{};
};
using Warp = std::array<Lane, 32>;
using A = std::array<std::array<std::uint32_t, 32>, 16>;
using B = std::array<std::array<std::uint32_t, 8>, 32>;

// The matrix that mma.sp::ordered_metadata reads as A: element i of 8 of a lane is the i % 2-th of a chunk of four
// columns, from 4t on for i < 4 and from 16 + 4t on otherwise, of row g for i in {0, 1, 4, 5} and g + 8 otherwise.
// Fails on metadata that the instruction does not allow.
A a_of(const Warp& warp, int selector) {
  A full{};
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, thread = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const int first = i < 4 ? thread * 4 : thread * 4 + 16;
      // Row r, columns 0 to 15: thread 2 selector of the quad of r % 8; columns 16 to 31: the next one.
      const int owner = row % 8 * 4 + 2 * selector + first / 16;
      const std::uint32_t half = warp[static_cast<std::size_t>(owner)].metadata >> (row < 8 ? 0 : 16) & 0xffffu;
      const std::uint32_t nibble = half >> (first % 16) & 15u;
      EXPECT_LT(nibble & 3u, nibble >> 2) << "metadata out of order, lane " << lane << " element " << i;
      const std::uint32_t place = i % 2 == 0 ? nibble & 3u : nibble >> 2;
      const std::uint32_t word = warp[static_cast<std::size_t>(lane)].a[static_cast<std::size_t>(i / 2)];
      full[static_cast<std::size_t>(row)][static_cast<std::size_t>(first) + place] = word >> (i % 2 * 16) & 0xffffu;
    }
  }
  return full;
}

// Element i of 8 of a lane is row 2t + i % 2 + 8 (i / 2), column g.
B b_of(const Warp& warp) {
  B full{};
  for (std::size_t lane = 0; lane < 32; ++lane)
    for (std::size_t i = 0; i < 8; ++i)
      full[lane % 4 * 2 + i % 2 + i / 2 * 8][lane / 4] = warp[lane].b[i / 2] >> (i % 2 * 16) & 0xffffu;
  return full;
}

void multiply(Warp& warp, int selector) {
  const A a = a_of(warp, selector);
  const B b = b_of(warp);
  for (std::size_t lane = 0; lane < 32; ++lane)
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t k = 0; k < 32; ++k)
        warp[lane].c[i] += bf16_value(a[lane / 4 + i / 2 * 8][k]) * bf16_value(b[k][lane % 4 * 2 + i % 2]);
}

// As a warp packs block A for the product of `selector`, beside what `metadata` has already.
void pack(Warp& warp, const A& full, int selector) {
  for (std::size_t quad = 0; quad < 8; ++quad) {
    std::array<std::uint32_t, 2> words{};
    for (std::size_t t = 0; t < 4; ++t)
      for (int w = 0; w < 4; ++w) {
        const auto& row = full[static_cast<std::size_t>(sm80::sparse_row(static_cast<int>(quad), w))];
        const auto at = static_cast<std::size_t>(sm80::sparse_column(static_cast<int>(t), w));
        const sm80::TwoOfFour kept = sm80::two_of_four(row[at] | row[at + 1] << 16, row[at + 2] | row[at + 3] << 16);
        warp[quad * 4 + t].a[static_cast<std::size_t>(w)] = kept.values;
        words[static_cast<std::size_t>(w / 2)] |= sm80::metadata_part(static_cast<int>(t), w, kept.places);
      }
    for (std::size_t t = 0; t < 4; ++t)
      if (sm80::supplies_metadata(static_cast<int>(t), selector)) warp[quad * 4 + t].metadata = words[t % 2];
  }
}

// Rows of whose every four neighbours at most two are not zero: numbers from -9 to 9, zeros of both signs.
A random_rows(std::mt19937& random) {
  A rows{};
  for (auto& row : rows)
    for (std::size_t chunk = 0; chunk < 32; chunk += 4) {
      for (std::size_t i = 0; i < 4; ++i) row[chunk + i] = random() % 2 << 15;
      for (std::uint32_t n = random() % 4; n >= 2; --n)
        row[chunk + random() % 4] = bf16_bits(1 + static_cast<int>(random() % 9)) | random() % 2 << 15;
    }
  return rows;
}

TEST(Sm80Sparse, TwoOfFourKeepsWhatIsNotZero) {
  const std::uint32_t values[] = {0x3f80, 0xbf80, 0x0001, 0x8001, 0x7f80, 0xffc0, 0x0000, 0x8000};
  std::set<std::uint32_t> seen;
  for (std::uint32_t i = 0; i < 8 * 8 * 8 * 8; ++i) {
    const std::uint32_t x[4] = {values[i % 8], values[i / 8 % 8], values[i / 64 % 8], values[i / 512]};
    if (std::count_if(x, x + 4, [](std::uint32_t v) { return (v & 0x7fffu) != 0; }) > 2) continue;
    const sm80::TwoOfFour kept = sm80::two_of_four(x[0] | x[1] << 16, x[2] | x[3] << 16);
    const std::uint32_t first = kept.places & 3u, second = kept.places >> 2;
    ASSERT_LT(first, second);
    ASSERT_LT(second, 4u);
    seen.insert(kept.places);
    for (std::uint32_t place = 0; place < 4; ++place) {
      const std::uint32_t got = place == first ? kept.values & 0xffffu : place == second ? kept.values >> 16 : 0;
      if (place == first || place == second || (x[place] & 0x7fffu) != 0) {
        ASSERT_EQ(got, x[place]);
      }
    }
  }
  EXPECT_EQ(seen.size(), 6u) << "all pairs of places";
}

TEST(Sm80Sparse, PackedBlocksMultiplyAsTheirFullRows) {
  std::mt19937 random(5);
  for (int times = 0; times < 200; ++times) {
    // Two blocks share a word of metadata, as two products in the kernel do.
    const A first = random_rows(random), second = random_rows(random);
    Warp warp;
    for (Lane& lane : warp) lane.metadata = 0xffffffffu;  // invalid until it is supplied
    pack(warp, second, 1);
    const Warp other = warp;  // the values of the second block
    pack(warp, first, 0);
    B keys{};
    for (auto& row : keys)
      for (std::uint32_t& x : row) x = bf16_bits(static_cast<int>(random() % 19) - 9);
    for (std::size_t lane = 0; lane < 32; ++lane)
      for (std::size_t i = 0; i < 8; ++i)
        warp[lane].b[i / 2] |= keys[lane % 4 * 2 + i % 2 + i / 2 * 8][lane / 4] << (i % 2 * 16);
    for (const int selector : {0, 1}) {
      const A& full = selector == 0 ? first : second;
      if (selector == 1)
        for (std::size_t lane = 0; lane < 32; ++lane) warp[lane].a = other[lane].a;
      for (Lane& lane : warp) lane.c = {};
      multiply(warp, selector);
      for (std::size_t lane = 0; lane < 32; ++lane)
        for (std::size_t i = 0; i < 4; ++i) {
          float want = 0;  // sums of small integers: exact
          for (std::size_t k = 0; k < 32; ++k)
            want += bf16_value(full[lane / 4 + i / 2 * 8][k]) * bf16_value(keys[k][lane % 4 * 2 + i % 2]);
          ASSERT_EQ(warp[lane].c[i], want) << "lane " << lane << " sum " << i << " selector " << selector;
        }
      // The other selector's metadata describe other rows: the model must see that.
      EXPECT_NE(a_of(warp, 1 - selector), a_of(warp, selector));
    }
  }
}

}  // namespace
}  // namespace sfa::test
