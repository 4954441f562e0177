#include "models/gpt2/gpt2.h"

#include <cmath>

#include "core/observer.h"
#include "models/generation.h"
#include "models/gpt2/block.h"
#include "ops/classifier/classifier.h"
#include "ops/embedding/embedding.h"

namespace sfa {

Gpt2::Gpt2(ModelConfig config, Device device, DType dtype) : Model(std::move(config), device, dtype) {
  declare_parameters();
}

// The order is the layout: inside a block first the matrices, which decay, then vectors, which don't, so that AdamW
// works on two ranges.
void Gpt2::declare_parameters() {
  const AttentionDims d = config_.attention_dims();
  const std::int64_t C = config_.hidden_size, F = config_.intermediate_size, L = config_.num_hidden_layers;
  const float std_dev = static_cast<float>(config_.initializer_range);
  const float residual_std =
      std_dev / std::sqrt(2.0f * static_cast<float>(L));  // GPT-2: branches into the residual stream start smaller
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns, float std,
                          const std::string& hf, bool conv1d) {
    parameters_.add({.name = name,
                     .shape = {rows, columns},
                     .decay = true,
                     .init = Init::normal,
                     .std_dev = std,
                     .hf = {{"transformer." + hf, 0, rows, conv1d}}});
  };
  const auto vector = [&](const std::string& name, std::int64_t n, Init init, const std::string& hf) {
    parameters_.add({.name = name, .shape = {n}, .init = init, .hf = {{"transformer." + hf, 0, n, false}}});
  };
  parameters_.add({.name = "wte.weight",
                   .shape = {config_.padded_vocab_size(), C},
                   .decay = true,
                   .init = Init::normal,
                   .std_dev = std_dev,
                   .hf = {{"transformer.wte.weight", 0, config_.vocab_size, false}}});
  matrix("wpe.weight", config_.max_position_embeddings, C, std_dev, "wpe.weight", false);
  for (std::int64_t l = 0; l < L; ++l) {
    const std::string h = "h." + std::to_string(l) + ".";
    parameters_.add({.name = h + "attn.qkv.weight",
                     .shape = {d.row(), C},
                     .decay = true,
                     .init = Init::normal,
                     .std_dev = std_dev,
                     .leading_rows = (d.H + d.G) * d.Dqk,
                     .leading_std_dev = static_cast<float>(config_.qk_initializer_range),
                     .hf = {{"transformer." + h + "attn.c_attn.weight", 0, d.row(), true}}});
    matrix(h + "attn.proj.weight", C, d.H * d.Dv, residual_std, h + "attn.c_proj.weight", true);
    matrix(h + "mlp.up.weight", F, C, std_dev, h + "mlp.c_fc.weight", true);
    matrix(h + "mlp.down.weight", C, F, residual_std, h + "mlp.c_proj.weight", true);
    vector(h + "norm1.weight", C, Init::ones, h + "ln_1.weight");
    vector(h + "norm1.bias", C, Init::zeros, h + "ln_1.bias");
    vector(h + "attn.qkv.bias", d.row(), Init::zeros, h + "attn.c_attn.bias");
    vector(h + "attn.proj.bias", C, Init::zeros, h + "attn.c_proj.bias");
    vector(h + "norm2.weight", C, Init::ones, h + "ln_2.weight");
    vector(h + "norm2.bias", C, Init::zeros, h + "ln_2.bias");
    vector(h + "mlp.up.bias", F, Init::zeros, h + "mlp.c_fc.bias");
    vector(h + "mlp.down.bias", C, Init::zeros, h + "mlp.c_proj.bias");
    if (config_.attention.gate == "feature") parameters_.add(qk_gate(h, "transformer." + h + "attn."));
  }
  vector("norm_f.weight", C, Init::ones, "ln_f.weight");
  vector("norm_f.bias", C, Init::zeros, "ln_f.bias");
}

Gpt2::Weights Gpt2::views(const FlatMemory& flat) const {
  std::size_t next = 0;
  const auto take = [&] { return parameters_.view(flat, next++); };
  Weights w;
  w.wte = take();
  w.wpe = take();
  for (std::int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    Block b;
    for (Tensor* t : {&b.qkv.weight, &b.proj.weight, &b.up.weight, &b.down.weight, &b.norm1.weight, &b.norm1.bias,
                      &b.qkv.bias, &b.proj.bias, &b.norm2.weight, &b.norm2.bias, &b.up.bias, &b.down.bias})
      *t = take();
    if (config_.attention.gate == "feature") b.qk_gate = take();
    w.blocks.push_back(b);
  }
  w.norm_f = {take(), take()};
  return w;
}

