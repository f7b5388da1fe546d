// Sums of linear layers with dotprod, which those with i8mm take of single rows, too.
#ifndef MMSERVE_ROWLINEAR_DOTPROD_ARM64_H
#define MMSERVE_ROWLINEAR_DOTPROD_ARM64_H

#include "rowlinear_block_arm64.h"

// DOTPROD_ROWS by a panel are 16 sums, and beside them there is room for the rows.
#define DOTPROD_ROWS 4

// dot_sums are a form's sums of up to DOTPROD_ROWS rows.
INLINE void dot_sums(const rowlinear *l, int64_t row, int64_t panel, int32x4_t (*to)[4], const int ROWS) {
  const int64_t steps = (l->k + 3) / 4;
  const int8_t *w = l->w + panel * steps * 64, *q = (const int8_t *)l->q + row * steps * 4;
  int32x4_t a[DOTPROD_ROWS][4];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) a[r][c] = vdupq_n_s32(0);
  int64_t i = 0;
  for (; i + 4 <= steps; i += 4) {
    int8x16_t x[DOTPROD_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) x[r] = vld1q_s8(q + (r * steps + i) * 4);
    __builtin_prefetch(w + i * 64 + 1024);
#define STEP(S)                                                                                        \
  _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) {                                                \
    const int8x16_t p = vld1q_s8(w + (i + S) * 64 + c * 16);                                           \
    _Pragma("GCC unroll 4") for (int r = 0; r < ROWS; r++) a[r][c] = vdotq_laneq_s32(a[r][c], p, x[r], S); \
  }
    STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
  }
  for (; i < steps; i++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const int8x16_t p = vld1q_s8(w + i * 64 + c * 16);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++)
        a[r][c] = vdotq_s32(a[r][c], p, vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(q + (r * steps + i) * 4))));
    }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) to[r][c] = a[r][c];
}

// dot_sums4 is dot_sums in int4.
INLINE void dot_sums4(const rowlinear *l, int64_t row, int64_t panel, float32x4_t (*to)[4], const int ROWS) {
  const int64_t blocks = l->k / ROWLINEAR4_BLOCK;
  const uint8_t *w = (const uint8_t *)l->w + panel * blocks * 256;
  const uint16_t *scale = l->block_scale + panel * blocks * 16;
  const int8_t *q = (const int8_t *)l->q + row * l->k;
  const int32_t *back = l->back + row * blocks;
  const uint8x16_t low = vdupq_n_u8(15);
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) to[r][c] = vdupq_n_f32(0);
  for (int64_t b = 0; b < blocks; b++, w += 256, q += ROWLINEAR4_BLOCK) {
    int32x4_t a[DOTPROD_ROWS][4];
    int8x16_t x[DOTPROD_ROWS][2];
    __builtin_prefetch(w + 1024);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) a[r][c] = vdupq_n_s32(back[r * blocks + b]);
      x[r][0] = vld1q_s8(q + r * l->k), x[r][1] = vld1q_s8(q + r * l->k + 16);
    }
    // Low halves of the bytes are step S of the block, high ones step S+4.
#define STEP(S)                                                                 \
  _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) {                         \
    const uint8x16_t p = vld1q_u8(w + S * 64 + c * 16);                         \
    const int8x16_t p0 = vreinterpretq_s8_u8(vandq_u8(p, low));                 \
    const int8x16_t p1 = vreinterpretq_s8_u8(vshrq_n_u8(p, 4));                 \
    _Pragma("GCC unroll 4") for (int r = 0; r < ROWS; r++) {                    \
      a[r][c] = vdotq_laneq_s32(a[r][c], p0, x[r][0], S);                       \
      a[r][c] = vdotq_laneq_s32(a[r][c], p1, x[r][1], S);                       \
    }                                                                           \
  }
    STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) scaled_block(to[r], a[r], scale + b * 16);
  }
}

#endif
