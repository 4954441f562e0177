#include "analysis/attention_bench.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "analysis/support_dump.h"
#include "attention/cost.h"
#include "attention/ring/key_ring.h"
#include "core/rng.h"
#include "core/stopwatch.h"
#include "ops/linear/linear.h"

namespace sfa {
namespace {

// Prime, so that rows of any width differ until it has passed as many times.
constexpr std::int64_t kPattern = 1048573;
constexpr std::uint64_t kSeed = 1337;
constexpr double kPatienceMs = 1000;
constexpr int kFewest = 5;

// Elements of `type` from floats.
std::vector<std::byte> stored(const std::vector<float>& values, DType type) {
  std::vector<std::byte> bytes(values.size() * size_of(type));
  if (type == DType::f32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    auto* to = reinterpret_cast<std::uint16_t*>(bytes.data());
    for (std::size_t i = 0; i < values.size(); ++i) to[i] = bf16_bits(values[i]);
  }
  return bytes;
}

/// Normally distributed, the same numbers at every call; the part after the first kPattern elements repeats them.
void fill_random(Context& ctx, const Tensor& t) {
  const std::int64_t total = t.numel(), first = std::min(total, kPattern);
  static const std::vector<float> pattern = [] {
    std::vector<float> v(static_cast<std::size_t>(kPattern));
    for (std::int64_t i = 0; i < kPattern; ++i)
      v[static_cast<std::size_t>(i)] = normal_at(kSeed, kPurposeTest, 1, static_cast<std::uint64_t>(i));
    return v;
  }();
  const auto bytes = stored({pattern.begin(), pattern.begin() + first}, t.dtype);
  ctx.copy(t.data, t.device, bytes.data(), Device::cpu, bytes.size());
  ctx.synchronize();
  for (std::int64_t done = first; done < total;) {
    const std::int64_t count = std::min(done, total - done);  // doubles
    const auto element = static_cast<std::int64_t>(size_of(t.dtype));
    ctx.copy(static_cast<std::byte*>(t.data) + done * element, t.device, t.data, t.device,
             static_cast<std::size_t>(count * element));
    done += count;
  }
  ctx.synchronize();
}

/// Queries and keys of packed rows [B, T, row] from a dump; the values stay as they are. `first` is row 0's position.
void fill_from_dump(Context& ctx, const Tensor& qkv, const AttentionDims& d, const SupportDump& dump,
                    std::int64_t first) {
  require(dump.head_dim == d.Dqk, "the dump holds heads of {} features, this case has {}", dump.head_dim, d.Dqk);
  const std::int64_t T = qkv.dim(1), width = (d.H + d.G) * d.Dqk;
  const auto element = static_cast<std::int64_t>(size_of(qkv.dtype));
  for (std::int64_t b = 0; b < qkv.dim(0); ++b)
    for (std::int64_t t = 0; t < T; ++t) {
      std::vector<float> row(static_cast<std::size_t>(width));
      float* to = row.data();
      for (std::int64_t h = 0; h < d.H; ++h, to += d.Dqk) std::copy_n(dump.query(b * d.H + h, first + t), d.Dqk, to);
      for (std::int64_t g = 0; g < d.G; ++g, to += d.Dqk) std::copy_n(dump.key(b * d.G + g, first + t), d.Dqk, to);
      const auto bytes = stored(row, qkv.dtype);
      ctx.copy(static_cast<std::byte*>(qkv.data) + (b * qkv.stride[0] + t * qkv.stride[1]) * element, qkv.device,
               bytes.data(), Device::cpu, bytes.size());
      ctx.synchronize();  // `bytes` goes
    }
}

struct Timing {
  double median = 0;
  int repetitions = 0;
};

/// `restore` runs untimed before each call of `work`.
Timing time_calls(Context& ctx, int repetitions, const std::function<void()>& restore,
                  const std::function<void()>& work) {
  Stopwatch watch(ctx);
  std::vector<double> all;
  for (int i = -2; i < repetitions; ++i) {
    restore();
    watch.start();
    work();
    const double ms = watch.stop();
    if (i == -1) repetitions = std::clamp(static_cast<int>(kPatienceMs / std::max(ms, 1e-3)), kFewest, repetitions);
    if (i >= 0) all.push_back(ms);
  }
  const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  std::nth_element(all.begin(), middle, all.end());
  return {*middle, static_cast<int>(all.size())};
}

// A rank in the middle of the ring, to whom all others send what it sends itself.
class LoneRing final : public KeyRing {
 public:
  explicit LoneRing(int size) : KeyRing(size / 2, size) {}
  void pass(Context& ctx, const Tensor& out, const Tensor& in) override {
    ctx.copy(in.data, in.device, out.data, out.device, static_cast<std::size_t>(out.bytes()));
  }
  void arrived(Context& /*ctx*/) override {}
};

// One layer with its memory. `plan` is run twice, counting and bound, and takes everything in the same order.
class Layer {
 public:
  Layer(Context& ctx, const AttentionCase& c)
      : ctx_(ctx),
        c_(c),
        attention_(make_attention(c.config, c.dims, ctx.device(), c.dtype)),
        ring_(c.context_parallel),
        sequences_(c.context_parallel > 1 ? 2 * c.B : c.B),
        saved_("attention's saved activations", ctx.device()),
        scratch_("attention's scratch", ctx.device()),
        inputs_("the benchmark's inputs", ctx.device()) {
    ranges_.window = c.config.window;
    if (c.context_parallel > 1) ranges_.ring = &ring_;
  }

