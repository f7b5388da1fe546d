//go:build linux

// Quantisation for all forms, and the products of processors without dotprod.

#include "rowlinear.h"

#include "vector_arm64.h"

#include "rowlinear_block_arm64.h"

// some are four values of x, zero from the n-th on.
INLINE float32x4_t some(const float *x, int64_t n) {
  if (n >= 4) return vld1q_f32(x);
  float few[4] = {0};
  for (int64_t i = 0; i < n; i++) few[i] = x[i];
  return vld1q_f32(few);
}

// step is what one step of a row of k values in 8 bits is worth, and inverse its inverse.
INLINE float step(const float *x, int64_t k, float32x4_t *inverse) {
  uint32x4_t most = vdupq_n_u32(0);
  for (int64_t i = 0; i < k; i += 4) most = larger(most, some(x + i, k - i));
  float m = largest(most);
  if (m < 1e-10f) m = 1e-10f; // a row of zeros stays a row of zeros
  *inverse = vdupq_n_f32(127 / m);
  return m / 127;
}

INLINE int32x4_t rounded(float32x4_t x, float32x4_t inverse) { return vcvtnq_s32_f32(vmulq_f32(x, inverse)); }

INLINE int8x16_t narrow(const int32x4_t v[4]) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1])), high = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
  return vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
}

void rowlinear_quantize_neon(const rowlinear *l, int64_t from, int64_t to) {
  const int64_t k = l->k, width = (k + 3) / 4 * 4;
  for (int64_t r = from; r < to; r++) {
    const float *x = l->x + r * k;
    int8_t *q = (int8_t *)l->q + r * width;
    float32x4_t inverse;
    l->m[r] = step(x, k, &inverse);
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
      int32x4_t v[4];
      for (int c = 0; c < 4; c++) v[c] = rounded(vld1q_f32(x + i + c * 4), inverse);
      vst1q_s8(q + i, narrow(v));
    }
    for (; i < width; i += 4) {
      const int32x4_t v[4] = {rounded(some(x + i, k - i), inverse)};
      vst1q_lane_s32((int32_t *)(q + i), vreinterpretq_s32_s8(narrow(v)), 0);
    }
  }
}

void rowlinear4_quantize_neon(const rowlinear *l, int64_t from, int64_t to) {
  const int64_t k = l->k, blocks = k / ROWLINEAR4_BLOCK;
  for (int64_t r = from; r < to; r++) {
    const float *x = l->x + r * k;
    int8_t *q = (int8_t *)l->q + r * k;
    float32x4_t inverse;
    l->m[r] = step(x, k, &inverse);
    for (int64_t b = 0; b < blocks; b++) {
      int32x4_t sum = vdupq_n_s32(0);
      for (int64_t i = b * ROWLINEAR4_BLOCK; i < (b + 1) * ROWLINEAR4_BLOCK; i += 16) {
        int32x4_t v[4];
        for (int c = 0; c < 4; c++) sum = vaddq_s32(sum, v[c] = rounded(vld1q_f32(x + i + c * 4), inverse));
        vst1q_s8(q + i, narrow(v));
      }
      l->back[r * blocks + b] = -8 * vaddvq_s32(sum);
    }
  }
}

#define FORM(name) name##_neon
#define MOST_ROWS 2
#define MOST_ROWS4 2
#define WHOLE 1

// four are four bytes of a row, twice.
INLINE int8x8_t four(const int8_t *q) { return vreinterpret_s8_s32(vld1_dup_s32((const int32_t *)q)); }

// add_steps adds products of one step, or of two, whose sums of two fit 16 bits: 2·127·128. sum holds two for each channel.
INLINE void add_steps(int32x4_t *low, int32x4_t *high, const int8x16_t *w, const int8x8_t *x, const int STEPS) {
  int16x8_t first = vmull_s8(vget_low_s8(w[0]), x[0]), second = vmull_s8(vget_high_s8(w[0]), x[0]);
  if (STEPS == 2) first = vmlal_s8(first, vget_low_s8(w[1]), x[1]), second = vmlal_s8(second, vget_high_s8(w[1]), x[1]);
  *low = vpadalq_s16(*low, first);
  *high = vpadalq_s16(*high, second);
}

