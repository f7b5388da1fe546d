//go:build race

package server_test

// raceEnabled: the race detector multiplies processor time and memory.
const raceEnabled = true
