//go:build (amd64 && !windows) || (arm64 && linux)

#include "attention.h"
#include "operator.h"

// CachedAttention(q, k?, v?, past_key, past_value, last, cosine, sine, until?, q_norm?, k_norm?, q_scale?, places?) → out,
// present_key, present_value; attributes heads, kv_heads, rotary, pairs, window, scale, softcap, epsilon. Without k and v, q
// holds all three on its last axis. cosine and sine are tables of positions, or with three axes those of the new ones. present
// has to be bound to past's memory, which is written in place. q's first two axes are rows, which are the cache's first ones,
// and width; with places [rows, 2] rows lie one behind the other in both together, and have any number of positions each:
// places are where each starts, and its place in the cache, both ascending. See attention.h.
typedef struct {
  int64_t heads, kv_heads, rotary, pairs, window;
  float scale, softcap, epsilon;
  size_t inputs;
} attention_kernel;

enum { Q, K, V, PAST_KEY, PAST_VALUE, LAST, COSINE, SINE, UNTIL, Q_NORM, K_NORM, Q_SCALE, PLACES, ATTENTION_INPUTS };

// Floats a head: no honest model has as many.
#define MOST_DIM (1 << 16)

static OrtStatus *attention_create(const OrtCustomOp *o, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)o, (void)a;
  const char *op = "CachedAttention";
  attention_kernel k;
  OrtStatus *s = arity(op, info, PLACES, ATTENTION_INPUTS, 3);
  *out = NULL;
  if (!s) s = attribute(op, info, "heads", 1, MOST_HEADS, &k.heads);
  if (!s) s = attribute(op, info, "kv_heads", 1, MOST_HEADS, &k.kv_heads);
  if (!s) s = attribute(op, info, "rotary", 2, MOST_DIM, &k.rotary);
  if (!s) s = attribute(op, info, "pairs", 0, 1, &k.pairs);
  if (!s) s = attribute(op, info, "window", 0, INT32_MAX, &k.window);
  if (!s) s = scale_attribute(op, info, &k.scale);
  if (!s) s = magnitude_attribute(op, info, "softcap", &k.softcap);
  if (!s) s = magnitude_attribute(op, info, "epsilon", &k.epsilon);
  if (!s) s = api->KernelInfo_GetInputCount(info, &k.inputs);
  if (!s && k.rotary % 2) s = mismatch(op, "rotary modulo 2", 1, 0);
  if (!s && k.heads % k.kv_heads) s = mismatch(op, "heads modulo kv_heads", k.heads % k.kv_heads, 0);
  return s ? s : keep(&k, sizeof k, out);
}

// Positions that one task stores, and queries that it attends with, when a row has many.
#define BLOCK_POSITIONS 32
#define BLOCK_QUERIES 24

typedef struct {
  attention a;
  int64_t tasks; // of all rows, for one key/value head
  atomic_int failed;
} cached;

// task is the part of a row that one of the tasks does: block is its number among those of the row and key/value head.
typedef struct {
  int64_t row, kv_head, block;
} task;

// divide counts the tasks of each row, which has units for each of its positions, size of them in a task.
static size_t divide(cached *c, int64_t units, int64_t size) {
  c->tasks = 0;
  for (int64_t i = 0; i < c->a.rows; i++) {
    c->a.row[i].tasks = c->tasks;
    c->tasks += (c->a.row[i].width * units + size - 1) / size;
  }
  return (size_t)(c->tasks * c->a.kv_heads);
}

static task find(const cached *c, size_t i) {
  const attention *a = &c->a;
  int64_t low = 0, high = a->rows - 1;
  while (low < high) {
    const int64_t mid = (low + high + 1) / 2;
    if (a->row[mid].tasks * a->kv_heads <= (int64_t)i) low = mid;
    else high = mid - 1;
  }
  const int64_t blocks = (low + 1 < a->rows ? a->row[low + 1].tasks : c->tasks) - a->row[low].tasks;
  const int64_t at = (int64_t)i - a->row[low].tasks * a->kv_heads;
  return (task){low, at / blocks, at % blocks};
}

