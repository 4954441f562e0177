// sfa bench generate CONFIG: reading a prompt and generating behind it, as `sfa generate` does, with initial weights
// and random tokens: the time depends on neither.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "app/bench_command.h"
#include "core/rng.h"
#include "eval/loaded_model.h"
#include "models/model.h"

namespace sfa::app {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::int64_t prompt = 1024, batch = 1, tokens = 32, chunk = 0;
  int repeats = 3;
  bool json = false;
};

double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

// A model with its initial weights and the caches of one batch.
class Bench {
 public:
  Bench(const Config& config, const Options& o)
      : o_(o),
        ctx_(choose_device(config.device)),
        weights_("parameters", ctx_.device()),
        input_("tokens", ctx_.device()) {
    const DType type = config.train.dtype != "fp32" && ctx_.on_cuda() ? DType::bf16 : DType::f32;
    model_ = make_model(config.model, ctx_.device(), type);
    const std::int64_t n = model_->parameters().flat_size();
    weights_.take(type, {n});
    weights_.bind();
    const Tensor flat = weights_.take(type, {n});
    std::vector<float> host(static_cast<std::size_t>(n));
    initialize_parameters(model_->parameters(), static_cast<std::uint64_t>(config.seed),
                          Tensor(host.data(), DType::f32, Device::cpu, {n}));
    if (type == DType::bf16) {
      std::vector<std::uint16_t> bits(host.size());
      std::transform(host.begin(), host.end(), bits.begin(), bf16_bits);
      ctx_.copy(flat.data, flat.device, bits.data(), Device::cpu, bits.size() * 2);
      ctx_.synchronize();
    } else {
      ctx_.copy(flat.data, flat.device, host.data(), Device::cpu, host.size() * 4);
    }
    model_->bind(flat, Tensor{});
    input_.take(DType::i32, {o_.batch, o_.prompt});
    input_.bind();
  }

  [[nodiscard]] const Context& context() const { return ctx_; }
  [[nodiscard]] const Model& model() const { return *model_; }

  // Fresh caches, the prompt in chunks; milliseconds.
  double prompt(std::int64_t chunk) {
    generation_ = nullptr;
    generation_ = model_->start_generation(ctx_, o_.batch, o_.prompt + o_.tokens, chunk);
    double ms = 0;
    for (std::int64_t at = 0; at < o_.prompt; at += chunk) ms += feed(std::min(chunk, o_.prompt - at));
    return ms;
  }
  double token() { return feed(1); }

 private:
  double feed(std::int64_t n) {
    using Clock = std::chrono::steady_clock;
    ArenaScope scope(input_);
    const Tensor tokens = input_.take(DType::i32, {o_.batch, n});
    std::vector<std::int32_t> host(static_cast<std::size_t>(o_.batch * n));
    for (std::int32_t& t : host)
      t = static_cast<std::int32_t>(philox(1, kPurposeSampling, drawn_++, 0)[0] %
                                    static_cast<std::uint32_t>(model_->config().vocab_size));
    ctx_.copy(tokens.data, tokens.device, host.data(), Device::cpu, host.size() * 4);
    ctx_.synchronize();
    const auto start = Clock::now();
    model_->feed(ctx_, *generation_, tokens);
    ctx_.synchronize();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }

  const Options& o_;
  Context ctx_;
  Arena weights_, input_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Generation> generation_;
  std::uint64_t drawn_ = 0;
};

void bench(const Options& o) {
  Config config = load_config(o.config, o.overrides);
  require(config.model.vocab_size > 0, "model.vocab_size: is not set; there is no data here to take it from");
  const std::int64_t chunk = o.chunk == 0 ? o.prompt : o.chunk;
  Bench bench(config, o);
  std::vector<double> prompts, tokens;
  for (int i = 0; i <= o.repeats; ++i) {  // the first one warms up
    const double ms = bench.prompt(chunk);
    if (i > 0) prompts.push_back(ms);
  }
  bench.token();
  for (std::int64_t i = 1; i < o.tokens; ++i) tokens.push_back(bench.token());
  const double prompt_ms = median(prompts), token_ms = tokens.empty() ? 0 : median(tokens);
  const double kv = bench.model().cost(o.prompt).kv_bytes_per_token;
  if (o.json) {
    fmt::print("{}\n", nlohmann::ordered_json{{"device", bench.context().device_name()},
                                              {"batch", o.batch},
                                              {"prompt", o.prompt},
                                              {"prompt_ms", prompt_ms},
                                              {"token_ms", token_ms},
                                              {"kv_bytes_per_token", kv}}
                           .dump(2));
    return;
  }
  fmt::print(
      "{}: prompt of {} x {} tokens {:.2f} ms ({:.0f} tokens/s), then {:.3f} ms a token ({:.0f} tokens/s); "
      "cache {:.0f} bytes a token\n",
      bench.context().device_name(), o.batch, o.prompt, prompt_ms,
      static_cast<double>(o.batch * o.prompt) / prompt_ms * 1000, token_ms,
      token_ms > 0 ? static_cast<double>(o.batch) / token_ms * 1000 : 0.0, kv);
}

}  // namespace

void add_bench_generate(CLI::App& group) {
  auto o = std::make_shared<Options>();
  CLI::App* command = group.add_subcommand("generate", "Time a prompt and the tokens behind it, with initial weights");
  command->add_option("config", o->config, "the run's YAML file; model.vocab_size must be set")->required();
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_option("--prompt", o->prompt, "tokens of the prompt")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command->add_option("--batch", o->batch, "sequences at a time")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  command->add_option("--tokens", o->tokens, "tokens behind it; the first is not counted")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--chunk", o->chunk, "tokens of the prompt fed at a time; 0 = all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command->add_option("--repeats", o->repeats, "prompts that are timed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", o->json, "print one JSON object");
  command->callback([o] { bench(*o); });
}

}  // namespace sfa::app
