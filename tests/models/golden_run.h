// Ten steps of training held against a golden file that PyTorch wrote (tests/golden/make_golden*.py): the same weights
// and batches must give the same losses, gradient norms and, at the first step, the same gradient of every parameter.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "golden/golden_file.h"
#include "models/training_run.h"
#include "support/compare.h"

namespace sfa::test {

struct GoldenCase {
  const char* file;
  ModelConfig config;
};

/// The bars that the project promises. What float32 itself does to these runs is near 1e-6 (the scripts print it).
struct GoldenBars {
  double loss = 1e-4, gradient = 1e-3;
};

inline ModelConfig with_sfa(ModelConfig c, int k_q, int k_k) {
  c.attention.type = "sfa";
  c.attention.k_q = k_q;
  c.attention.k_k = k_k;
  return c;
}

// The weights that make_golden.py draws: matrices 0.12 n, vectors 0.1 n, those of norms 1 + 0.1 n.
inline std::vector<float> golden_weights(const ParameterList& list) {
  std::vector<float> flat(static_cast<std::size_t>(list.flat_size()));
  for (std::size_t number = 0; number < list.all().size(); ++number) {
    const Parameter& p = list.all()[number];
    const bool matrix = p.shape.size() == 2,
               norm_weight = p.name.find("norm") != std::string::npos && p.name.ends_with("weight");
    const auto n = normal(p.numel(), number);
    for (std::size_t i = 0; i < n.size(); ++i)
      flat[static_cast<std::size_t>(p.offset) + i] = matrix ? 0.12f * n[i] : 0.1f * n[i] + (norm_weight ? 1.0f : 0.0f);
  }
  return flat;
}

// Compares the gradients with the golden ones; rows of the padded vocabulary must have none. Returns the largest
// relative error of a tensor.
inline double expect_gradients(TrainingRun& run, const GoldenFile& golden, double bar) {
  double worst = 0;
  for (std::size_t number = 0; number < run.model->parameters().all().size(); ++number) {
    const Parameter& p = run.model->parameters().all()[number];
    const GoldenTensor& want = golden.at("d." + p.name);
    auto got = values_of(run.ctx, run.model->parameters().view(run.buffers.gradients, number));
    for (std::size_t i = want.floats.size(); i < got.size(); ++i) EXPECT_EQ(got[i], 0.0f) << p.name << ", padding";
    got.resize(want.floats.size());
    EXPECT_TRUE(near_in_norm(got, as<double>(want.floats), bar)) << p.name;
    worst = std::max(worst, norm_error(got, as<double>(want.floats)));
  }
  return worst;
}

// The whole comparison on one context. `parts`: micro-batches that the batch is split into.
inline void expect_golden(Context& ctx, const GoldenCase& which, const std::string& impl, std::int64_t parts,
                          const GoldenBars& bars) {
  const GoldenFile golden = read_golden(which.file);
  const auto& shape = golden.at("tokens").shape;
  const std::int64_t steps = shape[0], B = shape[1], T = shape[2];
  ModelConfig config = which.config;
  config.attention.impl = impl;
  TrainingRun run(ctx, config, B / parts, T);
  run.set_weights(golden_weights(run.model->parameters()));
  const Schedule schedule{.kind = "cosine", .lr = 3e-3, .min_lr = 3e-4, .warmup_steps = 3, .max_steps = steps};
  const auto &tokens = golden.at("tokens").integers, &targets = golden.at("targets").integers;
  const std::vector<std::int32_t> none;
  const auto& first = golden.contains("first_key") ? golden.at("first_key").integers : none;
  double worst_loss = 0, worst_gradient = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    std::int64_t counted = 0;
    for (std::int64_t n = 0; n < B * T; ++n) counted += targets[static_cast<std::size_t>(step * B * T + n)] >= 0;
    double loss = 0;
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::size_t at = static_cast<std::size_t>((step * B + part * (B / parts)) * T);
      for (float l : run.micro_step(&tokens[at], &targets[at], first.empty() ? nullptr : &first[at],
                                    1.0f / static_cast<float>(counted)))
        loss += l;
    }
    loss /= static_cast<double>(counted);
    const std::size_t s = static_cast<std::size_t>(step);
    EXPECT_NEAR(loss, golden.at("losses").floats[s], bars.loss) << "step " << step;
    EXPECT_NEAR(loss, golden.at("losses_f32").floats[s], bars.loss) << "step " << step << ", PyTorch in float32";
    worst_loss = std::max(worst_loss, std::fabs(loss - static_cast<double>(golden.at("losses").floats[s])));
    if (step == 0) worst_gradient = expect_gradients(run, golden, bars.gradient);
    const StepState state = run.update(schedule.at(step));
    EXPECT_NEAR(state.grad_norm, golden.at("grad_norms").floats[s], bars.gradient * golden.at("grad_norms").floats[s])
        << "step " << step;
    EXPECT_EQ(state.skip, 0);
  }
  std::printf("  %s, %s, attention %s, %d micro-batches: losses of %d steps within %.1e, gradients within %.1e\n",
              which.file, name_of(ctx.device()), impl.c_str(), static_cast<int>(parts), static_cast<int>(steps),
              worst_loss, worst_gradient);
}

/// The same on every implementation of attention that serves the case in f32 on the context's device.
inline void expect_golden_everywhere(Context& ctx, const GoldenCase& which, std::int64_t parts,
                                     const GoldenBars& bars) {
  ModelConfig resolved = which.config;
  resolved.resolve();
  int served = 0;
  for (const AttentionRow& row : attention_table()) {
    if (row.type != resolved.attention.type || row.device != ctx.device() || !row.trains ||
        !row.why_not(resolved.attention, resolved.attention_dims(), DType::f32).empty())
      continue;
    SCOPED_TRACE(std::string(which.file) + " on " + name_of(ctx.device()) + ", attention " + std::string(row.impl));
    expect_golden(ctx, which, std::string(row.impl), parts, bars);
    ++served;
  }
  EXPECT_GE(served, 1);
}

}  // namespace sfa::test
