// Causal attention of a decoder over its KV cache, in float32.
#ifndef MMSERVE_ATTENTION_H
#define MMSERVE_ATTENTION_H

#include <stdint.h>

// attention_row is one sequence's part of a step: width new positions from number first of the step's on, of which the
// newest stands at last in the sequence, whose keys and values are in slot.
typedef struct {
  int64_t first, width, last, slot;
  int64_t tasks; // those of one key/value head of the rows before it
} attention_row;

// attention is one layer's step: rows sequences with new positions, which together are count. Query head i reads
// key/value head i / (heads / kv_heads). What a query gets does not depend on the rows and positions it runs with: every
// query does the same additions in the same order.
typedef struct {
  int64_t rows, count, heads, kv_heads, dim, max_len; // dim and max_len are multiples of 16
  attention_row *row;
  const float *q, *k, *v;      // new positions, [count, heads (kv_heads), dim]
  int64_t q_stride, kv_stride; // floats from one position to the next
  float *keys;                 // [slots, kv_heads, max_len/16, dim, 16]: panels of 16 positions
  float *values;               // [slots, kv_heads, max_len, dim]
  // The angles that a head's first rotary values turn by: [positions, rotary/2], or with turned [count, rotary/2].
  // Two halves turn against each other, or with pairs values that lie beside each other.
  const float *cosine, *sine;
  int64_t rotary;
  int turned, pairs;
  const float *q_norm, *k_norm; // [dim], of RMS norms before the rotation, or NULL
  float epsilon;
  float scale;
  const float *q_scale; // [positions], what the queries of each are multiplied by besides, or NULL
  int64_t window; // positions that a query sees, its own and those before; 0 for all
  float softcap;  // bounds scores by tanh, 0 for not
  // With blocks, until [count] is the last position that each new one sees. Those with the same are a block: they all
  // see from its start, block_start [count], whatever the window. Both NULL without.
  const int32_t *until, *block_start;
  float *out;     // [count, heads, dim]
  float *rotated; // scratch, of each row [kv_heads, width, heads/kv_heads, dim]: scaled and rotated queries
} attention;

// attention_store rotates queries and keys of row's positions [from, to) and writes keys and values into the cache.
void attention_store(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to);
// attention_scratch is the number of floats that attention_attend needs for a row.
int64_t attention_scratch(const attention *a, int64_t row);
// attention_attend computes out for queries [from, to) of row and kv_head, of its width · heads/kv_heads, after all of the
// row's positions have been stored.
void attention_attend(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch);

void attention_store_avx2(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to);
void attention_store_avx512(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to);
void attention_attend_avx2(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch);
void attention_attend_avx512(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch);
void attention_store_neon(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to);
void attention_attend_neon(const attention *a, int64_t row, int64_t kv_head, int64_t from, int64_t to, float *scratch);

#endif
