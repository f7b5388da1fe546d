// What the Go binding lacks of the C API: tensors in a device's memory, and copies from and to them.

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

static const OrtApi *api;
static OrtEnv *env;

// text is a status's message, to be freed, or NULL; it releases the status.
static char *text(OrtStatus *s) {
  if (!s) return NULL;
  char *t = strdup(api->GetErrorMessage(s));
  api->ReleaseStatus(s);
  return t;
}

char *device_start(const char *library) {
  if (env) return NULL;
  void *h = dlopen(library, RTLD_NOW | RTLD_NOLOAD); // the one that the Go binding has loaded
  if (!h) return strdup("the library is not loaded under its path");
  const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))dlsym(h, "OrtGetApiBase");
  if (!base || !(api = base()->GetApi(ORT_API_VERSION))) return strdup("the library lacks the C API of this version");
  return text(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mmserve", &env)); // the process's one environment, counted
}

char *device_tensor(void *allocator, const int64_t *dims, size_t rank, int type, void **value) {
  return text(api->CreateTensorAsOrtValue(allocator, dims, rank, (ONNXTensorElementDataType)type, (OrtValue **)value));
}

char *device_alias(void *value, size_t bytes, const int64_t *dims, size_t rank, int type, void **alias) {
  const OrtMemoryInfo *where;
  void *data;
  char *t = text(api->GetTensorMemoryInfo(value, &where));
  if (!t) t = text(api->GetTensorMutableData(value, &data));
  if (!t) t = text(api->CreateTensorWithDataAsOrtValue(where, data, bytes, dims, rank, (ONNXTensorElementDataType)type, (OrtValue **)alias));
  return t;
}

char *device_copy(const void *from, void *to) {
  const OrtValue *src = from;
  OrtValue *dst = to;
  return text(api->CopyTensors(env, &src, &dst, NULL, 1));
}

void device_release(void *value) { api->ReleaseValue(value); }
