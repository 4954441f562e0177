// Checkpoints. A checkpoint is a folder, `step_00001000`, that appears whole or not at all:
//   rank_00000.h5, ...   one HDF5 file a writer: pieces (tensor, range of elements), contiguous datasets, one checksum each
//   manifest.json        written last: format version, step, every tensor with dtype, shape and pieces, every file with its size, the
//                        run's state (step, place in the data, seed, ...), its resolved configuration
// It is written under a temporary name in the same folder, every file and the folder are fsynced, then renamed. A reader trusts nothing
// without a manifest and checks every checksum. Tensors are stored by flat ranges, so that any number of ranks can write side by side and
// any other number can read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace sfa {

inline constexpr int kCheckpointVersion = 1;

/// A tensor as a checkpoint knows it: "param/h.0.attn.qkv.weight", "adam_m/...".
struct CheckpointTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  [[nodiscard]] std::int64_t numel() const;
};

/// Writes one checkpoint. Single writer: begin, add..., publish. Several ranks: each constructs a writer with its rank and the same folder, adds
/// its pieces, calls finish_file(); rank 0 then merges the other ranks' piece lists and calls publish().
class CheckpointWriter {
 public:
  /// Creates the temporary folder `<run>/.step_XXXXXXXX.tmp` (replacing a stale one) and this rank's file.
  CheckpointWriter(std::filesystem::path run_folder, std::int64_t step, int rank = 0);
  /// Without publish() the temporary folder is removed.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Elements [begin, begin + count) of the tensor; `data` is CPU memory of its dtype.
  void add(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count, const void* data);
  /// Closes and fsyncs this rank's file and returns its piece list (to be sent to rank 0).
  nlohmann::json finish_file();
  /// Rank 0: writes the manifest over all piece lists, fsyncs, renames; returns the final folder.
  std::filesystem::path publish(const std::vector<nlohmann::json>& piece_lists, const nlohmann::json& state,
                                const std::string& config_yaml);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Opens a finished checkpoint: reads and validates the manifest, file sizes included.
class CheckpointReader {
 public:
  /// `folder` is a checkpoint folder. Throws Error with one sentence when it is missing, unfinished, truncated or of another version.
  explicit CheckpointReader(std::filesystem::path folder);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  [[nodiscard]] const std::filesystem::path& folder() const;
  [[nodiscard]] std::int64_t step() const;
  [[nodiscard]] const nlohmann::json& state() const;
  [[nodiscard]] const std::string& config_yaml() const;
  [[nodiscard]] const std::map<std::string, CheckpointTensor>& tensors() const;

  /// Reads elements [begin, begin + count) of a tensor into CPU memory of its dtype, assembling pieces; verifies the checksum of every
  /// piece touched (once a reader). Throws Error naming file and tensor when bits have changed.
  void read(const std::string& name, std::int64_t begin, std::int64_t count, void* out);
  /// Checks every piece.
  void verify();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// `path` may be a checkpoint folder, or a run folder: then its newest finished checkpoint. Throws Error when there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
/// All finished checkpoints of a run folder, oldest first; unfinished ones (temporary names, no manifest) are never listed.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& run_folder);
/// Deletes old checkpoints: keeps the newest `keep_last` and every one whose step is a multiple of `keep_every` (0 = none). A folder is renamed
/// to a temporary name before its files are deleted, so that a kill leaves nothing half-deleted under a good name. Also removes stale temporary
/// folders.
void prune_checkpoints(const std::filesystem::path& run_folder, int keep_last, std::int64_t keep_every);

}  // namespace sfa
