#include "eval/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"

namespace sfa {
namespace {

// Tokens of a prompt that are fed at a time: many, since what is behind cached tokens reads the whole cache first, and
// few enough that their activations stay small beside the caches.
constexpr std::int64_t kChunk = 8192;

// The newest part of a text in the model's caches.
class Feeder {
 public:
  Feeder(Context& ctx, Model& model) : ctx_(ctx), model_(model), input_("prompt", model.device()) {
    const std::int64_t P = model.config().max_position_embeddings;
    chunk_ = std::min<std::int64_t>(P, kChunk);
    generation_ = model.start_generation(ctx, 1, P, chunk_);
    input_.take(DType::i32, {1, chunk_});
    input_.bind();
  }

  // Feeds `tokens` after what is there and returns the logits that follow; starts over with the newest half when
  // positions run out.
  std::vector<float> operator()(const std::vector<std::int32_t>& text) {
    const std::int64_t P = model_.config().max_position_embeddings;
    if (static_cast<std::int64_t>(text.size()) - begin_ > P) {
      begin_ = static_cast<std::int64_t>(text.size()) - std::max<std::int64_t>(1, P / 2);
      fed_ = begin_;
      generation_ = model_.start_generation(ctx_, 1, P, chunk_);
    }
    Tensor logits;
    while (fed_ < static_cast<std::int64_t>(text.size())) {
      const std::int64_t n = std::min(chunk_, static_cast<std::int64_t>(text.size()) - fed_);
      ArenaScope scope(input_);
      const Tensor tokens = input_.take(DType::i32, {1, n});
      ctx_.copy(tokens.data, tokens.device, text.data() + fed_, Device::cpu,
                static_cast<std::size_t>(n) * sizeof(std::int32_t));
      logits = model_.feed(ctx_, *generation_, tokens);
      fed_ += n;
    }
    return to_host(logits);
  }

 private:
  std::vector<float> to_host(const Tensor& logits) {
    const std::size_t V = static_cast<std::size_t>(model_.config().vocab_size);
    std::vector<float> out(V);
    if (logits.dtype == DType::f32) {
      ctx_.copy(out.data(), Device::cpu, logits.data, logits.device, V * sizeof(float));
      ctx_.synchronize();
      return out;
    }
    std::vector<std::uint16_t> bits(V);
    ctx_.copy(bits.data(), Device::cpu, logits.data, logits.device, V * sizeof(std::uint16_t));
    ctx_.synchronize();
    std::transform(bits.begin(), bits.end(), out.begin(), bf16_value);
    return out;
  }

  Context& ctx_;
  Model& model_;
  Arena input_;
  std::unique_ptr<Generation> generation_;
  std::int64_t chunk_ = 0, begin_ = 0, fed_ = 0;
};

}  // namespace

std::int32_t sample_token(const std::vector<float>& logits, double temperature, std::int64_t top_k, double uniform) {
  if (temperature == 0.0)
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (top_k > 0 && static_cast<std::size_t>(top_k) < order.size()) {
    std::nth_element(order.begin(), order.begin() + top_k - 1, order.end(), likelier);
    order.resize(static_cast<std::size_t>(top_k));
    std::sort(order.begin(), order.end());
  }
  const float top = logits[static_cast<std::size_t>(
      *std::max_element(order.begin(), order.end(), [&](auto a, auto b) { return likelier(b, a); }))];
  std::vector<double> weight(order.size());
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i)
    total += weight[i] = std::exp(static_cast<double>(logits[static_cast<std::size_t>(order[i])] - top) / temperature);
  double left = uniform * total;
  for (std::size_t i = 0; i < order.size(); ++i) {
    left -= weight[i];
    if (left < 0) return order[i];
  }
  return order.back();
}

std::int64_t generate(Context& ctx, Model& model, const GenerateOptions& options,
                      const std::function<bool(std::int32_t)>& emit) {
  require(!options.prompt.empty(), "the prompt holds no token");
  std::vector<std::int32_t> text = options.prompt;
  Feeder feed(ctx, model);
  std::int64_t made = 0;
  while (made < options.max_tokens) {
    const std::vector<float> logits = feed(text);
    const auto r = philox(options.seed, kPurposeSampling, static_cast<std::uint64_t>(made), 0);
    const double uniform = (static_cast<double>(r[0]) + 0.5) / 4294967296.0;
    const std::int32_t token = sample_token(logits, options.temperature, options.top_k, uniform);
    text.push_back(token);
    ++made;
    if (!emit(token) || token == options.end_token) break;
  }
  return made;
}

}  // namespace sfa
