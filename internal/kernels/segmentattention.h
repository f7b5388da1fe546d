// Attention of a vision tower in float32: every position of a segment with every other one of it, without a mask. Scores are never held
// for more than a tile of keys (online softmax, arXiv:1805.02867), so memory does not grow with the number of positions.
#ifndef MMSERVE_SEGMENTATTENTION_H
#define MMSERVE_SEGMENTATTENTION_H

#include <stdint.h>

// segmentattention is one layer over n positions that lie in segments, one after the other. What a position gets depends on its segment
// alone: keys are taken in tiles from the segment's start, and every query does the same additions in the same order.
typedef struct {
  int64_t n, heads, dim;      // dim is a multiple of 8
  const float *q, *k, *v;     // [n, heads, dim]
  int64_t stride;             // floats from one position of q, k and v to the next
  const float *cosine, *sine; // [n, dim/2], of rotate-half position embeddings; NULL without
  int64_t segments;
  const int32_t *starts; // [segments+1], the first position of each, then n
  float scale;
  float *out; // [n, heads, dim]
} segmentattention;

// SEGMENTATTENTION_QUERIES is the most positions of one segmentattention_attend.
#define SEGMENTATTENTION_QUERIES 192

// segmentattention_scratch is the number of floats that segmentattention_attend needs, aligned to 64 bytes.
int64_t segmentattention_scratch(const segmentattention *a);
// segmentattention_attend computes out for positions [from, to) of a head.
void segmentattention_attend(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch);

void segmentattention_attend_avx2(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch);
void segmentattention_attend_avx512(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch);
void segmentattention_attend_neon(const segmentattention *a, int64_t head, int64_t from, int64_t to, float *scratch);

#endif
