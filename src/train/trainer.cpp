// The loop of trainer.h.
#include <unistd.h>

#include <csignal>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "core/log.h"
#include "eval/loaded_model.h"
#include "train/products_file.h"
#include "train/run.h"

namespace sfa {
namespace {

using Clock = std::chrono::steady_clock;
double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The first Ctrl-C or SIGTERM asks the loop to save and end; a second one ends the process at once.
volatile std::sig_atomic_t stop_signal = 0;
extern "C" void on_stop(int signal) {
  stop_signal = signal;
  std::signal(signal, SIG_DFL);
}

// Sums over ranks in their order.
void sum_texts(ControlChannel& control, double& loss, std::int64_t& tokens, std::int64_t& bytes) {
  struct Sums {
    double loss;
    std::int64_t tokens, bytes;
  } mine{loss, tokens, bytes};
  loss = 0;
  tokens = bytes = 0;
  for (const std::string& text :
       control.gather(ControlChannel::kMain, {reinterpret_cast<const char*>(&mine), sizeof mine})) {
    std::memcpy(&mine, text.data(), sizeof mine);
    loss += mine.loss;
    tokens += mine.tokens;
    bytes += mine.bytes;
  }
}

// Of a key, over blocks.
double mean_features(const std::vector<ActiveFeatures>& blocks) {
  double sum = 0;
  for (const ActiveFeatures& b : blocks) sum += b.k;
  return sum / static_cast<double>(blocks.size());
}

std::vector<std::string> data_paths(const std::string& pattern) {
  require(!pattern.empty(), "data.train: is not set; it names a token file made by `sfa data tokenize`");
  return {pattern};
}

}  // namespace

// Everything that can be refused is refused before the run's folder is touched.
Beginning::Beginning(Config c, const MemoryLimits& limits, Communicator& ranks)
    : config(for_ranks(std::move(c), ranks.size())),
      shards(data_paths(config.data.train)),
      start(config),
      state((config = start.with_vocabulary(config, shards)), choose_device(config.device), limits, &ranks) {
  const DataConfig& d = config.data;
  const GroupPlace place = group_place(config, {ranks.rank(), ranks.size()});
  ValidationOptions v{.paths = {d.val.empty() ? d.train : d.val},
                      .split = Split::val,
                      .seq_len = static_cast<int>(d.seq_len),
                      .batch_size = static_cast<int>(d.micro_batch_size),
                      .rank = place.group,
                      .world_size = place.groups,
                      .document_mask = d.document_mask,
                      .part = place.part,
                      .answers = config.train.loss_mask == "answers"};
  if (!d.val.empty()) {
    const ShardSet own(v.paths);
    require(own.tokenizer_hash() == shards.tokenizer_hash(),
            "data.val: {} was made with another tokenizer ({}) than data.train ({})", own.describe(),
            own.tokenizer_name(), shards.tokenizer_name());
    v.split = validation_split_of_own_files(own);
  }
  if (!d.val.empty() || shards.tokens(Split::val) > 1) validation = std::make_unique<ValidationSet>(v);
}

Run::Run(Beginning& beginning, const TrainHooks& hooks, Communicator& ranks)
    : hooks_(hooks),
      ranks_(ranks),
      config_(beginning.config),
      shards_(beginning.shards),
      start_(beginning.start),
      state_(beginning.state),
      validation_(beginning.validation) {
  find_folder();
  ranks_.control().agree([&] {
    if (!folder_.checkpoint.empty()) resume();
  });
  if (folder_.checkpoint.empty())
    begin();
  else
    state_.publish_weights();
  ranks_.control().agree([&] {
    open_loader();
    watch_ = std::make_unique<GuardWatch>(state_.context(), state_.optimizer());
    watch_->restart(state_.context());
    if (first_rank()) open_folder();
  });
  if (config_.checkpoint.background) {
    const KeepRules keep{config_.checkpoint.keep_last, config_.checkpoint.keep_every};
    const Device device = state_.context().device();
    background_ = std::make_unique<BackgroundCheckpoint>(
        folder_.path, keep, [device](std::size_t bytes) { return transfer_memory(device, bytes); }, writers());
  }
}

// Rank 0 looks, so that all see the same.
void Run::find_folder() {
  ControlChannel& control = ranks_.control();
  control.agree([&] {
    if (first_rank()) folder_ = find_run_folder(config_);
  });
  folder_.path = config_.output_dir;
  folder_.checkpoint = control.broadcast(ControlChannel::kMain, folder_.checkpoint.string());
}

void Run::open_folder() {
  create_run_folder(folder_);
  describe_run(folder_, config_, state_.context().device_name(),
               std::string(name_of(state_.context().round_bf16 ? DType::bf16 : state_.model().dtype())));
  log_to_file(folder_.path / "train.log");
  keep_tokenizer(folder_, shards_);
  metrics_ = std::make_unique<RunMetrics>(folder_.path, step_, config_.train.tensorboard, rollbacks_);
}

void Run::open_loader() {
  const DataConfig& d = config_.data;
  const GroupPlace place = group_place(config_, {ranks_.rank(), ranks_.size()});
  loader_ = std::make_unique<Loader>(LoaderOptions{.paths = {d.train},
                                                   .split = Split::train,
                                                   .seq_len = static_cast<int>(d.seq_len),
                                                   .batch_size = static_cast<int>(d.batch_size),
                                                   .micro_batch_size = static_cast<int>(d.micro_batch_size),
                                                   .rank = place.group,
                                                   .world_size = place.groups,
                                                   .part = place.part,
                                                   .seed = static_cast<std::uint64_t>(config_.seed),
                                                   .start_sample = next_sample_,
                                                   .shuffle = d.shuffle,
                                                   .document_mask = d.document_mask,
                                                   .answers = config_.train.loss_mask == "answers"});
  opened_step_ = step_;
}

void Run::train_step(std::int64_t step) {
  Context& ctx = state_.context();
  const std::int64_t targets = config_.data.batch_size * config_.data.seq_len;
  const float loss_scale = 1.0f / static_cast<float>(targets);
  profiler_.before(step + 1);
  state_.begin_step(ctx, step);
  const std::int64_t first_sample = loader_->next_sample();
  for (int m = 0; m < loader_->micro_steps(); ++m) {
    ranks_.control().at(step + 1, Phase::data);
    const Batch& batch = loader_->next();
    ranks_.control().at(step + 1, Phase::compute);
    state_.micro_step(ctx, batch, loss_scale);
  }
  if (config_.train.loss_mask != "none" && state_.counted_targets() == 0 && first_rank()) {
    clear_bar();
    spdlog::warn("step {}: no target is an answer (train.loss_mask), so its loss is 0 and says nothing", step + 1);
  }
  if (hooks_.before_update) hooks_.before_update(state_, step + 1, first_sample);
  state_.update(ctx, step);
  // From here on this rank waits, for its device and through it for the others.
  ranks_.control().in(Phase::communicate);
  watch_->after_step(ctx);
  profiler_.after(step + 1);
  ++interval_steps_;
}

// One line for each update that was left out; acts on what halted the device. True when the run went back.
bool Run::look_at_guard(bool wait) {
  if (wait) state_.wait_for_micro_steps();
  for (const GuardEvent& e : watch_->news(state_.context(), wait)) {
    if (e.action == GuardAction::rollback && rollbacks_ < config_.train.guard.max_rollbacks) {
      roll_back(e);
      return true;
    }
    if (e.action != GuardAction::skip) report_saved();
    ranks_.control().agree([&] { note(e); });
  }
  return false;
}

void Run::note(const GuardEvent& e) {
  clear_bar();
  const ParameterList& list = state_.model().parameters();
  const std::string what = fmt::format("step {}: {}", e.step, describe(e, list, config_.train.guard.window));
  if (first_rank())
    metrics_->write({{"step", e.step},
                     {"guard/cause", name_of(e.cause)},
                     {"guard/action", name_of(e.action)},
                     {"guard/tensor", tensor_of(e, list)},
                     {"guard/loss", e.loss},
                     {"guard/grad_norm", e.grad_norm}});
  if (e.action == GuardAction::skip) {
    spdlog::warn("{}; the update was left out ({} in a row)", what, e.in_a_row);
    return;
  }
  const auto all = list_checkpoints(folder_.path);
  const std::string kept =
      all.empty() ? "there is no checkpoint yet" : "the last good checkpoint is " + all.back().string();
  const GuardConfig& g = config_.train.guard;
  require(e.action != GuardAction::rollback, "{}; the run went back {} times already (train.guard.max_rollbacks); {}",
          what, g.max_rollbacks, kept);
  require(e.in_a_row <= g.max_skips, "{}; {} updates in a row were left out (train.guard.max_skips = {}); {}", what,
          e.in_a_row, g.max_skips, kept);
  fail("{}; the run stops (train.guard); {}", what, kept);
}

// Back to the last good checkpoint (or the beginning), on with the data behind that of the event's step. Everything
// that is decided here follows from the checkpoint and the step, so that a run that is killed and resumed does it
// again.
void Run::roll_back(const GuardEvent& e) {
  clear_bar();
  report_saved();
  const ParameterList& list = state_.model().parameters();
  const std::filesystem::path newest = newest_checkpoint();
  next_sample_ += (e.step - opened_step_) * config_.data.batch_size;
  ++rollbacks_;
  if (newest.empty()) {
    begin();
    step_ = 0;
  } else {
    ranks_.control().agree([&] { load(newest); });
    state_.publish_weights();
  }
  watch_->restart(state_.context());
  open_loader();
  interval_start_ = Clock::now();
  interval_steps_ = 0;
  if (!first_rank()) return;
  metrics_.reset();
  metrics_ = std::make_unique<RunMetrics>(folder_.path, step_, config_.train.tensorboard, rollbacks_ - 1);
  metrics_->write({{"step", step_},
                   {"rollback", rollbacks_},
                   {"guard/cause", name_of(e.cause)},
                   {"guard/action", "rollback"},
                   {"guard/from_step", e.step},
                   {"guard/tensor", tensor_of(e, list)},
                   {"guard/next_sample", next_sample_}});
  spdlog::warn("step {}: {}; back to {}, and on with the data after that step (rollback {} of {})", e.step,
               describe(e, list, config_.train.guard.window), newest.empty() ? "the beginning" : newest.string(),
               rollbacks_, config_.train.guard.max_rollbacks);
}

// Called when the host has heard of every step so far.
void Run::log_step(std::int64_t done) {
  const StepState state = state_.optimizer().read_state(state_.context());
  const double elapsed = milliseconds_since(interval_start_), steps = static_cast<double>(interval_steps_);
  const double tokens = static_cast<double>(config_.data.batch_size * config_.data.seq_len);
  const double step_ms = elapsed / steps, data_ms = loader_->take_wait_ms() / steps;
  const double exchange = state_.take_exchange_ms() / (state_.context().on_cuda() ? 1 : steps);
  const Slowest slowest = find_slowest(ranks_.control(), {data_ms, exchange, step_ms});
  tokens_per_second_ = tokens / step_ms * 1000.0;
  nlohmann::ordered_json line = {{"step", done},
                                 {"train/loss", state.loss},
                                 {"lr", state_.schedule().at(done - 1)},
                                 {"grad_norm", state.grad_norm},
                                 {"tokens_per_sec", tokens_per_second_},
                                 {"step_ms", step_ms},
                                 {"data_ms", data_ms},
                                 {"skipped_steps", watch_->state().skipped}};
  const double noise = noise_scale(watch_->state());
  if (noise > 0) line["noise_scale"] = noise;
  if (config_.model.attention.k_from > 0) line["train/k"] = mean_features(state_.model().active_features());
  if (const auto distance = state_.distance()) line["train/distill_loss"] = *distance;
  if (const auto balance = state_.balance()) line["train/balance_loss"] = *balance;
  if (config_.train.loss_mask != "none") line["train/answer_tokens"] = state_.counted_targets();
  if (!alone()) {
    line["ranks/slowest"] = slowest.rank;
    line["ranks/slowest_data_ms"] = slowest.times.data;
    line["ranks/slowest_compute_ms"] = slowest.times.compute();
    line["ranks/slowest_exchange_ms"] = slowest.times.exchange;
    line["ranks/fastest_compute_ms"] = slowest.fastest_compute;
  }
  interval_start_ = Clock::now();
  interval_steps_ = 0;
  if (!first_rank()) return;
  metrics_->write(line);
  spdlog::info("step {}/{}  train/loss {:.4f}  lr {:.3g}  grad_norm {:.3f}  {:.1f} ms/step  {:.0f} tok/s{}", done,
               config_.train.max_steps, state.loss, state_.schedule().at(done - 1), state.grad_norm, step_ms,
               tokens_per_second_, noise > 0 ? fmt::format("  noise_scale {:.3g}", noise) : "");
  if (!alone())
    spdlog::info(
        "slowest of {} ranks: {}: data {:.1f}, compute {:.1f} (the fastest: {:.1f}), waiting for others {:.1f} ms",
        ranks_.size(), ranks_.control().name_of_rank(slowest.rank), slowest.times.data, slowest.times.compute(),
        slowest.fastest_compute, slowest.times.exchange);
}

// Behind a step; all ranks get the same answer.
StepVotes::Outcome Run::vote() {
  if (alone()) return {static_cast<int>(stop_signal), false};
  const PhaseScope phase(ranks_.control(), Phase::communicate);
  return votes_.cast({static_cast<int>(stop_signal), watch_->halted()});
}

void Run::validate(std::int64_t done) {
  if (!validation_) return;
  const auto started = Clock::now();
  const PhaseScope phase(ranks_.control(), Phase::validate);
  ContextRing* ring = state_.memory().ring.get();
  if (ring != nullptr) ring->count_waits(false);
  state_.model().anneal_k(1);  // the model as it will be used, whatever this step trained with
  PerplexityRun run{state_.context(),
                    state_.model(),
                    state_.arenas(),
                    state_.losses(),
                    [](void* owner, Context& ctx, const Batch& batch) {
                      return static_cast<TrainingState*>(owner)->upload(ctx, batch);
                    },
                    &state_,
                    {}};
  if (!alone())
    run.sum_over_ranks = [&](double& loss, std::int64_t& tokens, std::int64_t& bytes) {
      sum_texts(ranks_.control(), loss, tokens, bytes);
    };
  const PerplexityResult r = evaluate_perplexity(run, *validation_);
  PerplexityResult average;
  if (config_.train.ema_validation) {
    state_.use_average(true);
    average = evaluate_perplexity(run, *validation_);
    state_.use_average(false);
  }
  nlohmann::ordered_json object = {{"step", done}, {"val/loss", r.loss}, {"val/ppl", r.perplexity}};
  if (r.bits_per_byte > 0) object["val/bits_per_byte"] = r.bits_per_byte;
  if (average.tokens > 0) {
    object["val/ema_loss"] = average.loss;
    object["val/ema_ppl"] = average.perplexity;
  }
  if (first_rank()) metrics_->write(object);
  spdlog::info("step {}  val/loss {:.4f}  val/ppl {:.3f}{}  ({} tokens)", done, r.loss, r.perplexity,
               average.tokens > 0 ? fmt::format("  val/ema_loss {:.4f}", average.loss) : "", r.tokens);
  if (ring != nullptr) ring->count_waits(true);
  interval_start_ += Clock::now() - started;  // validation is not training time
}

int Run::go() {
  const std::int64_t last = config_.train.max_steps;
  const ModelCost cost = state_.model().cost(config_.data.seq_len);
  spdlog::info("{} {}: {:.2f}M parameters, attention {} ({}), {} on {} ({}), {:.2f} GiB planned", config_.model.arch,
               config_.output_dir, cost.parameters / 1e6, config_.model.attention.type, config_.model.attention.impl,
               name_of(state_.model().dtype()), name_of(state_.model().device()), state_.context().device_name(),
               static_cast<double>(state_.memory().bytes()) / (1 << 30));
  spdlog::info("memory: {}", describe(state_.memory().parts()));
  const bool copied = state_.share_gradients();
  if (!alone())
    spdlog::info("{} ranks over {}, {} sequences a {} and micro-step, dist.zero {}{}", ranks_.size(), ranks_.backend(),
                 config_.data.micro_batch_size, config_.dist.context_parallel > 1 ? "group" : "rank", config_.dist.zero,
                 copied ? ", gradients summed by copy engines" : "");
  if (const TrainingMemory& memory = state_.memory(); memory.ring != nullptr) {
    const int together = memory.ring->size();
    const RingBytes hop = ring_bytes_a_hop(config_, state_.model().dtype());
    spdlog::info(
        "{} ranks share a sequence: a hop of a layer carries {} of keys and values, backward {} of their "
        "gradients too{}",
        together, bytes_text(hop.forward), bytes_text(hop.backward_gradients),
        state_.context().on_cuda() ? "; no CUDA graphs" : "");
  }
  if (step_ >= last) {
    spdlog::info("the run is complete: {} of {} steps are done", step_, last);
    return 0;
  }
  std::signal(SIGINT, on_stop);
  std::signal(SIGTERM, on_stop);
  // On a terminal a bar stands below the lines; elsewhere the lines are enough.
  if (first_rank() && isatty(STDERR_FILENO) == 1) bar_.emplace("train", static_cast<std::uint64_t>(last - step_));
  const std::int64_t first = step_;
  interval_start_ = Clock::now();
  while (step_ < last) {
    train_step(step_);
    const std::int64_t done = ++step_;
    if (done == first + 1 && first_rank()) keep_products(state_.context(), folder_.path);
    const StepVotes::Outcome outcome = vote();
    const bool stop = outcome.stop_signal != 0, end = done == last;
    const auto due = [&](std::int64_t every) { return end || (every > 0 && done % every == 0); };
    const bool log = due(config_.train.log_every) || stop, save_now = due(config_.checkpoint.every) || stop;
    const bool validate_now = due(config_.train.eval_every) && !stop;
    if (log || save_now || validate_now) clear_bar();
    // Several ranks look together: when one hears of something is its own affair.
    const bool look = log || save_now || validate_now || outcome.halted;
    if ((alone() || look) && look_at_guard(look)) continue;
    if (log) log_step(done);
    if (validate_now) validate(done);
    if (save_now) {
      const auto started = Clock::now();
      save(done);
      interval_start_ += Clock::now() - started;
    }
    if (saving_ && (stop || end || !background_->writing())) {
      clear_bar();
      report_saved();
    }
    if (stop) {
      spdlog::info("stopped by signal {} at step {} of {}; go on with --resume", outcome.stop_signal, done, last);
      return 0;
    }
    if (bar_)
      bar_->update(static_cast<std::uint64_t>(std::max<std::int64_t>(0, done - first)),
                   fmt::format("step {}/{}  {:.0f} tok/s", done, last, tokens_per_second_));
  }
  return 0;
}

int train(Config config, const MemoryLimits& limits, const TrainHooks& hooks) {
  const auto say = [](const std::string& line) { spdlog::error("{}", line); };
  const auto ranks =
      make_communicator(read_launch(process_environment), choose_device(config.device), config.dist.timeout_s, say);
  ControlChannel& control = ranks->control();
  if (ranks->rank() != 0) spdlog::set_level(spdlog::level::err);  // rank 0 speaks for all
  std::optional<Beginning> beginning;
  int code = 0;
  control.or_give_up([&] {
    control.agree([&] { beginning.emplace(std::move(config), limits, *ranks); });
    code = Run(*beginning, hooks, *ranks).go();
  });
  return code;
}

}  // namespace sfa
