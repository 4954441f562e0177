// impl: flash on the CPU against impl: reference over ragged shapes and every kind of range, forward and backward; the
// same bits with any number of threads; exact zeros outside the supports; scratch as planned.
#include <gtest/gtest.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "attention/attention.h"
#include "ops/select/select.h"

namespace sfa {
namespace {

struct Case {
  std::int64_t B = 1, H = 1, G = 1, Tq = 1, Tk = 1, Dqk = 32, Dv = 32;
  int k_q = 0, k_k = 0;  // 0 = dense
  bool causal = true;
  std::int64_t offset = 0, window = 0;
  bool documents = false;
  bool round = false;
  bool strided = false;  // rows inside a wider packed row
  float size = 1.0f;     // standard deviation of queries and keys
  bool aligned = false;  // large features fall on few places, so that nearly all supports overlap
  bool cached = false;   // sparse keys without full-width rows
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " H" << c.H << " G" << c.G << " Tq" << c.Tq << " Tk" << c.Tk << " Dqk" << c.Dqk << " Dv"
             << c.Dv << " k" << c.k_q << "/" << c.k_k << (c.causal ? " causal" : "") << " offset" << c.offset
             << " window" << c.window << (c.documents ? " documents" : "") << (c.round ? " bf16" : "")
             << (c.strided ? " strided" : "") << " size" << c.size << (c.aligned ? " aligned" : "");
}

// Number n of a stream: uniform with variance 1 (splitmix64 of the counter).
float noise(std::uint64_t stream, std::uint64_t n) {
  std::uint64_t x = (stream << 40) + n + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return (static_cast<float>((x ^ (x >> 31)) >> 40) / 8388608.0f - 1.0f) * 1.7320508f;
}

// Memory of one tensor; what lies between strided rows is NaN, so that a read beyond a row shows.
struct Owned {
  std::vector<float> memory;
  Tensor view;
  Owned(std::int64_t B, std::int64_t T, std::int64_t heads, std::int64_t D, bool strided) {
    const std::int64_t extra = strided ? 5 : 0, row = heads * D + extra;
    memory.assign(static_cast<std::size_t>(B * T * row), std::nanf(""));
    view = Tensor(memory.data(), DType::f32, Device::cpu, {B, T, row}).slice(2, extra / 2, heads * D).split_last(heads);
  }
  template <class Fill>
  void fill(Fill value) {
    std::uint64_t n = 0;
    for (std::int64_t b = 0; b < view.dim(0); ++b)
      for (std::int64_t t = 0; t < view.dim(1); ++t)
        for (std::int64_t h = 0; h < view.dim(2); ++h)
          for (std::int64_t c = 0; c < view.dim(3); ++c)
            view.as<float>()[b * view.stride[0] + t * view.stride[1] + h * view.stride[2] + c] = value(n++, c);
  }
  [[nodiscard]] std::vector<float> values() const {
    std::vector<float> all;
    for (std::int64_t b = 0; b < view.dim(0); ++b)
      for (std::int64_t t = 0; t < view.dim(1); ++t)
        for (std::int64_t h = 0; h < view.dim(2); ++h)
          for (std::int64_t c = 0; c < view.dim(3); ++c)
            all.push_back(view.as<float>()[b * view.stride[0] + t * view.stride[1] + h * view.stride[2] + c]);
    return all;
  }
};

struct Sparse {
  std::vector<float> values;
  std::vector<std::uint8_t> indices;
  Tensor v, i;
  void select(Context& ctx, const Owned& from, int k) {
    const Tensor& x = from.view;
    values.resize(static_cast<std::size_t>(x.dim(0) * x.dim(1) * x.dim(2) * k));
    indices.resize(values.size());
    v = Tensor(values.data(), DType::f32, Device::cpu, {x.dim(0), x.dim(1), x.dim(2), k});
    i = Tensor(indices.data(), DType::u8, Device::cpu, {x.dim(0), x.dim(1), x.dim(2), k});
    select_topk(ctx, {x, k, false, v, i, x});
  }
};

struct Inputs {
  Case c;
  Owned q, k, v, d_out;
  Sparse sparse_q, sparse_k;
  std::vector<std::int32_t> first_key;
  Queries queries;
  Keys keys;
  Ranges ranges;

