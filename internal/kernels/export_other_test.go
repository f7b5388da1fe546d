//go:build (!amd64 || windows) && (!arm64 || !linux)

package kernels

// Limit does nothing: there are no kernels of two kinds.
func Limit(bool) (better bool) { return false }
