// Package racetest tells tests whether the race detector watches them, which multiplies processor time and memory by
// ten and more. Bounds of these are tested without it; so is what one goroutine does many times over.
package racetest

import "testing"

// Part is n, or under the race detector a tenth of it, at least one. make test runs the packages whose tests go by it
// without the detector, too.
func Part(n int) int {
	if Enabled {
		return max(1, n/10)
	}
	return n
}

// Sample skips the case i under the race detector, but for one in ten.
func Sample(t testing.TB, i int) {
	t.Helper()
	if Enabled && i%10 != 0 {
		t.Skip("one in ten runs under the race detector; make test runs all without it")
	}
}
