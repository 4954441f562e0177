// The 2:4 sparse operand A of mma.sp m16n8k32 in bf16: how a warp packs a dense block of 16 rows x 32 columns, of whose
// every four neighbouring columns at most two are not zero, into the four words a thread that the product reads and
// their metadata. Free of CUDA, so that a test can run it against a model of the instruction.
//
// Thread g = lane / 4, t = lane % 4 (PTX ISA, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types"):
//   A 16 x 32   a[w]: two of the four columns 16 (w / 2) + 4t .. + 3 of row g + 8 (w % 2), in ascending order
//   B 32 x 8    b[w]: rows 8w + 2t, 8w + 2t + 1, column g
//   metadata    with selector i, threads t = 2i + c of each quad supply a word for columns 16 c .. 16 c + 15: low 16
//               bits row g, high 16 bits row g + 8; of each half, bits 4 u .. 4 u + 3 for columns 4 u .. 4 u + 3 of the
//               16: bits 0-1 the place of the first value, bits 2-3 that of the second, first < second
// It is the layout of wgmma.sp inside a warp (sm90_wgmma.cuh): the PTX ISA shows one figure for both.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace sfa::sm80 {

/// Two of four values and where they stood.
struct TwoOfFour {
  std::uint32_t values;  ///< the first in the low half
  std::uint32_t places;  ///< bits 0-1 the place of the first, bits 2-3 that of the second; always ascending
};

/// Of four values, 0 and 1 in `low`, 2 and 3 in `high`, at most two may be anything but zero. Zeros fill up what is
/// left.
SFA_HOST_DEVICE inline TwoOfFour two_of_four(std::uint32_t low, std::uint32_t high) {
  const bool has0 = (low & 0x7fffu) != 0, has1 = (low & 0x7fff0000u) != 0;
  const bool has2 = (high & 0x7fffu) != 0, has3 = (high & 0x7fff0000u) != 0;
  const std::uint32_t first = has0 ? 0 : has1 ? 1 : 2, last = has3 ? 3 : has2 ? 2 : 1;
  const std::uint32_t second = last > first ? last : first + 1;
  const std::uint64_t all = static_cast<std::uint64_t>(high) << 32 | low;
  const auto value = [&](std::uint32_t place) { return static_cast<std::uint32_t>(all >> (16 * place)) & 0xffffu; };
  return {value(first) | value(second) << 16, first | second << 2};
}

/// Where word `word` of thread (g, t) comes from in the 16 x 32 block.
SFA_HOST_DEVICE constexpr int sparse_row(int g, int word) {
  return g + 8 * (word % 2);
}
SFA_HOST_DEVICE constexpr int sparse_column(int t, int word) {
  return 16 * (word / 2) + 4 * t;
}
/// What the places of word `word` add to the metadata of columns 16 (word / 2) .. + 15: the words of a quad's four
/// threads, joined by or, are the whole.
SFA_HOST_DEVICE constexpr std::uint32_t metadata_part(int t, int word, std::uint32_t places) {
  return places << (4 * t + 16 * (word % 2));
}
/// A word of metadata serves two products, one by selector 0, the other by selector 1: whether thread t supplies that
/// of `selector`; it then supplies columns 16 (t % 2) .. + 15.
SFA_HOST_DEVICE constexpr bool supplies_metadata(int t, int selector) {
  return t / 2 == selector;
}

}  // namespace sfa::sm80
