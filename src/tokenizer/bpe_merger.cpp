#include "tokenizer/bpe_merger.h"

#include <algorithm>
#include <bit>
#include <queue>

namespace sfa {
namespace {
constexpr std::size_t kShort = 48;  // above this the heap wins over scanning
}  // namespace

BpeMerger::BpeMerger(const std::array<std::uint32_t, 256>& byte_ids, std::span<const BpeMerge> merges)
    : byte_ids_(byte_ids) {
  const std::uint64_t size = std::bit_ceil(std::max<std::uint64_t>(16, 2 * merges.size()));
  slots_.assign(size, {kEmpty, 0, kNoRank});
  mask_ = size - 1;
  shift_ = 64 - std::countr_zero(size);
  for (const BpeMerge& m : merges) {
    const std::uint64_t pair = pair_of(m.left, m.right);
    std::uint64_t at = (pair * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & mask_;
    if (slots_[at].pair == kEmpty || m.rank < slots_[at].rank) slots_[at] = {pair, m.merged, m.rank};
  }
}

const BpeMerger::Slot* BpeMerger::find(std::uint32_t left, std::uint32_t right) const {
  const std::uint64_t pair = pair_of(left, right);
  for (std::uint64_t at = (pair * 0x9E3779B97F4A7C15u) >> shift_;; at = (at + 1) & mask_) {
    if (slots_[at].pair == pair) return &slots_[at];
    if (slots_[at].pair == kEmpty) return nullptr;
  }
}

void BpeMerger::merge(std::string_view word, std::vector<std::uint32_t>& out) const {
  if (word.size() <= kShort)
    merge_short(word, out);
  else
    merge_long(word, out);
}

void BpeMerger::merge_short(std::string_view word, std::vector<std::uint32_t>& out) const {
  std::array<std::uint32_t, kShort> ids, ranks, merged;  // ranks[i], merged[i]: of the pair (i, i + 1)
  std::size_t n = word.size();
  const auto look = [&](std::size_t i) {
    const Slot* slot = find(ids[i], ids[i + 1]);
    ranks[i] = slot != nullptr ? slot->rank : kNoRank;
    merged[i] = slot != nullptr ? slot->merged : 0;
  };
  for (std::size_t i = 0; i < n; ++i) ids[i] = byte_ids_[static_cast<unsigned char>(word[i])];
  for (std::size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i)
      if (ranks[i] < ranks[best]) best = i;
    if (ranks[best] == kNoRank) break;
    ids[best] = merged[best];
    for (std::size_t i = best + 1; i + 1 < n; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    --n;
    if (best > 0) look(best - 1);
    if (best + 1 < n) look(best);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n));
}

void BpeMerger::merge_long(std::string_view word, std::vector<std::uint32_t>& out) const {
  // A doubly linked list of symbols and a heap of candidate pairs; a candidate is stale when its left symbol is gone or
  // either symbol has changed since.
  struct Symbol {
    std::uint32_t id;
    std::int32_t before, after;  // -1: none; `before` is -2 when the symbol is gone
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t left;
    std::uint32_t left_id, right_id, merged;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  const auto n = static_cast<std::int32_t>(word.size());
  std::vector<Symbol> symbols(word.size());
  for (std::int32_t i = 0; i < n; ++i)
    symbols[static_cast<std::size_t>(i)] = {byte_ids_[static_cast<unsigned char>(word[static_cast<std::size_t>(i)])],
                                            i - 1, i + 1 < n ? i + 1 : -1};
  const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto offer = [&](std::int32_t left) {
    if (left < 0 || at(left).after < 0) return;
    const std::uint32_t a = at(left).id, b = at(at(left).after).id;
    if (const Slot* slot = find(a, b)) heap.push({slot->rank, left, a, b, slot->merged});
  };
  for (std::int32_t i = 0; i < n; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Symbol& left = at(best.left);
    if (left.before == -2 || left.after < 0 || left.id != best.left_id || at(left.after).id != best.right_id) continue;
    Symbol& right = at(left.after);
    left.id = best.merged;
    left.after = right.after;
    right.before = -2;
    if (left.after >= 0) at(left.after).before = best.left;
    offer(left.before);
    offer(best.left);
  }
  for (std::int32_t i = 0; i >= 0; i = at(i).after) out.push_back(at(i).id);
}

}  // namespace sfa