// add_panel does that for ROWS rows by a panel.
INLINE void add_panel(int32x4_t a[MOST_ROWS][8], const int8_t *w, const int8_t *q, int64_t stride, const int ROWS, const int STEPS) {
  int8x8_t x[MOST_ROWS][2];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int s = 0; s < STEPS; s++) x[r][s] = four(q + r * stride + s * 4);
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    int8x16_t p[2];
    for (int s = 0; s < STEPS; s++) p[s] = vld1q_s8(w + s * 64 + c * 16);
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++) add_steps(&a[r][2 * c], &a[r][2 * c + 1], p, x[r], STEPS);
  }
}

INLINE void sums(const rowlinear *l, int64_t row, int64_t panel, int32x4_t (*to)[4], const int ROWS) {
  const int64_t steps = (l->k + 3) / 4;
  const int8_t *w = l->w + panel * steps * 64, *q = (const int8_t *)l->q + row * steps * 4;
  int32x4_t a[MOST_ROWS][8]; // of two channels each, the sums over even and odd pairs side by side
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) a[r][c] = vdupq_n_s32(0);
  int64_t i = 0;
  for (; i + 2 <= steps; i += 2) add_panel(a, w + i * 64, q + i * 4, steps * 4, ROWS, 2);
  if (i < steps) add_panel(a, w + i * 64, q + i * 4, steps * 4, ROWS, 1);
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) to[r][c] = vpaddq_s32(a[r][2 * c], a[r][2 * c + 1]);
}

// block_sums are those of ROWS rows by four channels of a block, whose weights are 64 bytes apart. In 16 bits they fit: 8·15·127.
INLINE void block_sums(const uint8_t *w, const int8_t *q, int64_t stride, int32x4_t *to, const int ROWS) {
  const uint8x16_t low = vdupq_n_u8(15);
  int16x8_t a[MOST_ROWS4][2];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++) a[r][0] = a[r][1] = vdupq_n_s16(0);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const uint8x16_t p = vld1q_u8(w + i * 64);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) { // low halves of the bytes are step i of the block, high ones step i+4
      const int8x16_t n = vreinterpretq_s8_u8(h ? vshrq_n_u8(p, 4) : vandq_u8(p, low));
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++) {
        const int8x8_t x = four(q + r * stride + h * 16 + i * 4);
        a[r][0] = vmlal_s8(a[r][0], vget_low_s8(n), x);
        a[r][1] = vmlal_s8(a[r][1], vget_high_s8(n), x);
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++) to[r] = vpaddq_s32(vpaddlq_s16(a[r][0]), vpaddlq_s16(a[r][1]));
}

INLINE void sums4(const rowlinear *l, int64_t row, int64_t panel, float32x4_t (*to)[4], const int ROWS) {
  const int64_t blocks = l->k / ROWLINEAR4_BLOCK;
  const uint8_t *w = (const uint8_t *)l->w + panel * blocks * 256;
  const uint16_t *scale = l->block_scale + panel * blocks * 16;
  const int8_t *q = (const int8_t *)l->q + row * l->k;
  const int32_t *back = l->back + row * blocks;
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < 4; c++) to[r][c] = vdupq_n_f32(0);
  for (int64_t b = 0; b < blocks; b++) {
    int32x4_t a[MOST_ROWS4][4], part[MOST_ROWS4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      block_sums(w + b * 256 + c * 16, q + b * ROWLINEAR4_BLOCK, l->k, part, ROWS);
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++) a[r][c] = vaddq_s32(part[r], vdupq_n_s32(back[r * blocks + b]));
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++) scaled_block(to[r], a[r], scale + b * 16);
  }
}

#include "rowlinear_tile_arm64.h"
