// Linear layers over quantised weights, with activations quantised to 8 bits and one scale a row. In int8, weights have one
// scale an output channel; in int4, one for each 32 inputs of a channel.
#ifndef MMSERVE_ROWLINEAR_H
#define MMSERVE_ROWLINEAR_H

#include <stdint.h>

enum { ROWLINEAR_NONE, ROWLINEAR_SILU_GATE, ROWLINEAR_GELU_TANH, ROWLINEAR_QUICK_GELU };

// rowlinear is one product y = activation(x·Wᵀ + bias).
typedef struct {
  int64_t rows, k, n;   // x [rows, k], W [n, k]; n is counted before a gate halves it
  const float *x;
  const int8_t *w;      // int8, panels of 16 channels: [⌈n/16⌉, ⌈k/4⌉, 16, 4], zero where there is no channel or no k;
                        // int4: [⌈n/16⌉, k/32, 4, 16, 4], each byte 8 + the weights of an input and, above, of that 16 on
  const float *scale;   // int8: [⌈n/16⌉·16]
  const uint16_t *block_scale; // int4, bfloat16: [⌈n/16⌉, k/32, 16]
  const int32_t *start; // [⌈n/16⌉·16], -128·Σ_k W: takes back the 128 that is added to the activations
  const float *bias;    // [n] or NULL
  float *y;             // [rows, n], or [rows, n/2] when gated
  int activation;
  uint8_t *q;           // scratch, [rows, 4·⌈k/4⌉] of rowlinear_width bytes: x in 8 bits, around 128 in one byte of x86 or 0 in two, or 0 in one of ARM
  float *m;             // scratch, [rows]: what one step of q is worth
  int32_t *back;        // int4, scratch, [rows, k/32]: takes back the 8 that is added to the weights
} rowlinear;

// rowlinear_width is the number of bytes that an element of q takes.
int64_t rowlinear_width(void);
// rowlinear_quantize fills q and m for rows [from, to).
void rowlinear_quantize(const rowlinear *l, int64_t from, int64_t to);
// rowlinear_multiply computes rows [row_from, row_to) of the channels in panel pairs [pair_from, pair_to), 32 channels
// each, from q and m.
void rowlinear_multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

void rowlinear_quantize_avx2(const rowlinear *l, int64_t from, int64_t to);
void rowlinear_quantize_avx512(const rowlinear *l, int64_t from, int64_t to);
void rowlinear_multiply_avx2(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
void rowlinear_multiply_avx512(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

void rowlinear_quantize_neon(const rowlinear *l, int64_t from, int64_t to);
void rowlinear_multiply_neon(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
void rowlinear_multiply_dotprod(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
void rowlinear_multiply_i8mm(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

#define ROWLINEAR4_BLOCK 32

// The same over int4 weights, with q in signed bytes. k is a multiple of 32.
void rowlinear4_quantize(const rowlinear *l, int64_t from, int64_t to);
void rowlinear4_multiply(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

void rowlinear4_quantize_avx2(const rowlinear *l, int64_t from, int64_t to);
void rowlinear4_quantize_avx512(const rowlinear *l, int64_t from, int64_t to);
void rowlinear4_multiply_avx2(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
void rowlinear4_multiply_avx512(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

void rowlinear4_quantize_neon(const rowlinear *l, int64_t from, int64_t to);
void rowlinear4_multiply_neon(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
void rowlinear4_multiply_dotprod(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
void rowlinear4_multiply_i8mm(const rowlinear *l, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);

#endif
