//go:build !windows

// The operators of domain "mmserve", registered with ONNX Runtime from inside the process.

#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "../ort/include/onnxruntime_c_api.h"
#include "attention_amd64.h"
#include "kernels_amd64.h"
#include "rowlinear_amd64.h"
#include "selfattention_amd64.h"
#include "team_amd64.h"

static const OrtApi *api;

// Kernels trust no node: every attribute, input and position is judged here before one of them runs.

#define MOST_RANK 8

// tensor is an input: whether it is there, its elements and its shape. data may be NULL where count is 0.
typedef struct {
  int present;
  const void *data;
  size_t rank;
  int64_t dims[MOST_RANK], count;
} tensor;

static OrtStatus *refuse(const char *op, const char *what, int64_t got, const char *want) {
  char text[200];
  snprintf(text, sizeof text, "%s: %s is %lld, want %s", op, what, (long long)got, want);
  return api->CreateStatus(ORT_INVALID_ARGUMENT, text);
}

static OrtStatus *mismatch(const char *op, const char *what, int64_t got, int64_t want) {
  char text[32];
  snprintf(text, sizeof text, "%lld", (long long)want);
  return refuse(op, what, got, text);
}

// times is a·b of counts, or -1 where one of them is negative or the product is not an int64.
static int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? -1 : product;
}

static OrtStatus *shape(const char *op, const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType type, tensor *t) {
  ONNXTensorElementDataType is;
  OrtStatus *s = api->GetTensorElementType(info, &is);
  if (!s && is != type) return mismatch(op, "an input's element type", is, type);
  if (!s) s = api->GetDimensionsCount(info, &t->rank);
  if (!s && t->rank > MOST_RANK) return mismatch(op, "an input's number of axes", (int64_t)t->rank, MOST_RANK);
  if (!s) s = api->GetDimensions(info, t->dims, t->rank);
  t->count = 1;
  for (size_t d = 0; !s && d < t->rank; d++)
    if ((t->count = times(t->count, t->dims[d])) < 0) return refuse(op, "an axis of an input", t->dims[d], "sizes that can be counted");
  return s;
}

// input reads input i, which may be absent.
static OrtStatus *input(const char *op, const OrtKernelContext *ctx, size_t i, ONNXTensorElementDataType type, tensor *t) {
  const OrtValue *v = NULL;
  memset(t, 0, sizeof *t);
  OrtStatus *s = api->KernelContext_GetInput(ctx, i, &v);
  if (s || !v) return s;
  OrtTensorTypeAndShapeInfo *info;
  if ((s = api->GetTensorTypeAndShape(v, &info))) return s;
  s = shape(op, info, type, t);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (!s) s = api->GetTensorMutableData((OrtValue *)v, (void **)&t->data);
  if (!s && t->count && !t->data) return refuse(op, "an input without memory", (int64_t)i, "none");
  t->present = !s;
  return s;
}

// expect has an input be there with the given shape.
static OrtStatus *expect(const char *op, const char *what, const tensor *t, size_t rank, const int64_t *dims) {
  char text[120];
  if (!t->present) return refuse(op, what, 0, "an input that is there");
  snprintf(text, sizeof text, "the number of axes of %s", what);
  if (t->rank != rank) return mismatch(op, text, (int64_t)t->rank, (int64_t)rank);
  for (size_t d = 0; d < rank; d++)
    if (t->dims[d] != dims[d]) {
      snprintf(text, sizeof text, "axis %d of %s", (int)d, what);
      return mismatch(op, text, t->dims[d], dims[d]);
    }
  return NULL;
}

// output makes room for an output. ONNX Runtime checks the shape where the caller brought the memory.
static OrtStatus *output(const char *op, OrtKernelContext *ctx, size_t i, const int64_t *dims, size_t rank, float **data) {
  OrtValue *v = NULL;
  OrtStatus *s = api->KernelContext_GetOutput(ctx, i, dims, rank, &v);
  if (s) return s;
  if (!v) return refuse(op, "an output that is left out", (int64_t)i, "none");
  return api->GetTensorMutableData(v, (void **)data);
}

