// Attention of a vision tower in small integers: every position of a block with every other one, without a mask.
#ifndef MMSERVE_SELFATTENTION_H
#define MMSERVE_SELFATTENTION_H

#include <stdint.h>

// selfattention is one layer over some blocks (tiles) of n positions. Queries and keys are multiplied in 8 bits, each with a
// scale of its own; what all keys of a head share is taken off them before, as it adds the same to all of a query's scores
// (SageAttention, arXiv:2410.02367). Shares have 15 bits and values 10, with a scale for each channel. Sums are integers, or float32 in
// the order of the positions: what a block gets does not depend on the blocks beside it.
typedef struct {
  int64_t blocks, n, heads, dim; // dim is a multiple of 16
  const float *q, *k, *v;        // [blocks, n, heads, dim]
  int64_t stride;                // floats from one position of q, k and v to the next
  float scale;
  float *out; // [blocks, n, heads, dim]
  // Scratch of each block and head, aligned to 64 bytes.
  uint8_t *keys;      // [room/16, dim/4, 16, 4]: panels of 16 positions; on x86 128 more than the key, on ARM the key, signed
  float *key_scale;   // [room]
  int16_t *values;    // [room/2, dim, 2], on ARM [room, dim]
  float *value_scale; // [dim]
} selfattention;

// SELFATTENTION_KEYS positions are multiplied at a time.
#define SELFATTENTION_KEYS 64

// SELFATTENTION_QUERIES are attended with by one task.
#define SELFATTENTION_QUERIES 96
// SELFATTENTION_POSITIONS is the most positions of a block: their shares of 15 bits fit an int32 together.
#define SELFATTENTION_POSITIONS (1 << 16)

static inline int64_t selfattention_room(int64_t n) { return (n + SELFATTENTION_KEYS - 1) / SELFATTENTION_KEYS * SELFATTENTION_KEYS; }

// selfattention_bytes is what keys, values and scales of one head take, a multiple of 64 for each.
static inline int64_t selfattention_bytes(const selfattention *a) {
  return selfattention_room(a->n) * (a->dim * 3 + (int64_t)sizeof(float)) + a->dim * (int64_t)sizeof(float);
}

// selfattention_place has them lie in scratch: selfattention_bytes for each block and head.
static inline void selfattention_place(selfattention *a, uint8_t *scratch) {
  const int64_t heads = a->blocks * a->heads, room = selfattention_room(a->n);
  a->keys = scratch;
  a->values = (int16_t *)(a->keys + heads * room * a->dim);
  a->key_scale = (float *)(a->values + heads * room * a->dim);
  a->value_scale = a->key_scale + heads * room;
}

// selfattention_here says whether there are kernels of it.
int selfattention_here(void);
// selfattention_prepare quantises keys and values of head, of blocks · heads.
void selfattention_prepare(const selfattention *a, int64_t head);
// selfattention_scratch is the number of bytes that selfattention_attend needs, and dim of them for each query at a time.
int64_t selfattention_scratch(const selfattention *a);
// selfattention_attend computes out for queries [from, to) of head.
void selfattention_attend(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch);

void selfattention_prepare_avx512(const selfattention *a, int64_t head);
void selfattention_prepare_dotprod(const selfattention *a, int64_t head);
void selfattention_attend_avx512(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch);
void selfattention_attend_dotprod(const selfattention *a, int64_t head, int64_t from, int64_t to, void *scratch);

#endif
