// Evaluation tasks read from files in their published layouts, as contexts and continuations by the rules of
// lm-evaluation-harness (zero-shot). Nothing is downloaded; data/README.md says where each file comes from.
//
//   task            file                                   a record                                        context,
//   continuations lambada_openai  lambada_test_en.jsonl                  {"text"} all but the last word; " word"
//   hellaswag       hellaswag_val.jsonl                    {"activity_label","ctx_a","ctx_b","endings","label"}
//                                                          "activity: ctx_a Ctx_b", cleaned of [markup]; " ending"
//   piqa            valid.jsonl (+ valid-labels.lst)       {"goal","sol1","sol2"[,"label"]}                "Question:
//   goal\nAnswer:"; " solution" arc_easy,       ARC-Easy-Test.jsonl, ...
//   {"question":{"stem","choices":[{"text","label"}]},"answerKey"}, arc_challenge or flat:
//   {"question","choices":{"text":[],"label":[]},"answerKey"}
//                                                          "Question: stem\nAnswer:"; " choice"
// A file may be JSON lines, one JSON array of records, and compressed (.gz, .xz, .zst).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sfa {

struct TaskItem {
  std::string context;
  std::vector<std::string> continuations;  // one: lambada_openai; otherwise the choices, each behind a space
  std::size_t gold = 0;
};

struct Task {
  std::string name;
  bool choices = true;  // accuracy over choices; otherwise greedy accuracy and perplexity of the one continuation
  std::vector<TaskItem> items;
};

/// The names that read_task knows.
const std::vector<std::string>& task_names();

/// Reads at most `limit` records (0 = all). `labels`: piqa's label file; empty = beside `file`, "valid.jsonl" ->
/// "valid-labels.lst", where records have no label. Throws Error naming file, record and what is missing.
Task read_task(const std::string& name, const std::string& file, const std::string& labels, std::int64_t limit);

}  // namespace sfa
