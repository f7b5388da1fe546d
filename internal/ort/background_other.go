//go:build !linux

package ort

// giveWay does nothing: only on Linux has each thread a priority that anyone may lower.
func giveWay() {}
