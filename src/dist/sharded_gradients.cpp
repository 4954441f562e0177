#include "dist/sharded_gradients.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"
#include "ops/reduce/reduce.h"

namespace sfa {
namespace {

// "h.12." of "h.12.mlp.up.weight"; empty outside of blocks.
std::string_view block_of(std::string_view name) {
  return name.starts_with("h.") ? name.substr(0, name.find('.', 2) + 1) : std::string_view();
}

}  // namespace

GradientPlaces gradients_in_turns(const ParameterList& list) {
  GradientPlaces g;
  const std::vector<Parameter>& all = list.all();
  std::int64_t largest = 0, blocks = 0;
  for (std::size_t first = 0, next = 0; first < all.size(); first = next) {
    const std::string_view block = block_of(all[first].name);
    while (next < all.size() && block_of(all[next].name) == block) ++next;
    const std::int64_t begin = all[first].offset, end = next < all.size() ? all[next].offset : list.flat_size();
    const bool shared = !block.empty();
    // Blocks get the number of their turn now and the place when all sizes are known.
    g.stretches.push_back({{begin, end - begin}, shared ? blocks++ % kBlocksAtATime : g.size, shared});
    if (shared)
      largest = std::max(largest, end - begin);
    else
      g.size += end - begin;
  }
  const std::int64_t turns = g.size;
  for (GradientPlaces::Stretch& s : g.stretches)
    if (s.shared) s.place = turns + s.place * largest;
  g.size += std::min(blocks, kBlocksAtATime) * largest;
  for (const Parameter& p : all)
    for (const GradientPlaces::Stretch& s : g.stretches)
      if (p.offset >= s.flat.begin && p.offset < s.flat.end()) g.offsets.push_back(s.place + p.offset - s.flat.begin);
  return g;
}

ShardedGradients::ShardedGradients(Communicator& communicator, GradientPlaces places, std::vector<FlatRange> owners,
                                   const Tensor& working, const Tensor& owned)
    : communicator_(communicator),
      places_(std::move(places)),
      owners_(std::move(owners)),
      working_(working),
      owned_(owned) {}

bool ShardedGradients::share() {
  std::int64_t block = 0;
  for (const GradientPlaces::Stretch& s : places_.stretches)
    if (s.shared) block = std::max(block, s.flat.count);
  shared_ = true;
  return communicator_.share(working_, block);
}

// All ranks come here, or the job ends: no memory is given back that another rank still has mapped.
ShardedGradients::~ShardedGradients() {
  if (!shared_) return;
  communicator_.share({});
  communicator_.control().barrier(ControlChannel::kMain);
}

void ShardedGradients::reduce(Context& ctx, const GradientPlaces::Stretch& stretch) {
  std::vector<FlatRange> parts;
  for (const FlatRange& owner : owners_) {
    const FlatRange part = intersection(owner, stretch.flat);
    parts.push_back({part.count > 0 ? part.begin - stretch.flat.begin : 0, part.count});
  }
  communicator_.reduce_scatter(ctx, working_.slice(0, stretch.place, stretch.flat.count), parts);
  under_way_.push_back(stretch);
  ++reduced_;
}

// Sums that have arrived go to what this rank owns, and their memory is free again.
void ShardedGradients::retire(Context& ctx) {
  if (under_way_.empty()) return;
  communicator_.join(ctx);
  const FlatRange& mine = owners_[static_cast<std::size_t>(communicator_.rank())];
  for (const GradientPlaces::Stretch& s : under_way_) {
    const FlatRange part = intersection(mine, s.flat);
    if (part.count > 0)
      add_to(ctx, working_.slice(0, s.place + part.begin - s.flat.begin, part.count),
             owned_.slice(0, part.begin - mine.begin, part.count));
    if (s.shared) ctx.zero(working_.slice(0, s.place, s.flat.count));
  }
  under_way_.clear();
}

void ShardedGradients::final(Context& ctx, std::int64_t begin, std::int64_t end) {
  for (const GradientPlaces::Stretch& s : places_.stretches) {
    // What lies between blocks can be final in parts; it waits for the end.
    if (!s.shared || s.flat.begin != begin || s.flat.end() != end) continue;
    retire(ctx);
    reduce(ctx, s);
  }
}

void ShardedGradients::finish(Context& ctx, bool last) {
  std::size_t expected = 0;
  for (const GradientPlaces::Stretch& s : places_.stretches) {
    if (s.shared || last) ++expected;
    if (!s.shared && last) reduce(ctx, s);
  }
  require(reduced_ == expected, "internal error: dist.zero=2: {} of {} stretches of gradients were named final",
          reduced_, expected);
  retire(ctx);
  reduced_ = 0;
}

}  // namespace sfa