  AttentionTiming run() {
    require(c_.context_parallel == 1 || (c_.op != AttentionOp::decode && c_.hidden == 0 && c_.supports == nullptr &&
                                         c_.config.window == 0 && c_.n % (2 * c_.context_parallel) == 0),
            "a rank's part of sequences is timed over random rows without a window, forward or backward, and {} ranks "
            "share a sequence of a multiple of {} tokens",
            c_.context_parallel, 2 * c_.context_parallel);
    if (c_.op == AttentionOp::decode) return decode();
    require(c_.hidden == 0 || (c_.op == AttentionOp::forward && c_.supports == nullptr),
            "the projection is timed in front of a forward pass over random rows");
    const std::int64_t T = c_.context_parallel > 1 ? c_.n / (2 * c_.context_parallel) : c_.n;
    plan(T, nullptr);
    if (c_.hidden > 0) return project();
    fill(T, 0);
    const auto restore = [&] { restore_rows(); };
    const auto prepare = [&] { attention_->prepare(ctx_, state_); };
    const auto forward = [&] { attention_forward(ctx_, *attention_, state_, ranges_, scratch_); };
    const auto backward = [&] { attention_backward(ctx_, *attention_, state_, ranges_, d_out_, d_qkv_, scratch_); };
    Timing all;
    if (c_.op == AttentionOp::forward) {
      all = time_calls(ctx_, c_.repetitions, restore, forward);
    } else {
      restore();
      forward();
      all = time_calls(
          ctx_, c_.repetitions, [] {}, backward);
    }
    AttentionTiming t = describe(all);
    if (c_.config.type != "dense") t.selection_ms = time_calls(ctx_, c_.repetitions, restore, prepare).median;
    return t;
  }

 private:
  void take(std::int64_t T) {
    state_ = attention_->plan(saved_, scratch_, sequences_, T);
    if (c_.hidden > 0) {
      x_ = inputs_.take(c_.dtype, {c_.B * T, c_.hidden});
      weight_ = inputs_.take(c_.dtype, {c_.dims.row(), c_.hidden});
      bias_ = inputs_.take(c_.dtype, {c_.dims.row()});
      return;
    }
    rows_ = inputs_.take(c_.dtype, {sequences_, T, c_.dims.row()});
    if (c_.op != AttentionOp::backward) return;
    d_out_ = inputs_.take(c_.dtype, {sequences_, T, c_.dims.H, c_.dims.Dv});
    d_qkv_ = inputs_.take(c_.dtype, {sequences_, T, c_.dims.row()});
  }

  void plan(std::int64_t T, const KvCache* cache) {
    Context counting = Context::for_planning(ctx_.device());
    take(T);
    if (cache != nullptr) {
      KvCache counted = *cache;
      attention_forward_cached(counting, *attention_, state_, counted, ranges_, scratch_);
    } else {
      attention_forward(counting, *attention_, state_, ranges_, scratch_);
    }
    if (c_.op == AttentionOp::backward)
      attention_backward(counting, *attention_, state_, ranges_, d_out_, d_qkv_, scratch_);
    saved_.bind();
    scratch_.bind();
    inputs_.bind();
    take(T);
  }

  void fill(std::int64_t T, std::int64_t first) {
    fill_random(ctx_, rows_);
    if (c_.supports != nullptr) fill_from_dump(ctx_, rows_.slice(1, 0, T), c_.dims, *c_.supports, first);
    if (c_.op == AttentionOp::backward) fill_random(ctx_, d_out_);
  }

  // Selection may work in place; the projection would have written the rows anew.
  void restore_rows() {
    ctx_.copy(state_.qkv.data, ctx_.device(), rows_.data, ctx_.device(), static_cast<std::size_t>(rows_.bytes()));
  }

