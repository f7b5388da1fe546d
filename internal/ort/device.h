#pragma once

#include "api.h"

// Each returns NULL or a message that the caller frees. Allocators and values are those of the Go binding.
char *device_tensor(const OrtApi *api, void *allocator, const int64_t *dims, size_t rank, int type, void **value);
// device_alias shapes the start of a value's memory; it must be released before the value.
char *device_alias(const OrtApi *api, void *value, size_t bytes, const int64_t *dims, size_t rank, int type, void **alias);
char *device_copy(const OrtApi *api, const void *from, void *to);
void device_release(const OrtApi *api, void *value);
// device_crossing tells of a session's inputs and outputs which of them, given in the process's memory, are copied to or
// from the device. It leaves crosses as it is where there are too many to ask for.
char *device_crossing(const OrtApi *api, const OrtSession *session, size_t inputs, size_t outputs, char *crosses);