  explicit Inputs(const Case& shape)
      : c(shape),
        q(c.B, c.Tq, c.H, c.Dqk, c.strided),
        k(c.B, c.Tk, c.G, c.Dqk, c.strided),
        v(c.B, c.Tk, c.G, c.Dv, c.strided),
        d_out(c.B, c.Tq, c.H, c.Dv, c.strided) {
    const auto random = [&](Owned& t, std::uint64_t stream, float size, std::int64_t D) {
      t.fill([&](std::uint64_t n, std::int64_t f) {
        const float bias = c.aligned && f < D / 3 ? 3.0f : 1.0f;
        const float x = size * bias * noise(stream, n);
        return c.round ? round_to_bf16(x) : x;
      });
    };
    random(q, 1, c.size, c.Dqk);
    random(k, 2, c.size, c.Dqk);
    random(v, 3, 1.0f, 0);
    random(d_out, 4, 1.0f, 0);
    queries.dense = q.view;
    keys.dense = k.view;
    keys.v = v.view;
    if (c.k_q > 0) {
      Context ctx(Device::cpu);
      sparse_q.select(ctx, q, c.k_q);
      sparse_k.select(ctx, k, c.k_k);
      queries.values = sparse_q.v, queries.indices = sparse_q.i;
      keys.values = sparse_k.v, keys.indices = sparse_k.i;
      if (c.cached) keys.dense = Tensor{};
    }
    ranges = {.causal = c.causal, .query_offset = c.offset, .window = c.window, .first_key = {}};
    if (c.documents) {
      first_key.resize(static_cast<std::size_t>(c.B * c.Tq));
      for (std::int64_t b = 0; b < c.B; ++b)
        for (std::int64_t i = 0; i < c.Tq; ++i)
          first_key[static_cast<std::size_t>(b * c.Tq + i)] =
              static_cast<std::int32_t>((i + c.offset) / (11 + 9 * b) * (11 + 9 * b));
      ranges.first_key = Tensor(first_key.data(), DType::i32, Device::cpu, {c.B, c.Tq});
    }
  }
};

struct Result {
  std::vector<float> out, lse, d_q, d_k, d_v;
};

std::unique_ptr<Attention> make(const Case& c, const std::string& impl) {
  AttentionConfig config;
  config.type = c.k_q > 0 ? "sfa" : "dense";
  config.impl = impl;
  config.k_q = c.k_q;
  config.k_k = c.k_k;
  config.window = c.window;
  return make_attention(config, {c.H, c.G, c.Dqk, c.Dv}, Device::cpu, DType::f32);
}

Result run(Inputs& in, const std::string& impl, bool with_backward) {
  const Case& c = in.c;
  const std::unique_ptr<Attention> attention = make(c, impl);
  Context ctx(Device::cpu);
  ctx.round_bf16 = c.round;
  Owned out(c.B, c.Tq, c.H, c.Dv, c.strided), d_q(c.B, c.Tq, c.H, c.Dqk, c.strided),
      d_k(c.B, c.Tk, c.G, c.Dqk, c.strided), d_v(c.B, c.Tk, c.G, c.Dv, c.strided);
  Result r;
  r.lse.assign(static_cast<std::size_t>(c.B * c.H * c.Tq), std::nanf(""));
  const Tensor lse(r.lse.data(), DType::f32, Device::cpu, {c.B, c.H, c.Tq});
  Arena scratch("scratch", Device::cpu);
  const auto step = [&] {
    attention->core(ctx, {in.queries, in.keys, in.ranges, out.view, lse, scratch});
    if (with_backward)
      attention->core_backward(
          ctx, {in.queries, in.keys, in.ranges, out.view, lse, in.d_out.view, d_q.view, d_k.view, d_v.view, scratch});
  };
  ctx.planning = true;
  step();
  const std::size_t planned = scratch.peak();
  EXPECT_EQ(scratch.used(), 0u) << "scratch is given back";
  scratch.bind();
  std::memset(scratch.take(DType::f32, {static_cast<std::int64_t>(planned / 4)}).data, 0xff,
              planned);  // NaN: nothing relies on zeros
  scratch.release(0);
  ctx.planning = false;
  step();
  EXPECT_EQ(scratch.peak(), planned) << "what is taken is what was planned";
  r.out = out.values();
  if (with_backward) r.d_q = d_q.values(), r.d_k = d_k.values(), r.d_v = d_v.values();
  return r;
}

// Both sides are f32 and sum in different orders. A score of magnitude up to 4 size^2 sqrt(features) is off by a unit
// of rounding (2^-24) relative to itself, which is the relative error of its probability; the sums add a few units.
// Gradients subtract numbers of the size of `scale` that may cancel. With rounding to bf16 an element may fall on the
// other side of a boundary, one unit of 2^-8.
struct Tolerance {
  double relative, scale;
};
Tolerance tolerance(const Case& c, double scale) {
  const double size = c.size * (c.aligned ? 3.0 : 1.0), features = c.k_q > 0 ? c.k_q : static_cast<double>(c.Dqk);
  return {(c.round ? 1.0 / 256 : 0.0) + 2 * 5.96e-8 * (8 + 4 * size * size * std::sqrt(features)), scale};
}

void expect_close(const std::vector<float>& mine, const std::vector<float>& oracle, Tolerance t, const char* what) {
  ASSERT_EQ(mine.size(), oracle.size());
  double square = 0, error_square = 0;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (std::isinf(oracle[i])) {
      EXPECT_EQ(mine[i], oracle[i]) << what << " " << i;
      continue;
    }
    ASSERT_TRUE(std::isfinite(mine[i])) << what << " " << i;
    const double e = double{mine[i]} - oracle[i];
    EXPECT_LE(std::abs(e), 16 * t.relative * (std::abs(double{oracle[i]}) + t.scale)) << what << " " << i;
    square += double{oracle[i]} * oracle[i] + t.scale * t.scale;
    error_square += e * e;
  }
  EXPECT_LE(std::sqrt(error_square), t.relative * std::sqrt(square)) << what;
}

void expect_zeros_outside(const std::vector<float>& gradient, const std::vector<std::uint8_t>& support, std::size_t D,
                          std::size_t k) {
  for (std::size_t row = 0; row < gradient.size() / D; ++row)
    for (std::size_t f = 0; f < D; ++f)
      if (!std::binary_search(support.begin() + row * k, support.begin() + (row + 1) * k,
                              static_cast<std::uint8_t>(f))) {
        ASSERT_EQ(gradient[row * D + f], 0.0f) << "row " << row << " feature " << f;
      }
}

void compare(const Case& c, bool with_backward = true) {
  SCOPED_TRACE(testing::Message() << c);
  Inputs in(c);
  const Result oracle = run(in, "reference", with_backward), mine = run(in, "flash", with_backward);
  expect_close(mine.out, oracle.out, tolerance(c, 0.1), "out");
  expect_close(mine.lse, oracle.lse, tolerance(c, 1.0), "lse");
  if (!with_backward) return;
  expect_close(mine.d_q, oracle.d_q, tolerance(c, c.size), "d_q");
  expect_close(mine.d_k, oracle.d_k, tolerance(c, c.size), "d_k");
  expect_close(mine.d_v, oracle.d_v, tolerance(c, 0.1), "d_v");
  if (c.k_q > 0) {
    expect_zeros_outside(mine.d_q, in.sparse_q.indices, static_cast<std::size_t>(c.Dqk),
                         static_cast<std::size_t>(c.k_q));
    expect_zeros_outside(mine.d_k, in.sparse_k.indices, static_cast<std::size_t>(c.Dqk),
                         static_cast<std::size_t>(c.k_k));
  }
}

// Each case dense and sparse.
void compare_both(Case c) {
  c.k_q = c.k_k = 0;
  compare(c);
  c.k_q = static_cast<int>(std::min<std::int64_t>(8, c.Dqk));
  c.k_k = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(6, c.Dqk - 1)));
  compare(c);
}

