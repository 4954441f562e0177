#include "analysis/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "analysis/compare.h"
#include "core/error.h"
#include "core/progress.h"
#include "data/loader.h"

namespace sfa {
namespace {

std::string group_of(const Parameter& p) {
  for (const auto& [part, group] : {std::pair{"norm", "norms"}, {".attn.", "attention"}, {".mlp.", "mlp"}})
    if (p.name.find(part) != std::string::npos) return group;
  return "embeddings";
}

std::string bytes_row(const MemoryPart& part) {
  return fmt::format("  {:<26}{:>10}\n", part.name, bytes_text(static_cast<double>(part.bytes)));
}

// 1.234e12 -> "1.234 TFLOPs".
std::string flops_text(double flops) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T", "P", "E"};
  std::size_t unit = 0;
  while (flops >= 1000 && unit + 1 < std::size(kUnits)) {
    flops /= 1000;
    ++unit;
  }
  return fmt::format("{:.4g} {}FLOPs", flops, kUnits[unit]);
}

// A part's name as a key: "cuBLASLt workspace" -> "cublaslt_workspace".
std::string key_of(std::string name) {
  for (char& c : name) c = c == ' ' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

double attention_share(const ModelCost& c) {
  return (c.attention_flops_per_token + c.attention_backward_flops_per_token) /
         (c.forward_flops_per_token + c.backward_flops_per_token);
}

double tokens_per_step(const Config& c) {
  return static_cast<double>(c.data.batch_size * c.data.seq_len);
}

}  // namespace

std::vector<ParameterGroup> parameter_groups(const Model& model) {
  std::vector<ParameterGroup> groups;
  for (const Parameter& p : model.parameters().all()) {
    const std::string name = group_of(p);
    auto at = std::find_if(groups.begin(), groups.end(), [&](const ParameterGroup& g) { return g.name == name; });
    if (at == groups.end()) at = groups.insert(groups.end(), {name, 0});
    const std::int64_t Vp = model.config().padded_vocab_size(), V = model.config().vocab_size;
    const bool vocabulary = p.shape.size() == 2 && p.shape[0] == Vp && name == "embeddings";
    at->count += vocabulary ? p.numel() / Vp * V : p.numel();
  }
  return groups;
}

void take_vocabulary(Config& config) {
  if (config.model.vocab_size != 0) return;
  constexpr const char* kAdvice = "name it, for example model.vocab_size=50257";
  require(!config.data.train.empty(), "model.vocab_size: is not set, and no data.train to take it from; {}", kAdvice);
  try {
    config.model.vocab_size = ShardSet({config.data.train}).vocab_size();
  } catch (const Error& error) {
    fail("model.vocab_size: is not set, and the data to take it from can't be read ({}); {}", error.what(), kAdvice);
  }
}

RunPlan plan_run(const Config& whole, Device device, std::optional<std::size_t> room, int ranks) {
  const Config config = for_ranks(whole, ranks);
  const TrainingMemory memory(config, device, {0, ranks});
  RunPlan plan;
  plan.config = config;
  plan.ranks = ranks;
  plan.device = device;
  plan.stored = memory.model->dtype();
  plan.dtype = name_of(memory.round_bf16 ? DType::bf16 : memory.model->dtype());
  plan.parameters = parameter_groups(*memory.model);
  std::int64_t counted = 0;
  for (const ParameterGroup& g : plan.parameters) counted += g.count;
  plan.vocabulary_padding = memory.model->parameters().count() - counted;
  plan.memory = plan_memory(config, memory);
  plan.cost = memory.model->cost(config.data.seq_len);
  plan.room = room;
  if (room) plan.fits = largest_micro_batch(config, device, *room, memory.place());
  return plan;
}

std::string plan_table(const RunPlan& p) {
  const Config& c = p.config;
  const ModelCost& cost = p.cost;
  std::string out =
      fmt::format("{} {}, {} on {}: {} sequences of {} tokens at a time, {} a step{}\n\nparameters\n", c.model.arch,
                  attention_label(c.model), p.dtype, name_of(p.device), c.data.micro_batch_size, c.data.seq_len,
                  c.data.batch_size, p.ranks == 1 ? "" : fmt::format(", {} ranks, dist.zero {}", p.ranks, c.dist.zero));
  const auto count_row = [&](const std::string& name, std::int64_t n) {
    out += fmt::format("  {:<20}{:>16}\n", name, grouped(n));
  };
  std::int64_t total = 0;
  for (const ParameterGroup& g : p.parameters) {
    count_row(g.name, g.count);
    total += g.count;
  }
  count_row("total", total);
  out += fmt::format("  (and {} of padding of the vocabulary to a multiple of {})\n\nmemory on {}\n",
                     grouped(p.vocabulary_padding), ModelConfig::kVocabularyPadding, name_of(p.device));
  for (const auto* list : {&p.memory.arenas, &p.memory.beside})
    for (const MemoryPart& part : *list) out += bytes_row(part);
  if (p.device == Device::cpu)
    for (const MemoryPart& part : p.memory.host) out += bytes_row(part);
  out += bytes_row({"total", p.memory.total()});
  if (p.device != Device::cpu) {
    out += "memory of the host\n";
    for (const MemoryPart& part : p.memory.host) out += bytes_row(part);
  }
  const double step = tokens_per_step(c);
  out += fmt::format(
      "\nwork, a multiply-add counted as two and nothing computed twice\n"
      "  a token: {} forward, {} backward, of it {:.1f} % attention cores\n"
      "  a step of {} tokens: {}\n"
      "cache: {} bytes a token; attention keeps {} bytes a token from forward to backward\n",
      flops_text(cost.forward_flops_per_token), flops_text(cost.backward_flops_per_token), 100 * attention_share(cost),
      grouped(static_cast<std::int64_t>(step)),
      flops_text(step * (cost.forward_flops_per_token + cost.backward_flops_per_token)),
      grouped(static_cast<std::int64_t>(cost.kv_bytes_per_token)),
      grouped(static_cast<std::int64_t>(cost.attention_saved_bytes_per_token)));
  if (c.dist.context_parallel > 1) {
    const RingBytes hop = ring_bytes_a_hop(c, p.stored);
    out += fmt::format(
        "ring of {} ranks: {} tokens of a sequence a rank; a hop of a layer carries {} of keys and values, backward {} "
        "of their gradients too\n",
        c.dist.context_parallel, c.data.seq_len / c.dist.context_parallel, bytes_text(hop.forward),
        bytes_text(hop.backward_gradients));
  }
  if (!p.room) return out + "\nWhat fits is not known: say how much memory there is, for example --memory 141GB\n";
  out += fmt::format("\nlargest micro-batch within {}: ", bytes_text(static_cast<double>(*p.room)));
  if (p.fits.any == 0) return out + "none, not even one sequence\n";
  return out + fmt::format("{} sequences; data.micro_batch_size={} divides data.batch_size={}\n", p.fits.any,
                           p.fits.divisor, c.data.batch_size);
}

nlohmann::ordered_json plan_json(const RunPlan& p) {
  using Json = nlohmann::ordered_json;
  const Config& c = p.config;
  const ModelCost& cost = p.cost;
  const auto parts = [](const std::vector<MemoryPart>& list, Json into = Json::object()) {
    for (const MemoryPart& part : list) into[key_of(part.name)] = part.bytes;
    return into;
  };
  Json parameters = Json::object();
  std::int64_t total = 0;
  for (const ParameterGroup& g : p.parameters) {
    parameters[g.name] = g.count;
    total += g.count;
  }
  parameters["total"] = total;
  parameters["vocabulary_padding"] = p.vocabulary_padding;
  Json memory = parts(p.memory.beside, parts(p.memory.arenas));
  if (p.device == Device::cpu) memory = parts(p.memory.host, memory);
  memory["total"] = p.memory.total();
  const double step = tokens_per_step(c);
  Json out = {{"arch", c.model.arch},
              {"attention", attention_label(c.model)},
              {"device", name_of(p.device)},
              {"dtype", p.dtype},
              {"seq_len", c.data.seq_len},
              {"batch_size", c.data.batch_size},
              {"ranks", p.ranks},
              {"micro_batch_size", c.data.micro_batch_size},
              {"parameters", parameters},
              {"memory_bytes", memory},
              {"host_memory_bytes", parts(p.memory.host)},
              {"tokens_per_step", step},
              {"forward_flops_per_token", cost.forward_flops_per_token},
              {"backward_flops_per_token", cost.backward_flops_per_token},
              {"attention_share", attention_share(cost)},
              {"flops_per_step", step * (cost.forward_flops_per_token + cost.backward_flops_per_token)},
              {"kv_bytes_per_token", cost.kv_bytes_per_token},
              {"attention_saved_bytes_per_token", cost.attention_saved_bytes_per_token},
              {"memory_there", nullptr},
              {"largest_micro_batch_size", nullptr},
              {"largest_micro_batch_size_of_batch", nullptr}};
  if (c.dist.context_parallel > 1) {
    const RingBytes hop = ring_bytes_a_hop(c, p.stored);
    out["context_parallel"] = c.dist.context_parallel;
    out["ring_hop_bytes"] = {{"keys", hop.forward}, {"gradients", hop.backward_gradients}};
  }
  if (p.room) {
    out["memory_there"] = *p.room;
    out["largest_micro_batch_size"] = p.fits.any;
    out["largest_micro_batch_size_of_batch"] = p.fits.divisor;
  }
  return out;
}

}  // namespace sfa
