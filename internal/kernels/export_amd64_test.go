//go:build !windows

package kernels

// Limit has the AVX2 kernels used where better ones are there too; it tells whether there are.
var Limit = limit
