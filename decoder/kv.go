package decoder

import (
	"errors"
	"fmt"
	"os"

	"github.com/mmserve/mmserve/internal/ort"
)

// kvPanel is the number of positions whose keys an attention kernel may keep together.
const kvPanel = 16

// kvCache is one key and one value tensor a layer, [slots, kv heads, max len, head dim], reserved whole and
// backed with pages as sequences grow. A head's first n positions lie in its first n·head dim values, n rounded up to
// whole panels: within a panel the kernel has its own order.
type kvCache struct {
	slots, kvHeads, maxLen, headDim int
	length                          int                    // positions reserved for a sequence: maxLen in whole panels
	layers                          []*ort.Memory[float32] // key, value, key, value, …
	views                           map[[2]int][]ort.Tensor
}

func newKVCache(c Config, slots, maxLen int) (*kvCache, error) {
	kv := &kvCache{slots: slots, kvHeads: c.KVHeads, maxLen: maxLen, headDim: c.HeadDim, views: map[[2]int][]ort.Tensor{}}
	kv.length = panels(maxLen)
	for range 2 * c.caches() {
		m, err := ort.Alloc[float32](slots * kv.slotLen())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("KV cache: %w", err), kv.close())
		}
		kv.layers = append(kv.layers, m)
	}
	return kv, nil
}

// slack is the most positions that a sequence's memory takes beyond its own: keys come in whole panels, and memory in
// whole pages.
func (c Config) slack() int { return kvPanel - 1 + os.Getpagesize()/(4*c.HeadDim) }

// KVBytes is the most memory that n positions of so many sequences take.
func (c Config) KVBytes(n, sequences int) int64 {
	return int64(n+sequences*c.slack())*c.KVBytesPerToken() + int64(sequences)*c.convBytes()
}

// KVTokens is the number of positions, of so many sequences together, that bytes hold; 0 if there is no room.
func (c Config) KVTokens(bytes int64, sequences int) int {
	bytes -= int64(sequences) * c.convBytes()
	return max(int(bytes/c.KVBytesPerToken())-sequences*c.slack(), 0)
}

// panels rounds a number of positions up to whole panels.
func panels(n int) int { return (n + kvPanel - 1) / kvPanel * kvPanel }

func (kv *kvCache) slotLen() int { return kv.kvHeads * kv.length * kv.headDim }

// view gives the tensors over slots [from, from+n), key and value of each layer in turn. They are made once.
func (kv *kvCache) view(from, n int) ([]ort.Tensor, error) {
	key := [2]int{from, n}
	if v, ok := kv.views[key]; ok {
		return v, nil
	}
	list := make([]ort.Tensor, 0, len(kv.layers))
	for _, m := range kv.layers {
		t, err := ort.View(m.Slice()[from*kv.slotLen():], n, kv.kvHeads, kv.length, kv.headDim)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	kv.views[key] = list
	return list, nil
}

// move copies the first m.Len positions of slot m.From over slot m.To, or exchanges them with m.Back positions there.
func (kv *kvCache) move(m Move) {
	n, back := panels(m.Len)*kv.headDim, panels(m.Back)*kv.headDim
	both := min(n, back)
	for _, mem := range kv.layers {
		s := mem.Slice()
		for h := range kv.kvHeads {
			row := h * kv.length * kv.headDim
			from, to := s[m.From*kv.slotLen()+row:], s[m.To*kv.slotLen()+row:]
			exchange(from[:both], to[:both])
			copy(to[both:n], from[both:])
			if back > both {
				copy(from[both:back], to[both:])
			}
		}
	}
}

// release puts zeros over positions [r.From, r.To), but those that share a panel with an earlier one, and gives back
// the pages in which nothing else lies.
func (kv *kvCache) release(r Release) error {
	from, to := panels(r.From)*kv.headDim, panels(r.To)*kv.headDim
	for _, mem := range kv.layers {
		for h := range kv.kvHeads {
			row := r.Slot*kv.slotLen() + h*kv.length*kv.headDim
			if err := mem.Wipe(row+from, row+to); err != nil {
				return fmt.Errorf("give back KV cache: %w", err)
			}
		}
	}
	return nil
}

// exchange swaps two slices of one length, through a buffer that the nearest cache holds.
func exchange[T float32 | uint8](a, b []T) {
	var buf [1024]T
	for len(a) > 0 {
		n := copy(buf[:], a)
		copy(a[:n], b)
		copy(b, buf[:n])
		a, b = a[n:], b[n:]
	}
}

func (kv *kvCache) close() error {
	var err error
	for _, list := range kv.views {
		for _, t := range list {
			t.Destroy()
		}
	}
	for _, m := range kv.layers {
		err = errors.Join(err, m.Free())
	}
	kv.views, kv.layers = nil, nil
	return err
}

// KVCost is what positions take of memory: a Config's for graphs that are built, or that of graphs which copy their
// past.
type KVCost interface {
	// KVBytesPerToken is the memory that one position takes over all layers.
	KVBytesPerToken() int64
	// KVBytes is the most memory that n positions of so many sequences take.
	KVBytes(n, sequences int) int64
	// KVTokens is the number of positions, of so many sequences together, that bytes hold; 0 if there is no room.
	KVTokens(bytes int64, sequences int) int
}