static void store_task(void *p, size_t i) {
  const attention *a = &((const cached *)p)->a;
  const task t = find(p, i);
  const int64_t from = t.block * BLOCK_POSITIONS, to = from + BLOCK_POSITIONS, width = a->row[t.row].width;
  attention_store(a, t.row, t.kv_head, from, to < width ? to : width);
}

static void attend(cached *c, task t, int64_t from, int64_t to) {
  const attention *a = &c->a;
  float few[8 << 10];
  const int64_t need = attention_scratch(a, t.row);
  float *scratch = need <= (int64_t)(sizeof few / sizeof *few) ? few : malloc((size_t)need * sizeof(float));
  if (!scratch) {
    c->failed = 1;
    return;
  }
  attention_attend(a, t.row, t.kv_head, from, to, scratch);
  if (scratch != few) free(scratch);
}

static void attend_task(void *p, size_t i) {
  cached *c = p;
  const task t = find(c, i);
  const int64_t n = c->a.row[t.row].width * (c->a.heads / c->a.kv_heads);
  const int64_t from = t.block * BLOCK_QUERIES, to = from + BLOCK_QUERIES;
  attend(c, t, from, to < n ? to : n);
}

static void decode_task(void *p, size_t i) {
  cached *c = p;
  const task t = {(int64_t)i / c->a.kv_heads, (int64_t)i % c->a.kv_heads, 0};
  attention_store(&c->a, t.row, t.kv_head, 0, 1);
  attend(c, t, 0, c->a.heads / c->a.kv_heads);
}

static void attention_run(cached *c) {
  const attention *a = &c->a;
  if (a->count == a->rows) { // a position each
    team_run(decode_task, c, (size_t)(a->rows * a->kv_heads));
    return;
  }
  team_run(store_task, c, divide(c, 1, BLOCK_POSITIONS));
  team_run(attend_task, c, divide(c, a->heads / a->kv_heads, BLOCK_QUERIES));
}

// attention_shapes judges the shapes of a step and takes its sizes from them.
static OrtStatus *attention_shapes(const char *name, attention *a, const tensor *in) {
  const tensor *past = &in[PAST_KEY];
  const int packed = !in[K].present;
  OrtStatus *s = NULL;
  if (in[V].present == packed) return refuse(name, "k without v, or v without k,", 1, "both or none");
  if (!in[Q].present || in[Q].rank != 3) return mismatch(name, "the number of axes of q", (int64_t)in[Q].rank, 3);
  if (!past->present || past->rank != 4) return mismatch(name, "the number of axes of past_key", (int64_t)past->rank, 4);
  a->rows = in[PLACES].present && in[LAST].rank == 1 ? in[LAST].dims[0] : in[Q].dims[0];
  if ((a->count = times(in[Q].dims[0], in[Q].dims[1])) < 0) return refuse(name, "an axis of q", in[Q].dims[0], "sizes that can be counted");
  a->max_len = past->dims[2], a->dim = past->dims[3];
  if (a->dim < 16 || a->dim > MOST_DIM || a->dim % 16) return refuse(name, "the head size", a->dim, "a multiple of 16");
  if (a->max_len < 16 || a->max_len > INT32_MAX - 64 || a->max_len % 16)
    return refuse(name, "the cache's length", a->max_len, "a multiple of 16");
  a->q_stride = (packed ? a->heads + 2 * a->kv_heads : a->heads) * a->dim;
  a->kv_stride = packed ? a->q_stride : a->kv_heads * a->dim;
  const int64_t rows = in[Q].dims[0], width = in[Q].dims[1], places[2] = {a->rows, 2};
  const int64_t q[3] = {rows, width, a->q_stride}, kv[3] = {rows, width, a->kv_heads * a->dim};
  const int64_t cache[4] = {in[PLACES].present ? past->dims[0] : a->rows, a->kv_heads, a->max_len, a->dim};
  s = expect(name, "q", &in[Q], 3, q);
  if (!s && !packed) s = expect(name, "k", &in[K], 3, kv);
  if (!s && !packed) s = expect(name, "v", &in[V], 3, kv);
  if (!s) s = expect(name, "past_key", past, 4, cache);
  if (!s) s = expect(name, "past_value", &in[PAST_VALUE], 4, cache);
  if (!s) s = expect(name, "last", &in[LAST], 1, &a->rows);
  if (!s && in[PLACES].present) s = expect(name, "places", &in[PLACES], 2, places);
  if (s) return s;
  if (a->rotary > a->dim) return mismatch(name, "rotary", a->rotary, a->dim);
  a->turned = in[COSINE].rank == 3;
  const int64_t table[2] = {in[COSINE].dims[0], a->rotary / 2}, turned[3] = {rows, width, a->rotary / 2};
  s = expect(name, "cosine", &in[COSINE], a->turned ? 3 : 2, a->turned ? turned : table);
  if (!s) s = expect(name, "sine", &in[SINE], a->turned ? 3 : 2, a->turned ? turned : table);
  if (!s && in[UNTIL].present) s = expect(name, "until", &in[UNTIL], 2, q);
  if (!s && in[Q_NORM].present != in[K_NORM].present) return refuse(name, "q_norm without k_norm, or k_norm without q_norm,", 1, "both or none");
  if (!s && in[Q_NORM].present) s = expect(name, "q_norm", &in[Q_NORM], 1, &a->dim);
  if (!s && in[Q_NORM].present) s = expect(name, "k_norm", &in[K_NORM], 1, &a->dim);
  if (!s && in[Q_SCALE].present) s = expect(name, "q_scale", &in[Q_SCALE], 1, in[Q_SCALE].dims);
  return s;
}

