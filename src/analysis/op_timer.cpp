#include "analysis/op_timer.h"

#include <algorithm>
#include <utility>

namespace sfa {

OpTimer::OpTimer(Context& ctx) : ctx_(ctx), before_(std::exchange(ctx.observer, this)), watch_(ctx) {}

OpTimer::~OpTimer() {
  ctx_.observer = before_;
}

void OpTimer::begin(Context&, const OpWork& work) {
  const auto same = [&](const OpTime& e) { return e.work.kind == work.kind && e.work.shape == work.shape; };
  auto entry = std::find_if(entries_.begin(), entries_.end(), same);
  if (entry == entries_.end()) {
    entries_.push_back({.work = {work.kind, work.shape, 0, 0}});
    entry = entries_.end() - 1;
  }
  entry->work.flops += work.flops;
  entry->work.bytes += work.bytes;
  ++entry->calls;
  calls_.push_back({static_cast<std::size_t>(entry - entries_.begin()), watch_.mark(), 0, open_});
  open_ = static_cast<std::ptrdiff_t>(calls_.size()) - 1;
}

void OpTimer::end(Context&) {
  Call& call = calls_[static_cast<std::size_t>(open_)];
  call.end = watch_.mark();
  open_ = call.parent;
}

double OpTimer::collect() {
  require(open_ == -1, "internal error: the times of ops were asked for within one");
  if (calls_.empty()) return 0;
  const std::vector<double> at = watch_.milliseconds();
  for (const Call& call : calls_) {
    const double ms = at[call.end] - at[call.begin];
    entries_[call.entry].ms += ms;
    if (call.parent >= 0) entries_[calls_[static_cast<std::size_t>(call.parent)].entry].ms -= ms;
  }
  calls_.clear();
  watch_.restart();
  return at.back();
}

std::vector<OpTime> OpTimer::times() const {
  std::vector<OpTime> out = entries_;
  std::stable_sort(out.begin(), out.end(), [](const OpTime& a, const OpTime& b) { return a.ms > b.ms; });
  return out;
}

}  // namespace sfa