TEST(FlashCpu, RaggedShapes) {
  for (const std::int64_t T : {1, 7, 63, 64, 65, 129, 200})
    for (const auto& [Dqk, Dv] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{32, 32}, {64, 64}, {20, 33}, {1, 3}, {128, 64}})
      compare_both({.Tq = T, .Tk = T, .Dqk = Dqk, .Dv = Dv});
  compare_both({.Tq = 70, .Tk = 70, .Dqk = 256, .Dv = 256});
  compare_both({.Tq = 70, .Tk = 70, .Dqk = 251, .Dv = 137});
}

TEST(FlashCpu, GroupedHeadsAndStridedRows) {
  compare_both({.B = 3, .H = 6, .G = 2, .Tq = 75, .Tk = 75, .Dqk = 24, .Dv = 40, .strided = true});
  compare_both({.B = 2, .H = 4, .G = 1, .Tq = 140, .Tk = 140, .Dqk = 16, .Dv = 16, .strided = true});
}

TEST(FlashCpu, EveryRange) {
  for (const bool causal : {true, false})
    for (const std::int64_t window : {0, 1, 17, 100})
      for (const bool documents : {false, true})
        for (const auto& [Tq, Tk, offset] : std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>>{
                 {150, 150, 0}, {70, 200, 130}, {200, 70, 0}, {90, 90, -40}, {66, 130, 300}, {50, 40, -200}})
          compare_both({.B = 2,
                        .H = 2,
                        .G = 1,
                        .Tq = Tq,
                        .Tk = Tk,
                        .Dqk = 16,
                        .Dv = 24,
                        .causal = causal,
                        .offset = offset,
                        .window = window,
                        .documents = documents});
}

