// Sums over the ranks of one machine without NCCL's kernels: each rank pulls what the others hold of its part over
// NVLink or PCIe by copy engines (CUDA IPC), and adds. Streams wait for each other's counters in GPU memory, so that
// neither a thread block nor the host waits. NCCL's kernels hold multiprocessors while they wait and move; a matrix
// product that fills the card then needs another round for a few tiles. The copies leave them alone.
#pragma once

#include <memory>
#include <vector>

#include "core/flat_range.h"
#include "core/tensor.h"
#include "dist/control.h"

struct CUstream_st;  // cudaStream_t is a pointer to it; no header outside of src/cuda includes CUDA

namespace sfa::dist {

class PeerSums {
 public:
  /// Called by all ranks, with tensors of one shape in memory of cudaMalloc. Null on all of them when any can't reach
  /// another's memory: ranks on several machines, cards without peer access, processes that may not share, or
  /// NCCL_P2P_DISABLE set (NCCL's own switch for machines where peer access is broken).
  /// `together`: elements of a part that are pulled at once, as far as a quarter of a GiB serves for all ranks.
  static std::unique_ptr<PeerSums> connect(ControlChannel& control, const Tensor& shared, std::int64_t together);
  ~PeerSums();
  PeerSums(const PeerSums&) = delete;
  PeerSums& operator=(const PeerSums&) = delete;

  [[nodiscard]] bool covers(const Tensor& t) const;
  /// As Communicator::reduce_scatter, queued on `stream`; `t` is covered. Elements are added in the order of ranks,
  /// bf16 in f32 and rounded once, the last of them by add_pulled().
  void reduce_scatter(CUstream_st* stream, const Tensor& t, const std::vector<FlatRange>& parts);
  /// Adds what has been pulled, on a stream that is behind the copies: the one that computes. Beside its kernels, which
  /// fill the card, additions would wait for each to end.
  void add_pulled(CUstream_st* stream);

 private:
  struct Peer {
    void* opened[2] = {};             // by cudaIpcOpenMemHandle
    const std::byte* data = nullptr;  // its shared tensor
    std::uint32_t* counters = nullptr;
  };
  PeerSums(int rank, int size, const Tensor& shared, std::int64_t together);
  void allocate();
  [[nodiscard]] std::string handles() const;
  void open(const std::vector<std::string>& handles);
  void pull(CUstream_st* stream, std::int64_t offset, std::int64_t bytes, bool first, bool last);

  // Counters of a rank: [r] = sums for which rank r has its gradients ready, [size + r] = sums for which rank r has
  // pulled what this one holds.
  [[nodiscard]] std::uint32_t* ready(int of, int by) const { return counters(of) + by; }
  [[nodiscard]] std::uint32_t* pulled(int of, int by) const { return counters(of) + size_ + by; }
  [[nodiscard]] std::uint32_t* counters(int of) const { return peers_[static_cast<std::size_t>(of)].counters; }

  int rank_, size_;
  Tensor shared_;
  std::uint32_t done_ = 0;  // sums so far
  std::uint32_t* counters_ = nullptr;
  std::int64_t piece_;            // bytes
  std::byte* staging_ = nullptr;  // [size - 1, piece_]
  Tensor pulled_;                 // of this rank; the others' elements of it lie in the staging memory
  std::vector<Peer> peers_;
};

}  // namespace sfa::dist
