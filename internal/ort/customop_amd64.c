//go:build !windows

// The operators of domain "mmserve", registered with ONNX Runtime from inside the process.

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "include/onnxruntime_c_api.h"
#include "attention_amd64.h"
#include "kernels_amd64.h"
#include "rowlinear_amd64.h"
#include "selfattention_amd64.h"
#include "team_amd64.h"

static const OrtApi *api;

// tensor is an input: its elements, NULL if it is absent, and its shape.
typedef struct {
  const void *data;
  size_t rank;
  int64_t dims[8], count;
} tensor;

static OrtStatus *input(const OrtKernelContext *ctx, size_t i, tensor *t) {
  const OrtValue *v = NULL;
  memset(t, 0, sizeof *t);
  OrtStatus *s = api->KernelContext_GetInput(ctx, i, &v);
  if (s || !v) return s;
  OrtTensorTypeAndShapeInfo *info;
  if ((s = api->GetTensorTypeAndShape(v, &info))) return s;
  s = api->GetDimensionsCount(info, &t->rank);
  if (!s && t->rank > 8) s = api->CreateStatus(ORT_INVALID_ARGUMENT, "an input has more than 8 axes");
  if (!s) s = api->GetDimensions(info, t->dims, t->rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (s) return s;
  t->count = 1;
  for (size_t d = 0; d < t->rank; d++) t->count *= t->dims[d];
  return api->GetTensorMutableData((OrtValue *)v, (void **)&t->data);
}

static OrtStatus *output(OrtKernelContext *ctx, size_t i, const int64_t *dims, size_t rank, float **data) {
  OrtValue *v = NULL;
  OrtStatus *s = api->KernelContext_GetOutput(ctx, i, dims, rank, &v);
  return s ? s : api->GetTensorMutableData(v, (void **)data);
}

static OrtStatus *mismatch(const char *op, const char *what, int64_t got, int64_t want) {
  char text[160];
  snprintf(text, sizeof text, "%s: %s is %lld, want %lld", op, what, (long long)got, (long long)want);
  return api->CreateStatus(ORT_INVALID_ARGUMENT, text);
}

static void destroy_kernel(void *k) { free(k); }

// RowLinear8(x, weight, scale, start, bias?) → y and RowLinear4(x, weight, scale, bias?) → y; attributes k, n, activation.
// See rowlinear_amd64.h.
typedef struct {
  int64_t k, n, activation;
} row_linear_kernel;

static OrtStatus *row_linear_create(const OrtCustomOp *op, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)op;
  row_linear_kernel *k = *out = malloc(sizeof *k);
  if (!k) return a->CreateStatus(ORT_FAIL, "linear layer: out of memory");
  OrtStatus *s = a->KernelInfoGetAttribute_int64(info, "k", &k->k);
  if (!s) s = a->KernelInfoGetAttribute_int64(info, "n", &k->n);
  if (!s) s = a->KernelInfoGetAttribute_int64(info, "activation", &k->activation);
  if (s) free(k);
  return s;
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

// operands reads x and the inputs after it, whose sizes have to be want; of those the last may be absent. It makes room
// for y.
static OrtStatus *operands(const char *name, rowlinear *l, const row_linear_kernel *op, OrtKernelContext *ctx, tensor *in, const int64_t *want, size_t most) {
  tensor x;
  size_t inputs;
  l->k = op->k, l->n = op->n, l->activation = (int)op->activation;
  OrtStatus *s = api->KernelContext_GetInputCount(ctx, &inputs);
  if (!s) s = input(ctx, 0, &x);
  memset(in, 0, most * sizeof *in);
  for (size_t i = 1; !s && i < inputs && i <= most; i++) {
    s = input(ctx, i, &in[i - 1]);
    if (!s && in[i - 1].data && in[i - 1].count != want[i - 1]) s = mismatch(name, "an input's size", in[i - 1].count, want[i - 1]);
  }
  if (s) return s;
  if (x.rank < 1 || x.dims[x.rank - 1] != l->k) return mismatch(name, "the last axis of x", x.rank ? x.dims[x.rank - 1] : 0, l->k);
  l->x = x.data, l->rows = x.count / l->k;
  x.dims[x.rank - 1] = l->activation == ROWLINEAR_SILU_GATE ? l->n / 2 : l->n;
  return output(ctx, 0, x.dims, x.rank, &l->y);
}

// Scratch for a few rows lies on the stack.
#define FEW_BYTES (32 << 10)

static int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

static OrtStatus *row_linear_compute(void *k, OrtKernelContext *ctx) {
  const row_linear_kernel *op = k;
  const int64_t width = (op->k + 3) / 4 * 4, want[4] = {padded(op->n) * width, padded(op->n), padded(op->n), op->n};
  product p = {.quantize = rowlinear_quantize, .multiply = rowlinear_multiply};
  rowlinear *l = &p.l;
  tensor in[4];
  OrtStatus *s = operands("RowLinear8", l, op, ctx, in, want, 4);
  if (s || l->rows == 0) return s;
  l->w = in[0].data, l->scale = in[1].data, l->start = in[2].data, l->bias = in[3].data;

  _Alignas(64) uint8_t few[FEW_BYTES];
  const size_t need = (size_t)l->rows * ((size_t)(width * rowlinear_width()) + sizeof(float));
  uint8_t *scratch = need <= sizeof few ? few : malloc(need);
  if (!scratch) return api->CreateStatus(ORT_FAIL, "RowLinear8: out of memory");
  l->m = (float *)scratch;
  l->q = scratch + (size_t)l->rows * sizeof(float);
  multiply(&p, width * 32);
  if (scratch != few) free(scratch);
  return NULL;
}

static OrtStatus *row_linear4_compute(void *k, OrtKernelContext *ctx) {
  const row_linear_kernel *op = k;
  const int64_t blocks = op->k / ROWLINEAR4_BLOCK, want[3] = {padded(op->n) * op->k / 2, padded(op->n) * blocks, op->n};
  product p = {.quantize = rowlinear4_quantize, .multiply = rowlinear4_multiply};
  rowlinear *l = &p.l;
  tensor in[3];
  if (op->k % ROWLINEAR4_BLOCK) return mismatch("RowLinear4", "k modulo 32", op->k % ROWLINEAR4_BLOCK, 0);
  OrtStatus *s = operands("RowLinear4", l, op, ctx, in, want, 3);
  if (s || l->rows == 0) return s;
  l->w = in[0].data, l->block_scale = in[1].data, l->bias = in[2].data;

  _Alignas(64) uint8_t few[FEW_BYTES];
  const size_t need = (size_t)l->rows * (size_t)(sizeof(float) + (size_t)blocks * sizeof(int32_t) + (size_t)l->k);
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

static OrtStatus *attention_create(const OrtCustomOp *op, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)op;
  attention_kernel *k = *out = malloc(sizeof *k);
  if (!k) return a->CreateStatus(ORT_FAIL, "CachedAttention: out of memory");
  OrtStatus *s = a->KernelInfoGetAttribute_int64(info, "heads", &k->heads);
  if (!s) s = a->KernelInfoGetAttribute_int64(info, "kv_heads", &k->kv_heads);
  if (!s) s = a->KernelInfoGetAttribute_float(info, "scale", &k->scale);
  if (s) free(k);
  return s;
}

// Positions that one task stores, and queries that it attends with, when a row has many.
#define BLOCK_POSITIONS 32
#define BLOCK_QUERIES 24

typedef struct {
  attention a;
  int64_t blocks;
  int failed;
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

static OrtStatus *attention_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "CachedAttention";
  const attention_kernel *op = k;
  cached c = {.a = {.heads = op->heads, .kv_heads = op->kv_heads, .scale = op->scale}};
  attention *a = &c.a;
  enum { Q, K, V, PAST_KEY, PAST_VALUE, LAST, COSINE, SINE, INPUTS };
  tensor in[INPUTS];
  OrtStatus *s = NULL;
  for (size_t i = 0; !s && i < INPUTS; i++) s = input(ctx, i, &in[i]);
  if (s) return s;
  const int packed = !in[K].data;
  if (in[Q].rank != 3 || in[PAST_KEY].rank != 4) return mismatch(name, "the rank of q", (int64_t)in[Q].rank, 3);
  a->rows = in[Q].dims[0], a->width = in[Q].dims[1];
  a->max_len = in[PAST_KEY].dims[2], a->dim = in[PAST_KEY].dims[3];
  a->q_stride = (packed ? a->heads + 2 * a->kv_heads : a->heads) * a->dim;
  a->kv_stride = packed ? a->q_stride : a->kv_heads * a->dim;
  const int64_t cache = a->rows * a->kv_heads * a->max_len * a->dim, kv = a->rows * a->width * a->kv_heads * a->dim;
  if (a->dim % 16 || a->max_len % 16) return mismatch(name, "the cache's length or head size modulo 16", 1, 0);
  if (in[Q].dims[2] != a->q_stride) return mismatch(name, "the last axis of q", in[Q].dims[2], a->q_stride);
  if (!packed && (in[K].count != kv || in[V].count != kv)) return mismatch(name, "the size of k or v", in[K].count, kv);
  if (in[PAST_KEY].count != cache || in[PAST_VALUE].count != cache) return mismatch(name, "the size of the cache", in[PAST_KEY].count, cache);
  if (in[LAST].count != a->rows) return mismatch(name, "the number of positions", in[LAST].count, a->rows);
  if (in[COSINE].count != in[SINE].count) return mismatch(name, "the size of sine", in[SINE].count, in[COSINE].count);
  a->last = in[LAST].data, a->cosine = in[COSINE].data, a->sine = in[SINE].data;
  int64_t limit = in[COSINE].count / (a->dim / 2);
  if (limit > a->max_len) limit = a->max_len;
  for (int64_t i = 0; i < a->rows; i++)
    if (a->last[i] + 1 < a->width || a->last[i] >= limit) return mismatch(name, "a row's last position", a->last[i], limit - 1);
  a->q = in[Q].data;
  a->k = packed ? a->q + a->heads * a->dim : in[K].data;
  a->v = packed ? a->k + a->kv_heads * a->dim : in[V].data;
  const int64_t dims[3] = {a->rows, a->width, a->heads * a->dim};
  if ((s = output(ctx, 0, dims, 3, &a->out))) return s;
  if ((s = output(ctx, 1, in[PAST_KEY].dims, 4, &a->keys))) return s;
  if ((s = output(ctx, 2, in[PAST_VALUE].dims, 4, &a->values))) return s;
  if (a->keys != in[PAST_KEY].data || a->values != in[PAST_VALUE].data)
    return api->CreateStatus(ORT_INVALID_ARGUMENT, "CachedAttention: present is not bound to past's memory");
  if (!a->rows || !a->width) return NULL;
  a->rotated = malloc((size_t)(a->rows * a->width * a->heads * a->dim) * sizeof(float));
  if (!a->rotated) return api->CreateStatus(ORT_FAIL, "CachedAttention: out of memory");
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

static OrtStatus *self_attention_create(const OrtCustomOp *op, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)op;
  self_attention_kernel *k = *out = malloc(sizeof *k);
  if (!k) return a->CreateStatus(ORT_FAIL, "SelfAttention8: out of memory");
  OrtStatus *s = a->KernelInfoGetAttribute_int64(info, "heads", &k->heads);
  if (!s) s = a->KernelInfoGetAttribute_float(info, "scale", &k->scale);
  if (s) free(k);
  return s;
}

// Queries of a head that one task attends with.
#define TASK_QUERIES 96

typedef struct {
  selfattention a;
  int64_t parts; // tasks of a head
  int failed;
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

static OrtStatus *self_attention_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "SelfAttention8";
  const self_attention_kernel *op = k;
  whole w = {.a = {.heads = op->heads, .scale = op->scale}};
  selfattention *a = &w.a;
  tensor in[3];
  OrtStatus *s = NULL;
  for (size_t i = 0; !s && i < 3; i++) s = input(ctx, i, &in[i]);
  if (s) return s;
  if (kernels() < KERNELS_AVX512) return api->CreateStatus(ORT_NOT_IMPLEMENTED, "SelfAttention8 needs AVX-512 with VNNI");
  if (in[0].rank != 3) return mismatch(name, "the rank of q", (int64_t)in[0].rank, 3);
  const int packed = !in[1].data;
  if (!packed && (in[1].count != in[0].count || in[2].count != in[0].count)) return mismatch(name, "the size of k or v", in[1].count, in[0].count);
  if (in[0].dims[2] % (16 * (packed ? 3 : 1) * a->heads)) return mismatch(name, "the last axis modulo heads of 16", in[0].dims[2] % (16 * a->heads), 0);
  a->blocks = in[0].dims[0], a->n = in[0].dims[1], a->stride = in[0].dims[2], a->dim = a->stride / a->heads / (packed ? 3 : 1);
  a->q = in[0].data;
  a->k = packed ? a->q + a->heads * a->dim : in[1].data;
  a->v = packed ? a->k + a->heads * a->dim : in[2].data;
  in[0].dims[2] = a->heads * a->dim;
  if ((s = output(ctx, 0, in[0].dims, 3, &a->out)) || !in[0].count) return s;

  const size_t heads = (size_t)(a->blocks * a->heads), room = (size_t)selfattention_room(a->n), dim = (size_t)a->dim;
  uint8_t *scratch = aligned_alloc(64, heads * (room * (dim * 3 + sizeof(float)) + dim * sizeof(float)));
  if (!scratch) return api->CreateStatus(ORT_FAIL, "SelfAttention8: out of memory");
  a->keys = scratch;
  a->values = (int16_t *)(a->keys + heads * room * dim);
  a->key_scale = (float *)(a->values + heads * room * dim);
  a->value_scale = a->key_scale + heads * room;
  w.parts = (a->n + TASK_QUERIES - 1) / TASK_QUERIES;
  team_run(prepare_task, &w, heads);
  team_run(self_attend_task, &w, heads * (size_t)w.parts);
  free(scratch);
  return !w.failed ? NULL : api->CreateStatus(ORT_FAIL, "SelfAttention8: out of memory");
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
#define row_linear4_create row_linear_create
#define self_attention_outputs row_linear_outputs

static const OrtCustomOp operators[] = {OPERATOR(row_linear), OPERATOR(row_linear4), OPERATOR(attention), OPERATOR(self_attention)};

// customop_add lets a session use the domain. It returns NULL or a message that the caller frees. The first call makes
// the domain, which lives as long as the process; calls must not overlap.
char *customop_add(const char *library, void *session_options) {
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