TEST(FlashCpu, FewQueriesOverManyKeys) {
  for (const std::int64_t Tq : {1, 2, 4, 5})
    for (const std::int64_t Tk : {65, 257, 600})
      for (const std::int64_t window : {0, 90})
        for (const auto& [Dqk, Dv] :
             std::vector<std::pair<std::int64_t, std::int64_t>>{{64, 64}, {20, 33}, {16, 256}}) {
          Case c{.B = 2,
                 .H = 4,
                 .G = 2,
                 .Tq = Tq,
                 .Tk = Tk,
                 .Dqk = Dqk,
                 .Dv = Dv,
                 .offset = Tk - Tq,
                 .window = window,
                 .strided = true};
          compare(c, false);
          for (const int k : {3, 8, 16}) {
            c.k_q = c.k_k = k;
            c.cached = k == 8;
            compare(c, false);
          }
        }
  compare({.H = 1, .G = 1, .Tq = 1, .Tk = 20000, .Dqk = 16, .Dv = 16, .offset = 19999}, false);
  compare({.H = 1, .G = 1, .Tq = 2, .Tk = 300, .Dqk = 16, .Dv = 16, .offset = -1},
          false);  // the first query sees nothing
}

TEST(FlashCpu, SupportsFromNoneToAllInCommon) {
  for (const int k : {1, 2, 4, 8, 16, 31, 32})
    for (const bool aligned : {false, true})
      for (const float size : {0.3f, 4.0f})
        compare({.H = 2,
                 .G = 1,
                 .Tq = 260,
                 .Tk = 260,
                 .Dqk = 32,
                 .Dv = 48,
                 .k_q = k,
                 .k_k = k,
                 .size = size,
                 .aligned = aligned});
  compare({.H = 1, .G = 1, .Tq = 520, .Tk = 520, .Dqk = 256, .Dv = 128, .k_q = 4, .k_k = 8, .size = 6.0f});
  compare({.H = 1, .G = 1, .Tq = 400, .Tk = 400, .Dqk = 200, .Dv = 200, .k_q = 2, .k_k = 2, .causal = false});
}

TEST(FlashCpu, LargeScores) {
  compare_both({.H = 1, .G = 1, .Tq = 190, .Tk = 190, .Dqk = 32, .Dv = 32, .size = 8.0f});
}

TEST(FlashCpu, RoundsToBf16) {
  compare_both({.B = 2, .H = 4, .G = 2, .Tq = 100, .Tk = 100, .Dqk = 32, .Dv = 32, .round = true});
}

TEST(FlashCpu, SameBitsWithAnyNumberOfThreads) {
  const int before = omp_get_max_threads();
  for (Case c : {Case{.B = 1, .H = 1, .G = 1, .Tq = 700, .Tk = 700, .Dqk = 32, .Dv = 32},
                 Case{.B = 3, .H = 4, .G = 2, .Tq = 70, .Tk = 70},
                 Case{.B = 1, .H = 2, .G = 2, .Tq = 2, .Tk = 2000, .offset = 1998}})
    for (const int k : {0, 2, 8}) {
      c.k_q = c.k_k = k;
      SCOPED_TRACE(testing::Message() << c);
      Inputs in(c);
      omp_set_num_threads(1);
      const Result one = run(in, "flash", c.offset == 0);
      for (const int threads : {2, 3, 5}) {
        omp_set_num_threads(threads);
        const Result many = run(in, "flash", c.offset == 0);
        EXPECT_EQ(one.out, many.out);
        EXPECT_EQ(one.lse, many.lse);
        EXPECT_EQ(one.d_q, many.d_q);
        EXPECT_EQ(one.d_k, many.d_k);
        EXPECT_EQ(one.d_v, many.d_v);
      }
    }
  omp_set_num_threads(before);
}

