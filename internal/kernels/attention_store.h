// What attention does before it attends, for the kernels that include it after their vector header.
#ifndef MMSERVE_ATTENTION_STORE_H
#define MMSERVE_ATTENTION_STORE_H

#include <string.h>

#include "attention.h"

#define PANEL 16

static int64_t group(const attention *a) { return a->heads / a->kv_heads; }

// position is where new position s of a row stands in its sequence.
static int64_t position(const attention *a, int64_t row, int64_t s) { return a->row[row].last + 1 - a->row[row].width + s; }

// cache_head is the number of the head of the cache that a row's kv_head is.
static int64_t cache_head(const attention *a, int64_t row, int64_t kv_head) { return a->row[row].slot * a->kv_heads + kv_head; }

// queries is where the rotated queries of a row's kv_head start.
static float *queries(const attention *a, int64_t row, int64_t kv_head) {
  const attention_row *r = &a->row[row];
  return a->rotated + (r->first * a->kv_heads + kv_head * r->width) * group(a) * a->dim;
}

// seen_from and seen_to bound the positions that new position s of a row sees.
static int64_t seen_from(const attention *a, int64_t row, int64_t s) {
  const int64_t pos = position(a, row, s), from = a->window && pos >= a->window ? pos - a->window + 1 : 0;
  const int64_t at = a->row[row].first + s;
  return a->until && a->block_start[at] < from ? a->block_start[at] : from;
}
static int64_t seen_to(const attention *a, int64_t row, int64_t s) {
  return 1 + (a->until ? a->until[a->row[row].first + s] : position(a, row, s));
}

// panel_from is the first position of the first panel that one of n queries sees; their first new position is from/group.
static int64_t panel_from(const attention *a, int64_t row, int64_t from, int n) {
  const int64_t g = group(a), s = from / g, end = (from + n - 1) / g;
  if (!a->window) return 0;
  int64_t first = seen_from(a, row, s);
  for (int64_t i = s + 1; i <= end; i++) first = seen_from(a, row, i) < first ? seen_from(a, row, i) : first;
  return first / PANEL * PANEL;
}

// seen_last is the end of what one of n queries sees.
static int64_t seen_last(const attention *a, int64_t row, int64_t from, int n) {
  const int64_t g = group(a), end = (from + n - 1) / g;
  int64_t last = seen_to(a, row, end);
  for (int64_t s = from / g; a->until && s < end; s++) last = seen_to(a, row, s) > last ? seen_to(a, row, s) : last;
  return last;
}

// root is what an RMS norm multiplies a head's values by, beside its weights. It adds up in 16 lanes whatever the
// instructions, so that all give the same bits.
TARGET static float root(const attention *a, const float *x) {
  float sum[16] = {0};
  for (int64_t i = 0; i < a->dim; i += 16)
    for (int j = 0; j < 16; j++) sum[j] += x[i + j] * x[i + j];
  for (int n = 8; n; n /= 2)
    for (int j = 0; j < n; j++) sum[j] += sum[j + n];
  return 1 / ROOT(sum[0] / (float)a->dim + a->epsilon);
}

// turn writes a head's values x, normalised with NORM, rotated and scaled.
INLINE void turn(const attention *a, const float *x, const float *norm, const float *c, const float *s, float scale, float *to,
                 int64_t stride, const int NORM, const int PAIRS) {
  const int64_t half = a->rotary / 2;
  const float r = NORM ? root(a, x) : 1;
#define VALUE(i) (NORM ? x[i] * r * norm[i] : x[i])
  for (int64_t i = 0; i < half; i++) {
    const int64_t m = PAIRS ? 2 * i : i, n = PAIRS ? m + 1 : i + half;
    const float p = VALUE(m), q = VALUE(n);
    to[m * stride] = (p * c[i] - q * s[i]) * scale;
    to[n * stride] = (q * c[i] + p * s[i]) * scale;
  }
  for (int64_t i = a->rotary; i < a->dim; i++) to[i * stride] = VALUE(i) * scale;
#undef VALUE
}

// rotate is turn for the head of new position s.
TARGET static void rotate(const attention *a, const float *x, const float *norm, int64_t row, int64_t s, float scale, float *to,
                          int64_t stride) {
  const int64_t at = a->turned ? a->row[row].first + s : position(a, row, s);
  const float *cosine = a->cosine + at * (a->rotary / 2), *sine = a->sine + at * (a->rotary / 2);
  switch (2 * (norm != NULL) + a->pairs) {
  case 0: turn(a, x, norm, cosine, sine, scale, to, stride, 0, 0); break;
  case 1: turn(a, x, norm, cosine, sine, scale, to, stride, 0, 1); break;
  case 2: turn(a, x, norm, cosine, sine, scale, to, stride, 1, 0); break;
  case 3: turn(a, x, norm, cosine, sine, scale, to, stride, 1, 1); break;
  }
}

INLINE void store(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to) {
  const int64_t d = a->dim, g = group(a);
  float *keys = a->keys + cache_head(a, row, kv_head) * a->max_len * d;
  float *values = a->values + cache_head(a, row, kv_head) * a->max_len * d;
  float *rotated = queries(a, row, kv_head);
  for (int64_t s = from; s < to; s++) {
    const int64_t at = a->row[row].first + s, pos = position(a, row, s);
    const float scale = a->q_scale ? a->scale * a->q_scale[pos] : a->scale;
    for (int64_t i = 0; i < g; i++)
      rotate(a, a->q + at * a->q_stride + (kv_head * g + i) * d, a->q_norm, row, s, scale,
             rotated + (s * g + i) * d, 1);
    rotate(a, a->k + at * a->kv_stride + kv_head * d, a->k_norm, row, s, 1, keys + pos / PANEL * PANEL * d + pos % PANEL, PANEL);
    memcpy(values + pos * d, a->v + at * a->kv_stride + kv_head * d, (size_t)d * sizeof(float));
  }
}

#endif
