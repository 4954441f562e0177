// Warpgroup matrix products (wgmma) in bf16 with f32 accumulators, dense and 2:4 sparse, and their operand layouts.
//
//   D[64 x N] (+)= A[64 x Kstep] * B[Kstep x N]      Kstep = 16 dense, 32 sparse (A then stores 2 of every 4 columns)
//
// Fragments of thread t of the warpgroup, warp w = t / 32, g = (t % 32) / 4, q = t % 4:
//   D: d[4 j + 2 h + c]  is row 16 w + g + 8 h, column 8 j + 2 q + c                              (h, c in {0, 1})
//   A: a[2 i + h]        holds row 16 w + g + 8 h, stored columns 8 i + 2 q and 8 i + 2 q + 1       (i, h in {0, 1})
// so D of one product, rounded to bf16 pairs, is A of the next: step s takes pairs of d[8 s .. 8 s + 7].
// Sparse metadata, selector 0 (1): threads q in {0, 1} (q in {2, 3}) supply a word for stored columns' groups: low 16
// bits row g, high 16 bits row g + 8; nibble c describes the group of four neighbouring columns 16 (q % 2) + 4 c of the
// step: bits 0-1 the position of the first stored value, bits 2-3 that of the second, first < second. Reference: PTX
// ISA, "Asynchronous warpgroup-level matrix multiply-accumulate"; limits.md has measured rates.
#pragma once

#include <cstdint>

#include "cuda/sm90_barrier.cuh"

