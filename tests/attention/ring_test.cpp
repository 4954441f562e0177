// Attention over a sequence that several ranks share, the ranks being threads here: out, log-sum-exp and gradients are
// those of the whole sequence, for every variant that trains.
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "attention/ring/key_ring.h"
#include "attention/ring/ring_attention.h"
#include "attention/variant_case.h"

namespace sfa::test {
namespace {

// What has been sent to each rank, in order.
struct Post {
  std::mutex mutex;
  std::condition_variable sent;
  std::map<int, std::deque<std::vector<std::uint8_t>>> to;
};

// What arrives is there from arrived() on, and its place is poisoned until then.
class ThreadRing final : public KeyRing {
 public:
  ThreadRing(int rank, int size, Post& post) : KeyRing(rank, size), post_(post) {}
  void pass(Context& ctx, const Tensor& out, const Tensor& in) override {
    require(out.contiguous() && in.contiguous() && out.shape == in.shape && out.dtype == in.dtype,
            "test: {} passed, {} to come", out, in);
    std::vector<std::uint8_t> all(static_cast<std::size_t>(out.bytes()), 0xff);
    ctx.copy(in.data, in.device, all.data(), Device::cpu, all.size());
    ctx.synchronize();
    ctx.copy(all.data(), Device::cpu, out.data, out.device, all.size());
    ctx.synchronize();
    bytes += static_cast<double>(out.bytes());
    pending_.push_back(in);
    const std::lock_guard guard(post_.mutex);
    post_.to[(rank() + 1) % size()].push_back(std::move(all));
    post_.sent.notify_all();
  }
  void arrived(Context& ctx) override {
    for (const Tensor& in : pending_) {
      std::unique_lock lock(post_.mutex);
      auto& mine = post_.to[rank()];
      post_.sent.wait(lock, [&] { return !mine.empty(); });
      const std::vector<std::uint8_t> all = std::move(mine.front());
      mine.pop_front();
      lock.unlock();
      ctx.copy(in.data, in.device, all.data(), Device::cpu, all.size());
      ctx.synchronize();
    }
    pending_.clear();
  }
  double bytes = 0;

 private:
  Post& post_;
  std::vector<Tensor> pending_;
};

// Results in the order of the whole sequence.
struct Whole {
  std::vector<float> out, lse, d_qkv;
};

// One rank of a ring, or with `ring` null the whole sequence.
class Rank {
 public:
  Rank(Device device, const VariantCase& c, DType type, KeyRing* ring, int ranks)
      : ctx_(device),
        pool_(ctx_),
        case_(c),
        ring_(ring),
        halves_(ring == nullptr ? 1 : 2),
        c_(ring == nullptr ? c.T : c.T / (2 * ranks)),
        attention_(make_attention(c.config, c.dims, device, type)),
        saved_("saved", device),
        scratch_("scratch", device),
        type_(type) {
    Context counting = Context::for_planning(device);
    state_ = attention_->plan(saved_, scratch_, rows(), c_);
    const Tensor d_out(nullptr, type, device, {rows(), c_, c.dims.H, c.dims.Dv}),
        d_qkv(nullptr, type, device, {rows(), c_, c.dims.row()});
    ranges_ = {.window = c.ranges.window, .first_key = {}, .ring = ring};
    attention_forward(counting, *attention_, state_, ranges_, scratch_);
    attention_backward(counting, *attention_, state_, ranges_, d_out, d_qkv, scratch_);
    saved_.bind();
    scratch_.bind();
    for (Arena* a : {&saved_, &scratch_}) {
      const Tensor all = a->take(DType::u8, {static_cast<std::int64_t>(a->peak())});
      const std::vector<std::uint8_t> poison(a->peak(), 0xff);
      ctx_.copy(all.data, device, poison.data(), Device::cpu, poison.size());
      ctx_.synchronize();
      a->release(0);
    }
    state_ = attention_->plan(saved_, scratch_, rows(), c_);
    if (!c.ranges.first_key.empty()) ranges_.first_key = first_keys();
  }

