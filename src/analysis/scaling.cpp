#include "analysis/scaling.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "dist/sharded_gradients.h"

namespace sfa {
namespace {

// nvlink: measured, two H200: embeddings' gradients of 158 MB summed in 0.75 ms (docs/distributed.md). The others: nine
// tenths of the line rate, one adapter a card.
const Link kLinks[] = {
    {"nvlink", 210e9, 5e-6}, {"ib400", 45e9, 10e-6}, {"ib200", 22.5e9, 10e-6}, {"eth100", 11e9, 30e-6}};

}  // namespace

Link parse_link(const std::string& text) {
  std::string known;
  for (const Link& link : kLinks) {
    if (link.name == text) return link;
    known += (known.empty() ? "" : ", ") + link.name;
  }
  double rate = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rate);
  require(error == std::errc() && end == text.data() + text.size() && rate > 0,
          "--link: '{}' is neither a known link ({}) nor a number of GB/s", text, known);
  return {text + " GB/s", rate * 1e9, 10e-6};
}

void take_bytes(ScalingInput& input, const ParameterList& list, double gradient_element, double weight_element) {
  double blocks = 0;
  for (const GradientPlaces::Stretch& s : gradients_in_turns(list).stretches)
    if (s.shared) blocks += static_cast<double>(s.flat.count);
  input.gradient_bytes = static_cast<double>(list.flat_size()) * gradient_element;
  input.block_gradient_bytes = blocks * gradient_element;
  input.weight_bytes = static_cast<double>(list.flat_size()) * weight_element;
}

ScalingInput::Ring ring_of(const Config& config, const Model& model, double micro_step_s) {
  ScalingInput::Ring ring;
  ring.ranks = static_cast<int>(config.dist.context_parallel);
  ring.layers = config.model.num_hidden_layers;
  ring.hop = ring_bytes_a_hop(config, model.dtype());
  const ModelCost c = model.cost(config.data.seq_len);
  ring.attention_s = micro_step_s * (c.attention_flops_per_token + c.attention_backward_flops_per_token) /
                     (c.forward_flops_per_token + c.backward_flops_per_token);
  return ring;
}

namespace {

// What a rank waits for its ring in one micro-step. A third of the work is forward.
double ring_wait(const ScalingInput::Ring& ring, const Link& link) {
  if (ring.ranks == 1) return 0;
  const double hops = ring.ranks - 1, layers = static_cast<double>(ring.layers);
  const double work = ring.attention_s / layers / ring.ranks / ring.ranks;  // of a hop, forward and backward
  const auto time = [&](double bytes) { return bytes / link.bytes_per_second + link.latency_s; };
  const double keys = time(ring.hop.forward), gradients = time(ring.hop.backward_gradients);
  return layers *
         (hops * (std::max(0.0, keys - work / 3) + std::max(0.0, keys + gradients - work * 2 / 3)) + gradients);
}

}  // namespace

ScalingPoint predict_step(const ScalingInput& in, int ranks, std::int64_t zero) {
  const double n = ranks, share = (n - 1) / n;
  const Link& link = ranks > in.ranks_per_machine ? in.between : in.inside;
  const auto time = [&](double bytes, double passes) {
    if (ranks == 1) return 0.0;
    const double buckets = std::max(1.0, std::ceil(bytes / in.bucket_bytes));
    return passes * share * bytes / link.bytes_per_second + buckets * std::log2(n) * link.latency_s;
  };
  const double passes = zero == 0 ? 2 : 1;
  const double micro_step = in.micro_step_s / in.ring.ranks, backward = micro_step * 2 / 3;
  const double outside = time(in.gradient_bytes - in.block_gradient_bytes, passes);
  const double beside = std::max(0.0, time(in.block_gradient_bytes, passes) - backward);
  const double weights = zero > 0 ? time(in.weight_bytes, 1) : 0.0;
  ScalingPoint p{ranks, zero, 0, 0, 1};
  const double waits = ring_wait(in.ring, in.ring.ranks > in.ranks_per_machine ? in.between : in.inside);
  const double micro_steps = static_cast<double>(in.micro_steps);
  p.exposed_s = outside + weights + beside * (zero == 2 ? micro_steps : 1) + waits * micro_steps;
  const double work = micro_steps * micro_step;
  p.step_s = work + in.update_s / (zero > 0 ? n : 1) + p.exposed_s;
  p.efficiency = (work + in.update_s) / p.step_s;
  return p;
}

}  // namespace sfa
