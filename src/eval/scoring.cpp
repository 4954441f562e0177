#include "eval/scoring.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "core/progress.h"
#include "tokenizer/unicode.h"

namespace sfa {
namespace {

// Lengths of rows are rounded up to multiples of this, so that few shapes are planned.
constexpr std::int64_t kGranule = 32;

// What a request feeds: all tokens but the last, the newest P of them.
struct Row {
  std::size_t request = 0;
  std::int64_t length = 0;   // tokens fed
  std::int64_t dropped = 0;  // tokens cut off at the beginning
};

Row row_of(const ScoreRequest& r, std::size_t index, std::int64_t positions) {
  const auto all = static_cast<std::int64_t>(r.context.size() + r.continuation.size());
  const auto wanted = static_cast<std::int64_t>(r.continuation.size());
  require(!r.context.empty(), "internal error: a request without a context");
  require(wanted <= positions, "request {}: a continuation of {} tokens is longer than the model's {} positions", index,
          wanted, positions);
  const std::int64_t length = std::min(all - 1, positions);
  return {index, length, all - 1 - length};
}

// Arenas and inputs for steps of one shape.
class Step {
 public:
  Step(Model& model, std::int64_t rows, std::int64_t length)
      : B(rows), T(length), model_(model), arenas_(model.device()), inputs_("requests", model.device()) {
    plan_model(model, arenas_, B, T, false);
    for (int pass = 0; pass < 2; ++pass) {
      batch_ = {inputs_.take(DType::i32, {B, T}), inputs_.take(DType::i32, {B, T}), Tensor{}};
      losses_ = inputs_.take(DType::f32, {B * T});
      greedy_ = inputs_.take(DType::i32, {B * T});
      if (pass == 0) inputs_.bind();
    }
    const auto n = static_cast<std::size_t>(B * T);
    tokens.resize(n);
    targets.resize(n);
    losses.resize(n);
    greedy.resize(n);
  }

  void clear() {
    std::fill(tokens.begin(), tokens.end(), 0);
    std::fill(targets.begin(), targets.end(), -1);
  }

  void run(Context& ctx) {
    const std::size_t bytes = tokens.size() * sizeof(std::int32_t);
    ctx.copy(batch_.tokens.data, batch_.tokens.device, tokens.data(), Device::cpu, bytes);
    ctx.copy(batch_.targets.data, batch_.targets.device, targets.data(), Device::cpu, bytes);
    model_.evaluate(ctx, arenas_, batch_, {losses_, greedy_});
    ctx.copy(losses.data(), Device::cpu, losses_.data, losses_.device, bytes);
    ctx.copy(greedy.data(), Device::cpu, greedy_.data, greedy_.device, bytes);
    ctx.synchronize();
  }

  const std::int64_t B, T;
  std::vector<std::int32_t> tokens, targets, greedy;
  std::vector<float> losses;

 private:
  Model& model_;
  ModelArenas arenas_;
  Arena inputs_;
  ModelInput batch_;
  Tensor losses_, greedy_;
};

// Token i of context and continuation as one.
std::int32_t token_at(const ScoreRequest& r, std::int64_t i) {
  const auto n = static_cast<std::int64_t>(r.context.size());
  return i < n ? r.context[static_cast<std::size_t>(i)] : r.continuation[static_cast<std::size_t>(i - n)];
}

void fill_row(Step& step, std::int64_t b, const Row& row, const ScoreRequest& r) {
  const std::int64_t counted = row.length - static_cast<std::int64_t>(r.continuation.size());
  for (std::int64_t t = 0; t < row.length; ++t) {
    const auto at = static_cast<std::size_t>(b * step.T + t);
    step.tokens[at] = token_at(r, row.dropped + t);
    step.targets[at] = t >= counted ? token_at(r, row.dropped + t + 1) : -1;
  }
}

Score read_row(const Step& step, std::int64_t b, const Row& row) {
  Score s;
  s.truncated = row.dropped > 0;
  for (std::int64_t t = 0; t < row.length; ++t) {
    const auto at = static_cast<std::size_t>(b * step.T + t);
    if (step.targets[at] < 0) continue;
    s.log_likelihood -= static_cast<double>(step.losses[at]);
    s.greedy = s.greedy && step.greedy[at] != 0;
  }
  return s;
}

}  // namespace

ScoreRequest encode_pair(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation) {
  const std::size_t spaces = trailing_space(context);
  const std::string kept = context.substr(0, context.size() - spaces),
                    rest = context.substr(context.size() - spaces) + continuation;
  ScoreRequest r;
  std::vector<std::uint32_t> whole, front;
  if (kept.empty()) {
    tokenizer.encode(rest, whole);
    r.context = {static_cast<std::int32_t>(tokenizer.end_of_text())};
  } else {
    tokenizer.encode(kept + rest, whole);
    tokenizer.encode(kept, front);
    r.context.assign(front.begin(), front.end());
  }
  const std::size_t from = std::min(front.size(), whole.size());
  r.continuation.assign(whole.begin() + static_cast<std::ptrdiff_t>(from), whole.end());
  return r;
}

std::vector<Score> score(Context& ctx, Model& model, const std::vector<ScoreRequest>& requests,
                         const ScoreOptions& options) {
  const std::int64_t positions = model.config().max_position_embeddings;
  const std::int64_t budget = options.batch_tokens > 0        ? options.batch_tokens
                              : model.device() == Device::cpu ? 4096
                                                              : 65536;
  std::vector<Row> rows;
  for (std::size_t i = 0; i < requests.size(); ++i) rows.push_back(row_of(requests[i], i, positions));
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.length > b.length; });
  std::vector<Score> scores(requests.size());
  std::optional<Progress> progress;
  if (options.show_progress) progress.emplace("scoring", requests.size());
  std::optional<Step> step;
  for (std::size_t next = 0; next < rows.size();) {
    const std::int64_t longest = std::max<std::int64_t>(rows[next].length, 1);
    const std::int64_t T = std::min((longest + kGranule - 1) / kGranule * kGranule, positions);
    const std::int64_t most =
        std::min<std::int64_t>(std::max<std::int64_t>(1, budget / T), static_cast<std::int64_t>(rows.size()));
    if (!step || step->T != T || step->B != most) {
      step.reset();  // the old shape's memory goes before the new one's comes
      step.emplace(model, most, T);
    }
    step->clear();
    const std::size_t end = std::min(rows.size(), next + static_cast<std::size_t>(step->B));
    for (std::size_t i = next; i < end; ++i)
      fill_row(*step, static_cast<std::int64_t>(i - next), rows[i], requests[rows[i].request]);
    step->run(ctx);
    for (std::size_t i = next; i < end; ++i)
      scores[rows[i].request] = read_row(*step, static_cast<std::int64_t>(i - next), rows[i]);
    next = end;
    if (progress) progress->update(next, "");
  }
  if (progress) progress->finish();
  return scores;
}

}  // namespace sfa
