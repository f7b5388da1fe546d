package decoder

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// kvBlock is the number of positions of one head that are copied at a time.
const kvBlock = 64

// deviceKV is a KV cache on a device: one key and one value tensor a layer, [slots, kv heads, length, head dim], of
// which decode steps take the first slots. Providers whose tensors are handles, not addresses, can shape the start of
// a tensor but no other part. So a prompt runs in a stage, a slot more of its own, and comes to its slot when
// something else needs the stage or the slot. Copies are made of blocks, [slots · kv heads · length/kvBlock, kvBlock ·
// head dim].
type deviceKV struct {
	slots, kvHeads, length, headDim int
	session                         *ort.Session // where the memory comes from
	copies                          *ort.Session
	cache, stage                    []ort.Tensor // key, value, key, value, …
	cacheBlocks, stageBlocks        []ort.Tensor
	views                           map[int][]ort.Tensor // of the cache's first n slots
	// the slot whose positions are in the stage, -1 for none, and how many
	staged, used int
	from         *ort.Memory[int32]
	to           *ort.Memory[int64]
	in           []ort.Tensor
}

// blockLength is the number of positions reserved for a sequence.
func blockLength(maxLen int) int { return (maxLen + kvBlock - 1) / kvBlock * kvBlock }

func newDeviceKV(s *ort.Session, o ort.Options, t onnx.DType, c Config, slots, maxLen int) (kv *deviceKV, err error) {
	kv = &deviceKV{
		slots: slots, kvHeads: c.KVHeads, length: blockLength(maxLen), headDim: c.HeadDim,
		session: s, views: map[int][]ort.Tensor{}, staged: -1,
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("KV cache: %w", err), kv.close())
		}
	}()
	if kv.copies, err = ort.NewSession(blockGraph(t, 2*c.Layers, kvBlock*kv.headDim), o); err != nil {
		return kv, err
	}
	blocks := kv.kvHeads * kv.length / kvBlock
	if kv.from, err = ort.Alloc[int32](2 * blocks); err != nil {
		return kv, err
	}
	if kv.to, err = ort.Alloc[int64](2 * blocks); err != nil {
		return kv, err
	}
	// Attention multiplies what lies past a row's length by 0, which is no 0 if it is not finite.
	zeros, err := ort.Alloc[uint8](slots * kv.kvHeads * kv.length * kv.headDim * t.Size())
	if err != nil {
		return kv, err
	}
	defer zeros.Free()
	reserve := func(slots int) (whole, blocked ort.Tensor, err error) {
		dims := []int{slots, kv.kvHeads, kv.length, kv.headDim}
		if whole, err = s.Tensor(t, dims...); err != nil {
			return whole, blocked, err
		}
		zero, err := ort.ViewAs(zeros.Slice(), t, dims...)
		if err != nil {
			return whole, blocked, err
		}
		defer zero.Destroy()
		if err = ort.Copy(whole, zero); err == nil {
			blocked, err = whole.Start(slots*blocks, kvBlock*kv.headDim)
		}
		return whole, blocked, err
	}
	for range 2 * c.Layers {
		for _, list := range []struct {
			slots          int
			whole, blocked *[]ort.Tensor
		}{{slots, &kv.cache, &kv.cacheBlocks}, {1, &kv.stage, &kv.stageBlocks}} {
			whole, blocked, err := reserve(list.slots)
			if err != nil {
				return kv, err
			}
			*list.whole, *list.blocked = append(*list.whole, whole), append(*list.blocked, blocked)
		}
	}
	return kv, nil
}

