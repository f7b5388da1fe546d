//go:build (amd64 && !windows) || (arm64 && linux)

#include "operator_segmentattention.h"
#include "selfattention.h"

// SegmentAttention8: see operator_segmentattention.h. Each segment is a block of selfattention.h, after its queries and keys
// are rotated; what a segment gets does not depend on the segments beside it.

static OrtStatus *segment8_create(const OrtCustomOp *o, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)o, (void)a;
  return segment_attributes("SegmentAttention8", info, out);
}

// Heads are worked on together up to GROUP_BYTES of scratch, and one at a time up to MOST_BYTES. Longer segments are attended in float32,
// and those shorter than LEAST, which gain nothing of small integers.
#define GROUP_BYTES (16 << 20)
#define MOST_BYTES (32 << 20)
#define LEAST 512
// Segments of one length are worked on together up to so many positions.
#define GROUP_POSITIONS 4096

// group are some heads of some segments of one length.
typedef struct {
  const segmentattention *s;
  int64_t from, head; // the first position, the first head
  selfattention a;    // over rows: dim is that of s, padded with zeros to a multiple of 16
  float *rows;        // [blocks, n, 3, heads, dim], queries and keys rotated
  int64_t parts;      // tasks of a block's head
  atomic_int failed;
} group;

// gather writes a head's part of a position under its position embedding.
static void gather(const group *g, const float *x, int64_t position, int rotate, float *to) {
  const segmentattention *s = g->s;
  const int64_t half = s->dim / 2;
  memset(to + s->dim, 0, (size_t)(g->a.dim - s->dim) * sizeof *to);
  if (!rotate || !s->cosine) {
    memcpy(to, x, (size_t)s->dim * sizeof *to);
    return;
  }
  const float *c = s->cosine + position * half, *sine = s->sine + position * half;
  for (int64_t i = 0; i < half; i++) {
    to[i] = x[i] * c[i] - x[i + half] * sine[i];
    to[i + half] = x[i + half] * c[i] + x[i] * sine[i];
  }
}

// prepare8_task brings a head of a block, and quantises its keys and values.
static void prepare8_task(void *p, size_t i) {
  const group *g = p;
  const segmentattention *s = g->s;
  const selfattention *a = &g->a;
  const int64_t block = (int64_t)i / a->heads, head = (int64_t)i % a->heads;
  for (int64_t t = block * a->n; t < (block + 1) * a->n; t++) {
    const int64_t position = g->from + t, at = position * s->stride + (g->head + head) * s->dim;
    float *to = g->rows + t * a->stride + head * a->dim;
    gather(g, s->q + at, position, 1, to);
    gather(g, s->k + at, position, 1, to + a->heads * a->dim);
    gather(g, s->v + at, position, 0, to + 2 * a->heads * a->dim);
  }
  selfattention_prepare(a, (int64_t)i);
}

// attend8_task attends with some queries of a block's head, and puts what comes of them into the output.
static void attend8_task(void *p, size_t i) {
  group *g = p;
  const segmentattention *s = g->s;
  const selfattention *a = &g->a;
  const int64_t which = (int64_t)i / g->parts, block = which / a->heads, head = which % a->heads;
  const int64_t from = (int64_t)i % g->parts * SELFATTENTION_QUERIES, end = from + SELFATTENTION_QUERIES, to = end < a->n ? end : a->n;
  void *scratch = malloc((size_t)selfattention_scratch(a));
  if (!scratch) {
    g->failed = 1;
    return;
  }
  selfattention_attend(a, which, from, to, scratch);
  free(scratch);
  for (int64_t t = block * a->n + from; t < block * a->n + to; t++)
    memcpy(s->out + ((g->from + t) * s->heads + g->head + head) * s->dim, a->out + (t * a->heads + head) * a->dim, (size_t)s->dim * sizeof(float));
}

