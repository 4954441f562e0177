#include "models/qwen3/qwen3.h"

#include "core/observer.h"
#include "models/generation.h"
#include "models/qwen3/block.h"
#include "ops/classifier/classifier.h"
#include "ops/embedding/embedding.h"

namespace sfa {

Qwen3::Qwen3(ModelConfig config, Device device, DType dtype) : Model(std::move(config), device, dtype) {
  declare_parameters();
}

// The order is the layout: inside a block first the matrices, which decay, then vectors, which don't. All matrices
// start from one normal distribution, as transformers' Qwen3 does, the residual branches too.
void Qwen3::declare_parameters() {
  const std::int64_t C = config_.hidden_size, Vp = config_.padded_vocab_size();
  const float std_dev = static_cast<float>(config_.initializer_range);
  const auto vocabulary = [&](const std::string& name, const std::string& hf) {
    parameters_.add({.name = name,
                     .shape = {Vp, C},
                     .decay = true,
                     .init = Init::normal,
                     .std_dev = std_dev,
                     .hf = {{hf, 0, config_.vocab_size, false}}});
  };
  vocabulary("wte.weight", "model.embed_tokens.weight");
  if (!config_.tie_word_embeddings) vocabulary("head.weight", "lm_head.weight");
  for (std::int64_t l = 0; l < config_.num_hidden_layers; ++l) declare_block(l);
  parameters_.add({.name = "norm_f.weight", .shape = {C}, .init = Init::ones, .hf = {{"model.norm.weight", 0, C}}});
}

void Qwen3::declare_block(std::int64_t layer) {
  const AttentionDims d = config_.attention_dims();
  const std::int64_t C = config_.hidden_size, F = config_.intermediate_size, Q = d.H * d.Dqk, K = d.G * d.Dqk;
  const float std_dev = static_cast<float>(config_.initializer_range);
  const std::string h = "h." + std::to_string(layer) + ".", hf = "model.layers." + std::to_string(layer) + ".";
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t width, std::vector<HfView> views) {
    for (HfView& view : views) view.name = hf + view.name;
    parameters_.add({.name = h + name,
                     .shape = {rows, width},
                     .decay = true,
                     .init = Init::normal,
                     .std_dev = std_dev,
                     .leading_rows = 0,
                     .leading_std_dev = 0,
                     .hf = std::move(views)});
  };
  const auto map = [&](const std::string& name, std::int64_t heads, const std::string& view) {
    const std::int64_t rows = (config_.rope_projection == "shared" ? 1 : heads) * d.Dqk;
    parameters_.add({.name = h + name,
                     .shape = {rows, d.Dqk},
                     .decay = true,
                     .init = Init::identity,
                     .hf = {{hf + view, 0, rows}}});
  };
  const auto norm = [&](const std::string& name, std::int64_t n, const std::string& view) {
    parameters_.add({.name = h + name, .shape = {n}, .init = Init::ones, .hf = {{hf + view, 0, n}}});
  };
  parameters_.add({.name = h + "attn.qkv.weight",
                   .shape = {d.row(), C},
                   .decay = true,
                   .init = Init::normal,
                   .std_dev = std_dev,
                   .leading_rows = Q + K,
                   .leading_std_dev = static_cast<float>(config_.qk_initializer_range),
                   .hf = {{hf + "self_attn.q_proj.weight", 0, Q},
                          {hf + "self_attn.k_proj.weight", Q, K},
                          {hf + "self_attn.v_proj.weight", Q + K, d.G * d.Dv}}});
  matrix("attn.proj.weight", C, d.H * d.Dv, {{"self_attn.o_proj.weight", 0, C}});
  matrix("mlp.gate_up.weight", 2 * F, C, {{"mlp.gate_proj.weight", 0, F}, {"mlp.up_proj.weight", F, F}});
  matrix("mlp.down.weight", C, F, {{"mlp.down_proj.weight", 0, C}});
  if (config_.rope_projection != "none") {
    map("attn.q_rope.weight", d.H, "self_attn.q_rope_proj.weight");
    map("attn.k_rope.weight", d.G, "self_attn.k_rope_proj.weight");
  }
  norm("norm1.weight", C, "input_layernorm.weight");
  norm("attn.q_norm.weight", d.Dqk, "self_attn.q_norm.weight");
  norm("attn.k_norm.weight", d.Dqk, "self_attn.k_norm.weight");
  norm("norm2.weight", C, "post_attention_layernorm.weight");
  if (config_.attention.gate == "feature") parameters_.add(qk_gate(h, hf + "self_attn."));
}

