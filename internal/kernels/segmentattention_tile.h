// The kernel of segmentattention.h, written once for vectors of 4, 8 and 16 lanes. Who includes it has included its vector header and
// defined LANES, PANELS (vectors of keys, and of values, that QUERIES queries are multiplied by at a time), V_LOAD, V_STORE, V_ADD,
// V_FIRST(x, n, other), which is x in its first n lanes and other in the rest, and V_LARGEST, the largest lane.
#ifndef MMSERVE_SEGMENTATTENTION_TILE_H
#define MMSERVE_SEGMENTATTENTION_TILE_H

#include <math.h>
#include <string.h>

#include "segmentattention.h"

// QUERIES by PANELS sums stay in registers.
#define QUERIES 6
// Keys that scores are held of.
#define TILE 64
// Sums have as many lanes with vectors of any size.
#define SUM_LANES 16

// room is the scratch of one task.
typedef struct {
  float *q;      // [SEGMENTATTENTION_QUERIES, dim], rotated and scaled
  float *mixed;  // [SEGMENTATTENTION_QUERIES, width], values under the weights so far
  float *sums;   // [SEGMENTATTENTION_QUERIES, SUM_LANES], of the weights so far
  float *tops;   // [SEGMENTATTENTION_QUERIES], the largest score so far, which weights are relative to
  float *keys;   // [dim, TILE], rotated
  float *values; // [TILE, width]
  float *scores; // [QUERIES, TILE]
  float *row;    // [width]
  int64_t width; // dim, rounded up to whole SUM_LANES
} room;

INLINE room divide(const segmentattention *a, float *scratch) {
  room r;
  r.width = (a->dim + SUM_LANES - 1) / SUM_LANES * SUM_LANES;
  r.mixed = scratch;
  r.sums = r.mixed + SEGMENTATTENTION_QUERIES * r.width;
  r.keys = r.sums + SEGMENTATTENTION_QUERIES * SUM_LANES;
  r.values = r.keys + a->dim * TILE;
  r.scores = r.values + TILE * r.width;
  r.row = r.scores + QUERIES * TILE;
  r.tops = r.row + r.width;
  r.q = r.tops + SEGMENTATTENTION_QUERIES;
  return r;
}

// rotated writes a query or a key of position pos under its position embedding.
static TARGET void rotated(const segmentattention *a, const float *x, int64_t pos, float scale, float *to) {
  const int64_t half = a->dim / 2;
  if (!a->cosine) {
    for (int64_t i = 0; i < a->dim; i++) to[i] = x[i] * scale;
    return;
  }
  const float *c = a->cosine + pos * half, *s = a->sine + pos * half;
  for (int64_t i = 0; i < half; i++) {
    to[i] = (x[i] * c[i] - x[i + half] * s[i]) * scale;
    to[i + half] = (x[i + half] * c[i] + x[i] * s[i]) * scale;
  }
}

// load_tile brings n keys and values from position from on.
static TARGET void load_tile(const segmentattention *a, const room *r, int64_t head, int64_t from, int64_t n) {
  const int64_t d = a->dim, at = head * d;
  if (n < TILE) memset(r->keys, 0, (size_t)(d * TILE) * sizeof(float));
  for (int64_t t = 0; t < n; t++) {
    rotated(a, a->k + (from + t) * a->stride + at, from + t, 1, r->row);
    for (int64_t j = 0; j < d; j++) r->keys[j * TILE + t] = r->row[j];
    memcpy(r->values + t * r->width, a->v + (from + t) * a->stride + at, (size_t)d * sizeof(float));
  }
}

// score computes N queries against the tile's keys.
INLINE void score(const room *r, int64_t d, const float *q, const int N) {
  for (int64_t t = 0; t < TILE; t += PANELS * LANES) {
    VECTOR x[QUERIES][PANELS];
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int c = 0; c < PANELS; c++) x[i][c] = V_SET(0);
    for (int64_t j = 0; j < d; j++) {
      VECTOR k[PANELS];
#pragma GCC unroll 4
      for (int c = 0; c < PANELS; c++) k[c] = V_LOAD(r->keys + j * TILE + t + c * LANES);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) {
        const VECTOR b = V_SET(q[i * d + j]);
#pragma GCC unroll 4
        for (int c = 0; c < PANELS; c++) x[i][c] = V_FMADD(b, k[c], x[i][c]);
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int c = 0; c < PANELS; c++) V_STORE(r->scores + i * TILE + t + c * LANES, x[i][c]);
  }
}

