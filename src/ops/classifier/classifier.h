// The language-model head with its loss, forward and backward in one pass over chunks of rows, so that the N x Vp
// logits never exist.
//   logits = x W^T over the first V of Vp columns (padded columns are left out of the softmax and get no gradient)
//   losses[n] = logsumexp(logits[n,:V]) - logits[n, target]       (0 where target is -1: the row is not counted)
//   greedy[n] = 1 where no logit exceeds the target's and none before it equals it, else 0   (0 where target is -1)
//   d_logits = (softmax - onehot) * loss_scale [* loss_weight];   d_x = d_logits W (overwritten);   d_weight +=
//   d_logits^T x (accumulate)
// On a GPU a chunk of logits is kept in the dtype of x and turned into d_logits in place; softmax statistics and losses
// are f32.
#pragma once

#include "core/context.h"
#include "core/observer.h"
#include "core/tensor.h"

namespace sfa {

struct Classifier {
  Tensor x;        // [N,C]
  Tensor weight;   // [Vp,C]
  Tensor targets;  // [N] i32, -1 = ignored
  std::int64_t V = 0;
  float loss_scale = 1.0f;  // 1 / (counted rows of the whole optimizer step)
  Tensor losses;            // [N] f32, overwritten
  Tensor d_x;               // [N,C] or empty: loss only
  Tensor d_weight;          // [Vp,C] or empty, accumulated
  Arena& scratch;
  Tensor greedy = {};       // [N] i32 or empty, overwritten; losses alone (d_x empty)
  Tensor loss_weight = {};  // [1] f32 on the device or empty: a factor of loss_scale
};
void classifier_loss(Context& ctx, const Classifier& args);

/// What the parts of classifier_loss do on one chunk, for observers.
struct ClassifierWork {
  OpWork logits, softmax, d_x, d_weight;
};
ClassifierWork classifier_work(const Classifier& args, const Tensor& logits);

/// Rows of a chunk for a given width; fixed by the shapes and the kind of device alone.
std::int64_t classifier_chunk_rows(std::int64_t N, std::int64_t Vp, Device device = Device::cpu);

}  // namespace sfa
