//go:build (amd64 && !windows) || (arm64 && linux)

#include "operator.h"
#include "selfattention.h"

// SelfAttention8(q, k?, v?) → out; attributes heads, scale. All are [blocks, n, heads·dim]. Without k and v, q holds all three on
// its last axis. See selfattention.h.
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

typedef struct {
  selfattention a;
  int64_t parts; // tasks of a head
  atomic_int failed;
} whole;

static void prepare_task(void *p, size_t i) { selfattention_prepare(&((const whole *)p)->a, (int64_t)i); }

static void self_attend_task(void *p, size_t i) {
  whole *w = p;
  const int64_t from = (int64_t)i % w->parts * SELFATTENTION_QUERIES, to = from + SELFATTENTION_QUERIES;
  void *scratch = malloc((size_t)selfattention_scratch(&w->a));
  if (!scratch) {
    w->failed = 1;
    return;
  }
  selfattention_attend(&w->a, (int64_t)i / w->parts, from, to < w->a.n ? to : w->a.n, scratch);
  free(scratch);
}

// Floats a head that lie on a thread's stack.
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
  if (a->n > SELFATTENTION_POSITIONS) return refuse(name, "the number of positions", a->n, "65536 at most");
  OrtStatus *s = NULL;
  if (!packed) s = expect(name, "k", &in[1], 3, q->dims);
  if (!s && !packed) s = expect(name, "v", &in[2], 3, q->dims);
  return s;
}

static OrtStatus *self_attention_run(whole *w) {
  selfattention *a = &w->a;
  const size_t heads = (size_t)(a->blocks * a->heads);
  size_t need;
  if (!room((int64_t)heads, selfattention_bytes(a), &need)) return mismatch("SelfAttention8", "the number of blocks", a->blocks, 1);
  uint8_t *scratch = aligned_alloc(64, need);
  if (!scratch) return api->CreateStatus(ORT_FAIL, "SelfAttention8: out of memory");
  selfattention_place(a, scratch);
  w->parts = (a->n + SELFATTENTION_QUERIES - 1) / SELFATTENTION_QUERIES;
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
  if (!selfattention_here()) return api->CreateStatus(ORT_NOT_IMPLEMENTED, "SelfAttention8 needs AVX-512 with VNNI, or dotprod");
  if ((s = self_attention_shapes(name, a, in))) return s;
  a->q = in[0].data, a->k = in[1].data, a->v = in[2].data;
  if (!in[1].present && a->q) a->k = a->q + a->heads * a->dim, a->v = a->k + a->heads * a->dim;
  const int64_t dims[3] = {a->blocks, a->n, a->heads * a->dim};
  if ((s = output(name, ctx, 0, dims, 3, &a->out)) || !in[0].count) return s;
  return self_attention_run(&w);
}

static const char *self_attention_name(const OrtCustomOp *op) { (void)op; return "SelfAttention8"; }
static ONNXTensorElementDataType self_attention_input_type(const OrtCustomOp *op, size_t i) {
  (void)op, (void)i;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t self_attention_inputs(const OrtCustomOp *op) { (void)op; return 3; }
static OrtCustomOpInputOutputCharacteristic self_attention_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static size_t self_attention_outputs(const OrtCustomOp *op) { (void)op; return 1; }

const OrtCustomOp operator_selfattention8 = OPERATOR(self_attention);
