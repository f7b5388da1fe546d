//go:build !amd64 || windows

package ort

import ort "github.com/yalue/onnxruntime_go"

// HasKernels says whether graphs on the cpu provider may use the operators of domain "mmserve": RowLinear8,
// RowLinear4 and CachedAttention. They need AVX2 with FMA.
func HasKernels() bool { return false }

// HasSelfAttention8 says whether graphs on the cpu provider may use the operator SelfAttention8 of domain "mmserve", which needs
// AVX-512 with VNNI on amd64.
func HasSelfAttention8() bool { return false }

func configureCustomOps(*ort.SessionOptions, int) error { return nil }
