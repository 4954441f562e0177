// Batches of token windows from shards.
//
// The place in the data is the GLOBAL SAMPLE INDEX, whatever the number of ranks: optimizer step s consumes samples
// [s * batch_size, (s + 1) * batch_size), and row i of micro-step m of rank r is sample
// s * batch_size + m * (world_size * micro_batch_size) + r * micro_batch_size + i. A run resumed with another number of
// ranks or another micro-batch goes on with the very same stream.
//
// Sample i is window (i mod N) of epoch i / N, where N counts the windows of all shards; a window is seq_len + 1
// consecutive tokens of one shard. With `shuffle` the windows of an epoch are permuted in O(1) memory (Permutation),
// and each epoch shifts a shard's windows by a random offset below seq_len, so that epochs cut the text elsewhere.
// Without it windows come in file order from the first token on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "data/answers.h"
#include "data/sequence_part.h"
#include "data/token_file.h"

namespace sfa {

/// B rows of T tokens, host memory, row-major.
struct Batch {
  int B = 0, T = 0;
  std::int64_t first_sample = 0;        // global sample index of row 0 (validation: window index)
  std::vector<std::int32_t> tokens;     // [B, T] inputs
  std::vector<std::int32_t> targets;    // [B, T] the token after each input; -1 is not to be predicted
  std::vector<std::int32_t> first_key;  // [B, T] index within the row of the first token of the token's document; empty
                                        // unless document_mask was asked for. Of a part: sequence_part.h
  std::int64_t num_targets = 0;         // targets that are not -1
  std::int64_t step_targets = 0;        // the same of the whole optimizer step, over all ranks; training only
  std::int64_t target_bytes = 0;        // bytes of text they stand for (end of text counts none); validation only
};

/// The shards of a run, opened and checked against each other.
class ShardSet {
 public:
  /// Each pattern is a path or a glob (*, ?, [...]); matches are sorted by name. Throws Error when a pattern matches
  /// nothing, a shard cannot be opened, or shards were made with different tokenizers.
  explicit ShardSet(const std::vector<std::string>& patterns);

  [[nodiscard]] const std::vector<std::shared_ptr<const TokenFile>>& files() const { return files_; }
  [[nodiscard]] std::int64_t vocab_size() const { return files_.front()->info().vocab_size; }
  [[nodiscard]] const std::string& tokenizer_name() const { return files_.front()->info().tokenizer_name; }
  [[nodiscard]] const std::string& tokenizer_hash() const { return files_.front()->info().tokenizer_hash; }
  /// Where the tokenizer's file may be: its name as it was given, where that was, and beside the data.
  [[nodiscard]] std::vector<std::string> tokenizer_places() const;
  [[nodiscard]] std::int64_t tokens(Split split) const;
  /// "2 files from data/a.h5 on" or the file's name, for messages.
  [[nodiscard]] std::string describe() const;

 private:
  std::vector<std::shared_ptr<const TokenFile>> files_;
};

struct LoaderOptions {
  std::vector<std::string> paths;  // files or globs
  Split split = Split::train;
  int seq_len = 0;           // T
  int batch_size = 0;        // samples an optimizer step over all ranks
  int micro_batch_size = 0;  // B: samples a rank and micro-step
  int rank = 0, world_size = 1;
  SequencePart part = {};  // of several ranks with the same rows: batches are then as take_part leaves them
  std::uint64_t seed = 0;
  std::int64_t start_sample = 0;  // global sample index of the first optimizer step's first sample
  bool shuffle = true;
  bool document_mask = false;  // fill Batch::first_key
  bool answers = false;        // targets that are no answers are -1 (train.loss_mask)
  int prefetch = 4;            // batches prepared ahead
};

/// Which tokens a sample is, a pure function of the options: (file, first token).
class SampleOrder {
 public:
  struct Window {
    std::size_t file;
    std::int64_t begin;  // of its seq_len + 1 tokens
  };
  /// Throws Error when no shard holds a window of seq_len + 1 tokens of the split.
  SampleOrder(const ShardSet& shards, Split split, int seq_len, std::uint64_t seed, bool shuffle);
  [[nodiscard]] Window operator()(std::int64_t sample) const;
  [[nodiscard]] std::int64_t samples_per_epoch() const { return first_.back(); }

