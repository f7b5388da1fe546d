// What the Go binding lacks of the C API: tensors in a device's memory, and copies from and to them.

#include "device.h"

#include <string.h>

char *device_tensor(const OrtApi *api, void *allocator, const int64_t *dims, size_t rank, int type, void **value) {
  return ort_error(api, api->CreateTensorAsOrtValue(allocator, dims, rank, (ONNXTensorElementDataType)type, (OrtValue **)value));
}

char *device_alias(const OrtApi *api, void *value, size_t bytes, const int64_t *dims, size_t rank, int type, void **alias) {
  const OrtMemoryInfo *where;
  void *data;
  char *t = ort_error(api, api->GetTensorMemoryInfo(value, &where));
  if (!t) t = ort_error(api, api->GetTensorMutableData(value, &data));
  if (!t) t = ort_error(api, api->CreateTensorWithDataAsOrtValue(where, data, bytes, dims, rank, (ONNXTensorElementDataType)type, (OrtValue **)alias));
  return t;
}

char *device_copy(const OrtApi *api, const void *from, void *to) {
  const OrtValue *src = from;
  OrtValue *dst = to;
  OrtEnv *env; // the process's one environment, counted
  char *t = ort_error(api, api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mmserve", &env));
  if (t) return t;
  t = ort_error(api, api->CopyTensors(env, &src, &dst, NULL, 1));
  api->ReleaseEnv(env);
  return t;
}

char *device_crossing(const OrtApi *api, const OrtSession *session, size_t inputs, size_t outputs, char *crosses) {
  const OrtMemoryInfo *where[1024];
  if (inputs > 1024 || outputs > 1024) return NULL;
  char *t = inputs ? ort_error(api, api->SessionGetMemoryInfoForInputs(session, where, inputs)) : NULL;
  for (size_t i = 0; !t && i < inputs; i++) {
    const char *name;
    t = ort_error(api, api->MemoryInfoGetName(where[i], &name));
    if (!t) crosses[i] = strcmp(name, "Cpu") != 0;
  }
  if (!t && outputs) t = ort_error(api, api->SessionGetMemoryInfoForOutputs(session, where, outputs));
  for (size_t i = 0; !t && i < outputs; i++) {
    const char *name;
    t = ort_error(api, api->MemoryInfoGetName(where[i], &name));
    if (!t) crosses[inputs + i] = strcmp(name, "Cpu") != 0;
  }
  return t;
}

void device_release(const OrtApi *api, void *value) { api->ReleaseValue(value); }