  // `in`: of the whole sequence.
  void run(const AttentionInputs& in, Whole& whole) {
    const std::int64_t row = case_.dims.row(), width = case_.dims.H * case_.dims.Dv;
    const Tensor qkv = pool_.floats(mine(packed(in, case_.dims), row), {rows(), c_, row}, type_);
    const Tensor d_out = pool_.floats(mine(in.d_out, width), {rows(), c_, case_.dims.H, case_.dims.Dv}, type_),
                 d_qkv = pool_.poisoned(type_, {rows(), c_, row});
    ctx_.copy(state_.qkv.data, ctx_.device(), qkv.data, ctx_.device(), static_cast<std::size_t>(qkv.bytes()));
    attention_forward(ctx_, *attention_, state_, ranges_, scratch_);
    attention_backward(ctx_, *attention_, state_, ranges_, d_out, d_qkv, scratch_);
    put(values_of(ctx_, state_.out), whole.out, width);
    put(values_of(ctx_, d_qkv), whole.d_qkv, row);
    const std::vector<float> lse = values_of(ctx_, state_.lse);  // [rows, H, c]
    for (std::int64_t r = 0; r < rows(); ++r)
      for (std::int64_t h = 0; h < case_.dims.H; ++h)
        for (std::int64_t t = 0; t < c_; ++t) {
          const std::int64_t b = r % case_.B;
          whole.lse[static_cast<std::size_t>((b * case_.dims.H + h) * case_.T + first(r) + t)] =
              lse[static_cast<std::size_t>((r * case_.dims.H + h) * c_ + t)];
        }
  }

 private:
  [[nodiscard]] std::int64_t rows() const { return case_.B * halves_; }
  // The place in its sequence of a row's first token.
  [[nodiscard]] std::int64_t first(std::int64_t row) const {
    return ring_ == nullptr ? 0 : ring_->chunk(ring_->rank(), static_cast<int>(row / case_.B)) * c_;
  }
  template <class Move>
  void each_token(Move&& move) const {
    for (std::int64_t r = 0; r < rows(); ++r)
      for (std::int64_t t = 0; t < c_; ++t) move(r * c_ + t, r % case_.B * case_.T + first(r) + t);
  }
  [[nodiscard]] std::vector<float> mine(const std::vector<float>& whole, std::int64_t width) const {
    std::vector<float> part(static_cast<std::size_t>(rows() * c_ * width));
    each_token([&](std::int64_t here, std::int64_t there) {
      std::copy_n(whole.begin() + there * width, width, part.begin() + here * width);
    });
    return part;
  }
  void put(const std::vector<float>& part, std::vector<float>& whole, std::int64_t width) const {
    each_token([&](std::int64_t here, std::int64_t there) {
      std::copy_n(part.begin() + here * width, width, whole.begin() + there * width);
    });
  }
  Tensor first_keys() {
    const int N = ring_ == nullptr ? 0 : ring_->size(), chunks = ring_ == nullptr ? 1 : 2 * N;
    std::vector<std::int32_t> keys(static_cast<std::size_t>((chunks + N) * rows() * c_));
    for (int s = 0; s < chunks; ++s)
      each_token([&](std::int64_t here, std::int64_t there) {
        const std::int64_t key = case_.ranges.first_key[static_cast<std::size_t>(there)] - s * c_;
        keys[static_cast<std::size_t>(s * rows() * c_ + here)] =
            static_cast<std::int32_t>(std::clamp<std::int64_t>(key, 0, c_));
      });
    const auto entry = [&](int table) { return keys.begin() + table * rows() * c_; };
    for (int r = 0; r < N; ++r)
      std::transform(entry(r), entry(r + 1), entry(2 * N - 1 - r), entry(2 * N + r), std::plus());
    return ring_ == nullptr ? pool_.integers(keys, {rows(), c_}) : pool_.integers(keys, {3 * N, rows(), c_});
  }

