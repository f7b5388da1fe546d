package graph

import (
	"errors"
	"runtime"

	"golang.org/x/sys/cpu"
)

// ErrSaturates says why there is no int8 on processors where only ONNX Runtime's integer product could run.
var ErrSaturates = errors.New("int8: ONNX Runtime's integer product is wrong on x86-64 processors without VNNI, and mmserve's own needs AVX2 with FMA: use fp32")

// saturates tells that ONNX Runtime's product of 8-bit integers adds pairs of products in 16 bits, which full-range
// weights overflow: it does where x86-64 has no VNNI.
func saturates() bool {
	return runtime.GOARCH == "amd64" && !cpu.X86.HasAVX512VNNI && !cpu.X86.HasAVXVNNI
}