// attribute reads a node's integer that lies in [least, most].
static OrtStatus *attribute(const char *op, const OrtKernelInfo *info, const char *name, int64_t least, int64_t most, int64_t *value) {
  OrtStatus *s = api->KernelInfoGetAttribute_int64(info, name, value);
  if (s || (*value >= least && *value <= most)) return s;
  char want[64];
  snprintf(want, sizeof want, "%lld to %lld", (long long)least, (long long)most);
  return refuse(op, name, *value, want);
}

static OrtStatus *scale_attribute(const char *op, const OrtKernelInfo *info, float *value) {
  OrtStatus *s = api->KernelInfoGetAttribute_float(info, "scale", value);
  if (s || isfinite(*value)) return s;
  return refuse(op, "scale", 0, "a finite number");
}

// arity judges how many inputs and outputs a node names.
static OrtStatus *arity(const char *op, const OrtKernelInfo *info, size_t least, size_t most, size_t outputs) {
  size_t in, out;
  OrtStatus *s = api->KernelInfo_GetInputCount(info, &in);
  if (!s) s = api->KernelInfo_GetOutputCount(info, &out);
  if (s) return s;
  if (in < least || in > most) return mismatch(op, "the number of inputs", (int64_t)in, (int64_t)most);
  if (out != outputs) return mismatch(op, "the number of outputs", (int64_t)out, (int64_t)outputs);
  return NULL;
}

static void destroy_kernel(void *k) { free(k); }

// keep gives ONNX Runtime a kernel of its own memory, a copy of the size bytes at k.
static OrtStatus *keep(const void *k, size_t size, void **out) {
  if (!(*out = malloc(size))) return api->CreateStatus(ORT_FAIL, "kernel: out of memory");
  memcpy(*out, k, size);
  return NULL;
}

// RowLinear8(x, weight, scale, start, bias?) → y and RowLinear4(x, weight, scale, bias?) → y; attributes k, n, activation.
// See rowlinear_amd64.h.
typedef struct {
  int64_t k, n, activation;
} row_linear_kernel;

// Sums of MOST_K products of two 8-bit numbers fit an int32. Sizes made of MOST_K and MOST_N are far from overflow.
#define MOST_K (1 << 17)
#define MOST_N (1 << 24)

static OrtStatus *row_linear(const char *op, const OrtKernelInfo *info, size_t inputs, void **out) {
  row_linear_kernel k;
  OrtStatus *s = arity(op, info, inputs - 1, inputs, 1);
  *out = NULL;
  if (!s) s = attribute(op, info, "k", 1, MOST_K, &k.k);
  if (!s) s = attribute(op, info, "n", 1, MOST_N, &k.n);
  if (!s) s = attribute(op, info, "activation", ROWLINEAR_NONE, ROWLINEAR_QUICK_GELU, &k.activation);
  if (!s && k.activation == ROWLINEAR_SILU_GATE && k.n % 32) s = mismatch(op, "n modulo 32 of a gate", k.n % 32, 0);
  return s ? s : keep(&k, sizeof k, out);
}

static OrtStatus *row_linear_create(const OrtCustomOp *op, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)op, (void)a;
  return row_linear("RowLinear8", info, 5, out);
}

static OrtStatus *row_linear4_create(const OrtCustomOp *op, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)op, (void)a;
  OrtStatus *s = row_linear("RowLinear4", info, 4, out);
  if (s) return s;
  const int64_t over = ((row_linear_kernel *)*out)->k % ROWLINEAR4_BLOCK;
  if (!over) return NULL;
  free(*out);
  *out = NULL;
  return mismatch("RowLinear4", "k modulo 32", over, 0);
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

