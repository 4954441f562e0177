// The product of queries and keys, S = Q K^T, as a policy of the forward core. A policy owns how a tile's query operand
// comes into shared memory (fetch, by the producer), what a warpgroup keeps of it (Fragment), and the issue of the
// products. Keys lie in shared memory as panels of 64 features: kKeys rows of 128 bytes, 128-byte swizzle.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/flash/forward_schedule.cuh"
#include "attention/flash/select24.h"
#include "cuda/sm90.cuh"

namespace sfa::flash {

__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Query rows by tensor TMA, panels of 64 features x kRows rows, 128-byte swizzle. TMA writes zeros for features that
/// do not exist.
template <int kDqk, int kRows>
struct DenseTile {
  static constexpr int kPanels = (kDqk + 63) / 64;
  static constexpr int kTileBytes = kRows * kPanels * 128;

  static __device__ __forceinline__ void fetch(const ForwardArgs&, const CUtensorMap* map, unsigned char* tile,
                                               sm90::Barrier* full, const Tile& at) {
    sm90::barrier_expect(full, kTileBytes);
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel)
      sm90::tma_load_4d(tile + panel * kRows * 128, map, full, panel * 64, at.row, at.head, at.batch,
                        sm90::kEvictFirst);
  }
};

/// Dense, queries read from shared memory by every product: no registers, 1.5 times the shared-memory traffic.
template <int kDqk_, int kRows, int kKeys>
struct DenseShared : DenseTile<kDqk_, kRows> {
  static constexpr int kDqk = kDqk_;
  static constexpr bool kHoldsTile = true;  // the tile must stay until the last product

  struct Fragment {
    std::uint64_t descriptor;
  };

  static __device__ __forceinline__ void load(Fragment& f, unsigned char* tile, int warpgroup) {
    f.descriptor = sm90::swizzle128_descriptor(sm90::smem_address(tile) + warpgroup * 64 * 128);
  }

  template <int kColumns>
  static __device__ __forceinline__ void issue(float (&s)[kColumns / 2], const Fragment& f, std::uint32_t keys) {
    const std::uint64_t k = sm90::swizzle128_descriptor(keys);
#pragma unroll
    for (int step = 0; step < kDqk / 16; ++step)
      sm90::Wgmma<kColumns>::ss(s, sm90::descriptor_advance(f.descriptor, (step / 4) * kRows * 128 + (step % 4) * 32),
                                sm90::descriptor_advance(k, (step / 4) * kKeys * 128 + (step % 4) * 32), step > 0);
  }
};

/// Dense, queries in registers: kDqk / 4 of them, and the tile is free as soon as they are loaded.
template <int kDqk_, int kRows, int kKeys>
struct DenseRegisters : DenseTile<kDqk_, kRows> {
  static constexpr int kDqk = kDqk_;
  static constexpr bool kHoldsTile = false;

  struct Fragment {
    std::uint32_t a[kDqk / 16][4];
  };

  static __device__ __forceinline__ void load(Fragment& f, unsigned char* tile, int warpgroup) {
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
    const int row = warpgroup * 64 + warp * 16 + (lane & 15);
    const std::uint32_t base = sm90::smem_address(tile);
#pragma unroll
    for (int step = 0; step < kDqk / 16; ++step) {
      const int chunk = 2 * (step % 4) + (lane >> 4);
      load_matrix_x4(f.a[step], base + (step / 4) * kRows * 128 + sm90::swizzle128_offset(row, chunk));
    }
  }

  template <int kColumns>
  static __device__ __forceinline__ void issue(float (&s)[kColumns / 2], const Fragment& f, std::uint32_t keys) {
    const std::uint64_t k = sm90::swizzle128_descriptor(keys);
#pragma unroll
    for (int step = 0; step < kDqk / 16; ++step)
      sm90::Wgmma<kColumns>::rs(s, f.a[step], sm90::descriptor_advance(k, (step / 4) * kKeys * 128 + (step % 4) * 32),
                                step > 0);
  }
};

/// 2:4 sparse: queries compressed, in registers (kDqk / 8 words of values, kDqk / 64 of metadata); half the tensor
/// time.
template <int kDqk_, int kRows, int kKeys>
struct Sparse24 {
  static constexpr int kDqk = kDqk_;
  static constexpr bool kHoldsTile = false;
  static constexpr int kBlockBytes = compressed_block_bytes(kDqk);
  static constexpr int kTileBytes = kRows / 64 * kBlockBytes;
  static constexpr int kSteps = kDqk / 32;

  struct Fragment {
    std::uint32_t a[kSteps][4];
    std::uint32_t meta[(kSteps + 1) / 2];
  };

  static __device__ __forceinline__ void fetch(const ForwardArgs& args, const CUtensorMap*, unsigned char* tile,
                                               sm90::Barrier* full, const Tile& at) {
    const int row_blocks = (args.shape.Tq + 63) / 64;
    const int first = at.row / 64;
    const std::uint32_t bytes = static_cast<std::uint32_t>(min(kRows / 64, row_blocks - first) * kBlockBytes);
    const auto* source =
        static_cast<const unsigned char*>(args.q_compressed) +
        ((static_cast<std::int64_t>(at.batch) * args.shape.H + at.head) * row_blocks + first) * kBlockBytes;
    sm90::barrier_expect(full, bytes);
    sm90::tma_load_bulk(tile, source, bytes, full);
  }

  static __device__ __forceinline__ void load(Fragment& f, unsigned char* tile, int warpgroup) {
    const int thread = threadIdx.x & 127;
    const unsigned char* block = tile + warpgroup * kBlockBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint4 v = reinterpret_cast<const uint4*>(block)[step * 128 + thread];
      f.a[step][0] = v.x;
      f.a[step][1] = v.y;
      f.a[step][2] = v.z;
      f.a[step][3] = v.w;
    }
    const auto* meta = reinterpret_cast<const std::uint32_t*>(block + kSteps * 128 * 16);
#pragma unroll
    for (int pair = 0; pair < (kSteps + 1) / 2; ++pair) f.meta[pair] = meta[pair * 128 + thread];
  }

  template <int kColumns>
  static __device__ __forceinline__ void issue(float (&s)[kColumns / 2], const Fragment& f, std::uint32_t keys) {
    const std::uint64_t k = sm90::swizzle128_descriptor(keys);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const std::uint64_t at = sm90::descriptor_advance(k, (step / 2) * kKeys * 128 + (step % 2) * 64);
      if (step % 2 == 0)
        sm90::Wgmma<kColumns>::template sparse_rs<0>(s, f.a[step], f.meta[step / 2], at, step > 0);
      else
        sm90::Wgmma<kColumns>::template sparse_rs<1>(s, f.a[step], f.meta[step / 2], at, step > 0);
    }
  }
};

}  // namespace sfa::flash