  Context ctx_;
  Pool pool_;
  const VariantCase& case_;
  KeyRing* ring_;
  std::int64_t halves_, c_;
  std::unique_ptr<Attention> attention_;
  Arena saved_, scratch_;
  DType type_;
  AttentionState state_;
  Ranges ranges_;
};

Whole room(const VariantCase& c) {
  const std::int64_t n = c.B * c.T;
  const auto of = [](std::int64_t size) { return std::vector<float>(static_cast<std::size_t>(size), NAN); };
  return {of(n * c.dims.H * c.dims.Dv), of(n * c.dims.H), of(n * c.dims.row())};
}

class RingAttention : public DeviceTest {
 protected:
  // By `ranks` threads; `bytes` of the first.
  Whole by_ranks(const VariantCase& c, const AttentionInputs& in, DType type, int ranks, double* bytes = nullptr) {
    Whole whole = room(c);
    Post post;
    std::vector<std::unique_ptr<ThreadRing>> rings;
    std::vector<std::unique_ptr<Rank>> all;
    for (int r = 0; r < ranks; ++r) {
      rings.push_back(std::make_unique<ThreadRing>(r, ranks, post));
      all.push_back(std::make_unique<Rank>(ctx.device(), c, type, rings.back().get(), ranks));
    }
    std::vector<std::thread> threads;
    for (const auto& rank : all) threads.emplace_back([&] { rank->run(in, whole); });
    for (std::thread& t : threads) t.join();
    if (bytes != nullptr) *bytes = rings.front()->bytes;
    return whole;
  }