static void quantize_task(void *p, size_t i) {
  const product *t = p;
  const int64_t from = (int64_t)i * BLOCK_ROWS, to = from + BLOCK_ROWS;
  t->quantize(&t->l, from, to < t->l.rows ? to : t->l.rows);
}

static void multiply_task(void *p, size_t i) {
  const product *t = p;
  const int64_t row = (int64_t)i % t->blocks * BLOCK_ROWS, row_to = row + BLOCK_ROWS;
  const int64_t pair = (int64_t)i / t->blocks * t->pairs_a_task, pair_to = pair + t->pairs_a_task;
  t->multiply(&t->l, row, row_to < t->l.rows ? row_to : t->l.rows, pair, pair_to < t->pairs ? pair_to : t->pairs);
}

static void multiply(product *p, int64_t pair_bytes) {
  const rowlinear *l = &p->l;
  p->pairs = (l->n + 31) / 32;
  p->blocks = (l->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
  p->pairs_a_task = TASK_BYTES / pair_bytes + 1;
  team_run(quantize_task, p, (size_t)p->blocks);
  team_run(multiply_task, p, (size_t)((p->pairs + p->pairs_a_task - 1) / p->pairs_a_task * p->blocks));
}

// operands reads x, whose last axis is k, and the bias, which is the given input. It makes room for y.
static OrtStatus *operands(const char *name, rowlinear *l, const row_linear_kernel *op, OrtKernelContext *ctx, size_t bias) {
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
static OrtStatus *weights(const char *name, OrtKernelContext *ctx, ONNXTensorElementDataType type, const int64_t want[3], rowlinear *l) {
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

static int64_t panels(int64_t n) { return (n + 15) / 16; }

// room is a·rows bytes as malloc takes it: rows are backed by memory, but a hostile shape may ask for many bytes a row.
static int room(int64_t rows, int64_t a, size_t *bytes) {
  const int64_t need = times(rows, a);
  *bytes = (size_t)need;
  return need >= 0;
}

static OrtStatus *row_linear_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "RowLinear8";
  const row_linear_kernel *op = k;
  const int64_t steps = (op->k + 3) / 4, channels = panels(op->n) * 16, want[3] = {panels(op->n), steps, channels * steps * 4};
  product p = {.quantize = rowlinear_quantize, .multiply = rowlinear_multiply};
  rowlinear *l = &p.l;
  tensor scale, start;
  OrtStatus *s = weights(name, ctx, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, want, l);
  if (!s) s = input(name, ctx, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &scale);
  if (!s) s = expect(name, "scale", &scale, 1, &channels);
  if (!s) s = input(name, ctx, 3, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, &start);
  if (!s) s = expect(name, "start", &start, 1, &channels);
  if (!s) s = operands(name, l, op, ctx, 4);
  if (s || l->rows == 0) return s;
  l->scale = scale.data, l->start = start.data;

  _Alignas(64) uint8_t few[FEW_BYTES];
  size_t need;
  if (!room(l->rows, steps * 4 * rowlinear_width() + (int64_t)sizeof(float), &need)) return mismatch(name, "the number of rows", l->rows, 1);
  uint8_t *scratch = need <= sizeof few ? few : malloc(need);
  if (!scratch) return api->CreateStatus(ORT_FAIL, "RowLinear8: out of memory");
  l->m = (float *)scratch;
  l->q = scratch + (size_t)l->rows * sizeof(float);
  multiply(&p, steps * 4 * 32);
  if (scratch != few) free(scratch);
  return NULL;
}

static OrtStatus *row_linear4_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "RowLinear4";
  const row_linear_kernel *op = k;
  const int64_t blocks = op->k / ROWLINEAR4_BLOCK, want[3] = {panels(op->n), blocks, panels(op->n) * blocks * 256};
  product p = {.quantize = rowlinear4_quantize, .multiply = rowlinear4_multiply};
  rowlinear *l = &p.l;
  tensor scale;
  const int64_t scales[3] = {panels(op->n), blocks, 16};
  OrtStatus *s = weights(name, ctx, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, want, l);
  if (!s) s = input(name, ctx, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, &scale);
  if (!s) s = expect(name, "scale", &scale, 3, scales);
  if (!s) s = operands(name, l, op, ctx, 3);
  if (s || l->rows == 0) return s;
  l->block_scale = scale.data;

  _Alignas(64) uint8_t few[FEW_BYTES];
  size_t need;
  if (!room(l->rows, (int64_t)sizeof(float) + blocks * (int64_t)sizeof(int32_t) + l->k, &need)) return mismatch(name, "the number of rows", l->rows, 1);
  uint8_t *scratch = need <= sizeof few ? few : malloc(need);
  if (!scratch) return api->CreateStatus(ORT_FAIL, "RowLinear4: out of memory");
  l->m = (float *)scratch;
  l->back = (int32_t *)(l->m + l->rows);
  l->q = (uint8_t *)(l->back + l->rows * blocks);
  multiply(&p, l->k * 16 + blocks * 64);
  if (scratch != few) free(scratch);
  return NULL;
}

// CachedAttention(q, k?, v?, past_key, past_value, last, cosine, sine) → out, present_key, present_value; attributes heads,
// kv_heads, scale. Without k and v, q holds all three on its last axis. present has to be bound to past's memory, which is
// written in place. See attention_amd64.h.
typedef struct {
  int64_t heads, kv_heads;
  float scale;
} attention_kernel;

// Heads, and floats a head. An honest model has far fewer; sizes made of both are far from overflow.
#define MOST_HEADS (1 << 16)
#define MOST_DIM (1 << 16)

static OrtStatus *attention_create(const OrtCustomOp *o, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)o, (void)a;
  const char *op = "CachedAttention";
  attention_kernel k;
  OrtStatus *s = arity(op, info, 8, 8, 3);
  *out = NULL;
  if (!s) s = attribute(op, info, "heads", 1, MOST_HEADS, &k.heads);
  if (!s) s = attribute(op, info, "kv_heads", 1, MOST_HEADS, &k.kv_heads);
  if (!s) s = scale_attribute(op, info, &k.scale);
  if (!s && k.heads % k.kv_heads) s = mismatch(op, "heads modulo kv_heads", k.heads % k.kv_heads, 0);
  return s ? s : keep(&k, sizeof k, out);
}

