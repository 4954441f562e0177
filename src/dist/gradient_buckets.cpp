#include "dist/gradient_buckets.h"

#include <algorithm>

#include "core/error.h"
#include "ops/reduce/reduce.h"
#include "optim/adamw.h"

namespace sfa {

GradientBuckets::GradientBuckets(Communicator& communicator, const Tensor& gradients, Options options)
    : communicator_(communicator), gradients_(gradients), options_(std::move(options)) {}

void GradientBuckets::reduce(Context& ctx, const FlatRange& range) {
  if (range.count == 0) return;
  queued_.push_back(range);
  if (options_.staging.empty()) return sum(ctx, range, gradients_.slice(0, range.begin, range.count));
  for (std::int64_t at = range.begin; at < range.end(); at = staged_.end()) {
    settle(ctx);
    staged_ = {at, std::min(options_.staging.numel(), range.end() - at)};
    const Tensor values = options_.staging.slice(0, 0, staged_.count);
    ctx.zero(values);
    add_to(ctx, gradients_.slice(0, at, staged_.count), values);
    sum(ctx, staged_, values);
  }
}

// Sums that have arrived in the staging memory go back to the gradients.
void GradientBuckets::settle(Context& ctx) {
  if (staged_.count == 0) return;
  communicator_.join(ctx);
  round_weights(ctx, {options_.staging.slice(0, 0, staged_.count), gradients_.slice(0, staged_.begin, staged_.count)});
  staged_.count = 0;
}

// `values` are those of `range`.
void GradientBuckets::sum(Context& ctx, const FlatRange& range, const Tensor& values) {
  if (options_.owners.empty()) return communicator_.all_reduce(ctx, values);
  std::vector<FlatRange> parts;
  for (const FlatRange& owner : options_.owners) {
    const FlatRange part = intersection(owner, range);
    parts.push_back({part.count > 0 ? part.begin - range.begin : 0, part.count});
  }
  communicator_.reduce_scatter(ctx, values, parts);
}

// Backward comes from the end of the buffer, so ranges mostly continue each other downwards.
void GradientBuckets::final(Context& ctx, std::int64_t begin, std::int64_t end) {
  if (pending_.count > 0 && end == pending_.begin) {
    pending_ = {begin, pending_.end() - begin};
  } else if (pending_.count > 0 && begin == pending_.end()) {
    pending_.count = end - pending_.begin;
  } else {
    reduce(ctx, pending_);
    pending_ = {begin, end - begin};
  }
  if (pending_.count < options_.bucket_elements) return;
  reduce(ctx, pending_);
  pending_ = {};
}

void GradientBuckets::finish(Context& ctx) {
  reduce(ctx, pending_);
  pending_ = {};
  std::sort(queued_.begin(), queued_.end(), [](const FlatRange& a, const FlatRange& b) { return a.begin < b.begin; });
  const std::vector<FlatRange> done = std::move(queued_);
  queued_.clear();
  std::int64_t at = 0;
  const auto rest = [&](std::int64_t end) {
    for (; at < end; at = std::min(end, at + options_.bucket_elements))
      reduce(ctx, {at, std::min(options_.bucket_elements, end - at)});
  };
  for (const FlatRange& range : done) {
    require(range.begin >= at, "internal error: gradients from element {} on were named final twice", range.begin);
    rest(range.begin);
    at = range.end();
  }
  rest(gradients_.numel());
  queued_.clear();
  settle(ctx);
  communicator_.join(ctx);
}

}  // namespace sfa
