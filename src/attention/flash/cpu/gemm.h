// The one matrix product of the CPU kernels, on packed tiles: C (+)= A B, with A's elements broadcast and B's rows read
// as vectors.
#pragma once

#include <cstdint>

namespace sfa::flash_cpu {

struct Gemm {
  const float* a;  // element (r, t) at a[r * a_row + t * a_step]
  std::int64_t a_row, a_step;
  const float* b;  // row t at b + t * b_row, a multiple of the vector wide
  std::int64_t b_row;
  float* c;  // row r at c + r * c_row
  std::int64_t c_row;
  int depth;
  bool accumulate;
};

template <class V, int Rows, int Vectors>
[[gnu::noinline]] void gemm_block(const Gemm& g) {
  using F = typename V::F;
  F acc[Rows][Vectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[r][v] = V::zero();
  if (g.accumulate) {
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[r][v] = V::load(g.c + r * g.c_row + v * V::kLanes);
  }
  const float *a = g.a, *b = g.b;
  const std::int64_t a_row = g.a_row, a_step = g.a_step, b_row = g.b_row;
  for (int t = 0; t < g.depth; ++t, a += a_step, b += b_row) {
    F x[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) x[v] = V::load(b + v * V::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const F y = V::set(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[r][v] = V::fma(y, x[v], acc[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) V::store(g.c + r * g.c_row + v * V::kLanes, acc[r][v]);
}

/// `rows` <= Rows rows of one panel.
template <class V, int Rows, int Vectors>
void gemm_rows(const Gemm& g, int rows) {
  if (rows == Rows) return gemm_block<V, Rows, Vectors>(g);
  if constexpr (Rows > 1) gemm_rows<V, Rows - 1, Vectors>(g, rows);
}

/// `rows` rows (at most kRowsOf[vectors]) of `vectors` (at most kPanel) vectors.
template <class V, int Vectors = V::kPanel>
void gemm_panel(const Gemm& g, int rows, int vectors) {
  if (vectors == Vectors) return gemm_rows<V, V::kRowsOf[Vectors], Vectors>(g, rows);
  if constexpr (Vectors > 1) gemm_panel<V, Vectors - 1>(g, rows, vectors);
}

/// What a block of rows needs: steps of the depth outside [depth_begin, depth_end) are known to be zero in A, and
/// columns outside [column_begin, column_end) are not read by anybody.
struct Extent {
  int depth_begin, depth_end, column_begin, column_end;
};

/// rows x columns (columns a multiple of the vector), row blocks inside panels, so that a panel of B stays in the
/// first-level cache. extent(first_row, rows) -> Extent.
template <class V, class ExtentOf>
void gemm(const Gemm& g, int rows, int columns, ExtentOf extent) {
  constexpr int kPanelWidth = V::kPanel * V::kLanes;
  for (int panel = 0; panel < columns; panel += kPanelWidth) {
    const int panel_end = columns - panel < kPanelWidth ? columns : panel + kPanelWidth;
    const int step = V::kRowsOf[(panel_end - panel) / V::kLanes];
    for (int r = 0; r < rows; r += step) {
      const int n = rows - r < step ? rows - r : step;
      const Extent e = extent(r, n);
      const int begin = e.column_begin > panel ? e.column_begin / V::kLanes * V::kLanes : panel;
      const int end = e.column_end < panel_end ? (e.column_end + V::kLanes - 1) / V::kLanes * V::kLanes : panel_end;
      if (begin >= end || (e.depth_begin >= e.depth_end && g.accumulate)) continue;
      Gemm block = g;
      block.a = g.a + r * g.a_row + e.depth_begin * g.a_step;
      block.b = g.b + e.depth_begin * g.b_row + begin;
      block.c = g.c + r * g.c_row + begin;
      block.depth = e.depth_end > e.depth_begin ? e.depth_end - e.depth_begin : 0;
      gemm_panel<V>(block, n, (end - begin) / V::kLanes);
    }
  }
}

}  // namespace sfa::flash_cpu
