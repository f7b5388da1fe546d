//go:build !amd64 || windows

package kernels

// Bandwidth is not measured here.
func Bandwidth(int) float64 { return 0 }

// Peak8 is not measured here.
func Peak8(int) float64 { return 0 }
