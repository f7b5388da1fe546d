//go:build (amd64 && !windows) || (arm64 && linux)

#include "operator_rowlinear.h"

// RowLinear4(x, weight, scale, bias?) → y.

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

static const char *row_linear4_name(const OrtCustomOp *op) { (void)op; return "RowLinear4"; }
static ONNXTensorElementDataType row_linear4_input_type(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 1   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
         : i == 2 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16
                  : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t row_linear4_inputs(const OrtCustomOp *op) { (void)op; return 4; }
static OrtCustomOpInputOutputCharacteristic row_linear4_input_kind(const OrtCustomOp *op, size_t i) {
  (void)op;
  return i == 3 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static size_t row_linear4_outputs(const OrtCustomOp *op) { (void)op; return 1; }

const OrtCustomOp operator_rowlinear4 = OPERATOR(row_linear4);
