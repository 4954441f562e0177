// A task's score for one model, as lm-evaluation-harness computes it.
//   choices     acc: the choice with the largest log-likelihood is the right one (the first among equals);
//               acc_norm: the same with log-likelihoods divided by the choice's characters without the leading space
//   otherwise   acc: the continuation is what greedy decoding gives; perplexity: exp(-mean log-likelihood)
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "eval/scoring.h"
#include "eval/task.h"

namespace sfa {

/// A mean over examples, and its standard error (of one example: 0).
struct Mean {
  double value = 0, error = 0;
};

struct TaskScore {
  Mean acc;
  std::optional<Mean> acc_norm;
  std::optional<double> perplexity;
  std::int64_t examples = 0, truncated = 0;
  std::vector<std::vector<Score>> scores;  // an example's continuations, in the file's order
  std::vector<bool> correct;               // acc of every example
};

TaskScore score_task(Context& ctx, Model& model, const Tokenizer& tokenizer, const Task& task,
                     const ScoreOptions& options);

/// The figures, and of every example its gold choice and its log-likelihoods.
nlohmann::ordered_json task_json(const Task& task, const TaskScore& score);

}  // namespace sfa