  // Projection, selection and core, as a model calls them.
  AttentionTiming project() {
    fill_random(ctx_, x_);
    fill_random(ctx_, weight_);
    fill_random(ctx_, bias_);
    const LinearForward projection{x_, weight_, bias_, state_.qkv.view({c_.B * c_.n, -1}), Tensor{}};
    const auto linear = [&] { linear_forward(ctx_, projection); };
    const auto prepare = [&] {
      if (attention_->prepare_projected(ctx_, projection, state_)) return;
      linear();
      attention_->prepare(ctx_, state_);
    };
    const auto time = [&](const std::function<void()>& work) {
      return time_calls(
          ctx_, c_.repetitions, [] {}, work);
    };
    AttentionTiming t =
        describe(time([&] { attention_forward(ctx_, *attention_, state_, ranges_, scratch_, {&projection}); }));
    t.projection_ms = time(linear).median;
    if (c_.config.type != "dense") t.selection_ms = time(prepare).median - t.projection_ms;
    return t;
  }

  // The cache is filled as a prefill does it, a stretch at a time; then one token a sequence is timed again and again
  // at the same place.
  AttentionTiming decode() {
    Arena memory("the key/value cache", ctx_.device());
    attention_->plan_cache(memory, c_.B, c_.n + 1);
    memory.bind();
    KvCache cache = attention_->plan_cache(memory, c_.B, c_.n + 1);
    fill_cache(cache);
    plan(1, &cache);
    fill(1, c_.n);
    const auto restore = [&] { restore_rows(); };
    const Timing all = time_calls(ctx_, c_.repetitions, restore, [&] {
      KvCache same = cache;
      attention_forward_cached(ctx_, *attention_, state_, same, ranges_, scratch_);
    });
    AttentionTiming t = describe(all);
    t.cache_bytes = static_cast<double>(memory.peak());
    if (c_.config.type != "dense")
      t.selection_ms = time_calls(ctx_, c_.repetitions, restore, [&] { attention_->prepare(ctx_, state_); }).median;
    return t;
  }

  void fill_cache(KvCache& cache) {
    const std::int64_t stretch = std::clamp<std::int64_t>(65536 / c_.B, 1, c_.n);
    for (std::int64_t at = 0; at < c_.n; at += stretch) {
      const std::int64_t T = std::min(stretch, c_.n - at);
      if (at == 0 || T != stretch) {
        saved_ = Arena(saved_.name(), ctx_.device());
        scratch_ = Arena(scratch_.name(), ctx_.device());
        inputs_ = Arena(inputs_.name(), ctx_.device());
        take(T);
        saved_.bind(), scratch_.bind(), inputs_.bind();
        take(T);
      }
      if (at == 0 || T != stretch || c_.supports != nullptr) fill(T, at);
      restore_rows();
      attention_->prepare(ctx_, state_);
      attention_->append(ctx_, state_.k, cache);
    }
    ctx_.synchronize();
    saved_ = Arena(saved_.name(), ctx_.device());
    scratch_ = Arena(scratch_.name(), ctx_.device());
    inputs_ = Arena(inputs_.name(), ctx_.device());
  }

  [[nodiscard]] AttentionTiming describe(const Timing& timing) const {
    const AttentionDims& d = c_.dims;
    // Ranks have the same number of tokens and, causally, of pairs.
    const double B = static_cast<double>(c_.B) / c_.context_parallel;
    const auto n = static_cast<double>(c_.n), H = static_cast<double>(d.H), G = static_cast<double>(d.G),
               Dqk = static_cast<double>(d.Dqk), Dv = static_cast<double>(d.Dv);
    const double element = static_cast<double>(size_of(c_.dtype));
    const bool backward = c_.op == AttentionOp::backward;
    const AttentionCost cost = attention_->cost(c_.n);
    AttentionTiming t{.ms = timing.median, .repetitions = timing.repetitions};
    const double pairs = c_.op == AttentionOp::decode ? n : n * n / 2;
    t.dense_flops = 2 * B * H * pairs * (backward ? 3 * Dqk + 2 * Dv : Dqk + Dv);
    // Per visible pair, so that both figures count the same pairs.
    const double needed = backward ? cost.backward_flops : cost.forward_flops,
                 executed = backward ? cost.executed_backward_flops : cost.executed_forward_flops;
    t.executed_flops = B * pairs * (executed > 0 ? executed : needed) / visible_pairs(c_.n, c_.config.window);
    t.bytes = c_.op == AttentionOp::decode
                  ? B * n * cost.kv_bytes_per_token
                  : B * n * element * ((H + G) * Dqk + (H + G) * Dv) * (backward ? 2 : 1) + 4 * B * n * H;
    t.saved_bytes = static_cast<double>(saved_.peak());
    t.scratch_bytes = static_cast<double>(scratch_.peak());
    return t;
  }

  Context& ctx_;
  const AttentionCase& c_;
  std::unique_ptr<Attention> attention_;
  LoneRing ring_;
  std::int64_t sequences_;  // rows of the batch
  Arena saved_, scratch_, inputs_;
  AttentionState state_;
  Tensor rows_, d_out_, d_qkv_, x_, weight_, bias_;
  Ranges ranges_;
};

}  // namespace

AttentionTiming time_attention(Context& ctx, const AttentionCase& c) {
  return Layer(ctx, c).run();
}

}  // namespace sfa