// attend_group attends with the heads of the group. Its scratch takes each head bytes.
static OrtStatus *attend_group(group *g, int64_t bytes) {
  selfattention *a = &g->a;
  const int64_t positions = a->blocks * a->n, width = a->heads * a->dim;
  uint8_t *scratch = aligned_alloc(64, (size_t)(a->heads * bytes + 63) / 64 * 64);
  if (!scratch) return api->CreateStatus(ORT_FAIL, "SegmentAttention8: out of memory");
  selfattention_place(a, scratch);
  g->rows = (float *)(scratch + a->blocks * a->heads * selfattention_bytes(a));
  a->stride = 3 * width;
  a->q = g->rows, a->k = a->q + width, a->v = a->k + width;
  a->out = g->rows + positions * a->stride;
  g->parts = (a->n + SELFATTENTION_QUERIES - 1) / SELFATTENTION_QUERIES;
  team_run(prepare8_task, g, (size_t)(a->blocks * a->heads));
  team_run(attend8_task, g, (size_t)(a->blocks * a->heads * g->parts));
  free(scratch);
  return g->failed ? api->CreateStatus(ORT_FAIL, "SegmentAttention8: out of memory") : NULL;
}

// attend_float attends within some segments in float32.
static OrtStatus *attend_float(const segmentattention *s, int64_t first, int64_t count) {
  const int64_t from = s->starts[first];
  int32_t *starts = malloc((size_t)(count + 1) * sizeof *starts);
  if (!starts) return api->CreateStatus(ORT_FAIL, "SegmentAttention8: out of memory");
  for (int64_t i = 0; i <= count; i++) starts[i] = s->starts[first + i] - (int32_t)from;
  segmentattention some = *s;
  some.n = starts[count], some.segments = count, some.starts = starts;
  some.q += from * s->stride, some.k += from * s->stride, some.v += from * s->stride;
  if (s->cosine) some.cosine += from * (s->dim / 2), some.sine += from * (s->dim / 2);
  some.out += from * s->heads * s->dim;
  OrtStatus *failed = segment_run(&some);
  free(starts);
  return failed;
}

// attend_small attends within count segments of one length in small integers.
static OrtStatus *attend_small(const segmentattention *s, group *g, int64_t bytes) {
  const int64_t most = GROUP_BYTES / bytes;
  OrtStatus *failed = NULL;
  for (; !failed && g->head < s->heads; g->head += g->a.heads) {
    const int64_t left = s->heads - g->head;
    g->a.heads = most < 1 ? 1 : most < left ? most : left;
    failed = attend_group(g, bytes);
  }
  return failed;
}

static int64_t length_of(const segmentattention *s, int64_t segment) { return s->starts[segment + 1] - s->starts[segment]; }

static OrtStatus *segment8_run(const segmentattention *s) {
  if (!selfattention_here()) return api->CreateStatus(ORT_NOT_IMPLEMENTED, "SegmentAttention8 needs AVX-512 with VNNI, or dotprod");
  OrtStatus *failed = NULL;
  for (int64_t i = 0, count; !failed && i < s->segments; i += count) {
    const int64_t n = length_of(s, i);
    count = 1;
    if (n < LEAST) {
      while (i + count < s->segments && length_of(s, i + count) < LEAST) count++;
      failed = attend_float(s, i, count);
      continue;
    }
    while (i + count < s->segments && length_of(s, i + count) == n && (count + 1) * n <= GROUP_POSITIONS) count++;
    group g = {.s = s, .from = s->starts[i], .a = {.blocks = count, .n = n, .dim = (s->dim + 15) / 16 * 16, .scale = s->scale}};
    const int64_t bytes = count * (selfattention_bytes(&g.a) + n * 4 * g.a.dim * (int64_t)sizeof(float));
    failed = n > SELFATTENTION_POSITIONS || bytes > MOST_BYTES ? attend_float(s, i, count) : attend_small(s, &g, bytes);
  }
  return failed;
}

static OrtStatus *segment8_compute(void *k, OrtKernelContext *ctx) { return segment_attention("SegmentAttention8", k, ctx, segment8_run); }

static const char *segment8_name(const OrtCustomOp *op) { (void)op; return "SegmentAttention8"; }
#define segment8_input_type segment_input_type
#define segment8_inputs segment_inputs
#define segment8_outputs segment_outputs
#define segment8_input_kind segment_input_kind

const OrtCustomOp operator_segmentattention8 = OPERATOR(segment8);
