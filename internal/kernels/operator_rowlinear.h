// What the operators of linear layers share: attributes k, n and activation, operands, and the tasks of a product. See rowlinear.h.
#ifndef MMSERVE_OPERATOR_ROWLINEAR_H
#define MMSERVE_OPERATOR_ROWLINEAR_H

#include "operator.h"
#include "rowlinear.h"

// row_linear_kernel are a node's attributes.
typedef struct {
  int64_t k, n, activation;
} row_linear_kernel;

// Sums of MOST_K products of two 8-bit numbers fit an int32. Sizes made of MOST_K and MOST_N are far from overflow.
#define MOST_K (1 << 17)
#define MOST_N (1 << 24)

static inline OrtStatus *row_linear(const char *op, const OrtKernelInfo *info, size_t inputs, void **out) {
  row_linear_kernel k;
  OrtStatus *s = arity(op, info, inputs - 1, inputs, 1);
  *out = NULL;
  if (!s) s = attribute(op, info, "k", 1, MOST_K, &k.k);
  if (!s) s = attribute(op, info, "n", 1, MOST_N, &k.n);
  if (!s) s = attribute(op, info, "activation", ROWLINEAR_NONE, ROWLINEAR_QUICK_GELU, &k.activation);
  if (!s && k.activation == ROWLINEAR_SILU_GATE && k.n % 32) s = mismatch(op, "n modulo 32 of a gate", k.n % 32, 0);
  return s ? s : keep(&k, sizeof k, out);
}

// Rows that one task multiplies: a block of activations that stays in the second-level cache.
#define BLOCK_ROWS 192
// Weights that one task multiplies, when there are few rows: fewer bytes are not worth a second thread.
#define TASK_BYTES (64 << 10)

typedef struct {
  rowlinear l;
  int64_t pairs, pairs_a_task, blocks;
  void (*quantize)(const rowlinear *, int64_t from, int64_t to);
  void (*multiply)(const rowlinear *, int64_t row_from, int64_t row_to, int64_t pair_from, int64_t pair_to);
} product;

static inline void quantize_task(void *p, size_t i) {
  const product *t = p;
  const int64_t from = (int64_t)i * BLOCK_ROWS, to = from + BLOCK_ROWS;
  t->quantize(&t->l, from, to < t->l.rows ? to : t->l.rows);
}

static inline void multiply_task(void *p, size_t i) {
  const product *t = p;
  const int64_t row = (int64_t)i % t->blocks * BLOCK_ROWS, row_to = row + BLOCK_ROWS;
  const int64_t pair = (int64_t)i / t->blocks * t->pairs_a_task, pair_to = pair + t->pairs_a_task;
  t->multiply(&t->l, row, row_to < t->l.rows ? row_to : t->l.rows, pair, pair_to < t->pairs ? pair_to : t->pairs);
}

static inline void multiply(product *p, int64_t pair_bytes) {
  const rowlinear *l = &p->l;
  p->pairs = (l->n + 31) / 32;
  p->blocks = (l->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
  p->pairs_a_task = TASK_BYTES / pair_bytes + 1;
  team_run(quantize_task, p, (size_t)p->blocks);
  team_run(multiply_task, p, (size_t)((p->pairs + p->pairs_a_task - 1) / p->pairs_a_task * p->blocks));
}

// operands reads x, whose last axis is k, and the bias, which is the given input. It makes room for y.
static inline OrtStatus *operands(const char *name, rowlinear *l, const row_linear_kernel *op, OrtKernelContext *ctx, size_t bias) {
  tensor x, b;
  l->k = op->k, l->n = op->n, l->activation = (int)op->activation;
  OrtStatus *s = input(name, ctx, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &x);
  if (!s) s = input(name, ctx, bias, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &b);
  if (!s && b.present) s = expect(name, "bias", &b, 1, &l->n);
  if (s) return s;
  if (!x.present || x.rank < 1 || x.dims[x.rank - 1] != l->k) return mismatch(name, "the last axis of x", x.rank ? x.dims[x.rank - 1] : 0, l->k);
  l->x = x.data, l->bias = b.data, l->rows = x.count / l->k;
  x.dims[x.rank - 1] = l->activation == ROWLINEAR_SILU_GATE ? l->n / 2 : l->n;
  return output(name, ctx, 0, x.dims, x.rank, &l->y);
}

// weights reads a layer's weights, whose first axes are panels and steps, and count all of them.
static inline OrtStatus *weights(const char *name, OrtKernelContext *ctx, ONNXTensorElementDataType type, const int64_t want[3], rowlinear *l) {
  tensor w;
  OrtStatus *s = input(name, ctx, 1, type, &w);
  if (s) return s;
  if (!w.present || w.rank < 2) return mismatch(name, "the number of axes of the weights", (int64_t)w.rank, 3);
  for (size_t d = 0; d < 2; d++)
    if (w.dims[d] != want[d]) return mismatch(name, d ? "axis 1 of the weights" : "axis 0 of the weights", w.dims[d], want[d]);
  if (w.count != want[2]) return mismatch(name, "the number of weights", w.count, want[2]);
  l->w = w.data;
  return NULL;
}

// Scratch for a few rows lies on the stack.
#define FEW_BYTES (32 << 10)

static inline int64_t panels(int64_t n) { return (n + 15) / 16; }


#endif