  std::vector<VariantCase> cases(const AttentionDims& dims, std::int64_t B, std::int64_t T, DType type) {
    std::vector<VariantCase> all;
    for (const AttentionRow& row : attention_table())
      for (const char* selection : {"topk", "topk_2of4"}) {
        AttentionConfig config{.type = std::string(row.type), .impl = std::string(row.impl)};
        if (config.type == "sfa")
          config.k_q = 4, config.k_k = 6, config.selection = selection;
        else if (config.selection != selection)
          continue;
        if (row.device != ctx.device() || !row.trains || !row.why_not(config, dims, type).empty()) continue;
        for (const std::int64_t window : {std::int64_t{0}, T / 3})
          for (const bool documented : {false, true}) {
            config.window = window;
            all.push_back({config, dims, B, T, {.window = window, .first_key = {}}});
            if (documented) all.back().ranges.first_key = documents(B, T, 0);
          }
      }
    return all;
  }
};

TEST_P(RingAttention, IsThatOfTheWholeSequence) {
  // Of one sequence a rank's chunks are joined, of several they are not.
  std::vector<VariantCase> all = cases({.H = 4, .G = 2, .Dqk = 16, .Dv = 32}, 2, 48, DType::f32);
  for (const VariantCase& c : cases({.H = 4, .G = 2, .Dqk = 16, .Dv = 32}, 1, 48, DType::f32)) all.push_back(c);
  for (const VariantCase& c : all)
    for (const int ranks : {2, 3, 4}) {
      SCOPED_TRACE(::testing::Message() << c.config.type << "/" << c.config.impl << " " << c.config.selection << " on "
                                        << ranks << " batch " << c.B << " window " << c.ranges.window
                                        << (c.ranges.first_key.empty() ? "" : " documents"));
      const AttentionInputs in(c.shape());
      const auto q = c.queries(in.q), k = c.keys(in.k);
      const Visible see = c.pairs(q, k);
      const auto exact = oracle::attention(c.shape(), as<double>(q), as<double>(k), as<double>(in.v), see);
      const auto naive = oracle::attention(c.shape(), q, k, in.v, see);
      auto d_exact = oracle::attention_backward(c.shape(), as<double>(q), as<double>(k), as<double>(in.v),
                                                as<double>(in.d_out), see);
      auto d_naive = oracle::attention_backward(c.shape(), q, k, in.v, in.d_out, see);
      if (c.sparse()) {
        d_exact = {zero_outside(d_exact.q, q), zero_outside(d_exact.k, k), d_exact.v};
        d_naive = {zero_outside(d_naive.q, q), zero_outside(d_naive.k, k), d_naive.v};
      }
      const auto want = packed_gradient(d_exact, c);
      const Whole got = by_ranks(c, in, DType::f32, ranks);
      EXPECT_TRUE(near_in_norm(got.out, exact.out, derived_tolerance(naive.out, exact.out)));
      expect_lse(got.lse, exact.lse, lse_tolerance(naive.lse, exact.lse));
      EXPECT_TRUE(near_in_norm(got.d_qkv, want, derived_tolerance(packed_gradient(d_naive, c), want)));
      const auto support = packed_gradient(oracle::AttentionGradients<float>{q, k, in.v}, c);
      for (std::size_t i = 0; c.sparse() && i < want.size(); ++i) {
        if (support[i] == 0.0f) {
          ASSERT_EQ(got.d_qkv[i], 0.0f) << "a gradient outside the support, at " << i;
        }
      }
      const Whole again = by_ranks(c, in, DType::f32, ranks);
      EXPECT_EQ(got.out, again.out);
      EXPECT_EQ(got.lse, again.lse);
      EXPECT_EQ(got.d_qkv, again.d_qkv);
    }
}

// Where activations are bf16 the sums over hops are f32, so that a result is rounded once more than on one rank, in the
// parts that core leaves, however many ranks there are. A part's rounding errors are uniform within half a unit of the
// last place, which is 2^-7 of the power of two below the value: at most 2^-7 / sqrt(12) of a norm, all values being
// powers of two. (They are not: what one rank's rounding costs is 0.74 of that.) Parts have no direction in common, so
// that the squares of their norms add up to the whole's; so do those of the errors.
TEST_P(RingAttention, RoundsOnceMoreThanOneRank) {
  if (ctx.device() != Device::cuda) GTEST_SKIP() << "the CPU computes in f32";
  for (VariantCase& c : cases({.H = 4, .G = 2, .Dqk = 64, .Dv = 64}, 1, 512, DType::bf16)) {
    if (!c.ranges.first_key.empty()) continue;
    SCOPED_TRACE(::testing::Message() << c.config.type << "/" << c.config.impl << " " << c.config.selection
                                      << " window " << c.ranges.window);
    AttentionInputs in(c.shape());
    for (auto* x : {&in.q, &in.k, &in.v, &in.d_out}) *x = rounded(*x);
    const auto q = as<double>(c.queries(in.q)), k = as<double>(c.keys(in.k));
    const Visible see = c.pairs(c.queries(in.q), c.keys(in.k));
    const auto exact = oracle::attention(c.shape(), q, k, as<double>(in.v), see);
    auto d = oracle::attention_backward(c.shape(), q, k, as<double>(in.v), as<double>(in.d_out), see);
    if (c.sparse()) d = {zero_outside(d.q, c.queries(in.q)), zero_outside(d.k, c.keys(in.k)), d.v};
    const auto want = packed_gradient(d, c);
    Whole one = room(c);
    Rank(ctx.device(), c, DType::bf16, nullptr, 1).run(in, one);
    const double rounding = std::exp2(-7) / std::sqrt(12.0);
    const double out = std::hypot(norm_error(one.out, exact.out), rounding),
                 gradient = std::hypot(norm_error(one.d_qkv, want), rounding);
    for (const int ranks : {2, 4}) {
      const Whole got = by_ranks(c, in, DType::bf16, ranks);
      EXPECT_LE(norm_error(got.out, exact.out), out) << ranks << " ranks";
      EXPECT_LE(norm_error(got.d_qkv, want), gradient) << ranks << " ranks";
    }
  }
}

// What is passed is what the plan counts, and sfa passes less.
TEST_P(RingAttention, PassesTheBytesThatThePlanCounts) {
  const AttentionDims dims{.H = 4, .G = 2, .Dqk = 64, .Dv = 64};
  double forward[2] = {};
  for (const bool sparse : {false, true}) {
    VariantCase c{{.type = sparse ? "sfa" : "dense"}, dims, 1, 48, {}};
    if (sparse) c.config.k_q = c.config.k_k = 8;
    const int ranks = 3;
    double bytes = 0;
    by_ranks(c, AttentionInputs(c.shape()), DType::f32, ranks, &bytes);
    const RingBytes hop = ring_bytes_a_hop(c.config, dims, DType::f32, static_cast<double>(c.T) / ranks);
    EXPECT_EQ(bytes, 2 * (ranks - 1) * hop.forward + ranks * hop.backward_gradients);
    forward[sparse ? 1 : 0] = hop.forward;
  }
  EXPECT_LT(forward[1], 0.6 * forward[0]);
}

SFA_ON_EVERY_DEVICE(RingAttention);

}  // namespace
}  // namespace sfa::test
