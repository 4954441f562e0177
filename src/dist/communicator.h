// Communicator: the ranks of a job, one process each, and what they do together with tensors. Three backends:
//   single  one rank; every operation leaves the tensor as it is
//   MPI     tensors in CPU memory
//   NCCL    tensors in GPU memory, on a stream of its own
// Operations on tensors are queued: each begins behind the work queued on the context so far, and join() makes the
// context wait for all of them. On the CPU they are through when they return. Every rank makes the same calls in the
// same order.
//
// Sums are the same bits on every rank and in every run of one layout: over MPI elements are added in the order of the
// ranks, bf16 in f32 and rounded once, and so they are in shared memory of GPUs; over NCCL in the order of its rings,
// which a layout fixes. Whether GPUs share memory is found out at the start (share()).
//
// Models know nothing of ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/flat_range.h"
#include "core/tensor.h"
#include "dist/control.h"
#include "dist/launch.h"

namespace sfa {

/// [0, n) split into `parts` ranges whose bounds are multiples of `alignment`; the last ones may be shorter or empty.
std::vector<FlatRange> split_evenly(std::int64_t n, int parts, std::int64_t alignment);

class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] int rank() const { return launch_.rank; }
  [[nodiscard]] int size() const { return launch_.size; }
  [[nodiscard]] int local_rank() const { return launch_.local_rank; }
  [[nodiscard]] const Launch& launch() const { return launch_; }
  [[nodiscard]] virtual std::string backend() const = 0;
  [[nodiscard]] ControlChannel& control() { return *control_; }

  /// t = sum over ranks. Contiguous; f32, bf16 or i64.
  virtual void all_reduce(Context& ctx, const Tensor& t) = 0;
  /// The same for doubles, whose bits an i64 tensor holds.
  virtual void all_reduce_f64(Context& ctx, const Tensor& bits) = 0;
  /// t[parts[r]] = sum over ranks, on rank r; what rank r holds elsewhere in the parts is undefined afterwards. One
  /// part a rank, in order, without overlap; f32 or bf16.
  virtual void reduce_scatter(Context& ctx, const Tensor& t, const std::vector<FlatRange>& parts) = 0;
  /// Every rank names a tensor of the same shape: where the ranks' GPUs reach each other's memory, reduce_scatter() of
  /// parts of it leaves the multiprocessors to others (dist/peer_sums.h), best where a part has no more than `together`
  /// elements. Until the next tensor, or an empty one, which is named before the memory is given back. Whether it is
  /// so; the same on all ranks.
  virtual bool share(const Tensor& /*t*/, std::int64_t /*together*/ = 0) { return false; }
  /// t[parts[r]] of rank r comes to all.
  virtual void all_gather(Context& ctx, const Tensor& t, const std::vector<FlatRange>& parts) = 0;
  virtual void broadcast(Context& ctx, const Tensor& t, int root) = 0;
  /// Sends `out` to rank `to` while `in` arrives from rank `from`: one hop of a ring. Either may be empty.
  virtual void exchange(Context& ctx, const Tensor& out, int to, const Tensor& in, int from) = 0;
  void send(Context& ctx, const Tensor& t, int to) { exchange(ctx, t, to, {}, rank()); }
  void receive(Context& ctx, const Tensor& t, int from) { exchange(ctx, {}, rank(), t, from); }
  /// Work queued on the context from now on sees the results of all operations so far.
  virtual void join(Context& ctx) = 0;

 protected:
  Communicator(Launch launch, std::unique_ptr<ControlChannel> control)
      : launch_(std::move(launch)), control_(std::move(control)) {}
  Launch launch_;
  std::unique_ptr<ControlChannel> control_;
};

/// One rank, without any library.
std::unique_ptr<Communicator> make_single_communicator();

/// The ranks that the launcher started, for tensors on `device`; one rank when it was none. Takes this rank's GPU
/// (CUDA's current device from then on). Throws Error with one sentence when this build or this machine can't serve the
/// launch. `line` prints a fault's line (dist/control.h).
std::unique_ptr<Communicator> make_communicator(const Launch& launch, Device device, double timeout_s,
                                                std::function<void(const std::string&)> line);

}  // namespace sfa