 private:
  int seq_len_;
  std::uint64_t seed_;
  bool shuffle_;
  std::vector<std::int64_t> begin_, tokens_;  // of the split, a file
  std::vector<std::int64_t> first_;           // [files + 1] first window of a file
};

class Loader {
 public:
  /// Opens the shards, checks them and starts the prefetch thread.
  explicit Loader(const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next micro-step's batch; valid until the following call. Rethrows what the prefetch thread met, at the batch
  /// at which it met it.
  const Batch& next();

  /// Milliseconds that next() has waited for data since the last call of this function.
  double take_wait_ms();

  [[nodiscard]] const ShardSet& shards() const { return shards_; }
  [[nodiscard]] std::int64_t samples_per_epoch() const { return order_.samples_per_epoch(); }
  /// Micro-steps of this rank an optimizer step.
  [[nodiscard]] int micro_steps() const {
    return options_.batch_size / (options_.micro_batch_size * options_.world_size);
  }
  /// Global index of the first sample that the batches handed out so far have not reached, counted in whole optimizer
  /// steps: what a checkpoint stores and start_sample takes.
  [[nodiscard]] std::int64_t next_sample() const;

 private:
  void work();
  [[nodiscard]] std::int64_t targets_of(const SampleOrder::Window& window) const;
  void fill(Batch& batch, std::int64_t micro_step) const;

  LoaderOptions options_;
  ShardSet shards_;
  SampleOrder order_;
  std::vector<std::vector<std::int64_t>> document_starts_;  // a file; empty unless document_mask
  std::vector<AnswerRanges> answers_;                       // a file; empty unless asked for

  std::mutex mutex_;
  std::condition_variable ready_, free_;
  std::deque<Batch> full_, empty_;
  std::exception_ptr failure_;
  bool stop_ = false;

  Batch whole_;  // of the prefetch thread: rows before take_part
  Batch current_;
  std::int64_t handed_out_ = 0;
  double wait_ms_ = 0.0;
  std::thread thread_;
};

struct ValidationOptions {
  std::vector<std::string> paths;
  /// `val`: the validation tail. `all`: whole files. For a file named apart from the training data (data.val) use
  /// validation_split_of_own_files().
  Split split = Split::val;
  int seq_len = 0, batch_size = 0;  // T and B
  int rank = 0, world_size = 1;
  bool document_mask = false;
  SequencePart part = {};  // as in LoaderOptions
  bool answers = false;    // the same
};

/// The tail if any file has one, else everything: what to validate on when the files hold validation data only.
Split validation_split_of_own_files(const ShardSet& shards);

/// The whole split once, in non-overlapping windows of seq_len in file order. The last window of a file may be shorter:
/// its missing places carry the target -1, as do the rows that fill the last batch. Every rank gets the same number of
/// batches; over all ranks each token of the split but a file's first is a target exactly once, or each answer.
class ValidationSet {
 public:
  explicit ValidationSet(const ValidationOptions& options);

  [[nodiscard]] std::int64_t num_batches() const;
  [[nodiscard]] const ShardSet& shards() const { return shards_; }
  /// Targets over all batches and ranks.
  [[nodiscard]] std::int64_t total_targets() const { return total_targets_; }
  /// Batch i of [0, num_batches()); valid until the next call. Any order, as often as wanted.
  const Batch& batch(std::int64_t i);

 private:
  ValidationOptions options_;
  ShardSet shards_;
  std::vector<std::int64_t> begin_, tokens_, first_;  // of the split, a file; first window of a file [files + 1]
  std::vector<std::vector<std::int64_t>> document_starts_;
  std::vector<AnswerRanges> answers_;
  std::vector<std::uint32_t> bytes_of_;  // [V]; empty when the shards do not say
  std::int64_t total_targets_ = 0;
  Batch batch_, part_;
};

}  // namespace sfa
