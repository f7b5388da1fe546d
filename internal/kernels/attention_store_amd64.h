// What attention does before it attends, for the kernels that include it after their vector header.
#ifndef MMSERVE_ATTENTION_STORE_H
#define MMSERVE_ATTENTION_STORE_H

#include <string.h>

#include "attention_amd64.h"

#define PANEL 16

static int64_t group(const attention *a) { return a->heads / a->kv_heads; }

// position is where new position s of a row stands in its sequence.
static int64_t position(const attention *a, int64_t row, int64_t s) { return a->last[row] + 1 - a->width + s; }

TARGET static void rotate(const attention *a, const float *x, int64_t pos, float scale, float *to, int64_t stride) {
  const int64_t half = a->dim / 2;
  const float *c = a->cosine + pos * half, *s = a->sine + pos * half;
  for (int64_t i = 0; i < half; i++) {
    to[i * stride] = (x[i] * c[i] - x[i + half] * s[i]) * scale;
    to[(i + half) * stride] = (x[i + half] * c[i] + x[i] * s[i]) * scale;
  }
}

INLINE void store(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  const int64_t d = a->dim, g = group(a);
  float *keys = a->keys + (row * a->kv_heads + kv_head) * a->max_len * d;
  float *values = a->values + (row * a->kv_heads + kv_head) * a->max_len * d;
  for (int64_t s = from; s < to; s++) {
    const int64_t at = row * a->width + s, pos = position(a, row, s);
    for (int64_t i = 0; i < g; i++)
      rotate(a, a->q + at * a->q_stride + (kv_head * g + i) * d, pos, a->scale,
             a->rotated + (((row * a->kv_heads + kv_head) * a->width + s) * g + i) * d, 1);
    rotate(a, a->k + at * a->kv_stride + kv_head * d, pos, 1, keys + pos / PANEL * PANEL * d + pos % PANEL, PANEL);
    memcpy(values + pos * d, a->v + at * a->kv_stride + kv_head * d, (size_t)d * sizeof(float));
  }
}

#endif
