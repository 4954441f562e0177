// Checkpoints. A checkpoint is a folder, `step_00001000`, that appears whole or not at all:
//   rank_00000.h5, ...   one HDF5 file a writer: a contiguous dataset for each (tensor, range of elements)
//   manifest.json        written last: format version, step, every file with its size, every tensor with dtype, shape
//   and pieces (file, offset,
//                        range, a checksum for every 4 MiB), the run's state (step, place in the data, seed, ...), its
//                        resolved configuration
// It is written under a temporary name in the same folder, every file and the folder are fsynced, then renamed. A
// reader trusts nothing without a manifest and checks every checksum. Tensors are stored by flat ranges, so that any
// number of ranks can write side by side and any other number can read. Every failure is an Error with one sentence,
// and leaves the checkpoints that were there as they were.
#pragma once

#include <cstdint>
#include <filesystem>
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

/// Writes one checkpoint. One writer: add()..., finish_file(), publish({list}, ...). Several ranks: each constructs a
/// writer with its rank and the same folder (in any order), adds its pieces and calls finish_file(); rank 0 gathers the
/// piece lists and calls publish().
class CheckpointWriter {
 public:
  /// Creates `<run>/.step_XXXXXXXX.tmp` where it is missing, parents included, and this rank's file in it; a stale one
  /// is written over. Throws Error when the folder cannot be written or another process is writing the same file.
  CheckpointWriter(std::filesystem::path run_folder, std::int64_t step, int rank = 0);
  /// Without publish(), rank 0 removes the temporary folder with all that is in it, another rank the file that it has
  /// not finished.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Elements [begin, begin + count) of the tensor, row-major; `data` is CPU memory of its dtype, written before add()
  /// returns. With count 0 the tensor is only named. Over all ranks every element must be added exactly once: publish()
  /// refuses gaps and overlaps.
  void add(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count, const void* data);
  /// Closes and fsyncs this rank's file and returns its piece list (to be sent to rank 0).
  nlohmann::json finish_file();
  /// Rank 0: writes the manifest over all piece lists, fsyncs, renames; returns the final folder. A checkpoint of the
  /// same step is replaced without a moment at which neither is there. `state` is a JSON object without NaN and
  /// infinity, the configuration is UTF-8.
  std::filesystem::path publish(const std::vector<nlohmann::json>& piece_lists, const nlohmann::json& state,
                                const std::string& config_yaml);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Opens a finished checkpoint: reads and validates the manifest, file sizes included. Not for several threads at once.
class CheckpointReader {
 public:
  /// `folder` is a checkpoint folder. Throws Error with one sentence when it is missing, unfinished, damaged, truncated
  /// or of another version.
  explicit CheckpointReader(std::filesystem::path folder);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  [[nodiscard]] const std::filesystem::path& folder() const;
  [[nodiscard]] std::int64_t step() const;
  [[nodiscard]] const nlohmann::json& state() const;
  [[nodiscard]] const std::string& config_yaml() const;
  [[nodiscard]] const std::map<std::string, CheckpointTensor>& tensors() const;
  /// Size of all files but the manifest.
  [[nodiscard]] std::int64_t bytes() const;

  /// Throws Error, naming what is stored, unless the tensor is there with this dtype and shape.
  void expect(const CheckpointTensor& tensor) const;
  /// Reads elements [begin, begin + count) of a tensor into CPU memory of its dtype, assembling pieces; verifies the
  /// checksum of every block (4 MiB) touched, once a reader. Throws Error naming file and tensor when bits have
  /// changed, the tensor when there is none of that name.
  void read(const std::string& name, std::int64_t begin, std::int64_t count, void* out);
  /// Reads everything and checks every checksum, those of HDF5's own structures included.
  void verify();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// `path` may be a checkpoint folder, or a run folder: then its newest finished checkpoint. Throws Error when there is
/// none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
/// All finished checkpoints of a run folder, oldest first; unfinished ones (temporary names, no manifest) are never
/// listed. Empty when the folder does not exist.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& run_folder);
/// Deletes old checkpoints: keeps the newest `keep_last` (0 = all) and every one whose step is a multiple of
/// `keep_every` (0 = none). Returns what it deleted, under their old names. A folder is renamed to a temporary name
/// before its files are deleted, so that a kill leaves nothing half-deleted under a good name. Also removes stale
/// temporary folders, but none that a living writer holds.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& run_folder, std::int64_t keep_last,
                                                     std::int64_t keep_every);

}  // namespace sfa
