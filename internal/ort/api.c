//go:build !windows

#include "api.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

const OrtApi *ort_api(const char *library) {
  void *h = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
  if (!h) return NULL;
  const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))dlsym(h, "OrtGetApiBase");
  return base ? base()->GetApi(ORT_API_VERSION) : NULL;
}

char *ort_error(const OrtApi *api, OrtStatus *status) {
  if (!status) return NULL;
  char *text = strdup(api->GetErrorMessage(status));
  api->ReleaseStatus(status);
  return text;
}

char *ort_placement(const OrtApi *api, const OrtSession *session, placed **nodes, size_t *count) {
  const OrtEpAssignedSubgraph *const *graphs;
  size_t graph_count, room = 0;
  OrtStatus *s = api->Session_GetEpGraphAssignmentInfo(session, &graphs, &graph_count);
  *nodes = NULL, *count = 0;
  for (size_t g = 0; !s && g < graph_count; g++) {
    const OrtEpAssignedNode *const *list;
    const char *provider;
    size_t n;
    s = api->EpAssignedSubgraph_GetEpName(graphs[g], &provider);
    if (!s) s = api->EpAssignedSubgraph_GetNodes(graphs[g], &list, &n);
    if (s) break;
    if (*count + n > room) {
      room = 2 * (*count + n);
      placed *more = realloc(*nodes, room * sizeof *more);
      if (!more) return strdup("out of memory");
      *nodes = more;
    }
    for (size_t i = 0; !s && i < n; i++) {
      placed *p = *nodes + (*count)++;
      p->provider = provider;
      s = api->EpAssignedNode_GetDomain(list[i], &p->domain);
      if (!s) s = api->EpAssignedNode_GetOperatorType(list[i], &p->operator_type);
      if (!s) s = api->EpAssignedNode_GetName(list[i], &p->name);
    }
  }
  return ort_error(api, s);
}