// Positions that one task stores, and queries that it attends with, when a row has many.
#define BLOCK_POSITIONS 32
#define BLOCK_QUERIES 24

typedef struct {
  attention a;
  int64_t blocks;
  atomic_int failed;
} cached;

static void store_task(void *p, size_t i) {
  const attention *a = &((const cached *)p)->a;
  const int64_t blocks = ((const cached *)p)->blocks, head = (int64_t)i / blocks;
  const int64_t from = (int64_t)i % blocks * BLOCK_POSITIONS, to = from + BLOCK_POSITIONS;
  attention_store(a, head / a->kv_heads, head % a->kv_heads, from, to < a->width ? to : a->width);
}

static void attend(cached *c, int64_t head, int64_t from, int64_t to) {
  const attention *a = &c->a;
  float few[8 << 10];
  const int64_t row = head / a->kv_heads, need = attention_scratch(a, row);
  float *scratch = need <= (int64_t)(sizeof few / sizeof *few) ? few : malloc((size_t)need * sizeof(float));
  if (!scratch) {
    c->failed = 1;
    return;
  }
  attention_attend(a, row, head % a->kv_heads, from, to, scratch);
  if (scratch != few) free(scratch);
}

static void attend_task(void *p, size_t i) {
  cached *c = p;
  const int64_t queries = c->a.width * (c->a.heads / c->a.kv_heads);
  const int64_t from = (int64_t)i % c->blocks * BLOCK_QUERIES, to = from + BLOCK_QUERIES;
  attend(c, (int64_t)i / c->blocks, from, to < queries ? to : queries);
}

