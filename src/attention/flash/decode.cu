// Checks, division of the work and choice of the kernel for decoding.
#include "attention/flash/decode.h"

#include <algorithm>
#include <limits>

#include "attention/flash/decode_args.cuh"
#include "attention/flash/flash_checks.h"
#include "core/error.h"
#include "ops/select/support_format.h"

namespace sfa::flash {
namespace {

/// Tiles a warp of a part at least: fewer, and starting the block costs more than its work.
constexpr int kMinimumTiles = 2;

int rows_of(const Shape& s) {
  return s.H / s.G * s.Tq;
}
int row_blocks_of(const Shape& s) {
  return (rows_of(s) + kUnitRows - 1) / kUnitRows;
}
std::int64_t units_of(const Shape& s) {
  return std::int64_t{s.B} * s.G * row_blocks_of(s);
}

constexpr const char* kOp = "attention decode";

void check_int8(const Strides& rows, const void* scales, const Strides& scale) {
  require(
      (rows.batch | rows.token | rows.head) % 16 == 0 && reinterpret_cast<std::uintptr_t>(scales) % 16 == 0 &&
          (scale.batch | scale.head) % 8 == 0 && scale.token == 1,
      "attention decode: int8 rows are whole pieces of 16 bytes, and their scales follow each other over the tokens "
      "of a head");
}

void check(const DecodeParams& p) {
  const Shape& s = p.shape;
  require(decode_supported(s),
          "attention decode: head sizes must be multiples of 8 up to 256, not {} (q, k) and {} (v)", s.Dqk, s.Dv);
  require_shape(kOp, s);
  require(units_of(s) + kDecodeParts < std::numeric_limits<int>::max(), "attention decode: batch of {} is too large",
          s.B);
  require(p.scale > 0, "attention decode: the scale must be positive, not {}", p.scale);
  require(p.lse != nullptr && p.workspace != nullptr && p.out != nullptr,
          "attention decode: out, lse and workspace must be set");
  if (p.k_sparse.k > 0) {
    const SparseRows& keys = p.k_sparse;
    const Strides &values = keys.values_stride, &support = keys.support_stride;
    const auto aligned = [](const void* data, std::int64_t step) {
      return data != nullptr && (reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(step)) % 16 == 0;
    };
    require(values.token == keys.k && support.token == keys.support_bytes() &&
                aligned(keys.values, 2 * (values.batch | values.head)) &&
                aligned(keys.support, support.batch | support.head),
            "attention decode: the {} features of sparse keys must follow each other over the tokens of a head, which "
            "must start at multiples of 16 bytes",
            keys.k);
    require(keys.mask_bytes == 0 || keys.mask_bytes == mask_bytes(s.Dqk),
            "attention decode: masks of {} features have {} bytes, not {}", s.Dqk, mask_bytes(s.Dqk), keys.mask_bytes);
    require(decode_sparse_fits(s, keys.row_bytes()),
            "attention decode: {} query rows of a key head leave no room for sparse keys of {} bytes", rows_of(s),
            keys.row_bytes());
    require(
        p.q_sparse.values != nullptr && p.q_sparse.support != nullptr && p.q_sparse.k > 0 && p.q_sparse.mask_bytes == 0,
        "attention decode: sparse keys want sparse queries, with numbers");
  } else {
    require_aligned(kOp, "q", p.q, p.q_stride);
    require_aligned(kOp, "k", p.k, p.k_stride);
    require((p.k_scale != nullptr) == (p.v_scale != nullptr),
            "attention decode: dense keys and their values are both int8 or neither");
    if (p.k_scale != nullptr) check_int8(p.k_stride, p.k_scale, p.k_scale_stride);
  }
  require_aligned(kOp, "v", p.v, p.v_stride);
  if (p.v_scale != nullptr) check_int8(p.v_stride, p.v_scale, p.v_scale_stride);
}

}  // namespace

bool decode_supported(const Shape& s) {
  return s.Dqk >= 8 && s.Dqk <= 256 && s.Dqk % 8 == 0 && s.Dv >= 8 && s.Dv <= 256 && s.Dv % 8 == 0;
}

std::size_t decode_workspace_bytes(const Shape& s) {
  const std::int64_t rows = (kDecodeParts + units_of(s)) * std::min(rows_of(s), kUnitRows);
  return static_cast<std::size_t>(rows * (s.Dv + 2)) * sizeof(float);
}

cudaError_t Residency::find(const void* kernel, int threads, int shared_bytes) {
  int current = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&current);
  if (status != cudaSuccess || (current == device && shared_bytes == bytes)) return status;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status == cudaSuccess)
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, current);
  if (status != cudaSuccess) return status;
  if (blocks == 0) return cudaErrorInvalidConfiguration;
  blocks *= processors;
  device = current;
  bytes = shared_bytes;
  return cudaSuccess;
}

void split_decode(DecodeArgs& a, int tokens, int warps, int blocks) {
  const Shape& s = a.p.shape;
  const Ranges& r = a.p.ranges;
  const std::int64_t last = std::int64_t{r.query_offset} + s.Tq;  // one after the last row's position
  const std::int64_t hi = r.causal ? std::clamp<std::int64_t>(last, 0, s.Tk) : s.Tk;
  const std::int64_t lo =
      r.window > 0 ? std::clamp<std::int64_t>(std::int64_t{r.query_offset} + 1 - r.window, 0, hi) : 0;
  a.split.units = static_cast<int>(units_of(s));
  a.split.first_tile = static_cast<int>(lo / tokens);
  a.split.tiles = static_cast<int>((hi + tokens - 1) / tokens - lo / tokens);
  if (lo >= hi) a.split.tiles = 0;
  const std::int64_t most = std::min(kDecodeParts, blocks);
  a.split.parts = static_cast<int>(std::clamp<std::int64_t>(a.split.all() / (warps * kMinimumTiles), 1, most));
  a.rows = rows_of(s);
  a.row_blocks = row_blocks_of(s);
  a.scale_log2 = a.p.scale * 1.4426950408889634f;
  a.partial_out = static_cast<float*>(a.p.workspace);
  const std::int64_t slots = std::int64_t{a.split.parts} + a.split.units;
  a.partial_stats = reinterpret_cast<float2*>(a.partial_out + slots * a.unit_rows() * s.Dv);
}

void decode(const DecodeParams& params, void* stream) {
  check(params);
  DecodeArgs args;
  args.p = params;
  const cudaError_t status = params.k_sparse.k > 0 ? decode_sparse(args, static_cast<cudaStream_t>(stream))
                                                   : decode_dense(args, static_cast<cudaStream_t>(stream));
  require(status == cudaSuccess, "attention decode failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
