#include "models/model.h"

#include <algorithm>
#include <cmath>

#include "models/gpt2/gpt2.h"
#include "models/qwen3/qwen3.h"

namespace sfa {

namespace {

// One line an architecture.
struct Row {
  std::string_view arch;
  std::unique_ptr<Model> (*make)(const ModelConfig&, Device, DType);
};
constexpr Row kTable[] = {
    {"gpt2",
     [](const ModelConfig& c, Device d, DType t) -> std::unique_ptr<Model> { return std::make_unique<Gpt2>(c, d, t); }},
    {"qwen3",
     [](const ModelConfig& c, Device d, DType t) -> std::unique_ptr<Model> {
       return std::make_unique<Qwen3>(c, d, t);
     }},
};

}  // namespace

std::unique_ptr<Model> make_model(const ModelConfig& config, Device device, DType dtype) {
  std::string known;
  for (const Row& row : kTable) {
    if (row.arch == config.arch) {
      require(config.vocab_size >= 1, "model.vocab_size: is not set and no data was given to take it from");
      return row.make(config, device, dtype);
    }
    known += (known.empty() ? "" : ", ") + std::string(row.arch);
  }
  fail("model.arch: '{}' is not known; there is: {}", config.arch, known);
}

Model::Model(ModelConfig config, Device device, DType dtype)
    : config_(std::move(config)), device_(device), dtype_(dtype) {
  for (std::int64_t l = 0; l < config_.num_hidden_layers; ++l)
    attention_.push_back(make_attention(config_.attention_of(l), config_.attention_dims(), device, dtype));
}

Parameter Model::qk_gate(const std::string& block, const std::string& hf) const {
  const AttentionDims d = config_.attention_dims();
  const std::int64_t Q = d.H * d.Dqk, K = d.G * d.Dqk;
  return {.name = block + "attn.qk_gate.weight",
          .shape = {Q + K},
          .init = Init::identity,
          .hf = {{hf + "q_gate.weight", 0, Q}, {hf + "k_gate.weight", Q, K}}};
}

const Attention& Model::widest_attention() const {
  return **std::max_element(attention_.begin(), attention_.end(),
                            [](const auto& a, const auto& b) { return a->config().k_q < b->config().k_q; });
}

std::vector<const Attention*> Model::attention_of_blocks() const {
  std::vector<const Attention*> all;
  for (const auto& a : attention_) all.push_back(a.get());
  return all;
}

void Model::set_auxiliary_losses(float loss_scale) {
  const Distillation distilled = distillation(loss_scale);
  const Balancing balanced{static_cast<float>(config_.attention.balance * static_cast<double>(loss_scale)),
                           balance_total};
  for (const auto& a : attention_) {
    a->distill(distilled);
    a->balance(balanced);
  }
}

AttentionCost Model::attention_cost(std::int64_t T) const {
  AttentionCost sum;
  for (const auto& a : attention_) {
    const AttentionCost c = a->cost(T);
    sum.forward_flops += c.forward_flops;
    sum.backward_flops += c.backward_flops;
    sum.executed_forward_flops += c.executed_forward_flops;
    sum.executed_backward_flops += c.executed_backward_flops;
    sum.saved_bytes_per_token += c.saved_bytes_per_token;
    sum.kv_bytes_per_token += c.kv_bytes_per_token;
  }
  return sum;
}

int annealed_k(int from, int k, double done, bool even) {
  if (from <= k) return k;
  const double unit = even ? 2 : 1, now = from * std::pow(static_cast<double>(k) / from, std::clamp(done, 0.0, 1.0));
  return static_cast<int>(unit * std::round(now / unit));
}

void Model::anneal_k(double done) {
  const bool even = config_.attention.selection == "topk_pairs";
  for (const auto& a : attention_) {
    const AttentionConfig& c = a->config();
    a->activate({annealed_k(c.k_from, c.k_q, done, even), annealed_k(c.k_from, c.k_k, done, even)});
  }
}

std::vector<ActiveFeatures> Model::active_features() const {
  std::vector<ActiveFeatures> all;
  for (const auto& a : attention_) all.push_back(a->active());
  return all;
}

void Model::say_final(const Context& ctx, std::string_view prefix) const {
  if (!on_gradients_final || ctx.planning) return;
  std::int64_t begin = -1, end = parameters_.flat_size();
  for (const Parameter& p : parameters_.all()) {
    const bool named = p.name.starts_with(prefix);
    if (named && begin < 0) begin = p.offset;
    if (!named && begin >= 0) {
      end = p.offset;
      break;
    }
  }
  if (begin >= 0) on_gradients_final(begin, end);
}

Distillation Model::distillation(float loss_scale) const {
  if (!distill.active || loss_scale == 0) return {};
  const double parts = static_cast<double>(config_.num_hidden_layers * config_.num_attention_heads);
  return {static_cast<float>(2 * config_.attention.distill_lambda * static_cast<double>(loss_scale) / parts),
          distill.total};
}

void count_model(Model& model, ModelArenas& arenas, std::int64_t B, std::int64_t T, bool training) {
  Context counting = Context::for_planning(model.device());
  const Tensor tokens(nullptr, DType::i32, model.device(), {B, T});
  const Tensor losses(nullptr, DType::f32, model.device(), {B * T});
  const ModelInput batch{tokens, tokens, Tensor{}};
  model.plan(arenas, B, T);
  if (training)
    model.forward_backward(counting, arenas, batch, 1.0f, losses);
  else
    model.evaluate(counting, arenas, batch, losses);
}

void bind_model(Model& model, ModelArenas& arenas, std::int64_t B, std::int64_t T) {
  arenas.activations.bind();
  arenas.scratch.bind();
  model.plan(arenas, B, T);
}

void plan_model(Model& model, ModelArenas& arenas, std::int64_t B, std::int64_t T, bool training) {
  count_model(model, arenas, B, T, training);
  bind_model(model, arenas, B, T);
}

}  // namespace sfa
