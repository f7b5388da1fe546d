//go:build (amd64 && !windows) || (arm64 && linux)

// The operators of domain "mmserve", registered with ONNX Runtime from inside the process. Each is a file, operator_<name>.c.

#include <dlfcn.h>

#include "operator.h"

const OrtApi *operators_api;

extern const OrtCustomOp operator_rowlinear8, operator_rowlinear4, operator_cachedattention, operator_selfattention8,
  operator_segmentattention, operator_segmentattention8;

static const OrtCustomOp *const operators[] = {
  &operator_rowlinear8, &operator_rowlinear4, &operator_cachedattention, &operator_selfattention8, &operator_segmentattention,
  &operator_segmentattention8,
};

// operators_add lets a session use the domain. It returns NULL or a message that the caller frees. The first call makes
// the domain, which lives as long as the process; calls must not overlap.
char *operators_add(const char *library, void *session_options) {
  static OrtCustomOpDomain *domain;
  OrtStatus *s = NULL;
  if (!domain) {
    void *h = dlopen(library, RTLD_NOW | RTLD_NOLOAD); // the one that the Go binding has loaded
    if (!h) return strdup("the library is not loaded");
    const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))dlsym(h, "OrtGetApiBase");
    if (!base || !(api = base()->GetApi(ORT_API_VERSION))) return strdup("the library lacks the C API of this version");
    s = api->CreateCustomOpDomain("mmserve", &domain);
    for (size_t i = 0; !s && i < sizeof operators / sizeof *operators; i++) s = api->CustomOpDomain_Add(domain, operators[i]);
  }
  if (!s) s = api->AddCustomOpDomain((OrtSessionOptions *)session_options, domain);
  if (!s) return NULL;
  char *text = strdup(api->GetErrorMessage(s));
  api->ReleaseStatus(s);
  return text;
}
