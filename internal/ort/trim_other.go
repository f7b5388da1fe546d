//go:build !linux

package ort

func releaseHeap() {}
func returnFreed() {}
