#include "eval/task_score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tokenizer/unicode.h"

namespace sfa {
namespace {

Mean mean_of(const std::vector<double>& values) {
  const double n = static_cast<double>(values.size());
  Mean m{std::accumulate(values.begin(), values.end(), 0.0) / n, 0};
  double squares = 0;
  for (const double v : values) squares += (v - m.value) * (v - m.value);
  if (values.size() > 1) m.error = std::sqrt(squares / (n - 1) / n);
  return m;
}

std::size_t best_of(const std::vector<double>& values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

// The choice of one example, with log-likelihoods as they are or a character.
std::size_t chosen(const TaskItem& item, const std::vector<Score>& scores, bool by_character) {
  std::vector<double> values;
  for (std::size_t c = 0; c < scores.size(); ++c) {
    const double characters = static_cast<double>(count_characters(item.continuations[c]) - 1);
    values.push_back(scores[c].log_likelihood / (by_character ? std::max(characters, 1.0) : 1.0));
  }
  return best_of(values);
}

}  // namespace

TaskScore score_task(Context& ctx, Model& model, const Tokenizer& tokenizer, const Task& task,
                     const ScoreOptions& options) {
  std::vector<ScoreRequest> requests;
  for (const TaskItem& item : task.items)
    for (const std::string& continuation : item.continuations)
      requests.push_back(encode_pair(tokenizer, item.context, continuation));
  const std::vector<Score> scores = score(ctx, model, requests, options);
  TaskScore result;
  std::vector<double> hits, hits_norm, likelihoods;
  auto next = scores.begin();
  for (const TaskItem& item : task.items) {
    const auto end = next + static_cast<std::ptrdiff_t>(item.continuations.size());
    const std::vector<Score>& own = result.scores.emplace_back(next, end);
    next = end;
    const bool right = task.choices ? chosen(item, own, false) == item.gold : own.front().greedy;
    result.correct.push_back(right);
    hits.push_back(right ? 1 : 0);
    if (task.choices) hits_norm.push_back(chosen(item, own, true) == item.gold ? 1 : 0);
    likelihoods.push_back(own.front().log_likelihood);
    result.truncated += std::any_of(own.begin(), own.end(), [](const Score& s) { return s.truncated; }) ? 1 : 0;
  }
  result.examples = static_cast<std::int64_t>(task.items.size());
  result.acc = mean_of(hits);
  if (task.choices)
    result.acc_norm = mean_of(hits_norm);
  else
    result.perplexity = std::exp(-mean_of(likelihoods).value);
  return result;
}

nlohmann::ordered_json task_json(const Task& task, const TaskScore& score) {
  nlohmann::ordered_json out = {{"task", task.name},
                                {"examples", score.examples},
                                {"truncated", score.truncated},
                                {"acc", score.acc.value},
                                {"acc_stderr", score.acc.error}};
  if (score.acc_norm) {
    out["acc_norm"] = score.acc_norm->value;
    out["acc_norm_stderr"] = score.acc_norm->error;
  }
  if (score.perplexity) out["perplexity"] = *score.perplexity;
  nlohmann::ordered_json items = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < task.items.size(); ++i) {
    nlohmann::ordered_json likelihoods = nlohmann::ordered_json::array();
    for (const Score& s : score.scores[i]) likelihoods.push_back(s.log_likelihood);
    nlohmann::ordered_json item = {{"log_likelihoods", likelihoods}, {"correct", static_cast<bool>(score.correct[i])}};
    if (task.choices) item["gold"] = task.items[i].gold;
    items.push_back(item);
  }
  out["items"] = items;
  return out;
}

}  // namespace sfa