static void decode_task(void *p, size_t i) {
  cached *c = p;
  attention_store(&c->a, (int64_t)i / c->a.kv_heads, (int64_t)i % c->a.kv_heads, 0, 1);
  attend(c, (int64_t)i, 0, c->a.heads / c->a.kv_heads);
}

static void attention_run(cached *c) {
  attention *a = &c->a;
  const int64_t heads = a->rows * a->kv_heads;
  if (a->width == 1) {
    team_run(decode_task, c, (size_t)heads);
    return;
  }
  c->blocks = (a->width + BLOCK_POSITIONS - 1) / BLOCK_POSITIONS;
  team_run(store_task, c, (size_t)(heads * c->blocks));
  c->blocks = (a->width * (a->heads / a->kv_heads) + BLOCK_QUERIES - 1) / BLOCK_QUERIES;
  team_run(attend_task, c, (size_t)(heads * c->blocks));
}

enum { Q, K, V, PAST_KEY, PAST_VALUE, LAST, COSINE, SINE, ATTENTION_INPUTS };

// attention_shapes judges the shapes of a step and takes its sizes from them.
static OrtStatus *attention_shapes(const char *name, attention *a, const tensor *in) {
  const tensor *past = &in[PAST_KEY];
  const int packed = !in[K].present;
  OrtStatus *s = NULL;
  if (in[V].present == packed) return refuse(name, "k without v, or v without k,", 1, "both or none");
  if (!in[Q].present || in[Q].rank != 3) return mismatch(name, "the number of axes of q", (int64_t)in[Q].rank, 3);
  if (!past->present || past->rank != 4) return mismatch(name, "the number of axes of past_key", (int64_t)past->rank, 4);
  a->rows = in[Q].dims[0], a->width = in[Q].dims[1];
  a->max_len = past->dims[2], a->dim = past->dims[3];
  if (a->dim < 16 || a->dim > MOST_DIM || a->dim % 16) return refuse(name, "the head size", a->dim, "a multiple of 16");
  if (a->max_len < 16 || a->max_len > INT32_MAX - 64 || a->max_len % 16)
    return refuse(name, "the cache's length", a->max_len, "a multiple of 16");
  a->q_stride = (packed ? a->heads + 2 * a->kv_heads : a->heads) * a->dim;
  a->kv_stride = packed ? a->q_stride : a->kv_heads * a->dim;
  const int64_t q[3] = {a->rows, a->width, a->q_stride}, kv[3] = {a->rows, a->width, a->kv_heads * a->dim};
  const int64_t cache[4] = {a->rows, a->kv_heads, a->max_len, a->dim};
  s = expect(name, "q", &in[Q], 3, q);
  if (!s && !packed) s = expect(name, "k", &in[K], 3, kv);
  if (!s && !packed) s = expect(name, "v", &in[V], 3, kv);
  if (!s) s = expect(name, "past_key", past, 4, cache);
  if (!s) s = expect(name, "past_value", &in[PAST_VALUE], 4, cache);
  if (!s) s = expect(name, "last", &in[LAST], 1, &a->rows);
  const int64_t table[2] = {in[COSINE].dims[0], a->dim / 2};
  if (!s) s = expect(name, "cosine", &in[COSINE], 2, table);
  if (!s) s = expect(name, "sine", &in[SINE], 2, table);
  return s;
}

// attention_positions judges each row's newest position: the new ones have to lie in the cache and in the tables.
static OrtStatus *attention_positions(const char *name, const attention *a, int64_t limit) {
  if (limit > a->max_len) limit = a->max_len;
  for (int64_t i = 0; i < a->rows; i++) {
    const int64_t last = a->last[i];
    if (last + 1 < a->width || last >= limit) return mismatch(name, "a row's last position", last, limit - 1);
  }
  return NULL;
}

