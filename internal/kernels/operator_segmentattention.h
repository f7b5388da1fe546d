// What the operators of attention within segments share: SegmentAttention and SegmentAttention8(q, k?, v?, segments, cosine?, sine?) → out;
// attributes heads, scale. q, k, v and out are [n, heads·dim]; without k and v, q holds all three on its last axis. segments [count] are
// the lengths of those that the n positions lie in. cosine and sine, [n, dim/2], are each position's.
#ifndef MMSERVE_OPERATOR_SEGMENTATTENTION_H
#define MMSERVE_OPERATOR_SEGMENTATTENTION_H

#include "operator.h"
#include "segmentattention.h"

typedef struct {
  int64_t heads;
  float scale;
} segment_kernel;

static inline OrtStatus *segment_attributes(const char *op, const OrtKernelInfo *info, void **out) {
  segment_kernel k;
  OrtStatus *s = arity(op, info, 4, 6, 1);
  *out = NULL;
  if (!s) s = attribute(op, info, "heads", 1, MOST_HEADS, &k.heads);
  if (!s) s = scale_attribute(op, info, &k.scale);
  return s ? s : keep(&k, sizeof k, out);
}

// Head sizes that the scratch is made for, and positions: a few times those of the largest image of any model.
#define MOST_SEGMENT_DIM 256
#define MOST_SEGMENT_POSITIONS (1 << 22)

enum { SEGMENT_Q, SEGMENT_K, SEGMENT_V, SEGMENT_LENGTHS, SEGMENT_COSINE, SEGMENT_SINE, SEGMENT_INPUTS };

// segment_shapes judges the shapes and takes the sizes from them.
static inline OrtStatus *segment_shapes(const char *name, segmentattention *a, const tensor *in) {
  const tensor *q = &in[SEGMENT_Q], *lengths = &in[SEGMENT_LENGTHS];
  if (!q->present || q->rank != 2) return mismatch(name, "the number of axes of q", (int64_t)q->rank, 2);
  if (in[SEGMENT_K].present != in[SEGMENT_V].present) return refuse(name, "k without v, or v without k,", 1, "both or none");
  if (in[SEGMENT_COSINE].present != in[SEGMENT_SINE].present) return refuse(name, "cosine without sine, or sine without cosine,", 1, "both or none");
  const int packed = !in[SEGMENT_K].present;
  const int64_t parts = a->heads * (packed ? 3 : 1);
  a->n = q->dims[0], a->stride = q->dims[1], a->dim = a->stride / parts;
  if (a->stride % parts || a->dim < 8 || a->dim > MOST_SEGMENT_DIM || a->dim % 8)
    return refuse(name, "the last axis of q", a->stride, "heads of 8 to 256, multiples of 8");
  if (a->n > MOST_SEGMENT_POSITIONS) return refuse(name, "the number of positions", a->n, "4194304 at most");
  if (!lengths->present || lengths->rank != 1) return mismatch(name, "the number of axes of segments", (int64_t)lengths->rank, 1);
  if (lengths->dims[0] > a->n) return mismatch(name, "the number of segments", lengths->dims[0], a->n);
  a->segments = lengths->dims[0];
  OrtStatus *s = NULL;
  if (!packed) s = expect(name, "k", &in[SEGMENT_K], 2, q->dims);
  if (!s && !packed) s = expect(name, "v", &in[SEGMENT_V], 2, q->dims);
  const int64_t table[2] = {a->n, a->dim / 2};
  if (!s && in[SEGMENT_COSINE].present) s = expect(name, "cosine", &in[SEGMENT_COSINE], 2, table);
  if (!s && in[SEGMENT_SINE].present) s = expect(name, "sine", &in[SEGMENT_SINE], 2, table);
  return s;
}

// segment_starts adds up the lengths, which have to be those of the n positions.
static inline OrtStatus *segment_starts(const char *name, const segmentattention *a, const int32_t *lengths, int32_t *starts) {
  starts[0] = 0;
  for (int64_t i = 0; i < a->segments; i++) {
    if (lengths[i] < 1 || lengths[i] > a->n - starts[i]) return mismatch(name, "a segment's length", lengths[i], a->n - starts[i]);
    starts[i + 1] = starts[i] + lengths[i];
  }
  if (starts[a->segments] != a->n) return mismatch(name, "the sum of the segments' lengths", starts[a->segments], a->n);
  return NULL;
}

// segment_attention reads and judges a node's inputs, makes room for its output and has run fill it.
static inline OrtStatus *segment_attention(const char *name, const segment_kernel *op, OrtKernelContext *ctx, OrtStatus *(*run)(const segmentattention *)) {
  segmentattention a = {.heads = op->heads, .scale = op->scale};
  tensor in[SEGMENT_INPUTS];
  size_t given;
  OrtStatus *s = api->KernelContext_GetInputCount(ctx, &given);
  memset(in, 0, sizeof in);
  for (size_t i = 0; !s && i < SEGMENT_INPUTS && i < given; i++)
    s = input(name, ctx, i, i == SEGMENT_LENGTHS ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &in[i]);
  if (!s) s = segment_shapes(name, &a, in);
  if (s) return s;
  a.q = in[SEGMENT_Q].data, a.k = in[SEGMENT_K].data, a.v = in[SEGMENT_V].data;
  a.cosine = in[SEGMENT_COSINE].data, a.sine = in[SEGMENT_SINE].data;
  if (!in[SEGMENT_K].present && a.q) a.k = a.q + a.heads * a.dim, a.v = a.k + a.heads * a.dim;
  const int64_t dims[2] = {a.n, a.heads * a.dim};
  if ((s = output(name, ctx, 0, dims, 2, &a.out)) || !a.n) return s;
  int32_t *starts = malloc((size_t)(a.segments + 1) * sizeof *starts); // at most n
  if (!starts) return api->CreateStatus(ORT_FAIL, "attention within segments: out of memory");
  if (!(s = segment_starts(name, &a, in[SEGMENT_LENGTHS].data, starts))) {
    a.starts = starts;
    s = run(&a);
  }
  free(starts);
  return s;
}

// segment_run is attention in float32.
OrtStatus *segment_run(const segmentattention *a);

static inline ONNXTensorElementDataType segment_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == SEGMENT_LENGTHS ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static inline size_t segment_inputs(const OrtCustomOp *op) { (void)op; return SEGMENT_INPUTS; }
static inline size_t segment_outputs(const OrtCustomOp *op) { (void)op; return 1; }
static inline OrtCustomOpInputOutputCharacteristic segment_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == SEGMENT_Q || i == SEGMENT_LENGTHS ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

#endif