namespace sfa::sm90 {

/// Registers and shared memory written before it are visible to the wgmma that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Returns when at most kPending committed groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving accesses of an accumulator across this point (put it beside waits).
template <int kCount>
__device__ __forceinline__ void wgmma_pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Which index of an operand is contiguous in shared memory: the reduction index (kK) or the row/column index (kMN).
enum class Major : int { kK = 0, kMN = 1 };

/// Matrix descriptor of a 128-byte-swizzled operand whose panel (rows of 128 bytes, 1024-byte aligned) starts at
/// `address`. K-major: a row is one M/N index with 64 K columns; 8-row groups follow each other at 1024 bytes; step K
/// by adding
///   16 columns = 32 bytes to the address; `panel_bytes` is not used.
/// MN-major: a row is one K index with 64 M/N columns; 8 K rows are 1024 bytes; the next 64 M/N columns are in the next
///   panel, `panel_bytes` further; step K by 16 rows = 2048 bytes.
__device__ __forceinline__ std::uint64_t swizzle128_descriptor(std::uint32_t address, std::uint32_t panel_bytes = 16) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | (static_cast<std::uint64_t>(panel_bytes >> 4) << 16) |
         (static_cast<std::uint64_t>(1024 >> 4) << 32) | (1ull << 62);
}
/// The same for 64-byte swizzle: rows of 64 bytes, 8-row groups at 512 bytes (operands 32 columns wide).
__device__ __forceinline__ std::uint64_t swizzle64_descriptor(std::uint32_t address, std::uint32_t panel_bytes = 16) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | (static_cast<std::uint64_t>(panel_bytes >> 4) << 16) |
         (static_cast<std::uint64_t>(512 >> 4) << 32) | (2ull << 62);
}
/// Moves a descriptor by `bytes` (a multiple of 16).
__device__ __forceinline__ std::uint64_t descriptor_advance(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor + (bytes >> 4);
}
/// Byte offset of 16-byte chunk `chunk` (0..7) of row `row` in a 128-byte-swizzled panel.
__device__ __forceinline__ std::uint32_t swizzle128_offset(std::uint32_t row, std::uint32_t chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

/// The instructions for N output columns. accumulate = 0 overwrites D. Operands: da, db descriptors; a[4] registers;
/// e metadata. kA, kB: Major of the shared-memory operands; kSelector: which threads supply metadata.
template <int N>
struct Wgmma;

// clang-format off
#define SFA_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SFA_R1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SFA_R2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SFA_R3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SFA_R4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SFA_R5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SFA_R6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define SFA_R7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define SFA_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SFA_D16(i) SFA_D4(i), SFA_D4((i) + 4), SFA_D4((i) + 8), SFA_D4((i) + 12)
#define SFA_LIST16 SFA_R0
#define SFA_BIND16 SFA_D16(0)
#define SFA_LIST32 SFA_R0 ", " SFA_R1
#define SFA_BIND32 SFA_D16(0), SFA_D16(16)
#define SFA_LIST40 SFA_R0 ", " SFA_R1 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SFA_BIND40 SFA_D16(0), SFA_D16(16), SFA_D4(32), SFA_D4(36)
#define SFA_LIST56 SFA_R0 ", " SFA_R1 ", " SFA_R2 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SFA_BIND56 SFA_D16(0), SFA_D16(16), SFA_D16(32), SFA_D4(48), SFA_D4(52)
#define SFA_LIST48 SFA_R0 ", " SFA_R1 ", " SFA_R2
#define SFA_BIND48 SFA_D16(0), SFA_D16(16), SFA_D16(32)
#define SFA_LIST64 SFA_R0 ", " SFA_R1 ", " SFA_R2 ", " SFA_R3
#define SFA_BIND64 SFA_D16(0), SFA_D16(16), SFA_D16(32), SFA_D16(48)
#define SFA_LIST96 SFA_R0 ", " SFA_R1 ", " SFA_R2 ", " SFA_R3 ", " SFA_R4 ", " SFA_R5
#define SFA_BIND96 SFA_D16(0), SFA_D16(16), SFA_D16(32), SFA_D16(48), SFA_D16(64), SFA_D16(80)
#define SFA_LIST128 SFA_R0 ", " SFA_R1 ", " SFA_R2 ", " SFA_R3 ", " SFA_R4 ", " SFA_R5 ", " SFA_R6 ", " SFA_R7
#define SFA_BIND128 SFA_D16(0), SFA_D16(16), SFA_D16(32), SFA_D16(48), SFA_D16(64), SFA_D16(80), SFA_D16(96), SFA_D16(112)

// o0.. are the numbers of the operands behind the COUNT accumulators.
#define SFA_DEFINE_WGMMA(N, COUNT, o0, o1, o2, o3, o4, o5, o6, o7, o8)                                                  \
  template <>                                                                                                          \
  struct Wgmma<N> {                                                                                                    \
    template <Major kA = Major::kK, Major kB = Major::kK>                                                              \
    static __device__ __forceinline__ void ss(float (&d)[COUNT], std::uint64_t da, std::uint64_t db, int accumulate) { \
      asm volatile(                                                                                                    \
          "{\n.reg .pred p;\nsetp.ne.b32 p, " o2 ", 0;\n"                                                              \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SFA_LIST##COUNT "}, " o0 ", " o1                \
          ", p, 1, 1, " o3 ", " o4 ";\n}"                                                                              \
          : SFA_BIND##COUNT                                                                                            \
          : "l"(da), "l"(db), "r"(accumulate), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));                  \
    }                                                                                                                  \
    template <Major kB = Major::kK>                                                                                    \
    static __device__ __forceinline__ void rs(float (&d)[COUNT], const std::uint32_t (&a)[4], std::uint64_t db,        \
                                              int accumulate) {                                                        \
      asm volatile(                                                                                                    \
          "{\n.reg .pred p;\nsetp.ne.b32 p, " o5 ", 0;\n"                                                              \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SFA_LIST##COUNT "}, {" o0 ", " o1 ", " o2       \
          ", " o3 "}, " o4 ", p, 1, 1, " o6 ";\n}"                                                                     \
          : SFA_BIND##COUNT                                                                                            \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db), "r"(accumulate), "n"(static_cast<int>(kB)));          \
    }                                                                                                                  \
    template <int kSelector, Major kB = Major::kK>                                                                     \
    static __device__ __forceinline__ void sparse_rs(float (&d)[COUNT], const std::uint32_t (&a)[4], std::uint32_t e,  \
                                                     std::uint64_t db, int accumulate) {                               \
      asm volatile(                                                                                                    \
          "{\n.reg .pred p;\nsetp.ne.b32 p, " o6 ", 0;\n"                                                              \
          "wgmma.mma_async.sp.sync.aligned.m64n" #N "k32.f32.bf16.bf16 {" SFA_LIST##COUNT "}, {" o0 ", " o1 ", " o2    \
          ", " o3 "}, " o4 ", " o5 ", " o7 ", p, 1, 1, " o8 ";\n}"                                                     \
          : SFA_BIND##COUNT                                                                                            \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db), "r"(e), "r"(accumulate), "n"(kSelector),              \
            "n"(static_cast<int>(kB)));                                                                                \
    }                                                                                                                  \
  };

SFA_DEFINE_WGMMA(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23", "%24")
SFA_DEFINE_WGMMA(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39", "%40")
SFA_DEFINE_WGMMA(80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", "%47", "%48")
SFA_DEFINE_WGMMA(112, 56, "%56", "%57", "%58", "%59", "%60", "%61", "%62", "%63", "%64")
SFA_DEFINE_WGMMA(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", "%55", "%56")
SFA_DEFINE_WGMMA(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71", "%72")
SFA_DEFINE_WGMMA(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102", "%103", "%104")
SFA_DEFINE_WGMMA(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%135", "%136")

#undef SFA_DEFINE_WGMMA
#undef SFA_LIST16
#undef SFA_BIND16
#undef SFA_LIST32
#undef SFA_BIND32
#undef SFA_LIST40
#undef SFA_BIND40
#undef SFA_LIST56
#undef SFA_BIND56
#undef SFA_LIST48
#undef SFA_BIND48
#undef SFA_LIST64
#undef SFA_BIND64
#undef SFA_LIST96
#undef SFA_BIND96
#undef SFA_LIST128
#undef SFA_BIND128
#undef SFA_D16
#undef SFA_D4
#undef SFA_R0
#undef SFA_R1
#undef SFA_R2
#undef SFA_R3
#undef SFA_R4
#undef SFA_R5
#undef SFA_R6
#undef SFA_R7
// clang-format on

}  // namespace sfa::sm90