static OrtStatus *attention_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "CachedAttention";
  const attention_kernel *op = k;
  cached c = {.a = {.heads = op->heads, .kv_heads = op->kv_heads, .scale = op->scale}};
  attention *a = &c.a;
  tensor in[ATTENTION_INPUTS];
  OrtStatus *s = NULL;
  for (size_t i = 0; !s && i < ATTENTION_INPUTS; i++)
    s = input(name, ctx, i, i == LAST ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &in[i]);
  if (!s) s = attention_shapes(name, a, in);
  if (s) return s;
  a->last = in[LAST].data, a->cosine = in[COSINE].data, a->sine = in[SINE].data;
  if ((s = attention_positions(name, a, in[COSINE].dims[0]))) return s;
  a->q = in[Q].data, a->k = in[K].data, a->v = in[V].data;
  if (!in[K].present && a->q) a->k = a->q + a->heads * a->dim, a->v = a->k + a->kv_heads * a->dim;
  const int64_t dims[3] = {a->rows, a->width, a->heads * a->dim};
  if ((s = output(name, ctx, 0, dims, 3, &a->out))) return s;
  if ((s = output(name, ctx, 1, in[PAST_KEY].dims, 4, &a->keys))) return s;
  if ((s = output(name, ctx, 2, in[PAST_VALUE].dims, 4, &a->values))) return s;
  if (a->keys != in[PAST_KEY].data || a->values != in[PAST_VALUE].data || (a->rows && a->keys == a->values))
    return api->CreateStatus(ORT_INVALID_ARGUMENT, "CachedAttention: present is not bound to past's memory");
  if (!a->rows || !a->width) return NULL;
  size_t need;
  if (!room(times(a->rows, a->width), a->heads * a->dim * (int64_t)sizeof(float), &need)) return mismatch(name, "the number of rows", a->rows, 1);
  if (!(a->rotated = malloc(need))) return api->CreateStatus(ORT_FAIL, "CachedAttention: out of memory");
  attention_run(&c);
  free(a->rotated);
  return !c.failed ? NULL : api->CreateStatus(ORT_FAIL, "CachedAttention: out of memory");
}

// SelfAttention8(q, k?, v?) → out; attributes heads, scale. All are [blocks, n, heads·dim]. Without k and v, q holds all three on
// its last axis. See selfattention_amd64.h.
typedef struct {
  int64_t heads;
  float scale;
} self_attention_kernel;

static OrtStatus *self_attention_create(const OrtCustomOp *o, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)o, (void)a;
  const char *op = "SelfAttention8";
  self_attention_kernel k;
  OrtStatus *s = arity(op, info, 1, 3, 1);
  *out = NULL;
  if (!s) s = attribute(op, info, "heads", 1, MOST_HEADS, &k.heads);
  if (!s) s = scale_attribute(op, info, &k.scale);
  return s ? s : keep(&k, sizeof k, out);
}

// Queries of a head that one task attends with.
#define TASK_QUERIES 96

typedef struct {
  selfattention a;
  int64_t parts; // tasks of a head
  atomic_int failed;
} whole;

static void prepare_task(void *p, size_t i) { selfattention_prepare_avx512(&((const whole *)p)->a, (int64_t)i); }

static void self_attend_task(void *p, size_t i) {
  whole *w = p;
  const int64_t from = (int64_t)i % w->parts * TASK_QUERIES, to = from + TASK_QUERIES;
  void *scratch = malloc((size_t)selfattention_scratch(&w->a));
  if (!scratch) {
    w->failed = 1;
    return;
  }
  selfattention_attend_avx512(&w->a, (int64_t)i / w->parts, from, to < w->a.n ? to : w->a.n, scratch);
  free(scratch);
}

// Positions whose shares of 15 bits fit an int32 together, and floats a head that lie on a thread's stack.
#define MOST_POSITIONS (1 << 16)
#define MOST_SELF_DIM 1024