// attention_rows says where each row starts and which part of the cache is its. With places, slots is the number of those.
static OrtStatus *attention_rows(const char *name, const attention *a, const int32_t *last, const int32_t *places, int64_t slots) {
  for (int64_t i = 0; i < a->rows; i++) {
    attention_row *r = &a->row[i];
    const int64_t each = a->count / a->rows;
    *r = (attention_row){.first = i * each, .width = each, .last = last[i], .slot = i};
    if (!places) continue;
    const int64_t end = i + 1 < a->rows ? places[2 * (i + 1)] : a->count;
    r->first = places[2 * i], r->slot = places[2 * i + 1], r->width = end - r->first;
    if (!i && r->first) return mismatch(name, "where the first row starts", r->first, 0);
    if (end <= r->first || end > a->count) return mismatch(name, "where a row ends", end, r->first + 1);
    if (r->slot <= (i ? r[-1].slot : -1) || r->slot >= slots) return mismatch(name, "a row's place in the cache", r->slot, slots - 1);
  }
  if (places && !a->rows && a->count) return mismatch(name, "the number of rows", 0, 1);
  return NULL;
}

// attention_positions judges each row's newest position: the new ones have to lie in the cache and in the tables.
static OrtStatus *attention_positions(const char *name, const attention *a, int64_t limit) {
  if (limit > a->max_len) limit = a->max_len;
  for (int64_t i = 0; i < a->rows; i++) {
    const int64_t last = a->row[i].last;
    if (last + 1 < a->row[i].width || last >= limit) return mismatch(name, "a row's last position", last, limit - 1);
  }
  return NULL;
}

// attention_blocks judges how far each new position sees, and writes where its block starts.
static OrtStatus *attention_blocks(const char *name, const attention *a, int32_t *start) {
  for (int64_t i = 0; i < a->rows; i++)
    for (int64_t s = 0; s < a->row[i].width; s++) {
      const int64_t at = a->row[i].first + s, last = a->row[i].last, pos = last + 1 - a->row[i].width + s, end = a->until[at];
      const int goes_on = s && a->until[at - 1] == end;
      if (end < pos || end > last) return mismatch(name, "what a position sees until", end, pos);
      if (s && a->until[at - 1] >= pos && !goes_on) return mismatch(name, "what a position in a block sees until", end, a->until[at - 1]);
      start[at] = goes_on ? start[at - 1] : (int32_t)pos;
    }
  return NULL;
}

