// Every key of a configuration, once.
#include <limits>

#include "config/config.h"

namespace sfa {
namespace {

// k_q and k_k are plain ints where the kernels use them.
void int_key(ConfigVisitor& v, const KeyInfo& info, int& value) {
  std::int64_t wide = value;
  v.key(info, wide);
  require(wide >= std::numeric_limits<int>::min() && wide <= std::numeric_limits<int>::max(), "{}: {} is out of range",
          info.path, wide);
  value = static_cast<int>(wide);
}

void visit_attention(ModelConfig& m, ConfigVisitor& v) {
  const std::string p = "model.attention.";
  v.key({p + "type",
         "what scores are made of: all features (`dense`) or the largest k of each query and key (`sfa`)",
         {"dense", "sfa"},
         {}},
        m.attention.type);
  v.key({p + "impl",
         "implementation; `auto` takes the fastest that serves the case",
         {"auto", "reference", "flash", "flash_sm80", "posting_list"},
         {}},
        m.attention.impl);
  v.key({p + "k", "sfa: active features of a query and of a key, out of qk_head_dim", {}, {}}, m.k);
  int_key(v, {p + "k_q", "sfa: active features of a query; 0 = k", {}, {}}, m.attention.k_q);
  int_key(v, {p + "k_k", "sfa: active features of a key; 0 = k", {}, {}}, m.attention.k_k);
  v.key({p + "k_by_layer",
         "sfa: k_q and k_k of every block, [8, 16, ...] with one entry a block, 0 = k; empty = k everywhere",
         {},
         {}},
        m.k_by_layer);
  v.key({p + "selection",
         "sfa: exact top-k, top-k of a query under at most two of four neighbouring features, or the largest k/2 pairs "
         "(i, i + qk_head_dim/2), which rotary embedding turns",
         {"topk", "topk_2of4", "topk_pairs"},
         {}},
        m.attention.selection);
  v.key({p + "zero_overlap",
         "sfa: a pair without a common feature scores 0, or is masked (the diagonal is always kept; reference only)",
         {"score", "mask"},
         {}},
        m.attention.zero_overlap);
  v.key({p + "qk_head_dim", "features of a query or key head; 0 = head_dim, which value heads always have", {}, {}},
        m.qk_head_dim);
  v.key({p + "rope_projection",
         "qwen3: a linear map of each query and key head behind its rotation, before features are selected (arXiv "
         "2603.22300, A.1): none, one for all heads, or one a head; the identity at first",
         {"none", "shared", "per_head"},
         {},
         "qwen3"},
        m.rope_projection);
  v.key({p + "qk_initializer_range",
         "standard deviation of the initial query and key projections; 0 = model.initializer_range",
         {},
         {}},
        m.qk_initializer_range);
  v.key({p + "score_scale", "factor of every product of a query and a key; 0 = 1 / sqrt(qk_head_dim)", {}, {}},
        m.attention.score_scale);
  v.key(
      {p + "gate",
       "sfa: a learned factor of every feature of every query and key head, 1 at first, on what features are selected "
       "from (behind norms and rotation): none, or one a feature",
       {"none", "feature"},
       {}},
      m.attention.gate);
  v.key({p + "balance",
         "sfa: weight of the load balance of kept features, added to the loss for every layer, head and side (queries, "
         "keys), as mixtures of experts have it: d times the sum over features of the share of rows that keep one and "
         "its mean share of |x|; 0 = none",
         {},
         {}},
        m.attention.balance);
  v.key({p + "window", "keys that a query sees, itself included (tokens); 0 = all before it", {}, {}},
        m.attention.window);
  v.key({p + "kv_cache",
         "what the KV cache holds: activations, or flash on a GPU: 8 bits with a scale a token and head, of keys and "
         "values (dense) or of values (sfa, whose keys are few)",
         {"full", "int8"},
         {"kv_cache_v"}},
        m.attention.kv_cache);
}

void visit_model(ModelConfig& m, ConfigVisitor& v) {
  v.key({"model.arch", "architecture", {"gpt2", "qwen3"}, {}}, m.arch);
  v.key({"model.num_hidden_layers", "blocks", {}, {"n_layer"}}, m.num_hidden_layers);
  v.key({"model.num_attention_heads", "query heads", {}, {"n_head"}}, m.num_attention_heads);
  v.key({"model.num_key_value_heads", "key and value heads (grouped-query attention); 0 = num_attention_heads", {}, {}},
        m.num_key_value_heads);
  v.key({"model.hidden_size", "width of the residual stream", {}, {"n_embd"}}, m.hidden_size);
  v.key(
      {"model.head_dim", "features of a head; 0 = hidden_size / num_attention_heads, as published GPT-2s have", {}, {}},
      m.head_dim);
  v.key({"model.intermediate_size",
         "width of the MLP; 0 = 4 * hidden_size (gpt2), 3 * hidden_size (qwen3)",
         {},
         {"n_inner"}},
        m.intermediate_size);
  v.key({"model.max_position_embeddings",
         "the longest sequence (tokens); gpt2: as many learned positions",
         {},
         {"block_size", "n_positions"}},
        m.max_position_embeddings);
  v.key({"model.vocab_size", "vocabulary; 0 = that of the data", {}, {}}, m.vocab_size);
  v.key({"model.layer_norm_epsilon", "gpt2: added to the variance in layer norms", {}, {}, "gpt2"},
        m.layer_norm_epsilon);
  v.key({"model.rms_norm_eps", "qwen3: added to the mean square in RMS norms", {}, {}, "qwen3"}, m.rms_norm_eps);
  v.key({"model.rope_theta", "qwen3: base of the rotary positions' wavelengths", {}, {}, "qwen3"}, m.rope_theta);
  v.key({"model.tie_word_embeddings", "qwen3: the head is the token embedding (gpt2's always is)", {}, {}, "qwen3"},
        m.tie_word_embeddings);
  v.key({"model.initializer_range",
         "standard deviation of initial weights; gpt2: residual projections get it over sqrt(2 * blocks)",
         {},
         {}},
        m.initializer_range);
  visit_attention(m, v);
}

void visit_data(DataConfig& d, ConfigVisitor& v) {
  v.key({"data.train", "token file made by `sfa data tokenize`, or a glob of shards", {}, {}}, d.train);
  v.key({"data.val",
         "token file or glob for validation; empty = the tail that `--val-fraction` set apart in data.train",
         {},
         {}},
        d.val);
  v.key({"data.seq_len", "tokens of a training sequence; 0 = model.max_position_embeddings", {}, {}}, d.seq_len);
  v.key({"data.batch_size", "sequences an optimizer step, over all ranks", {}, {}}, d.batch_size);
  v.key({"data.micro_batch_size",
         "sequences a rank and forward pass; 0 = batch_size; gradients accumulate over batch_size / (ranks * this)",
         {},
         {}},
        d.micro_batch_size);
  v.key({"data.shuffle", "visit the windows of an epoch in a seeded random order", {}, {}}, d.shuffle);
  v.key({"data.document_mask", "tokens attend within their own document only", {}, {}}, d.document_mask);
}

void visit_guard(GuardConfig& g, ConfigVisitor& v) {
  const std::string p = "train.guard.";
  v.key(
      {p + "nonfinite",
       "a loss or gradient that is not finite: leave the update out, stop, or go back to the last checkpoint and past "
       "the data",
       {"skip", "stop", "rollback"},
       {}},
      g.nonfinite);
  v.key({p + "spike",
         "a loss or gradient norm far above those of the last steps: the same, or nothing",
         {"off", "skip", "stop", "rollback"},
         {}},
        g.spike);
  v.key({p + "loss_threshold",
         "spike: robust deviations (1.4826 median deviations, at least 1 % of the median) of the loss above its "
         "median; 0 = not watched",
         {},
         {}},
        g.loss_threshold);
  v.key({p + "grad_norm_threshold",
         "spike: the same for the gradient's norm (at least 10 % of the median); 0 = not watched",
         {},
         {}},
        g.grad_norm_threshold);
  v.key({p + "window",
         "spike: steps that median and deviation are taken over, at most 1024; none is a spike before",
         {},
         {}},
        g.window);
  v.key({p + "max_skips", "updates left out in a row; one more stops the run", {}, {}}, g.max_skips);
  v.key({p + "max_rollbacks", "times that a run goes back; one more stops it", {}, {}}, g.max_rollbacks);
}

void visit_train(TrainConfig& t, ConfigVisitor& v) {
  v.key({"train.max_steps", "optimizer steps of the whole run", {}, {"max_iters"}}, t.max_steps);
  v.key({"train.lr", "peak learning rate", {}, {"learning_rate"}}, t.lr);
  v.key({"train.min_lr", "learning rate at the end of the schedule", {}, {}}, t.min_lr);
  v.key({"train.warmup_steps", "steps of linear warm-up from 0", {}, {"warmup_iters"}}, t.warmup_steps);
  v.key({"train.schedule",
         "course of the learning rate after warm-up, down to min_lr at max_steps",
         {"cosine", "linear", "constant", "wsd"},
         {}},
        t.schedule);
  v.key({"train.decay_steps",
         "wsd (warm-up, stable, decay): steps of the decay at the end; 0 = a tenth of max_steps",
         {},
         {}},
        t.decay_steps);
  v.key({"train.decay_shape",
         "wsd: the rate falls in proportion to the decay's share that is done, or to its root",
         {"linear", "sqrt"},
         {}},
        t.decay_shape);
  v.key({"train.weight_decay", "AdamW: decoupled decay of matrices and embeddings", {}, {}}, t.weight_decay);
  v.key({"train.beta1", "AdamW: decay of the first moment", {}, {}}, t.beta1);
  v.key({"train.beta2", "AdamW: decay of the second moment", {}, {}}, t.beta2);
  v.key({"train.epsilon", "AdamW: added to the root of the second moment", {}, {}}, t.epsilon);
  v.key({"train.grad_clip", "largest global norm of the gradient; 0 = no clipping", {}, {}}, t.grad_clip);
  v.key(
      {"train.dtype",
       "weights and activations; `auto` is bf16 on a GPU and fp32 on the CPU, where bf16 means rounding after every op",
       {"auto", "fp32", "bf16"},
       {}},
      t.dtype);
  v.key({"train.grad_dtype", "gradients of parameters", {"fp32", "bf16"}, {}}, t.grad_dtype);
  v.key({"train.master_weights",
         "bf16 weights: keep fp32 originals, or none (needs stochastic_rounding)",
         {"fp32", "none"},
         {}},
        t.master_weights);
  v.key({"train.stochastic_rounding",
         "round weights to bf16 at random, so that the expectation is exact; the same numbers on CPU and GPU",
         {},
         {}},
        t.stochastic_rounding);
  v.key({"train.ema_decay",
         "keep an fp32 running average of the weights, d * old + (1 - d) * new with d = min(this, (1 + t) / (10 + t)) "
         "at update "
         "t; 0 = none",
         {},
         {}},
        t.ema_decay);
  v.key({"train.ema_validation", "validate with the average of the weights too (val/ema_loss)", {}, {}},
        t.ema_validation);
  v.key(
      {"train.noise_scale", "measure the gradient noise scale (tokens); needs two or more micro-steps a step", {}, {}},
      t.noise_scale);
  visit_guard(t.guard, v);
  v.key({"train.eval_every",
         "steps between validations (one more at the end); 0 = at the end only",
         {},
         {"eval_interval"}},
        t.eval_every);
  v.key({"train.log_every", "steps between lines of metrics", {}, {"log_interval"}}, t.log_every);
  v.key({"train.cuda_graphs", "GPU: a micro-step is recorded once and queued as one CUDA graph; the same bits", {}, {}},
        t.cuda_graphs);
  v.key({"train.profile_steps",
         "`[a, b]`: a profiler started with its capture off (`nsys profile -c cudaProfilerApi`) records steps a to b, "
         "counted from 1, with a name for every op and block",
         {},
         {}},
        t.profile_steps);
  v.key({"train.tensorboard",
         "also write metrics to events.out.tfevents.* in output_dir, for `tensorboard --logdir`",
         {},
         {}},
        t.tensorboard);
}

}  // namespace

void visit_config(Config& c, ConfigVisitor& v) {
  v.key({"output_dir", "folder of the run: checkpoints, config.yaml, metrics.jsonl, log", {}, {"out_dir"}},
        c.output_dir);
  v.key({"device", "where to run; `auto` takes a GPU when one can be used", {"auto", "cpu", "cuda"}, {}}, c.device);
  v.key({"seed", "of initial weights, data order and sampling", {}, {}}, c.seed);
  v.key({"resume",
         "`auto` continues from the newest checkpoint in output_dir when there is one; `never` refuses a folder that "
         "holds a run",
         {"never", "auto"},
         {}},
        c.resume);
  v.key({"init_from",
         "checkpoint, run folder or Hugging Face folder whose weights a new run starts from, in place of random ones",
         {},
         {}},
        c.init_from);
  visit_model(c.model, v);
  visit_data(c.data, v);
  visit_train(c.train, v);
  v.key({"train.recompute",
         "what backward computes again instead of keeping it from forward: nothing, outputs of norms and activations "
         "(`ops`), "
         "or whole blocks from their inputs (`block`: the same bits as `none`)",
         {"none", "ops", "block"},
         {}},
        c.model.recompute);
  v.key({"train.loss_mask",
         "what the loss counts: every token, or answers alone, which the data must tell (`sfa data tokenize "
         "--answer-field`)",
         {"none", "answers"},
         {}},
        c.train.loss_mask);
  v.key({"train.distill.lambda",
         "sfa: weight of the squared distance between each head's output and that of dense attention under the same "
         "weights, mean over heads, layers and tokens (Eq. 8); 0 = none",
         {},
         {}},
        c.model.attention.distill_lambda);
  v.key({"train.distill.every", "steps between those that distill", {}, {}}, c.train.distill_every);
  int_key(v,
          {"train.k_anneal.from",
           "sfa: select so many features at first and fewer and fewer, down to k, in equal times equal shares of them; "
           "0 = k from the start",
           {},
           {}},
          c.model.attention.k_from);
  v.key({"train.k_anneal.until", "share of train.max_steps after which k is reached", {}, {}}, c.train.k_anneal_until);
  v.key({"checkpoint.every", "steps between checkpoints (one more at the end); 0 = at the end only", {}, {}},
        c.checkpoint.every);
  v.key({"checkpoint.keep_last", "newest checkpoints that are kept; 0 = all", {}, {}}, c.checkpoint.keep_last);
  v.key({"checkpoint.keep_every", "checkpoints at multiples of this many steps are kept for ever; 0 = none", {}, {}},
        c.checkpoint.keep_every);
  v.key({"checkpoint.background",
         "write checkpoints while training goes on, from a copy of weights and moments in host memory",
         {},
         {}},
        c.checkpoint.background);
  v.key({"dist.zero",
         "several ranks: each keeps all of the optimizer's state (0), or a part of it (1: ZeRO-1), and of the summed "
         "gradients too (2: ZeRO-2)",
         {},
         {}},
        c.dist.zero);
  v.key({"dist.context_parallel",
         "ranks that share every sequence, for long contexts; divides the ranks, and twice it divides data.seq_len",
         {},
         {}},
        c.dist.context_parallel);
  v.key({"dist.reduce_dtype",
         "sums of gradients over ranks: in the gradients' type, or bf16 gradients in fp32",
         {"auto", "fp32"},
         {}},
        c.dist.reduce_dtype);
  v.key({"dist.bucket_mb", "gradients summed over ranks at a time, while backward goes on (MB)", {}, {}},
        c.dist.bucket_mb);
  v.key(
      {"dist.timeout_s",
       "seconds without a sign of life, or without getting on, after which a job of ranks ends; more than a micro-step "
       "takes on a GPU, or a block on a CPU",
       {},
       {}},
      c.dist.timeout_s);
}

}  // namespace sfa