// self_attention_shapes judges the shapes and takes the sizes from them.
static OrtStatus *self_attention_shapes(const char *name, selfattention *a, const tensor *in) {
  const tensor *q = &in[0];
  if (!q->present || q->rank != 3) return mismatch(name, "the number of axes of q", (int64_t)q->rank, 3);
  if (in[1].present != in[2].present) return refuse(name, "k without v, or v without k,", 1, "both or none");
  const int packed = !in[1].present;
  const int64_t parts = a->heads * (packed ? 3 : 1);
  a->blocks = q->dims[0], a->n = q->dims[1], a->stride = q->dims[2], a->dim = a->stride / parts;
  if (a->stride % parts || a->dim < 16 || a->dim > MOST_SELF_DIM || a->dim % 16)
    return refuse(name, "the last axis of q", a->stride, "heads of 16 to 1024, multiples of 16");
  if (a->n > MOST_POSITIONS) return refuse(name, "the number of positions", a->n, "65536 at most");
  OrtStatus *s = NULL;
  if (!packed) s = expect(name, "k", &in[1], 3, q->dims);
  if (!s && !packed) s = expect(name, "v", &in[2], 3, q->dims);
  return s;
}

static OrtStatus *self_attention_run(whole *w) {
  selfattention *a = &w->a;
  const size_t heads = (size_t)(a->blocks * a->heads), padded = (size_t)selfattention_room(a->n), dim = (size_t)a->dim;
  size_t need;
  if (!room((int64_t)heads, (int64_t)(padded * (dim * 3 + sizeof(float)) + dim * sizeof(float)), &need))
    return mismatch("SelfAttention8", "the number of blocks", a->blocks, 1);
  uint8_t *scratch = aligned_alloc(64, need);
  if (!scratch) return api->CreateStatus(ORT_FAIL, "SelfAttention8: out of memory");
  a->keys = scratch;
  a->values = (int16_t *)(a->keys + heads * padded * dim);
  a->key_scale = (float *)(a->values + heads * padded * dim);
  a->value_scale = a->key_scale + heads * padded;
  w->parts = (a->n + TASK_QUERIES - 1) / TASK_QUERIES;
  team_run(prepare_task, w, heads);
  team_run(self_attend_task, w, heads * (size_t)w->parts);
  free(scratch);
  return !w->failed ? NULL : api->CreateStatus(ORT_FAIL, "SelfAttention8: out of memory");
}

static OrtStatus *self_attention_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "SelfAttention8";
  const self_attention_kernel *op = k;
  whole w = {.a = {.heads = op->heads, .scale = op->scale}};
  selfattention *a = &w.a;
  tensor in[3];
  OrtStatus *s = NULL;
  for (size_t i = 0; !s && i < 3; i++) s = input(name, ctx, i, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &in[i]);
  if (s) return s;
  if (kernels() < KERNELS_AVX512) return api->CreateStatus(ORT_NOT_IMPLEMENTED, "SelfAttention8 needs AVX-512 with VNNI");
  if ((s = self_attention_shapes(name, a, in))) return s;
  a->q = in[0].data, a->k = in[1].data, a->v = in[2].data;
  if (!in[1].present && a->q) a->k = a->q + a->heads * a->dim, a->v = a->k + a->heads * a->dim;
  const int64_t dims[3] = {a->blocks, a->n, a->heads * a->dim};
  if ((s = output(name, ctx, 0, dims, 3, &a->out)) || !in[0].count) return s;
  return self_attention_run(&w);
}

