#include <stddef.h>
#include <stdint.h>

#include "include/onnxruntime_c_api.h"

// Each returns NULL or a message that the caller frees. Allocators and values are those of the Go binding.
char *device_start(const char *library);
char *device_tensor(void *allocator, const int64_t *dims, size_t rank, int type, void **value);
// device_alias shapes the start of a value's memory; it must be released before the value.
char *device_alias(void *value, size_t bytes, const int64_t *dims, size_t rank, int type, void **alias);
char *device_copy(const void *from, void *to);
void device_release(void *value);
