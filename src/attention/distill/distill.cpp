#include "attention/distill/distill.h"

#include "ops/distill/distill.h"
#include "ops/reduce/reduce.h"

namespace sfa {
namespace {

class DistilledAttention final : public Attention {
 public:
  DistilledAttention(std::unique_ptr<Attention> student, std::unique_ptr<Attention> teacher)
      : Attention(student->config(), student->dims(), student->dtype()),
        student_(std::move(student)),
        teacher_(std::move(teacher)) {}

  AttentionState plan(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T) const override {
    AttentionState s = student_->plan(saved, scratch, B, T);
    s.teacher_out = saved.take(dtype_, {B, T, dims_.H, dims_.Dv});
    s.teacher_lse = scratch.take(DType::f32, {B, dims_.H, T});
    s.distance = scratch.take(DType::f32, {B * T});
    return s;
  }
  void prepare(Context& ctx, AttentionState& state) const override { student_->prepare(ctx, state); }
  void core(Context& ctx, const Forward& args) const override { student_->core(ctx, args); }
  void core_backward(Context& ctx, const Backward& args) const override { student_->core_backward(ctx, args); }
  void prepare_backward(Context& ctx, const AttentionState& state, const Tensor& d_qkv) const override {
    student_->prepare_backward(ctx, state, d_qkv);
  }
  KvCache plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const override {
    return student_->plan_cache(arena, B, capacity);
  }
  void append(Context& ctx, const Keys& keys, KvCache& cache) const override { student_->append(ctx, keys, cache); }
  [[nodiscard]] AttentionCost cost(std::int64_t T) const override {
    AttentionCost c = student_->cost(T);
    c.saved_bytes_per_token += static_cast<double>(dims_.H * dims_.Dv) * static_cast<double>(size_of(dtype_));
    return c;
  }
  [[nodiscard]] const Attention* teacher() const override { return teacher_.get(); }

 private:
  std::unique_ptr<Attention> student_, teacher_;
};

bool active(const Context& ctx, const Attention& attention, const AttentionState& state) {
  return attention.teacher() != nullptr && !state.teacher_out.empty() &&
         (ctx.planning || attention.distillation().scale != 0);
}

}  // namespace

std::unique_ptr<Attention> make_distilled(std::unique_ptr<Attention> student, std::unique_ptr<Attention> teacher) {
  return std::make_unique<DistilledAttention>(std::move(student), std::move(teacher));
}

// Before the student selects, which may overwrite the rows.
void distill_forward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                     Arena& scratch) {
  if (!active(ctx, attention, state)) return;
  AttentionState dense;
  dense.qkv = state.qkv;
  dense.out = state.teacher_out;
  dense.lse = state.teacher_lse;
  attention.teacher()->prepare(ctx, dense);
  attention.teacher()->core(ctx, {dense.q, dense.k, ranges, dense.out, dense.lse, scratch});
}

void distill_towards_teacher(Context& ctx, const Attention& attention, const AttentionState& state,
                             const Tensor& d_out) {
  if (!active(ctx, attention, state)) return;
  const std::int64_t N = state.out.dim(0) * state.out.dim(1);
  const Distillation& d = attention.distillation();
  distill_backward(ctx, {.out = state.out.view({N, -1}),
                         .teacher = state.teacher_out.view({N, -1}),
                         .scale = d.scale,
                         .d_out = d_out.view({N, -1}),
                         .rows = state.distance});
  sum_add(ctx, state.distance, d.total);
}

}  // namespace sfa
