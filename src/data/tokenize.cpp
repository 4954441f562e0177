#include "data/tokenize.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/progress.h"

namespace sfa {
namespace {
constexpr std::size_t kJobBytes =
    256 << 10;  // text of one job; small enough to share evenly, large enough to hand over

// Consecutive pieces of text that one thread encodes, and their ids.
struct Job {
  std::vector<TextPiece> pieces;
  std::size_t bytes = 0;
  std::vector<std::vector<std::uint32_t>> ids;  // one list a piece
  std::exception_ptr failure;
  bool done = false;
};

// Threads that encode jobs; the caller gets them back in the order in which it handed them in.
class Encoders {
 public:
  Encoders(const Tokenizer& tokenizer, int threads) : tokenizer_(tokenizer) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Encoders() {
    {
      const std::lock_guard guard(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Encoders(const Encoders&) = delete;
  Encoders& operator=(const Encoders&) = delete;

  void push(std::unique_ptr<Job> job) {
    const std::lock_guard guard(mutex_);
    waiting_.push_back(job.get());
    ordered_.push_back(std::move(job));
    wake_.notify_one();
  }

  /// The oldest job when it is done or when more than `most` are under way; null otherwise.
  std::unique_ptr<Job> pop(std::size_t most) {
    std::unique_lock lock(mutex_);
    if (ordered_.empty() || (!ordered_.front()->done && ordered_.size() <= most)) return nullptr;
    finished_.wait(lock, [this] { return ordered_.front()->done; });
    std::unique_ptr<Job> job = std::move(ordered_.front());
    ordered_.pop_front();
    if (job->failure) std::rethrow_exception(job->failure);
    return job;
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      Job* job = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      encode(*job);
      lock.lock();
      job->done = true;
      finished_.notify_all();
    }
  }

  void encode(Job& job) const {
    try {
      for (const TextPiece& piece : job.pieces) tokenizer_.encode(piece.text, job.ids.emplace_back());
    } catch (...) {
      job.failure = std::current_exception();
    }
  }

  const Tokenizer& tokenizer_;
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  std::deque<Job*> waiting_;
  std::deque<std::unique_ptr<Job>> ordered_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// The pieces of a source, with a look at the next one.
class Pieces {
 public:
  explicit Pieces(TextSource& source) : source_(source) {}

  bool next(TextPiece& piece) {
    if (!peeked_) return source_.next(piece);
    piece = std::move(next_);
    peeked_ = false;
    return true;
  }

  /// Reads past `count` documents and returns the hash of their text.
  std::string skip_documents(std::int64_t count) {
    TextHash hash;
    std::int64_t begun = 0;
    while (peeked_ || source_.next(next_)) {
      peeked_ = true;
      begun += next_.first ? 1 : 0;
      if (begun > count) break;
      hash.add(next_.text);
      peeked_ = false;
    }
    return hash.take();
  }

 private:
  TextSource& source_;
  TextPiece next_;
  bool peeked_ = false;
};

// Cuts the stream of pieces into jobs. A long document is cut only where its tokens surely end.
class JobCutter {
 public:
  JobCutter(Pieces& pieces, const Tokenizer& tokenizer) : pieces_(pieces), tokenizer_(tokenizer) {}

  /// Null at the end of the text.
  std::unique_ptr<Job> next() {
    auto job = std::make_unique<Job>();
    TextPiece piece;
    while (job->bytes < kJobBytes) {
      if (!pieces_.next(piece)) {
        add(*job, open_.text.size());
        break;
      }
      if (piece.first || piece.answer != open_.answer) {
        add(*job, open_.text.size());
        open_ = std::move(piece);
      } else {
        open_.text += piece.text;
      }
      if (open_.text.size() >= kJobBytes) add(*job, tokenizer_.safe_prefix(open_.text));
    }
    return job->pieces.empty() ? nullptr : std::move(job);
  }

 private:
  // Moves the first `count` bytes of the open document into the job.
  void add(Job& job, std::size_t count) {
    if (count == 0) return;
    job.bytes += count;
    std::string rest = open_.text.substr(count);
    open_.text.resize(count);
    job.pieces.push_back({std::move(open_.text), open_.first, open_.answer});
    open_ = {std::move(rest), false, open_.answer};
  }

  Pieces& pieces_;
  const Tokenizer& tokenizer_;
  TextPiece open_;
};

void write(ShardWriter& writer, const Job& job) {
  for (std::size_t i = 0; i < job.pieces.size(); ++i) {
    if (job.pieces[i].first) writer.begin_document();
    writer.append(job.pieces[i].text, job.ids[i], job.pieces[i].answer);
  }
}

void refuse_output_among_inputs(const TokenizeOptions& options) {
  for (const std::string& input : options.source.inputs) {
    std::error_code none;
    require(input == "-" || !std::filesystem::equivalent(input, options.output.path, none),
            "the output {} is one of the inputs", options.output.path);
  }
}
}  // namespace

TokenizeResult tokenize(const TokenizeOptions& options, const Tokenizer& tokenizer) {
  refuse_output_among_inputs(options);
  TextSource source(options.source);
  TokenWriterOptions output = options.output;
  output.answers = !options.source.answer_field.empty();
  ShardWriter writer({output, options.shard_tokens, options.resume, options.source.inputs}, tokenizer);
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(cores);
  const auto most_jobs = static_cast<std::size_t>(4 * threads);

  Progress progress("tokenize", options.show_progress ? source.bytes_total() : 0);
  Pieces pieces(source);
  for (const TokenFileInfo& shard : writer.finished_before())
    require(pieces.skip_documents(shard.num_documents) == shard.source_hash,
            "the inputs have changed since {} was made from them; tokenize them anew with --force", shard.path);
  {
    JobCutter cutter(pieces, tokenizer);
    Encoders encoders(tokenizer, threads);
    while (std::unique_ptr<Job> job = cutter.next()) {
      encoders.push(std::move(job));
      while (const auto done = encoders.pop(most_jobs)) write(writer, *done);
      if (options.show_progress)
        progress.update(source.bytes_consumed(),
                        fmt::format("{} of text, {} tokens", bytes_text(static_cast<double>(source.bytes_read())),
                                    grouped(writer.tokens())));
    }
    while (const auto done = encoders.pop(0)) write(writer, *done);
  }
  progress.finish();

  TokenizeResult result;
  result.files = writer.finish();
  result.text_bytes = source.bytes_read();
  result.seconds = progress.seconds();
  return result;
}

}  // namespace sfa