Qwen3::Weights Qwen3::views(const FlatMemory& flat) const {
  std::size_t next = 0;
  const auto take = [&] { return parameters_.view(flat, next++); };
  Weights w;
  w.wte = take();
  w.head = config_.tie_word_embeddings ? w.wte : take();
  for (std::int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    Block b;
    for (Tensor* t : {&b.qkv, &b.proj, &b.gate_up, &b.down}) *t = take();
    if (config_.rope_projection != "none")
      for (Tensor* t : {&b.q_rope, &b.k_rope}) *t = take();
    for (Tensor* t : {&b.norm1, &b.q_norm, &b.k_norm, &b.norm2}) *t = take();
    if (config_.attention.gate == "feature") b.qk_gate = take();
    w.blocks.push_back(b);
  }
  w.norm_f = take();
  return w;
}

void Qwen3::bind(const Tensor& parameters, const FlatMemory& gradients) {
  weights_ = views(parameters);
  gradients_ = gradients.flat.empty() ? Weights{} : views(gradients);
}

// What blocks share, the newest block's values in it: the MLP's gated rows always, outputs of norms with recompute
// `ops`, all but the input with `block`. While generating nothing is kept: one block's memory serves all.
Qwen3::Activations Qwen3::plan_activations(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T,
                                           Use use) const {
  const AttentionDims d = config_.attention_dims();
  const std::int64_t N = B * T, C = config_.hidden_size, F = config_.intermediate_size,
                     blocks = use == Use::generation ? 1 : config_.num_hidden_layers;
  const auto rows = [&] { return saved.take(dtype_, {N, C}); };
  const auto norm = [&](Tensor residual, Tensor y) { return Norm{residual, y, saved.take(DType::f32, {N})}; };
  Activations a;
  a.embedded = rows();
  a.branch = rows();
  const bool share_outputs = use == Use::training && config_.recompute == "ops";
  const bool one_for_all = use == Use::generation || config_.recompute == "block";
  const Tensor gated = saved.take(dtype_, {N, F}), y = share_outputs ? rows() : Tensor{};
  const std::size_t mark = scratch.mark();
  for (std::int64_t l = 0; l < blocks; ++l) {
    const Tensor input = l == 0 ? a.embedded : rows();
    if (l > 0 && config_.recompute == "block") {
      a.blocks.push_back(a.blocks.front());
      a.blocks.back().norm1.residual = input;
      continue;
    }
    scratch.release(mark);  // what lives inside one layer's attention is shared by all layers
    BlockActivations b;
    b.norm1 = norm(input, share_outputs ? y : rows());
    if (use == Use::training) {
      b.qkv = saved.take(dtype_, {B, T, d.row()});
      b.qk_rstd = saved.take(DType::f32, {N, d.H + d.G});
    }
    b.attention =
        (one_for_all ? widest_attention() : attention(static_cast<std::size_t>(l))).plan(saved, scratch, B, T);
    b.norm2 = norm(rows(), share_outputs ? y : rows());
    b.gate_up = saved.take(dtype_, {N, 2 * F});
    b.gated = gated;
    a.blocks.push_back(b);
  }
  a.norm_f = norm(rows(), rows());
  return a;
}

void Qwen3::plan(ModelArenas& arenas, std::int64_t B, std::int64_t T) {
  acts_ = plan_activations(arenas.activations, arenas.scratch, B, T, Use::training);
}

void Qwen3::forward(Context& ctx, Arena& scratch, const ModelInput& batch) {
  const std::int64_t B = batch.tokens.dim(0), T = batch.tokens.dim(1), C = config_.hidden_size;
  require(B * T == acts_.embedded.dim(0), "internal error: a step of {} x {} tokens was not planned", B, T);
  const Ranges ranges = ranges_of(batch);
  embedding_forward(ctx, batch.tokens, weights_.wte, Tensor{}, 0, acts_.embedded.view({B, T, C}));
  Tensor residual = acts_.embedded, branch;
  for (std::size_t l = 0; l < acts_.blocks.size(); ++l) {
    const PartScope part(ctx, "block", static_cast<std::int64_t>(l), "forward");
    qwen3_block_forward(ctx, {config_, attention(l), weights_.blocks[l], scratch}, acts_.blocks[l], residual, branch,
                        acts_.branch, ranges);
    if (on_attention && !ctx.planning) on_attention(static_cast<std::int64_t>(l), acts_.blocks[l].attention);
    residual = acts_.blocks[l].norm2.residual;
    branch = acts_.branch;
  }
  qwen3_norm_forward(ctx, config_, weights_.norm_f, residual, branch, acts_.norm_f);
}