static const char *row_linear_name(const OrtCustomOp *op) { (void)op; return "RowLinear8"; }
static const char *row_linear4_name(const OrtCustomOp *op) { (void)op; return "RowLinear4"; }
static const char *attention_name(const OrtCustomOp *op) { (void)op; return "CachedAttention"; }
static const char *self_attention_name(const OrtCustomOp *op) { (void)op; return "SelfAttention8"; }
static const char *provider(const OrtCustomOp *op) { (void)op; return NULL; }
static ONNXTensorElementDataType row_linear_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 1   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
         : i == 3 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32
                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static ONNXTensorElementDataType row_linear4_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 1   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
         : i == 2 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16
                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static ONNXTensorElementDataType attention_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 5 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static ONNXTensorElementDataType self_attention_input_type(const OrtCustomOp *op, size_t i) {
  (void)op, (void)i;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t row_linear_inputs(const OrtCustomOp *op) { (void)op; return 5; }
static size_t row_linear4_inputs(const OrtCustomOp *op) { (void)op; return 4; }
static size_t self_attention_inputs(const OrtCustomOp *op) { (void)op; return 3; }
static size_t row_linear_outputs(const OrtCustomOp *op) { (void)op; return 1; }
static size_t attention_inputs(const OrtCustomOp *op) { (void)op; return 8; }
static size_t attention_outputs(const OrtCustomOp *op) { (void)op; return 3; }
static OrtCustomOpInputOutputCharacteristic row_linear_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 4 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static OrtCustomOpInputOutputCharacteristic row_linear4_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 3 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static OrtCustomOpInputOutputCharacteristic attention_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 1 || i == 2 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static OrtCustomOpInputOutputCharacteristic self_attention_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static ONNXTensorElementDataType output_type(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
static OrtCustomOpInputOutputCharacteristic output_kind(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return INPUT_OUTPUT_REQUIRED; }
static OrtMemType memory_type(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return OrtMemTypeDefault; }
static int version(const OrtCustomOp *op) { (void)op; return 1; }

#define OPERATOR(prefix)                                                                                                \
  {                                                                                                                     \
    .version = ORT_API_VERSION, .GetName = prefix##_name, .GetExecutionProviderType = provider,                         \
    .GetInputType = prefix##_input_type, .GetInputTypeCount = prefix##_inputs, .GetOutputType = output_type,            \
    .GetOutputTypeCount = prefix##_outputs, .KernelDestroy = destroy_kernel,                                            \
    .GetInputCharacteristic = prefix##_input_kind, .GetOutputCharacteristic = output_kind,                              \
    .GetInputMemoryType = memory_type, .CreateKernelV2 = prefix##_create, .KernelComputeV2 = prefix##_compute,          \
    .GetStartVersion = version, .GetEndVersion = version,                                                               \
  }

#define row_linear4_outputs row_linear_outputs
#define self_attention_outputs row_linear_outputs

static const OrtCustomOp operators[] = {OPERATOR(row_linear), OPERATOR(row_linear4), OPERATOR(attention), OPERATOR(self_attention)};

// operators_add lets a session use the domain. It returns NULL or a message that the caller frees. The first call makes
// the domain, which lives as long as the process; calls must not overlap.
char *operators_add(const char *library, void *session_options) {
  static OrtCustomOpDomain *domain;
  OrtStatus *s = NULL;
  if (!domain) {
    void *h = dlopen(library, RTLD_NOW | RTLD_NOLOAD); // the one that the Go binding has loaded
    if (!h) return strdup("the library is not loaded");
    const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))dlsym(h, "OrtGetApiBase");
    if (!base || !(api = base()->GetApi(ORT_API_VERSION))) return strdup("the library lacks the C API of this version");
    s = api->CreateCustomOpDomain("mmserve", &domain);
    for (size_t i = 0; !s && i < sizeof operators / sizeof *operators; i++) s = api->CustomOpDomain_Add(domain, &operators[i]);
  }
  if (!s) s = api->AddCustomOpDomain((OrtSessionOptions *)session_options, domain);
  if (!s) return NULL;
  char *text = strdup(api->GetErrorMessage(s));
  api->ReleaseStatus(s);
  return text;
}
