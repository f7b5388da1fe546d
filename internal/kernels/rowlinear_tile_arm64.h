// Linear layers of rowlinear.h for NEON, written once for its forms. Who includes it has included vector_arm64.h, and defined
// FORM(name), its functions' names; MOST_ROWS and MOST_ROWS4, the rows of the largest tiles whose sums stay in registers, in
// int8 and int4; WHOLE, of which tiles have multiples where they can; and
//
//	sums(l, row, panel, to, ROWS): the sums of ROWS rows by a panel of 16 channels, int32x4_t to[ROWS][4]
//	sums4(l, row, panel, to, ROWS): the same in int4, in steps of a row's m, float32x4_t to[ROWS][4]
//
// ROWS is a constant wherever they are inlined. Sums are integers, in int4 those of a block, and blocks are added in their
// order: neither the form nor the shape of the tile shows in the result.
#ifndef MMSERVE_ROWLINEAR_TILE_ARM64_H
#define MMSERVE_ROWLINEAR_TILE_ARM64_H

#include <string.h>

// swish is x·σ(s·x).
INLINE float32x4_t swish(float32x4_t x, float s) {
  return vdivq_f32(x, vaddq_f32(exponential(vmulq_f32(x, vdupq_n_f32(-s))), vdupq_n_f32(1)));
}

// gelu_tanh is x·(1 + tanh z)/2 with z = √(2/π)·(x + 0.044715·x³); (1 + tanh z)/2 is σ(2z).
INLINE float32x4_t gelu_tanh(float32x4_t x) {
  const float32x4_t cube = vmulq_f32(vmulq_f32(x, x), x);
  const float32x4_t z2 = vmulq_f32(vfmaq_f32(x, cube, vdupq_n_f32(0.044715f)), vdupq_n_f32(-1.59576912f));
  return vdivq_f32(x, vaddq_f32(exponential(z2), vdupq_n_f32(1)));
}

// biased adds the bias of four channels, of which the last may not be there.
INLINE float32x4_t biased(const rowlinear *l, float32x4_t y, int64_t channel) {
  const int64_t left = l->n - channel;
  if (!l->bias || left <= 0) return y;
  if (left >= 4) return vaddq_f32(y, vld1q_f32(l->bias + channel));
  float some[4] = {0};
  memcpy(some, l->bias + channel, (size_t)left * sizeof(float));
  return vaddq_f32(y, vld1q_f32(some));
}

// finish stores a row's values of four channels, bias included; for a gate, gates are the values of the four of the panel before.
INLINE void finish(const rowlinear *l, float32x4_t y, float32x4_t gates, int64_t row, int64_t channel) {
  switch (l->activation) {
  case ROWLINEAR_SILU_GATE: { // panels alternate: 16 gates, then the 16 values that they act on
    const int64_t gate = channel - 16, half = gate / 32 * 16 + gate % 16;
    vst1q_f32(l->y + row * (l->n / 2) + half, vmulq_f32(swish(gates, 1), y));
    return;
  }
  case ROWLINEAR_GELU_TANH:
    y = gelu_tanh(y);
    break;
  case ROWLINEAR_QUICK_GELU:
    y = swish(y, 1.702f);
    break;
  }
  const int64_t left = l->n - channel;
  float *to = l->y + row * l->n + channel;
  if (left >= 4) {
    vst1q_f32(to, y);
  } else if (left > 0) {
    float some[4];
    vst1q_f32(some, y);
    memcpy(to, some, (size_t)left * sizeof(float));
  }
}

// values makes outputs, but for their activations, of ROWS rows by a panel.
INLINE void values(const rowlinear *l, int64_t row, int64_t panel, float32x4_t (*to)[4], const int ROWS, const int FOUR) {
  if (FOUR) {
    sums4(l, row, panel, to, ROWS);
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < 4; c++)
        to[r][c] = biased(l, vmulq_f32(to[r][c], vdupq_n_f32(l->m[row + r])), panel * 16 + c * 4);
    return;
  }
  int32x4_t whole[MOST_ROWS][4];
  sums(l, row, panel, whole, ROWS);
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < 4; c++) {
      const int64_t channel = panel * 16 + c * 4;
      const float32x4_t scale = vmulq_f32(vld1q_f32(l->scale + channel), vdupq_n_f32(l->m[row + r]));
      to[r][c] = biased(l, vmulq_f32(vcvtq_f32_s32(whole[r][c]), scale), channel);
    }
}

// tile multiplies ROWS rows by a pair of panels.
INLINE void tile(const rowlinear *l, int64_t row, int64_t pair, const int ROWS, const int FOUR) {
  const int gated = l->activation == ROWLINEAR_SILU_GATE;
  float32x4_t y[2][6][4];
  for (int p = 0; p < 2; p++) {
    const int64_t panel = pair * 2 + p;
    if (panel * 16 >= l->n) return; // the last pair has one panel only
    values(l, row, panel, y[p], ROWS, FOUR);
    if (gated && p == 0) continue;
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < 4; c++) finish(l, y[p][r][c], y[0][r][c], row + r, panel * 16 + c * 4);
  }
}

// tiled is how many of the left rows the next tile has: all have about the same size, as one of few rows costs nearly what a full one does.
INLINE int64_t tiled(int64_t left, int64_t most) {
  const int64_t tiles = (left + most - 1) / most, rows = (left + tiles - 1) / tiles, whole = (rows + WHOLE - 1) / WHOLE * WHOLE;
  return whole < left ? whole : left;
}

TARGET void FORM(rowlinear_multiply)(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  for (int64_t pair = pair_from; pair < pair_to; pair++)
    for (int64_t row = row_from, rows; row < row_to; row += rows) switch (rows = tiled(row_to - row, MOST_ROWS)) {
#define CASE(R) case R: tile(l, row, pair, R, 0); break;
      CASE(1) CASE(2)
#if MOST_ROWS > 2
      CASE(3) CASE(4)
#endif
#if MOST_ROWS > 4
      CASE(5) CASE(6)
#endif
#undef CASE
    }
}

TARGET void FORM(rowlinear4_multiply)(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to) {
  for (int64_t pair = pair_from; pair < pair_to; pair++)
    for (int64_t row = row_from, rows; row < row_to; row += rows) switch (rows = tiled(row_to - row, MOST_ROWS4)) {
#define CASE(R) case R: tile(l, row, pair, R, 1); break;
      CASE(1) CASE(2)
#if MOST_ROWS4 > 2
      CASE(3) CASE(4)
#endif
#undef CASE
    }
}

#endif
