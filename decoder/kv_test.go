package decoder

import (
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// head is what the cache keeps of the first n positions of one head, in whole panels.
func (kv *kvCache) head(layer, slot, head, n int) []float32 {
	at := slot*kv.slotLen() + head*kv.length*kv.headDim
	return kv.layers[layer].Slice()[at:][:panels(n)*kv.headDim]
}

// Every layer and head moves, whichever of an exchange is longer, and no other slot changes.
func TestKVMoves(t *testing.T) {
	for _, m := range []Move{{From: 2, To: 0, Len: 20}, {From: 2, To: 0, Len: 20, Back: 60},
		{From: 1, To: 2, Len: 50, Back: 3}, {From: 0, To: 1, Len: 64, Back: 64}} {
		kv, err := newKVCache(Config{Layers: 2, KVHeads: 3, HeadDim: 32}, 3, 64)
		if err != nil {
			t.Fatal(err)
		}
		value := float32(0)
		for _, mem := range kv.layers {
			for i := range mem.Slice() {
				mem.Slice()[i] = value
				value++
			}
		}
		var from, to, other [][]float32
		third := 3 - m.From - m.To
		each := func(f func(layer, head int)) {
			for layer := range kv.layers {
				for head := range kv.kvHeads {
					f(layer, head)
				}
			}
		}
		each(func(l, h int) {
			from = append(from, slices.Clone(kv.head(l, m.From, h, m.Len)))
			to = append(to, slices.Clone(kv.head(l, m.To, h, m.Back)))
			other = append(other, slices.Clone(kv.head(l, third, h, 64)))
		})
		kv.move(m)
		i := 0
		each(func(l, h int) {
			if !slices.Equal(kv.head(l, m.To, h, m.Len), from[i]) {
				t.Fatalf("%+v: layer %d, head %d did not come", m, l, h)
			}
			if !slices.Equal(kv.head(l, m.From, h, m.Back), to[i]) {
				t.Fatalf("%+v: layer %d, head %d did not come back", m, l, h)
			}
			if !slices.Equal(kv.head(l, third, h, 64), other[i]) {
				t.Fatalf("%+v: layer %d, head %d of slot %d changed", m, l, h, third)
			}
			i++
		})
		if err := kv.close(); err != nil {
			t.Error(err)
		}
	}
}

// What Config.KVBytes says of positions with memory is what the process takes, no less than their bytes and no more
// than a page and a panel each head; after a release it is gone.
func TestKVResident(t *testing.T) {
	c := Config{Layers: 6, KVHeads: 3, HeadDim: 64}
	const slots, n = 4, 1003
	kv, err := newKVCache(c, slots, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer kv.close()
	if r := kv.resident(t); r != 0 {
		t.Errorf("a new cache takes %d bytes", r)
	}
	for slot := range slots {
		for _, mem := range kv.layers {
			for h := range kv.kvHeads {
				row := mem.Slice()[slot*kv.slotLen()+h*kv.length*kv.headDim:]
				for i := range n * kv.headDim {
					row[i] = 1
				}
			}
		}
	}
	least, most := slots*n*c.KVBytesPerToken(), c.KVBytes(slots*n, slots)
	if r := kv.resident(t); r < least || r > most {
		t.Errorf("%d positions take %d bytes, want %d to %d", slots*n, r, least, most)
	}
	if got := c.KVTokens(most, slots); got != slots*n {
		t.Errorf("%d bytes hold %d positions, want %d", most, got, slots*n)
	}
	for slot := range slots {
		if err := kv.release(Release{Slot: slot, From: 0, To: n}); err != nil {
			t.Fatal(err)
		}
	}
	if r := kv.resident(t); r > most-least {
		t.Errorf("%d bytes are left after the release", r)
	}
}

// resident is the memory behind the cache, as the kernel counts it.
func (kv *kvCache) resident(t *testing.T) (bytes int64) {
	t.Helper()
	page := os.Getpagesize()
	for _, mem := range kv.layers {
		s := mem.Slice()
		vec := make([]byte, (4*len(s)+page-1)/page)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&s[0])), uintptr(4*len(s)),
			uintptr(unsafe.Pointer(&vec[0])))
		if errno != 0 {
			t.Fatal(errno)
		}
		for _, v := range vec {
			bytes += int64(v&1) * int64(page)
		}
	}
	return bytes
}

// A release puts zeros over what was asked for and nothing beside it, up to the panel that an earlier position is in.
func TestKVRelease(t *testing.T) {
	const maxLen = 256 // a head's 256 positions of 32 values are 8 pages
	kv, err := newKVCache(Config{Layers: 1, KVHeads: 2, HeadDim: 32}, 2, maxLen)
	if err != nil {
		t.Fatal(err)
	}
	defer kv.close()
	for _, mem := range kv.layers {
		for i := range mem.Slice() {
			mem.Slice()[i] = 1
		}
	}
	r := Release{Slot: 1, From: 40, To: 200} // 5,120 to 25,600 bytes of a head: pages 2 to 5
	if err := kv.release(r); err != nil {
		t.Fatal(err)
	}
	for layer, mem := range kv.layers {
		for i, v := range mem.Slice() {
			slot, pos := i/kv.slotLen(), i%(maxLen*32)/32
			if gone := slot == r.Slot && pos >= 48 && pos < 208; gone != (v == 0) {
				t.Fatalf("layer %d, slot %d, position %d is %v", layer, slot, pos, v)
			}
		}
	}
	err = kv.release(Release{Slot: 0, From: 10, To: 20})
	if s := kv.layers[0].Slice(); err != nil || s[16*32-1] != 1 || s[16*32] != 0 || s[32*32-1] != 0 || s[32*32] != 1 {
		t.Errorf("a release of no whole page: %v", err)
	}
}
