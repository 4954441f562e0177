#include "data/loader.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "core/rng.h"
#include "data/permutation.h"
#include "data/window.h"

namespace sfa {
namespace {
const LoaderOptions& checked(const LoaderOptions& o) {
  require(o.seq_len >= 1, "the sequence length must be at least 1, not {}", o.seq_len);
  require(o.micro_batch_size >= 1 && o.batch_size >= 1, "batch_size ({}) and micro_batch_size ({}) must be at least 1",
          o.batch_size, o.micro_batch_size);
  require(o.world_size >= 1 && o.rank >= 0 && o.rank < o.world_size, "internal error: rank {} of {}", o.rank,
          o.world_size);
  require(o.batch_size % (o.micro_batch_size * o.world_size) == 0,
          "batch_size {} is not a multiple of micro_batch_size {} times {} rank{}", o.batch_size, o.micro_batch_size,
          o.world_size, o.world_size == 1 ? "" : "s");
  require_parts(o.seq_len, o.part.parts);
  require(o.start_sample >= 0 && o.prefetch >= 1, "internal error: start_sample {} and prefetch {}", o.start_sample,
          o.prefetch);
  return o;
}
}  // namespace

SampleOrder::SampleOrder(const ShardSet& shards, Split split, int seq_len, std::uint64_t seed, bool shuffle)
    : seq_len_(seq_len), seed_(seed), shuffle_(shuffle), first_{0} {
  const std::int64_t T = seq_len;
  for (const auto& file : shards.files()) {
    const auto [begin, end] = file->range(split);
    const std::int64_t tokens = end - begin;
    // As many windows as fit behind the largest offset, so that every epoch has the same number; one where not even
    // that fits.
    const std::int64_t windows = tokens < T + 1 ? 0
                                 : shuffle      ? std::max<std::int64_t>(1, (tokens - T) / T)
                                                : (tokens - 1) / T;
    begin_.push_back(begin);
    tokens_.push_back(tokens);
    first_.push_back(first_.back() + windows);
  }
  require(first_.back() > 0,
          "{}: the {} split has {} tokens, fewer than one window of seq_len + 1 = {} (windows do not cross files); use "
          "more text or a smaller data.seq_len",
          shards.describe(), name_of(split), shards.tokens(split), T + 1);
}

SampleOrder::Window SampleOrder::operator()(std::int64_t sample) const {
  const std::int64_t windows = samples_per_epoch(), T = seq_len_;
  const auto epoch = static_cast<std::uint64_t>(sample / windows);
  std::int64_t i = sample % windows;
  if (shuffle_) i = Permutation(windows, seed_, epoch)(i);
  const auto file = static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end(), i) - first_.begin() - 1);
  std::int64_t offset = 0;
  if (shuffle_) {
    const std::int64_t room = std::min(T, tokens_[file] - (first_[file + 1] - first_[file]) * T);
    const auto r = philox(seed_, kPurposeOffset, epoch, static_cast<std::uint32_t>(file));
    const std::uint64_t bits = (std::uint64_t{r[1]} << 32) | r[0];
    offset = static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(room));
  }
  return {file, begin_[file] + offset + (i - first_[file]) * T};
}

Loader::Loader(const LoaderOptions& options)
    : options_(checked(options)),
      shards_(options.paths),
      order_(shards_, options.split, options.seq_len, options.seed, options.shuffle) {
  if (options_.document_mask) document_starts_ = all_document_starts(shards_);
  if (options_.answers) {
    answers_ = all_answers(shards_);
    std::int64_t count = 0;
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      const auto [begin, end] = shards_.files()[i]->range(options_.split);
      count += answers_[i].count(begin + 1, end);
    }
    require_answers(count, shards_, options_.split);
  }
  empty_.resize(static_cast<std::size_t>(options_.prefetch));
  thread_ = std::thread([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard guard(mutex_);
    stop_ = true;
  }
  free_.notify_all();
  thread_.join();
}

std::int64_t Loader::targets_of(const SampleOrder::Window& window) const {
  if (answers_.empty()) return options_.seq_len;
  return answers_[window.file].count(window.begin + 1, window.begin + 1 + options_.seq_len);
}

// How many targets the whole step counts is a function of its samples, so that every rank knows without asking.
void Loader::fill(Batch& batch, std::int64_t micro_step) const {
  const LoaderOptions& o = options_;
  const std::int64_t per_micro = std::int64_t{o.world_size} * o.micro_batch_size;
  const std::int64_t step = micro_step / micro_steps(), micro = micro_step % micro_steps();
  resize_batch(batch, o.micro_batch_size, o.seq_len, o.document_mask);
  batch.first_sample =
      o.start_sample + step * o.batch_size + micro * per_micro + std::int64_t{o.rank} * o.micro_batch_size;
  batch.num_targets = batch.step_targets = 0;
  for (std::int64_t i = 0; i < o.batch_size; ++i)
    batch.step_targets += answers_.empty() ? o.seq_len : targets_of(order_(o.start_sample + step * o.batch_size + i));
  for (int row = 0; row < o.micro_batch_size; ++row) {
    const SampleOrder::Window window = order_(batch.first_sample + row);
    fill_row(batch, row, *shards_.files()[window.file], window.begin, o.seq_len,
             o.document_mask ? &document_starts_[window.file] : nullptr, o.answers ? &answers_[window.file] : nullptr);
    batch.num_targets += targets_of(window);
  }
}

void Loader::work() {
  for (std::int64_t micro_step = 0;; ++micro_step) {
    Batch batch;
    {
      std::unique_lock lock(mutex_);
      free_.wait(lock, [this] { return stop_ || !empty_.empty(); });
      if (stop_) return;
      batch = std::move(empty_.front());
      empty_.pop_front();
    }
    std::exception_ptr failure;
    try {
      if (options_.part.parts == 1) {
        fill(batch, micro_step);
      } else {
        fill(whole_, micro_step);
        take_part(whole_, options_.part, batch);
      }
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard guard(mutex_);
    if (failure) {
      failure_ = failure;
      ready_.notify_all();
      return;
    }
    full_.push_back(std::move(batch));
    ready_.notify_all();
  }
}

const Batch& Loader::next() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  ready_.wait(lock, [this] { return !full_.empty() || failure_; });
  if (full_.empty()) std::rethrow_exception(failure_);
  if (handed_out_ > 0) empty_.push_back(std::move(current_));
  current_ = std::move(full_.front());
  full_.pop_front();
  ++handed_out_;
  lock.unlock();
  free_.notify_all();
  wait_ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  return current_;
}

double Loader::take_wait_ms() {
  return std::exchange(wait_ms_, 0.0);
}

std::int64_t Loader::next_sample() const {
  return options_.start_sample + handed_out_ / micro_steps() * options_.batch_size;
}

}  // namespace sfa