void Gpt2::bind(const Tensor& parameters, const FlatMemory& gradients) {
  weights_ = views(parameters);
  gradients_ = gradients.flat.empty() ? Weights{} : views(gradients);
}

Gpt2::Activations Gpt2::plan_activations(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T,
                                         std::int64_t blocks, const std::string& recompute) const {
  const std::int64_t N = B * T, C = config_.hidden_size, F = config_.intermediate_size;
  const auto rows = [&] { return saved.take(dtype_, {N, C}); };
  const auto norm = [&](Tensor residual, Tensor y) {
    return Norm{residual, y, saved.take(DType::f32, {N}), saved.take(DType::f32, {N})};
  };
  Activations a;
  a.embedded = rows();
  a.branch = rows();
  // What blocks share, newest block's values in it: outputs of norms and gelu, or all but the input.
  const bool share_outputs = recompute == "ops";
  const bool one_for_all = blocks == 1 || recompute == "block";
  const Tensor y = share_outputs ? rows() : Tensor{}, up = share_outputs ? saved.take(dtype_, {N, F}) : Tensor{};
  const std::size_t mark = scratch.mark();
  for (std::int64_t l = 0; l < blocks; ++l) {
    const Tensor input = l == 0 ? a.embedded : rows();
    if (l > 0 && recompute == "block") {
      a.blocks.push_back(a.blocks.front());
      a.blocks.back().norm1.residual = input;
      continue;
    }
    scratch.release(mark);  // what lives inside one layer's attention is shared by all layers
    BlockActivations b;
    b.norm1 = norm(input, share_outputs ? y : rows());
    b.attention =
        (one_for_all ? widest_attention() : attention(static_cast<std::size_t>(l))).plan(saved, scratch, B, T);
    b.norm2 = norm(rows(), share_outputs ? y : rows());
    b.up_pre = saved.take(dtype_, {N, F});
    b.up = share_outputs ? up : saved.take(dtype_, {N, F});
    a.blocks.push_back(b);
  }
  a.norm_f = norm(rows(), rows());
  return a;
}

void Gpt2::plan(ModelArenas& arenas, std::int64_t B, std::int64_t T) {
  acts_ = plan_activations(arenas.activations, arenas.scratch, B, T, config_.num_hidden_layers, config_.recompute);
}

void Gpt2::forward(Context& ctx, Arena& scratch, const ModelInput& batch) {
  const std::int64_t B = batch.tokens.dim(0), T = batch.tokens.dim(1), C = config_.hidden_size;
  require(B * T == acts_.embedded.dim(0), "internal error: a step of {} x {} tokens was not planned", B, T);
  const Ranges ranges = ranges_of(batch);
  for (const RowRun& run : RowRuns(ring, B, T))
    embedding_forward(ctx, run.of(batch.tokens), weights_.wte, weights_.wpe, run.first_position,
                      run.of(acts_.embedded.view({B, T, C})));
  Tensor residual = acts_.embedded, branch;
  for (std::size_t l = 0; l < acts_.blocks.size(); ++l) {
    const PartScope part(ctx, "block", static_cast<std::int64_t>(l), "forward");
    gpt2_block_forward(ctx, {config_, attention(l), weights_.blocks[l], scratch}, acts_.blocks[l], residual, branch,
                       acts_.branch, ranges);
    if (on_attention && !ctx.planning) on_attention(static_cast<std::int64_t>(l), acts_.blocks[l].attention);
    residual = acts_.blocks[l].norm2.residual;
    branch = acts_.branch;
  }
  gpt2_norm_forward(ctx, config_, weights_.norm_f, residual, branch, acts_.norm_f);
}