// weigh turns a query's scores of n keys into e^(score - largest so far) and gives what its former weights are to be multiplied by.
INLINE VECTOR weigh(float *s, int64_t n, float *top, float *sums) {
  const VECTOR lowest = V_SET(-INFINITY);
  VECTOR most = lowest;
  for (int64_t t = 0; t < n; t += LANES) most = V_MAX(V_FIRST(V_LOAD(s + t), n - t, lowest), most);
  const float before = *top, largest = V_LARGEST(most);
  *top = before > largest ? before : largest;
  const VECTOR now = V_SET(*top), shrink = exponential(V_SUB(V_SET(before), now));
  for (int64_t l = 0; l < SUM_LANES; l += LANES) V_STORE(sums + l, V_MUL(V_LOAD(sums + l), shrink));
  for (int64_t t = 0; t < n; t += LANES) {
    const VECTOR e = V_FIRST(exponential(V_SUB(V_LOAD(s + t), now)), n - t, V_SET(0));
    float *sum = sums + t % SUM_LANES;
    V_STORE(s + t, e);
    V_STORE(sum, V_ADD(V_LOAD(sum), e));
  }
  return shrink;
}

// mix adds V vectors of n values to what N queries have, under their weights.
INLINE void mix(const room *r, int64_t n, int64_t channel, const VECTOR *shrink, float *mixed, const int N, const int V) {
  VECTOR x[QUERIES][PANELS];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int c = 0; c < V; c++) x[i][c] = V_MUL(V_LOAD(mixed + i * r->width + channel + c * LANES), shrink[i]);
  for (int64_t t = 0; t < n; t++) {
    VECTOR v[PANELS];
#pragma GCC unroll 4
    for (int c = 0; c < V; c++) v[c] = V_LOAD(r->values + t * r->width + channel + c * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      const VECTOR w = V_SET(r->scores[i * TILE + t]);
#pragma GCC unroll 4
      for (int c = 0; c < V; c++) x[i][c] = V_FMADD(w, v[c], x[i][c]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int c = 0; c < V; c++) V_STORE(mixed + i * r->width + channel + c * LANES, x[i][c]);
}

// attend_tile has N queries, the first of which is query at of the task, attend to the n keys of the tile.
INLINE void attend_tile(const segmentattention *a, const room *r, int64_t at, int64_t n, const int N) {
  VECTOR shrink[QUERIES];
  score(r, a->dim, r->q + at * a->dim, N);
  for (int i = 0; i < N; i++)
    shrink[i] = weigh(r->scores + i * TILE, n, r->tops + at + i, r->sums + (at + i) * SUM_LANES);
  float *mixed = r->mixed + at * r->width;
  int64_t channel = 0;
  for (; channel + PANELS * LANES <= r->width; channel += PANELS * LANES) mix(r, n, channel, shrink, mixed, N, PANELS);
#if PANELS * LANES > SUM_LANES
  switch ((r->width - channel) / LANES) {
  case 3: mix(r, n, channel, shrink, mixed, N, 3); break;
  case 2: mix(r, n, channel, shrink, mixed, N, 2); break;
  case 1: mix(r, n, channel, shrink, mixed, N, 1); break;
  }
#endif
}

// attend_segment computes out for count positions from from on, which lie in the segment [start, end).
INLINE void attend_segment(const segmentattention *a, const room *r, int64_t head, int64_t from, int64_t count, int64_t start, int64_t end) {
  const int64_t d = a->dim;
  memset(r->mixed, 0, (size_t)(count * r->width) * sizeof(float));
  memset(r->sums, 0, (size_t)(count * SUM_LANES) * sizeof(float));
  for (int64_t i = 0; i < count; i++) {
    r->tops[i] = -INFINITY;
    rotated(a, a->q + (from + i) * a->stride + head * d, from + i, a->scale, r->q + i * d);
  }
  for (int64_t t = start; t < end; t += TILE) {
    const int64_t n = end - t < TILE ? end - t : TILE;
    load_tile(a, r, head, t, n);
    for (int64_t i = 0; i < count; i += QUERIES) switch (count - i < QUERIES ? count - i : QUERIES) {
#define CASE(N) case N: attend_tile(a, r, i, n, N); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const float inverse = 1 / sum_lanes(r->sums + i * SUM_LANES);
    float *out = a->out + ((from + i) * a->heads + head) * d;
    for (int64_t j = 0; j < d; j++) out[j] = r->mixed[i * r->width + j] * inverse;
  }
}

// segment_of is the number of the segment that a position lies in.
static int64_t segment_of(const segmentattention *a, int64_t position) {
  int64_t low = 0, high = a->segments - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (a->starts[middle] <= position) low = middle;
    else high = middle - 1;
  }
  return low;
}

INLINE void attend(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch) {
  const room r = divide(a, scratch);
  memset(r.values, 0, (size_t)(TILE * r.width) * sizeof(float)); // what lies past dim is multiplied, too
  for (int64_t s = segment_of(a, from); from < to; s++) {
    const int64_t end = a->starts[s + 1], until = end < to ? end : to;
    attend_segment(a, &r, head, from, until - from, a->starts[s], end);
    from = until;
  }
}

#endif
