// What the Go binding does not offer of ONNX Runtime's C API.
#pragma once

#include "include/onnxruntime_c_api.h"

// ort_api is the API of the library that the Go binding has loaded from this path, NULL when it lacks this version's.
const OrtApi *ort_api(const char *library);

// ort_error frees a status and gives its message, which the caller frees; NULL for success.
char *ort_error(const OrtApi *api, OrtStatus *status);

// placed is where a node of a session's graph runs. The strings live as long as the session.
typedef struct {
  const char *provider, *domain, *operator_type, *name;
} placed;

// ort_placement lists the nodes of a session that records them; the caller frees the list.
char *ort_placement(const OrtApi *api, const OrtSession *session, placed **nodes, size_t *count);
