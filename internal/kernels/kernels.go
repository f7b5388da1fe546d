// Package kernels holds all of mmserve's C and assembly: the operators of ONNX domain "mmserve" that graphs on the cpu
// provider are made of, and the passes over logits that sampling makes. It knows nothing of sessions; package ort
// registers the operators with one.
//
// Every kernel exists for AVX2 and, where that is faster, for AVX-512 with VNNI; on Linux for ARM64 it exists for NEON
// and, where that is faster, for dotprod and i8mm. All give the same bits. On other processors there are no operators,
// and the passes over logits are Go. A file whose name ends in _amd64 or _arm64 is that architecture's.
package kernels