void Qwen3::forward_backward(Context& ctx, ModelArenas& arenas, const ModelInput& batch, float loss_scale,
                             const Tensor& losses) {
  Arena& scratch = arenas.scratch;
  const std::int64_t B = batch.tokens.dim(0), T = batch.tokens.dim(1), N = B * T, C = config_.hidden_size;
  const Ranges ranges = ranges_of(batch);
  set_auxiliary_losses(loss_scale);
  forward(ctx, scratch, batch);

  ArenaScope scope(scratch);
  const Tensor d_residual = scratch.take(dtype_, {N, C}), d_y = scratch.take(dtype_, {N, C});
  {
    const PartScope part(ctx, "head", -1, "forward and backward");
    classifier_loss(ctx, {acts_.norm_f.y, weights_.head, batch.targets, config_.vocab_size, loss_scale, losses, d_y,
                          gradients_.head, scratch, Tensor{}, batch.loss_weight});
  }
  say_final(ctx, "head.");
  qwen3_norm_backward(ctx, {weights_.norm_f, gradients_.norm_f, acts_.norm_f, d_y, Tensor{}, d_residual}, scratch);
  say_final(ctx, "norm_f.");
  for (std::size_t l = acts_.blocks.size(); l-- > 0;) {
    const PartScope part(ctx, "block", static_cast<std::int64_t>(l), "backward");
    qwen3_block_backward(ctx,
                         {.config = config_,
                          .attention = attention(l),
                          .weights = weights_.blocks[l],
                          .scratch = scratch,
                          .branch = acts_.branch,
                          .newest = l + 1 == acts_.blocks.size()},
                         gradients_.blocks[l], acts_.blocks[l], d_residual, ranges);
    say_final(ctx, "h." + std::to_string(l) + ".");
  }
  embedding_backward(ctx, {batch.tokens, d_residual.view({B, T, C}), gradients_.wte, Tensor{}, scratch});
}

void Qwen3::evaluate(Context& ctx, ModelArenas& arenas, const ModelInput& batch, const EvaluateOutput& out) {
  set_auxiliary_losses(0);
  forward(ctx, arenas.scratch, batch);
  classifier_loss(ctx, {acts_.norm_f.y, weights_.head, batch.targets, config_.vocab_size, 1.0f, out.losses, Tensor{},
                        Tensor{}, arenas.scratch, out.greedy});
}

std::unique_ptr<Generation> Qwen3::start_generation(Context& ctx, std::int64_t B, std::int64_t capacity,
                                                    std::int64_t chunk) {
  return start_cached_generation(ctx, *this, attention_of_blocks(), B, capacity, chunk);
}

Tensor Qwen3::feed(Context& ctx, Generation& generation, const Tensor& tokens) {
  CachedGeneration& g = begin_feed(generation, tokens);
  const std::int64_t B = g.batch, n = tokens.dim(1), C = config_.hidden_size;
  Arena& scratch = g.memory.scratch;
  Activations acts = plan_activations(g.memory.activations, scratch, B, n, Use::generation);
  BlockActivations& block = acts.blocks[0];
  const Ranges ranges{.causal = true, .window = config_.attention.window, .first_key = {}};
  embedding_forward(ctx, tokens, weights_.wte, Tensor{}, 0, acts.embedded.view({B, n, C}));
  Tensor residual = acts.embedded, branch;
  for (std::size_t l = 0; l < weights_.blocks.size(); ++l) {
    qwen3_block_forward(ctx, {config_, attention(l), weights_.blocks[l], scratch, &g.caches[l]}, block, residual,
                        branch, acts.branch, ranges);
    residual = block.norm2.residual;
    branch = acts.branch;
  }
  qwen3_norm_forward(ctx, config_, weights_.norm_f, residual, branch, acts.norm_f);
  return last_logits(ctx, g, acts.norm_f.y, weights_.head);
}

ModelCost Qwen3::cost(std::int64_t T) const {
  ModelCost c;
  const double C = static_cast<double>(config_.hidden_size), L = static_cast<double>(config_.num_hidden_layers),
               V = static_cast<double>(config_.vocab_size), F = static_cast<double>(config_.intermediate_size);
  const AttentionDims d = config_.attention_dims();
  const AttentionCost a = attention_cost(T);
  const double maps = config_.rope_projection == "none" ? 0 : static_cast<double>((d.H + d.G) * d.Dqk * d.Dqk);
  const double matrices =
      L * (static_cast<double>(d.row()) * C + C * static_cast<double>(d.H * d.Dv) + 3 * C * F + maps) + V * C;
  c.parameters =
      static_cast<double>(parameters_.count()) -
      static_cast<double>(config_.padded_vocab_size() - config_.vocab_size) * C * (config_.tie_word_embeddings ? 1 : 2);
  c.attention_flops_per_token = a.forward_flops / static_cast<double>(T);
  c.forward_flops_per_token = 2 * matrices + c.attention_flops_per_token;
  c.attention_backward_flops_per_token = a.backward_flops / static_cast<double>(T);
  c.attention_saved_bytes_per_token = a.saved_bytes_per_token;
  c.backward_flops_per_token = 4 * matrices + c.attention_backward_flops_per_token;
  c.kv_bytes_per_token = a.kv_bytes_per_token;
  return c;
}

}  // namespace sfa
