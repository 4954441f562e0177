#include "checkpoint/background.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <csignal>
#include <exception>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"

namespace sfa {
namespace fs = std::filesystem;

struct BackgroundCheckpoint::Impl {
  struct Block {
    CheckpointTensor tensor;
    std::int64_t begin = 0, count = 0;
    std::shared_ptr<void> memory;
    std::size_t capacity = 0;
  };

  fs::path run_folder;
  KeepRules keep;
  Allocate allocate;
  WriterGroup group;
  std::vector<Block> blocks;  // the first `used` are those of the copy being made or written
  std::size_t used = 0;
  bool sealed = false;  // started or discarded: the next reserve() begins a new copy

  std::thread thread;
  std::atomic<bool> writing{false};
  std::exception_ptr error;  // of the thread, read after join
  fs::path newest;

  void write(std::int64_t step, const nlohmann::json& state, const std::string& config_yaml) {
    try {
      const auto fill = [&](CheckpointWriter& writer) {
        for (std::size_t i = 0; i < used; ++i)
          writer.add(blocks[i].tensor, blocks[i].begin, blocks[i].count, blocks[i].memory.get());
      };
      newest = write_together(group, run_folder, step, fill, state, config_yaml);
      prune_together(group, run_folder, keep);
    } catch (...) {
      error = std::current_exception();
    }
    writing = false;
  }

  void join() {
    if (thread.joinable()) thread.join();
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }
};

namespace {

// What a writer tells the others: its list of pieces, or why it has none.
std::string told(CheckpointWriter* writer, const std::string& failure) {
  try {
    require(failure.empty(), "{}", failure);
    return nlohmann::json{{"pieces", writer->finish_file()}}.dump();
  } catch (const std::exception& e) {
    return nlohmann::json{{"failure", e.what()}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
}

// Finishes the writer's file, and with those of all ranks the checkpoint. `failure` is this writer's, empty when there
// is none.
fs::path finish_together(const WriterGroup& group, CheckpointWriter* writer, const std::string& failure,
                         const nlohmann::json& state, const std::string& config_yaml) {
  if (!group.gather) {
    require(failure.empty(), "{}", failure);
    return writer->publish({writer->finish_file()}, state, config_yaml);
  }
  std::vector<nlohmann::json> lists;
  int rank = 0;
  for (const std::string& text : group.gather(told(writer, failure))) {
    const nlohmann::json said = nlohmann::json::parse(text);
    require(said.contains("pieces"), "rank {} could not write its part of a checkpoint: {}", rank,
            said.value("failure", ""));
    lists.push_back(said["pieces"]);
    ++rank;
  }
  // The others learn from rank 0 how it ended.
  nlohmann::json end;
  if (group.rank == 0) try {
      end["folder"] = writer->publish(lists, state, config_yaml).string();
    } catch (const std::exception& e) {
      end["failure"] = e.what();
    }
  end = nlohmann::json::parse(group.gather(end.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)).front());
  require(end.contains("folder"), "{}", end.value("failure", ""));
  return end["folder"].get<std::string>();
}

}  // namespace

fs::path write_together(const WriterGroup& group, const fs::path& run_folder, std::int64_t step,
                        const std::function<void(CheckpointWriter&)>& fill, const nlohmann::json& state,
                        const std::string& config_yaml) {
  std::optional<CheckpointWriter> writer;
  std::string failure;
  try {
    writer.emplace(run_folder, step, group.rank);
    fill(*writer);
  } catch (const std::exception& e) {
    if (!group.gather) throw;
    failure = e.what();
  }
  return finish_together(group, writer ? &*writer : nullptr, failure, state, config_yaml);
}

void prune_together(const WriterGroup& group, const std::filesystem::path& run_folder, const KeepRules& keep) {
  std::exception_ptr error;
  try {
    if (group.rank == 0) prune_checkpoints(run_folder, keep.keep_last, keep.keep_every);
  } catch (...) {
    error = std::current_exception();
  }
  if (group.gather) group.gather("");
  if (error) std::rethrow_exception(error);
}

BackgroundCheckpoint::BackgroundCheckpoint(fs::path run_folder, KeepRules keep, Allocate allocate, WriterGroup group)
    : impl_(std::make_unique<Impl>()) {
  impl_->group = std::move(group);
  impl_->run_folder = std::move(run_folder);
  impl_->keep = keep;
  impl_->allocate = allocate ? std::move(allocate) : [](std::size_t bytes) {
    return std::shared_ptr<void>(::operator new(bytes), [](void* memory) { ::operator delete(memory); });
  };
}

BackgroundCheckpoint::~BackgroundCheckpoint() {
  try {
    impl_->join();
  } catch (const std::exception& error) {
    spdlog::error("a checkpoint was not written: {}", error.what());
  }
}

void* BackgroundCheckpoint::reserve(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count) {
  impl_->join();
  require(count >= 0, "internal error: {} elements of tensor '{}' are to be saved", count, tensor.name);
  if (std::exchange(impl_->sealed, false)) impl_->used = 0;
  if (impl_->used == impl_->blocks.size()) impl_->blocks.emplace_back();
  Impl::Block& block = impl_->blocks[impl_->used];
  const std::size_t bytes = static_cast<std::size_t>(count) * size_of(tensor.dtype);
  if (block.capacity < bytes || !block.memory) {
    block.memory.reset();
    block.capacity = 0;
    try {
      block.memory = impl_->allocate(bytes);
    } catch (const std::bad_alloc&) {
    }
    require(block.memory != nullptr,
            "there is not enough memory to save in the background: {} bytes for '{}' after {}; save in the foreground",
            bytes, tensor.name, memory_bytes());
    block.capacity = bytes;
  }
  block.tensor = tensor;
  block.begin = begin;
  block.count = count;
  ++impl_->used;
  return block.memory.get();
}

void BackgroundCheckpoint::start(std::int64_t step, nlohmann::json state, std::string config_yaml) {
  impl_->join();
  require(impl_->used > 0 && !impl_->sealed, "internal error: a checkpoint is started without tensors");
  impl_->sealed = true;
  impl_->writing = true;
  // Signals belong to the thread that trains: the writer's would only be interrupted by them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    impl_->thread = std::thread(
        [this, step, state = std::move(state), config = std::move(config_yaml)] { impl_->write(step, state, config); });
  } catch (const std::system_error& error) {
    impl_->writing = false;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    fail("cannot start a thread that writes the checkpoint: {}", error.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

fs::path BackgroundCheckpoint::wait() {
  impl_->join();
  return impl_->newest;
}

bool BackgroundCheckpoint::writing() const {
  return impl_->writing;
}

void BackgroundCheckpoint::discard() {
  impl_->sealed = true;
}

std::size_t BackgroundCheckpoint::memory_bytes() const {
  std::size_t total = 0;
  for (const auto& block : impl_->blocks) total += block.capacity;
  return total;
}

}  // namespace sfa