TEST(FlashCpu, APlanForTheLongestCallServesShorterOnes) {
  for (const int k : {0, 8}) {
    Case longest{
        .B = 2, .H = 4, .G = 2, .Tq = 33, .Tk = 900, .Dqk = 64, .Dv = 64, .k_q = k, .k_k = k, .offset = 900 - 33};
    Inputs most(longest);
    const std::unique_ptr<Attention> attention = make(longest, "flash");
    Context ctx(Device::cpu);
    Arena scratch("scratch", Device::cpu);
    const auto core = [&](Inputs& in) {
      Owned out(in.c.B, in.c.Tq, in.c.H, in.c.Dv, false);
      std::vector<float> lse(static_cast<std::size_t>(in.c.B * in.c.H * in.c.Tq));
      attention->core(ctx, {in.queries, in.keys, in.ranges, out.view,
                            Tensor(lse.data(), DType::f32, Device::cpu, {in.c.B, in.c.H, in.c.Tq}), scratch});
    };
    ctx.planning = true;
    core(most);
    scratch.bind();
    ctx.planning = false;
    for (const std::int64_t Tq : {1, 3, 4, 5, 32})
      for (const std::int64_t Tk : {40, 300, 512, 700, 900}) {
        Case c = longest;
        c.Tq = Tq, c.Tk = Tk, c.offset = Tk - Tq;
        Inputs in(c);
        EXPECT_NO_THROW(core(in)) << c;
      }
  }
}

// prepare, core and backward on one packed projection, as a block calls them.
Result whole_layer(const std::string& type, const std::string& impl, std::size_t* saved_bytes = nullptr) {
  const std::int64_t B = 2, T = 90;
  const AttentionDims dims{4, 2, 32, 48};
  AttentionConfig config;
  config.type = type, config.impl = impl, config.k_q = 8, config.k_k = 6;
  const auto attention = make_attention(config, dims, Device::cpu, DType::f32);
  Context ctx(Device::cpu);
  Arena saved("saved", Device::cpu), scratch("scratch", Device::cpu);
  std::vector<float> d_out(static_cast<std::size_t>(B * T * dims.H * dims.Dv)),
      d_qkv(static_cast<std::size_t>(B * T * dims.row()));
  for (std::size_t i = 0; i < d_out.size(); ++i) d_out[i] = noise(5, i);
  const Tensor gradient(d_out.data(), DType::f32, Device::cpu, {B, T, dims.H, dims.Dv});
  const Tensor d_rows(d_qkv.data(), DType::f32, Device::cpu, {B, T, dims.row()});
  AttentionState state;
  const auto step = [&] {
    state = attention->plan(saved, scratch, B, T);
    if (!ctx.planning)
      for (std::int64_t i = 0; i < state.qkv.numel(); ++i)
        state.qkv.as<float>()[i] = noise(6, static_cast<std::uint64_t>(i));
    attention_forward(ctx, *attention, state, {}, scratch);
    attention_backward(ctx, *attention, state, {}, gradient, d_rows, scratch);
  };
  ctx.planning = true;
  step();
  saved.bind();
  scratch.bind();
  ctx.planning = false;
  step();
  if (saved_bytes) *saved_bytes = saved.peak();
  return {.out = std::vector<float>(state.out.as<float>(), state.out.as<float>() + state.out.numel()),
          .lse = {},
          .d_q = d_qkv,
          .d_k = {},
          .d_v = {}};
}

TEST(FlashCpu, WholeLayer) {
  std::size_t dense_bytes = 0, sparse_bytes = 0;
  const Result dense = whole_layer("dense", "flash", &dense_bytes), sparse = whole_layer("sfa", "flash", &sparse_bytes);
  const Result dense_oracle = whole_layer("dense", "reference"), sparse_oracle = whole_layer("sfa", "reference");
  const Tolerance t = tolerance({}, 1.0);
  expect_close(dense.out, dense_oracle.out, t, "out");
  expect_close(dense.d_q, dense_oracle.d_q, t, "d_qkv");
  expect_close(sparse.out, sparse_oracle.out, t, "out");
  expect_close(sparse.d_q, sparse_oracle.d_q, t, "d_qkv");
  EXPECT_LT(sparse_bytes, dense_bytes);
}

TEST(FlashCpu, AutoTakesItAndLeavesMaskedPairsToTheReference) {
  AttentionConfig config;
  config.type = "sfa", config.k_q = config.k_k = 4;
  const AttentionDims dims{2, 2, 16, 16};
  config.impl = "flash";
  config.zero_overlap = "mask";
  EXPECT_THROW(make_attention(config, dims, Device::cpu, DType::f32), Error);
  config.impl = "auto";
  EXPECT_NO_THROW(make_attention(config, dims, Device::cpu, DType::f32));
}

// The same tests on the baseline instruction set, where this processor has a wider one.
TEST(FlashCpuBaseline, RunsTheSameTestsWithAvx2) {
  if (!__builtin_cpu_supports("avx512f")) GTEST_SKIP() << "this processor has the baseline alone";
  char self[4096];
  const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
  ASSERT_GT(n, 0);
  self[n] = 0;
  const std::string command =
      "SFA_CPU_ISA=avx2 '" + std::string(self) + "' --gtest_filter='FlashCpu.*' --gtest_brief=1";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace sfa