// first gives the cache's first n slots, after what is staged for one of them has come there.
func (kv *deviceKV) first(n int) ([]ort.Tensor, error) {
	if kv.staged >= 0 && kv.staged < n {
		if err := kv.settle(); err != nil {
			return nil, err
		}
	}
	if v, ok := kv.views[n]; ok {
		return v, nil
	}
	list := make([]ort.Tensor, 0, len(kv.cache))
	for _, t := range kv.cache {
		v, err := t.Start(n, kv.kvHeads, kv.length, kv.headDim)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	kv.views[n] = list
	return list, nil
}

// one gives the stage with the first past positions of a slot in it, for n more to follow.
func (kv *deviceKV) one(slot, past, n int) ([]ort.Tensor, error) {
	if kv.staged != slot {
		if err := kv.settle(); err != nil {
			return nil, err
		}
		if err := kv.copy(kv.cacheBlocks, kv.stageBlocks, span{slot, 0, past}); err != nil {
			return nil, err
		}
		kv.staged = slot
	}
	kv.used = past + n
	return kv.stage, nil
}

// settle brings what is staged to its slot.
func (kv *deviceKV) settle() error {
	if kv.staged < 0 {
		return nil
	}
	slot := kv.staged
	kv.staged = -1
	return kv.copy(kv.stageBlocks, kv.cacheBlocks, span{0, slot, kv.used})
}

// move is Move. What is staged stays there and changes its slot where it can.
func (kv *deviceKV) move(m Move) error {
	switch kv.staged {
	case m.From:
		if m.Back > 0 {
			if err := kv.copy(kv.cacheBlocks, kv.cacheBlocks, span{m.To, m.From, m.Back}); err != nil {
				return err
			}
			kv.staged = m.To
			return nil
		}
		// The source may be needed where it is: a prompt can start from another's.
		if err := kv.settle(); err != nil {
			return err
		}
	case m.To:
		kv.staged = -1
		if m.Back > 0 {
			kv.staged = m.From
		}
		return kv.copy(kv.cacheBlocks, kv.cacheBlocks, span{m.From, m.To, m.Len})
	}
	spans := []span{{m.From, m.To, m.Len}, {m.To, m.From, m.Back}}
	if m.Back == 0 {
		spans = spans[:1]
	}
	return kv.copy(kv.cacheBlocks, kv.cacheBlocks, spans...)
}

// span is the first n positions of slot from, which go over those of slot to.
type span struct{ from, to, n int }

func (kv *deviceKV) copy(source, target []ort.Tensor, spans ...span) error {
	from, to := kv.from.Slice()[:0], kv.to.Slice()[:0]
	perHead := kv.length / kvBlock
	for _, s := range spans {
		for h := range kv.kvHeads {
			for b := range (s.n + kvBlock - 1) / kvBlock {
				from = append(from, int32((s.from*kv.kvHeads+h)*perHead+b))
				to = append(to, int64((s.to*kv.kvHeads+h)*perHead+b))
			}
		}
	}
	if len(from) == 0 {
		return nil
	}
	var views viewList
	defer views.destroy()
	kv.in = append(kv.in[:0], view(&views, from, len(from)), view(&views, to, len(to), 1))
	if views.err != nil {
		return views.err
	}
	for i := range source {
		kv.in = append(kv.in, source[i], target[i])
	}
	if err := kv.copies.Run(kv.in, target); err != nil {
		return fmt.Errorf("KV cache: %w", err)
	}
	return nil
}

func (kv *deviceKV) close() error {
	var err error
	if kv.copies != nil {
		err = kv.copies.Close()
	}
	kv.from.Free()
	kv.to.Free()
	return err // the tensors go with the session they came from
}

// SlotBytes is what the KV cache of one sequence takes on a device.
func (c Config) SlotBytes(maxLen int, p graph.Precision) int64 {
	return p.ValueBytes(int64(blockLength(maxLen)) * c.KVBytesPerToken())
}

// StepBytes bounds what a step over n positions takes on a device beside weights and KV cache, with logits for k of
// them: the values between layers, which live at once only around one layer, and the scores of attention over maxLen
// positions where the provider does not fuse it away.
func (c Config) StepBytes(n, k, maxLen int) int64 {
	layer := 8*c.Hidden + 3*c.Intermediate + 3*(c.Heads+2*c.KVHeads)*c.HeadDim + 2*c.Heads*maxLen +
		c.Deepstack*c.Hidden
	return 4 * (int64(n)*int64(layer) + 2*int64(k)*int64(c.Vocab))
}