void Gpt2::forward_backward(Context& ctx, ModelArenas& arenas, const ModelInput& batch, float loss_scale,
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
    classifier_loss(ctx, {acts_.norm_f.y, weights_.wte, batch.targets, config_.vocab_size, loss_scale, losses, d_y,
                          gradients_.wte, scratch, Tensor{}, batch.loss_weight});
  }
  // The bias gradient of the layer that ends block l is taken by the norm that consumes its output.
  const auto bias_of_block = [&](std::size_t l) { return gradients_.blocks[l].down.bias; };
  gpt2_norm_backward(ctx,
                     {weights_.norm_f, gradients_.norm_f, acts_.norm_f, d_y, Tensor{}, d_residual,
                      bias_of_block(acts_.blocks.size() - 1)},
                     scratch);
  say_final(ctx, "norm_f.");
  for (std::size_t l = acts_.blocks.size(); l-- > 0;) {
    const PartScope part(ctx, "block", static_cast<std::int64_t>(l), "backward");
    const Tensor before = l > 0 ? bias_of_block(l - 1) : Tensor{};
    gpt2_block_backward(ctx,
                        {.config = config_,
                         .attention = attention(l),
                         .weights = weights_.blocks[l],
                         .scratch = scratch,
                         .d_branch_bias = before,
                         .branch = acts_.branch,
                         .newest = l + 1 == acts_.blocks.size()},
                        gradients_.blocks[l], acts_.blocks[l], d_residual, ranges);
    say_final(ctx, "h." + std::to_string(l) + ".");
  }
  for (const RowRun& run : RowRuns(ring, B, T))
    embedding_backward(ctx, {run.of(batch.tokens), run.of(d_residual.view({B, T, C})), gradients_.wte,
                             gradients_.wpe.slice(0, run.first_position, T), scratch});
}

void Gpt2::evaluate(Context& ctx, ModelArenas& arenas, const ModelInput& batch, const EvaluateOutput& out) {
  set_auxiliary_losses(0);
  forward(ctx, arenas.scratch, batch);
  classifier_loss(ctx, {acts_.norm_f.y, weights_.wte, batch.targets, config_.vocab_size, 1.0f, out.losses, Tensor{},
                        Tensor{}, arenas.scratch, out.greedy});
}

std::unique_ptr<Generation> Gpt2::start_generation(Context& ctx, std::int64_t B, std::int64_t capacity,
                                                   std::int64_t chunk) {
  return start_cached_generation(ctx, *this, attention_of_blocks(), B, capacity, chunk);
}

Tensor Gpt2::feed(Context& ctx, Generation& generation, const Tensor& tokens) {
  CachedGeneration& g = begin_feed(generation, tokens);
  const std::int64_t B = g.batch, n = tokens.dim(1), C = config_.hidden_size;
  Arena& scratch = g.memory.scratch;
  // Nothing is kept for backward: all blocks work in the memory of one. A block reads the stream where the last one
  // left it and has it in `embedded` between its two branches.
  Activations acts = plan_activations(g.memory.activations, scratch, B, n, 1, "none");
  BlockActivations& block = acts.blocks[0];
  const Ranges ranges{.causal = true, .window = config_.attention.window, .first_key = {}};
  embedding_forward(ctx, tokens, weights_.wte, weights_.wpe, g.place(), acts.embedded.view({B, n, C}));
  Tensor residual = acts.embedded, branch;
  for (std::size_t l = 0; l < weights_.blocks.size(); ++l) {
    gpt2_block_forward(ctx, {config_, attention(l), weights_.blocks[l], scratch, &g.caches[l]}, block, residual, branch,
                       acts.branch, ranges);
    residual = block.norm2.residual;
    branch = acts.branch;
  }
  gpt2_norm_forward(ctx, config_, weights_.norm_f, residual, branch, acts.norm_f);
  return last_logits(ctx, g, acts.norm_f.y, weights_.wte);
}

ModelCost Gpt2::cost(std::int64_t T) const {
  ModelCost c;
  const double C = static_cast<double>(config_.hidden_size), L = static_cast<double>(config_.num_hidden_layers),
               V = static_cast<double>(config_.vocab_size), F = static_cast<double>(config_.intermediate_size);
  const AttentionDims d = config_.attention_dims();
  const AttentionCost a = attention_cost(T);
  const double matrices =
      L * (static_cast<double>(d.row()) * C + C * static_cast<double>(d.H * d.Dv) + 2 * C * F) + V * C;
  c.parameters = static_cast<double>(parameters_.count()) -
                 static_cast<double>(config_.padded_vocab_size() - config_.vocab_size) * C;
  c.attention_flops_per_token = a.forward_flops / static_cast<double>(T);
  c.forward_flops_per_token = 2 * matrices + c.attention_flops_per_token;
  c.attention_backward_flops_per_token = a.backward_flops / static_cast<double>(T);
  c.attention_saved_bytes_per_token = a.saved_bytes_per_token;
  c.backward_flops_per_token = 4 * matrices + c.attention_backward_flops_per_token;
  c.kv_bytes_per_token = a.kv_bytes_per_token;
  return c;
}

}  // namespace sfa
