//go:build (amd64 && !windows) || (arm64 && linux)

#include "operator_rowlinear.h"

// RowLinear8(x, weight, scale, start, bias?) → y.

static OrtStatus *row_linear_create(const OrtCustomOp *op, const OrtApi *a, const OrtKernelInfo *info, void **out) {
  (void)op, (void)a;
  return row_linear("RowLinear8", info, 5, out);
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

static const char *row_linear_name(const OrtCustomOp *op) { (void)op; return "RowLinear8"; }
static ONNXTensorElementDataType row_linear_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 1   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
         : i == 3 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32
                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t row_linear_inputs(const OrtCustomOp *op) { (void)op; return 5; }
static OrtCustomOpInputOutputCharacteristic row_linear_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 4 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static size_t row_linear_outputs(const OrtCustomOp *op) { (void)op; return 1; }

const OrtCustomOp operator_rowlinear8 = OPERATOR(row_linear);
