// Tile sizes of the backward kernels, with the arithmetic behind them.
//
// A block keeps kKeys = 128 keys (two consumer warpgroups of 64) and walks over tiles of kRows query rows. Its five
// products cost 10 kRows kKeys D FLOP = 2560 clk for kRows D = 8192 at 4096 FLOP a clock.
//
// Registers a consumer thread: dK and dV take Dqk/2 + Dv/2, S and dP kRows/2 each, P and dS in bf16 kRows/4 each, dQ
// kRows Dqk / 256; S, P and dS are dead when the next is alive, so the peak is dK + dV + S + dP + P (224 at 64 x 128
// rows and at 128 x 64 rows) out of 240.
//
// Shared memory (of 227 KiB): K and V 256 (Dqk + Dv) bytes, Q and dO 2 stages of 2 kRows (Dqk + Dv), dS 2 of 256 kRows,
// staging 2 of 32 KiB: 224 KiB in both instances. At D = 64 two stages of K and V and one of staging would fit as well:
// 2 % faster at n = 1024 than one of each, less than what the second staging buffer brings.
#pragma once

namespace sfa::flash {

/// Keys of one block's tile: 64 for each of the two consumer warpgroups.
inline constexpr int kBackwardKeys = 128;
inline constexpr int kBackwardConsumers = 2;
inline constexpr int kBackwardHalf = kBackwardKeys / kBackwardConsumers;
/// Staging buffers of dQ, dK and dV, each with a thread that empties it. One alone was the bottleneck: its waits for
/// turn, bulk reduction and release take about as long as a step.
inline constexpr int kBackwardWriters = 2;
/// Stages of Q and dO: one in use, one on its way.
inline constexpr int kBackwardQueryStages = 2;

/// Registers after the split: 128 (24 + 2 * 240) = 64512 = 384 * 168, what the block starts with.
inline constexpr int kBackwardProducerRegisters = 24;
inline constexpr int kBackwardConsumerRegisters = 240;

/// Query rows of a tile.
constexpr int backward_rows(int dqk, int dv) {
  return dqk <= 64 && dv <= 64 ? 128 : 64;
}

/// Of every four exponentials so many run on the FMA units instead of MUFU. One of four gained nothing (455 instead of
/// 480 at d = 64, n = 65536): MUFU is busy 1024 of some 4500 clk.
inline constexpr int kBackwardFmaExponentials = 0;

/// Key/value heads in flight at once: as many as have Q, dO and sums of dQ of kBackwardFlightBytes, within bounds. Many
/// heads mean few blocks a head (132 / heads), which start one after the other in the order of their additions to dQ:
/// that is what counts while heads are short. Few heads mean that blocks read what their neighbours just read: that is
/// what counts when heads are long. Measured on one H200, causal, TFLOP/s:
///   heads together            6    12    24    48
///   d = 64,  n = 1024       186     -   294   315
///            n = 4096       361   406   443   449
///            n = 16384      440   487   477   464
///            n = 65536      481   480   470   474
///   d = 128, n = 1024       227     -   375   379
///            n = 4096       438   504   495   496
///            n = 16384      500   528   493   492
///            n = 65536      535   527   522   524
/// Beyond that fewer and fewer: the blocks of a head follow each other at distances that grow at random as long as they
/// walk, and what a block reads is still in L2 only while the distance to the one before it is shorter than
/// (L2 / heads together). d = 64, TFLOP/s with 12, 6, 3, 2, 1 heads together:
///   n = 262144              492     -   470   487   464
///   n = 524288              414   479   484   485   479
///   n = 1048576             339   365     -     -   484
inline constexpr long long kBackwardFlightBytes = 96ll << 20;
inline constexpr int kBackwardMinHeads = 12;
inline constexpr int kBackwardMaxHeads = 48;
inline constexpr long long kBackwardMinTokens = 1ll << 20;

}  // namespace sfa::flash
