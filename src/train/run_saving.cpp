// Checkpoints of a run: written by all ranks, each its part, and read by any number of them.
#include "core/build_config.h"
#include "core/log.h"
#include "train/products_file.h"
#include "train/run.h"

namespace sfa {

// Empty before the first.
std::filesystem::path Run::newest_checkpoint() {
  const auto all = list_checkpoints(folder_.path);
  return ranks_.control().broadcast(ControlChannel::kMain, all.empty() ? "" : all.back().string());
}

WriterGroup Run::writers() {
  if (alone()) return {};
  return {ranks_.rank(), [&control = ranks_.control()](const std::string& mine) {
            return control.gather(ControlChannel::kCheckpoint, mine);
          }};
}

namespace {

// The part of a configuration that decides the meaning of the weights and of the place in the data.
Config identity(const Config& config) {
  Config c;
  c.output_dir = "-";
  c.model = config.model;
  c.model.attention.impl = "auto";
  c.model.recompute = "none";
  c.model.attention.kv_cache = "full";
  c.model.attention.distill_lambda = 0;
  c.model.attention.balance = 0;
  c.model.attention.k_from = 0;
  c.data.seq_len = config.data.seq_len;
  c.data.shuffle = config.data.shuffle;
  c.seed = config.seed;
  return c;
}

}  // namespace

// At step 0: seeded weights, or those of init_from.
void Run::begin() {
  const ParameterList& list = state_.model().parameters();
  ranks_.control().agree([&] { start_.check(config_, list, shards_); });
  state_.initialize(static_cast<std::uint64_t>(config_.seed), [&](const Tensor& flat) { start_.read(list, flat); });
}

void Run::resume() {
  CheckpointReader reader(folder_.checkpoint);
  const Config saved = parse_config(reader.config_yaml(), folder_.checkpoint.string(), {});
  const auto [before, now] = first_difference(identity(saved), identity(config_));
  require(before.empty(),
          "{}: can't be resumed with another model or data order: it was saved with '{}', this configuration has '{}'",
          folder_.checkpoint.string(), before, now);
  const auto& saved_state = reader.state();
  require(saved_state.value("tokenizer_hash", "") == shards_.tokenizer_hash(),
          "{}: was trained on data of another tokenizer ({}) than {} has ({})", folder_.checkpoint.string(),
          saved_state.value("tokenizer", "unknown"), shards_.describe(), shards_.tokenizer_name());
  load(folder_.checkpoint);
  next_sample_ = saved_state.at("next_sample").get<std::int64_t>();
  rollbacks_ = saved_state.value("rollbacks", std::int64_t{0});
  restore_products(state_.context(), folder_.path);
  spdlog::info("resuming {} at step {}", folder_.checkpoint.string(), step_);
}

// Masters, moments, average, guard and step; the place in the data and the published weights are the caller's.
void Run::load(const std::filesystem::path& checkpoint) {
  CheckpointReader reader(checkpoint);
  Context& ctx = state_.context();
  const ParameterList& list = state_.model().parameters();
  const ParameterBuffers& buffers = state_.buffers();
  const bool averaged = reader.tensors().contains("ema/" + list.all().front().name);
  for (const auto& [prefix, flat] : saved_buffers())
    if (flat.data != buffers.ema.data || averaged)
      read_parameters(ctx, reader, list, prefix, FlatPart{flat, buffers.owned.begin});
  if (!buffers.ema.empty() && !averaged) {
    spdlog::info("{}: has no average of the weights; it begins here", checkpoint.string());
    state_.reset_average();
  }
  const SavedGuard guard =
      parse_guard(reader.state(), reader.step(), state_.optimizer().options().guard_window, checkpoint.string());
  state_.optimizer().write_guard(ctx, guard.state, guard.window);
  step_ = reader.step();
}

// What a rank holds of the state, with the names in checkpoints.
std::vector<std::pair<const char*, Tensor>> Run::saved_buffers() const {
  const ParameterBuffers& b = state_.buffers();
  std::vector<std::pair<const char*, Tensor>> all{{"param", b.master}, {"adam_m", b.m}, {"adam_v", b.v}};
  if (!b.ema.empty()) all.emplace_back("ema", b.ema);
  return all;
}

void Run::save(std::int64_t done) {
  Context& ctx = state_.context();
  const ParameterList& list = state_.model().parameters();
  const FlatRange& owned = state_.buffers().owned;
  const PhaseScope phase(ranks_.control(), Phase::save);
  ranks_.control().agree([&] {
    const std::string spoilt = state_.first_not_finite();
    require(spoilt.empty(), "step {}: '{}' is not finite; it is not saved, the last checkpoint stays the last good one",
            done, spoilt);
  });
  // Each rank writes what it owns, or its share of what all have.
  const std::vector<FlatRange> shares = split_evenly(list.flat_size(), ranks_.size(), ParameterList::kAlignment);
  const FlatRange mine = state_.buffers().sharded() ? owned : shares[static_cast<std::size_t>(ranks_.rank())];
  const GuardState& guard = watch_->state();
  const nlohmann::json state = {{"step", done},
                                {"next_sample", loader_->next_sample()},
                                {"rollbacks", rollbacks_},
                                {"guard", guard_json(guard, state_.optimizer().read_window(ctx))},
                                {"seed", config_.seed},
                                {"arch", config_.model.arch},
                                {"tokenizer", shards_.tokenizer_name()},
                                {"tokenizer_hash", shards_.tokenizer_hash()},
                                {"vocab_size", config_.model.vocab_size},
                                {"sfa_version", kVersion}};
  if (background_) {
    report_saved();
    for (const auto& [prefix, flat] : saved_buffers())
      copy_parameters(ctx, *background_, list, prefix, {flat, owned.begin}, mine);
    ctx.synchronize();
    background_->start(done, state, dump_config(config_));
    saving_ = true;
    return;
  }
  const auto fill = [&](CheckpointWriter& writer) {
    for (const auto& [prefix, flat] : saved_buffers())
      add_parameters(ctx, writer, list, prefix, {flat, owned.begin}, mine);
  };
  const auto folder = write_together(writers(), folder_.path, done, fill, state, dump_config(config_));
  prune_together(writers(), folder_.path, {config_.checkpoint.keep_last, config_.checkpoint.keep_every});
  spdlog::info("saved {}", folder.string());
}

// Waits for a checkpoint in the background and says where it is; throws the Error when it could not be.
void Run::report_saved() {
  if (!std::exchange(saving_, false)) return;
  const PhaseScope phase(ranks_.control(), Phase::idle);
  spdlog::info("saved {}", background_->wait().string());
}

}  // namespace sfa
