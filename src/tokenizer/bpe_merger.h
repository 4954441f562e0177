// The merge loop of byte-level BPE: a word's bytes become single-byte ids, then the adjacent pair of lowest rank
// (leftmost among equals) is merged until no pair is known.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sfa {

/// One merge: ids (left, right) become `merged`; lower ranks go first.
struct BpeMerge {
  std::uint32_t left, right, merged, rank;
};

/// Two adjacent ids as one number: ordering by pair is ordering by left, then right.
constexpr std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) {
  return (std::uint64_t{left} << 32) | right;
}

class BpeMerger {
 public:
  /// `byte_ids`: the id of every single byte. Of a pair that occurs twice the lower rank counts.
  BpeMerger(const std::array<std::uint32_t, 256>& byte_ids, std::span<const BpeMerge> merges);

  /// Appends the ids of `word`. O(n^2) for short words, O(n log n) for long ones. Thread-safe.
  void merge(std::string_view word, std::vector<std::uint32_t>& out) const;

 private:
  struct Slot {
    std::uint64_t pair;
    std::uint32_t merged, rank;
  };
  static constexpr std::uint32_t kNoRank = 0xffffffffu;
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

  [[nodiscard]] const Slot* find(std::uint32_t left, std::uint32_t right) const;
  void merge_short(std::string_view word, std::vector<std::uint32_t>& out) const;
  void merge_long(std::string_view word, std::vector<std::uint32_t>& out) const;

  std::array<std::uint32_t, 256> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, at most half full
  std::uint64_t mask_ = 0;
  int shift_ = 0;
};

}  // namespace sfa
