#include "analysis/report_data.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>

#include "analysis/compare.h"
#include "core/error.h"
#include "eval/saved_results.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;

// The configuration without what does not decide the result of a run.
std::string identity(Config config) {
  config.seed = 0;
  config.output_dir.clear();
  config.resume = "never";
  config.device = "auto";
  // A run that goes back does so to a checkpoint; otherwise they decide nothing, nor does what is logged.
  if (config.train.guard.nonfinite != "rollback" && config.train.guard.spike != "rollback") config.checkpoint = {};
  config.train.log_every = TrainConfig{}.log_every;
  config.train.profile_steps = {};
  config.train.tensorboard = TrainConfig{}.tensorboard;
  config.dist.timeout_s = DistConfig{}.timeout_s;
  return dump_config(config);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<DocumentLoss> documents_of(const ReportRun& run) {
  const auto found = run.results.find("perplexity");
  std::vector<DocumentLoss> out;
  if (found == run.results.end()) return out;
  const auto list = found->second.find("documents");
  if (list == found->second.end() || !list->is_array()) return out;
  for (const auto& entry : *list) {
    require(entry.is_array() && entry.size() == 2 && entry[0].is_number() && entry[1].is_number(),
            "{}: documents are pairs of tokens and nats", (run.folder() / "eval" / "perplexity.json").string());
    out.push_back({entry[0].get<std::int64_t>(), entry[1].get<double>()});
  }
  return out;
}

// Pairs of runs, of the first group and of another, with the same seed; of repeated runs of a seed the first.
std::vector<std::pair<std::size_t, std::size_t>> same_seeds(const ReportData& data, const ReportGroup& other) {
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  const auto seed_of = [&](std::size_t run) { return data.runs[run].summary.config.seed; };
  for (const std::size_t b : other.runs)
    for (const std::size_t a : data.groups.front().runs)
      if (seed_of(a) == seed_of(b) && std::none_of(pairs.begin(), pairs.end(), [&](const auto& pair) {
            return seed_of(pair.second) == seed_of(b);
          })) {
        pairs.emplace_back(a, b);
        break;
      }
  return pairs;
}

bool comparable(const std::vector<DocumentLoss>& a, const std::vector<DocumentLoss>& b) {
  return !a.empty() && a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) { return x.tokens == y.tokens; });
}

void add(std::vector<DocumentLoss>& sum, const std::vector<DocumentLoss>& one, double share) {
  if (sum.empty())
    for (const DocumentLoss& d : one) sum.push_back({d.tokens, 0});
  for (std::size_t i = 0; i < one.size(); ++i) sum[i].nats += share * one[i].nats;
}

void measure_gaps(const ReportData& data, ReportGroup& group) {
  const auto pairs = same_seeds(data, group);
  std::vector<double> differences;
  std::vector<DocumentLoss> first, other;
  bool documents = !pairs.empty();
  for (const auto& [a, b] : pairs) {
    const ReportRun &ra = data.runs[a], &rb = data.runs[b];
    if (ra.summary.val_loss && rb.summary.val_loss) differences.push_back(*rb.summary.val_loss - *ra.summary.val_loss);
    documents = documents && comparable(ra.documents, rb.documents) &&
                comparable(first.empty() ? ra.documents : first, rb.documents);
    if (!documents) continue;
    add(first, ra.documents, 1.0 / static_cast<double>(pairs.size()));
    add(other, rb.documents, 1.0 / static_cast<double>(pairs.size()));
  }
  group.seed_pairs = differences.size();
  if (!differences.empty()) group.gap_seeds = paired_gap(differences);
  if (documents) group.gap_documents = bootstrap_gap(first, other);
}

}  // namespace

ReportRun read_report_run(const fs::path& folder) {
  ReportRun run{read_run(folder), read_curve(folder), saved_results(folder), {}, 0, ""};
  run.documents = documents_of(run);
  std::vector<double> rates;
  for (const CurvePoint& p : run.curve)
    if (p.tokens_per_sec) rates.push_back(*p.tokens_per_sec);
  run.tokens_per_second = median(rates);
  std::ifstream in(folder.string() + ".command");
  run.command.assign(std::istreambuf_iterator<char>(in), {});
  while (!run.command.empty() && (run.command.back() == '\n' || run.command.back() == ' ')) run.command.pop_back();
  return run;
}

ReportData read_report(const std::vector<std::string>& folders) {
  ReportData data;
  std::vector<std::string> identities;
  for (const std::string& folder : folders) {
    fs::path path = fs::path(folder).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    data.runs.push_back(read_report_run(path));
    const Config& config = data.runs.back().summary.config;
    const std::string own = identity(config);
    const auto at = static_cast<std::size_t>(std::find(identities.begin(), identities.end(), own) - identities.begin());
    if (at == identities.size()) {
      identities.push_back(own);
      std::string label = attention_label(config.model);
      const auto taken = [&](const std::string& l) {
        return std::any_of(data.groups.begin(), data.groups.end(), [&](const ReportGroup& g) { return g.label == l; });
      };
      if (taken(label)) label += " (" + path.filename().string() + ")";
      data.groups.push_back({label, {}, {}, {}, {}, paper_figures(config.model)});
    }
    data.groups[at].runs.push_back(data.runs.size() - 1);
  }
  for (ReportGroup& group : data.groups) {
    double sum = 0, count = 0;
    for (const std::size_t r : group.runs)
      if (data.runs[r].summary.val_loss) {
        sum += *data.runs[r].summary.val_loss;
        count += 1;
      }
    if (count > 0) group.loss = sum / count;
    if (&group != &data.groups.front()) measure_gaps(data, group);
  }
  return data;
}

}  // namespace sfa