// attention_step runs a step whose rows are known; start is scratch for the blocks' starts, NULL without.
static OrtStatus *attention_step(const char *name, cached *c, int32_t *start) {
  attention *a = &c->a;
  size_t need;
  if (!room(a->count, a->heads * a->dim * (int64_t)sizeof(float), &need)) return mismatch(name, "the number of rows", a->rows, 1);
  if (start) {
    a->block_start = start;
    OrtStatus *s = attention_blocks(name, a, start);
    if (s) return s;
  }
  if (!(a->rotated = malloc(need))) return api->CreateStatus(ORT_FAIL, "CachedAttention: out of memory");
  attention_run(c);
  free(a->rotated);
  return c->failed ? api->CreateStatus(ORT_FAIL, "CachedAttention: out of memory") : NULL;
}

static int is_integer(size_t i) { return i == LAST || i == UNTIL || i == PLACES; }

static OrtStatus *attention_compute(void *k, OrtKernelContext *ctx) {
  const char *name = "CachedAttention";
  const attention_kernel *op = k;
  cached c = {.a = {
    .heads = op->heads, .kv_heads = op->kv_heads, .scale = op->scale, .rotary = op->rotary, .pairs = (int)op->pairs,
    .window = op->window, .softcap = op->softcap, .epsilon = op->epsilon,
  }};
  attention *a = &c.a;
  tensor in[ATTENTION_INPUTS] = {0};
  OrtStatus *s = NULL;
  for (size_t i = 0; !s && i < op->inputs; i++)
    s = input(name, ctx, i, is_integer(i) ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &in[i]);
  if (!s) s = attention_shapes(name, a, in);
  if (s) return s;
  a->cosine = in[COSINE].data, a->sine = in[SINE].data;
  a->q_norm = in[Q_NORM].data, a->k_norm = in[K_NORM].data;
  a->q_scale = in[Q_SCALE].data, a->until = in[UNTIL].data;
  a->q = in[Q].data, a->k = in[K].data, a->v = in[V].data;
  if (!in[K].present && a->q) a->k = a->q + a->heads * a->dim, a->v = a->k + a->kv_heads * a->dim;
  const int64_t dims[3] = {in[Q].dims[0], in[Q].dims[1], a->heads * a->dim};
  if ((s = output(name, ctx, 0, dims, 3, &a->out))) return s;
  if ((s = output(name, ctx, 1, in[PAST_KEY].dims, 4, &a->keys))) return s;
  if ((s = output(name, ctx, 2, in[PAST_VALUE].dims, 4, &a->values))) return s;
  if (a->keys != in[PAST_KEY].data || a->values != in[PAST_VALUE].data || (a->rows && a->keys == a->values))
    return api->CreateStatus(ORT_INVALID_ARGUMENT, "CachedAttention: present is not bound to past's memory");
  // The rows, and behind them where blocks start.
  size_t rows, starts;
  if (!room(a->rows, (int64_t)sizeof *a->row, &rows) || !room(in[UNTIL].present ? a->count : 0, (int64_t)sizeof(int32_t), &starts) ||
      rows > SIZE_MAX - starts)
    return mismatch(name, "the number of rows", a->rows, 1);
  if (!(a->row = malloc(rows + starts + 1))) return api->CreateStatus(ORT_FAIL, "CachedAttention: out of memory");
  s = attention_rows(name, a, in[LAST].data, in[PLACES].data, in[PAST_KEY].dims[0]);
  if (!s) s = attention_positions(name, a, a->turned ? a->max_len : in[COSINE].dims[0]);
  if (!s && in[Q_SCALE].present) s = attention_positions(name, a, in[Q_SCALE].dims[0]);
  if (!s && a->rows && a->count) s = attention_step(name, &c, starts ? (int32_t *)(a->row + a->rows) : NULL);
  free(a->row);
  return s;
}

static const char *attention_name(const OrtCustomOp *op) { (void)op; return "CachedAttention"; }
static ONNXTensorElementDataType attention_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return is_integer(i) ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t attention_inputs(const OrtCustomOp *op) { (void)op; return ATTENTION_INPUTS; }
static size_t attention_outputs(const OrtCustomOp *op) { (void)op; return 3; }
static OrtCustomOpInputOutputCharacteristic attention_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == K || i == V || i >= UNTIL ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

const OrtCustomOp operator_cachedattention = OPERATOR(attention);
