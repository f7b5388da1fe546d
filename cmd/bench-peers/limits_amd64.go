//go:build linux && cgo

package main

// #include "limits_amd64.h"
import "C"

import (
	"math"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// readBytes is what a thread reads in a round: more than any cache holds.
const readBytes = 256 << 20

// bandwidth is the bytes a second that so many threads read from memory, the best of five rounds.
func bandwidth(threads int) float64 {
	if !cpu.X86.HasAVX2 {
		return 0
	}
	blocks := make([][]uint64, threads)
	for i := range blocks {
		blocks[i] = make([]uint64, readBytes/8)
		for j := 0; j < len(blocks[i]); j += 512 {
			blocks[i][j] = uint64(j) // a page that was never written is one page of zeros to all
		}
	}
	return float64(threads) * readBytes / best(5, threads, func(i int) {
		C.read_all((*C.uint64_t)(unsafe.SliceData(blocks[i])), readBytes/8)
	})
}

// peak8 is the products of 8 bits a second, each with its addition, that so many threads do (VPDPBUSD of 512 bits);
// 0 where there is none.
func peak8(threads int) float64 {
	if !cpu.X86.HasAVX512VNNI || !cpu.X86.HasAVX512F {
		return 0
	}
	const rounds = 2_000_000
	return float64(threads) * rounds * C.DOTS * 64 / best(5, threads, func(int) { C.dot_all(rounds) })
}

// best is the least time in seconds that one f in each of so many threads takes.
func best(rounds, threads int, f func(i int)) float64 {
	least := math.Inf(1)
	for range rounds {
		began := time.Now()
		var group sync.WaitGroup
		for i := range threads {
			group.Go(func() { f(i) })
		}
		group.Wait()
		least = min(least, time.Since(began).Seconds())
	}
	return least
}
