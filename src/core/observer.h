// Who watches the ops of a context: timers and profilers. Ops say what they are about to do; where nobody watches that
// costs one comparison.
#pragma once

#include <initializer_list>
#include <string>

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// What an op is about to do.
struct OpWork {
  std::string kind;   // "linear forward"
  std::string shape;  // "65536 x 768 -> 3072", or empty
  double flops = 0;   // of matrix products, a multiply-add counts as two
  double bytes = 0;   // that have to be moved at the least: every operand once
};

class OpObserver {
 public:
  virtual ~OpObserver() = default;
  /// Scopes nest: what begins within another ends before it.
  virtual void begin(Context& ctx, const OpWork& work) = 0;
  virtual void end(Context& ctx) = 0;
  /// A part of the model around its ops ("block 3 forward").
  virtual void enter(Context& ctx, const std::string& part) = 0;
  virtual void leave(Context& ctx) = 0;
};

/// One op while the scope lives. `describe` returns its OpWork and is called only when somebody watches.
class OpScope {
 public:
  template <class Describe>
  OpScope(Context& ctx, Describe&& describe) : ctx_(watched(ctx)) {
    if (ctx_ != nullptr) ctx_->observer->begin(*ctx_, describe());
  }
  ~OpScope() {
    if (ctx_ != nullptr) ctx_->observer->end(*ctx_);
  }
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

  static Context* watched(Context& ctx) { return ctx.observer != nullptr && !ctx.planning ? &ctx : nullptr; }

 private:
  Context* ctx_;
};

/// A part of a model while the scope lives: `name`, then `number` when it is not negative, then `direction`.
class PartScope {
 public:
  PartScope(Context& ctx, const char* name, std::int64_t number, const char* direction) : ctx_(OpScope::watched(ctx)) {
    if (ctx_ == nullptr) return;
    std::string part = name;
    if (number >= 0) part += " " + std::to_string(number);
    ctx_->observer->enter(*ctx_, part + " " + direction);
  }
  ~PartScope() {
    if (ctx_ != nullptr) ctx_->observer->leave(*ctx_);
  }
  PartScope(const PartScope&) = delete;
  PartScope& operator=(const PartScope&) = delete;

 private:
  Context* ctx_;
};

/// Bytes of all of them together; empty tensors count nothing.
double bytes_of(std::initializer_list<Tensor> tensors);

/// M x K times K x N: its shape as text, and its operations.
OpWork product_work(const char* kind, std::int64_t M, std::int64_t N, std::int64_t K, double bytes);

}  // namespace sfa
