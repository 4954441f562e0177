// What a step takes on many ranks, predicted from one rank's measured micro-step and the links between them. The model,
// for N ranks whose slowest link carries B bytes a second and rank:
//   sum of S bytes to all                2 (N-1)/N S / B        (Patarasuk and Yuan, JPDC 69, 2009)
//   sum to the owners, or weights to all   (N-1)/N S / B
// each bucket with log2(N) latencies more. The blocks' sums go on beside the backward pass of the last micro-step, two
// thirds of it, and of every micro-step with dist.zero=2; what lies outside of blocks (embeddings, summed at the end)
// and what does not fit beside backward is waited for, and so are the weights that dist.zero=1 and 2 gather after the
// update. With dist.context_parallel=P a micro-step takes a P-th of its time on each of P ranks; of the hops of keys,
// values and their gradients round the ring what attention's work of a hop does not cover is waited for, and the last
// hop of gradients. It knows nothing of stragglers, of networks that others use, nor of what NCCL's kernels take from
// the card.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"
#include "models/parameters.h"
#include "train/context_ring.h"

namespace sfa {

struct Link {
  std::string name;
  double bytes_per_second = 0;  // of one rank, in one direction, as sums reach it
  double latency_s = 0;
};
/// "nvlink", "ib400", "ib200", "eth100", or a number of GB/s. Throws Error naming the known ones.
Link parse_link(const std::string& text);

struct ScalingInput {
  double micro_step_s = 0;       // forward and backward of one rank's micro-batch, measured on one
  double update_s = 0;           // the optimizer's work on all parameters, measured on one
  std::int64_t micro_steps = 1;  // of a rank and step
  double gradient_bytes = 0, block_gradient_bytes = 0, weight_bytes = 0;  // of all; of blocks; as the model uses them
  double bucket_bytes = 0;
  int ranks_per_machine = 8;
  Link inside, between;  // of machines
  /// dist.context_parallel: ranks that share a sequence, and what their ring carries (attention/ring/ring_attention.h).
  struct Ring {
    int ranks = 1;
    std::int64_t layers = 0;
    RingBytes hop;
    double attention_s = 0;  // of micro_step_s
  } ring = {};
};
/// `ring` for a configuration whose micro-step on one rank took `micro_step_s`, attention's part by its share of FLOPs.
ScalingInput::Ring ring_of(const Config& config, const Model& model, double micro_step_s);
/// Bytes of a model, from its list of parameters.
void take_bytes(ScalingInput& input, const ParameterList& list, double gradient_element, double weight_element);

struct ScalingPoint {
  int ranks = 1;
  std::int64_t zero = 0;
  double step_s = 0, exposed_s = 0;  // exposed: waited for
  double efficiency = 1;             // of one rank's tokens a second
};
ScalingPoint predict_step(const ScalingInput& input, int ranks, std::int64_t zero);

}  // namespace sfa
