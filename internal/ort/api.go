package ort

// #cgo linux LDFLAGS: -ldl
// #include <stdlib.h>
// #include "api.h"
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"unsafe"

	ort "github.com/yalue/onnxruntime_go"
)

// api is the C API of the loaded library.
var api = sync.OnceValues(func() (*C.OrtApi, error) {
	_, library := Loaded()
	path := C.CString(library)
	defer C.free(unsafe.Pointer(path))
	if a := C.ort_api(path); a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("the library at %q lacks the C API of ONNX Runtime %s", library, Version)
})

// apiError turns a message of the C side into an error, and frees it.
func apiError(text *C.char) error {
	if text == nil {
		return nil
	}
	defer C.free(unsafe.Pointer(text))
	return errors.New(C.GoString(text))
}

// pointer is the C pointer that the binding keeps in a private field, which lies at the end of path. reflect reads it
// without assuming a layout.
func pointer(v any, path ...string) (unsafe.Pointer, error) {
	r := reflect.ValueOf(v)
	for _, field := range path {
		if r = reflect.Indirect(r); r.Kind() != reflect.Struct {
			break
		}
		r = r.FieldByName(field)
	}
	if r.Kind() != reflect.Pointer {
		return nil, errors.New("the ONNX Runtime binding is not the version that go.mod pins")
	}
	return r.UnsafePointer(), nil
}

// placement lists where the nodes of a session's graph run.
func placement(s *ort.DynamicAdvancedSession) ([]node, error) {
	a, err := api()
	if err != nil {
		return nil, err
	}
	session, err := pointer(s, "s", "ortSession")
	if err != nil {
		return nil, err
	}
	var list *C.placed
	var n C.size_t
	err = apiError(C.ort_placement(a, (*C.OrtSession)(session), &list, &n))
	defer C.free(unsafe.Pointer(list))
	if err != nil {
		return nil, fmt.Errorf("where the graph's nodes run: %w", err)
	}
	nodes := make([]node, n)
	for i, p := range unsafe.Slice(list, n) {
		nodes[i] = node{C.GoString(p.provider), C.GoString(p.domain), C.GoString(p.operator_type), C.GoString(p.name)}
	}
	return nodes, nil
}
