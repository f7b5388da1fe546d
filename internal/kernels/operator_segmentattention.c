//go:build (amd64 && !windows) || (arm64 && linux)

#include "operator_segmentattention.h"

// SegmentAttention: see operator_segmentattention.h and segmentattention.h.

static OrtStatus *segment_create(const OrtCustomOp *o, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)o, (void)a;
  return segment_attributes("SegmentAttention", info, out);
}

typedef struct {
  segmentattention a;
  int64_t parts; // tasks of a head
  atomic_int failed;
} segmented;

static void segment_task(void *p, size_t i) {
  segmented *w = p;
  const int64_t from = (int64_t)i % w->parts * SEGMENTATTENTION_QUERIES, to = from + SEGMENTATTENTION_QUERIES;
  float *scratch = aligned_alloc(64, (size_t)segmentattention_scratch(&w->a) * sizeof(float));
  if (!scratch) {
    w->failed = 1;
    return;
  }
  segmentattention_attend(&w->a, (int64_t)i / w->parts, from, to < w->a.n ? to : w->a.n, scratch);
  free(scratch);
}

OrtStatus *segment_run(const segmentattention *a) {
  segmented w = {.a = *a, .parts = (a->n + SEGMENTATTENTION_QUERIES - 1) / SEGMENTATTENTION_QUERIES};
  team_run(segment_task, &w, (size_t)(a->heads * w.parts));
  return w.failed ? api->CreateStatus(ORT_FAIL, "SegmentAttention: out of memory") : NULL;
}

static OrtStatus *segment_compute(void *k, OrtKernelContext *ctx) { return segment_attention("SegmentAttention", k, ctx, segment_run); }

static const char *segment_name(const OrtCustomOp *op) { (void)op; return "SegmentAttention"; }

const OrtCustomOp operator_segmentattention = OPERATOR(segment);
