// What every operator of domain "mmserve" is made of: reading its inputs and attributes, and its description for ONNX Runtime.
#ifndef MMSERVE_OPERATOR_H
#define MMSERVE_OPERATOR_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ort/include/onnxruntime_c_api.h"
#include "kernels.h"
#include "team.h"

// operators_api is set before any operator is asked for.
extern const OrtApi *operators_api;
#define api operators_api

// Kernels trust no node: every attribute, input and position is judged here before one of them runs.

#define MOST_RANK 8

// tensor is an input: whether it is there, its elements and its shape. data may be NULL where count is 0.
typedef struct {
  int present;
  const void *data;
  size_t rank;
  int64_t dims[MOST_RANK], count;
} tensor;

static inline OrtStatus *refuse(const char *op, const char *what, int64_t got, const char *want) {
  char text[200];
  snprintf(text, sizeof text, "%s: %s is %lld, want %s", op, what, (long long)got, want);
  return api->CreateStatus(ORT_INVALID_ARGUMENT, text);
}

static inline OrtStatus *mismatch(const char *op, const char *what, int64_t got, int64_t want) {
  char text[32];
  snprintf(text, sizeof text, "%lld", (long long)want);
  return refuse(op, what, got, text);
}

// times is a·b of counts, or -1 where one of them is negative or the product is not an int64.
static inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? -1 : product;
}

static inline OrtStatus *shape(const char *op, const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType type, tensor *t) {
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
static inline OrtStatus *input(const char *op, const OrtKernelContext *ctx, size_t i, ONNXTensorElementDataType type, tensor *t) {
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
static inline OrtStatus *expect(const char *op, const char *what, const tensor *t, size_t rank, const int64_t *dims) {
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
static inline OrtStatus *output(const char *op, OrtKernelContext *ctx, size_t i, const int64_t *dims, size_t rank, float **data) {
  OrtValue *v = NULL;
  OrtStatus *s = api->KernelContext_GetOutput(ctx, i, dims, rank, &v);
  if (s) return s;
  if (!v) return refuse(op, "an output that is left out", (int64_t)i, "none");
  return api->GetTensorMutableData(v, (void **)data);
}

// attribute reads a node's integer that lies in [least, most].
static inline OrtStatus *attribute(const char *op, const OrtKernelInfo *info, const char *name, int64_t least, int64_t most, int64_t *value) {
  OrtStatus *s = api->KernelInfoGetAttribute_int64(info, name, value);
  if (s || (*value >= least && *value <= most)) return s;
  char want[64];
  snprintf(want, sizeof want, "%lld to %lld", (long long)least, (long long)most);
  return refuse(op, name, *value, want);
}

static inline OrtStatus *scale_attribute(const char *op, const OrtKernelInfo *info, float *value) {
  OrtStatus *s = api->KernelInfoGetAttribute_float(info, "scale", value);
  if (s || isfinite(*value)) return s;
  return refuse(op, "scale", 0, "a finite number");
}

// magnitude_attribute reads a node's number that is finite and not below zero.
static inline OrtStatus *magnitude_attribute(const char *op, const OrtKernelInfo *info, const char *name, float *value) {
  OrtStatus *s = api->KernelInfoGetAttribute_float(info, name, value);
  if (s || (isfinite(*value) && *value >= 0)) return s;
  return refuse(op, name, 0, "a finite number that is not below 0");
}

// arity judges how many inputs and outputs a node names.
static inline OrtStatus *arity(const char *op, const OrtKernelInfo *info, size_t least, size_t most, size_t outputs) {
  size_t in, out;
  OrtStatus *s = api->KernelInfo_GetInputCount(info, &in);
  if (!s) s = api->KernelInfo_GetOutputCount(info, &out);
  if (s) return s;
  if (in < least || in > most) return mismatch(op, "the number of inputs", (int64_t)in, (int64_t)most);
  if (out != outputs) return mismatch(op, "the number of outputs", (int64_t)out, (int64_t)outputs);
  return NULL;
}

static inline void destroy_kernel(void *k) { free(k); }

// keep gives ONNX Runtime a kernel of its own memory, a copy of the size bytes at k.
static inline OrtStatus *keep(const void *k, size_t size, void **out) {
  if (!(*out = malloc(size))) return api->CreateStatus(ORT_FAIL, "kernel: out of memory");
  memcpy(*out, k, size);
  return NULL;
}

// room is a·rows bytes as malloc takes it: rows are backed by memory, but a hostile shape may ask for many bytes a row.
static inline int room(int64_t rows, int64_t a, size_t *bytes) {
  const int64_t need = times(rows, a);
  *bytes = (size_t)need;
  return need >= 0;
}

// An honest model has far fewer heads; sizes made of them are far from overflow.
#define MOST_HEADS (1 << 16)

static inline const char *provider(const OrtCustomOp *op) { (void)op; return NULL; }
static inline ONNXTensorElementDataType output_type(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
static inline OrtCustomOpInputOutputCharacteristic output_kind(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return INPUT_OUTPUT_REQUIRED; }
static inline OrtMemType memory_type(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return OrtMemTypeDefault; }
static inline int version(const OrtCustomOp *op) { (void)op; return 1; }

// OPERATOR describes an operator whose functions have the given prefix.
#define OPERATOR(prefix)                                                                                                \
  {                                                                                                                     \
    .version = ORT_API_VERSION, .GetName = prefix##_name, .GetExecutionProviderType = provider,                         \
    .GetInputType = prefix##_input_type, .GetInputTypeCount = prefix##_inputs, .GetOutputType = output_type,            \
    .GetOutputTypeCount = prefix##_outputs, .KernelDestroy = destroy_kernel,                                            \
    .GetInputCharacteristic = prefix##_input_kind, .GetOutputCharacteristic = output_kind,                              \
    .GetInputMemoryType = memory_type, .CreateKernelV2 = prefix##_create, .KernelComputeV2 = prefix##_compute,          \
    .GetStartVersion = version, .GetEndVersion = version,                                                               \
  }

#endif
