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

// Without skips a test under the race detector: one that drives the program in processes of its own, where the detector
// sees nothing of the test. make test runs it without.
func Without(t testing.TB) {
	t.Helper()
	if Enabled {
		t.Skip("make test runs this without the race detector")
	}
}
