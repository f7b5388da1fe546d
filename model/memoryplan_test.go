package model

import (
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
)

func TestMemoryPlan(t *testing.T) {
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	l, half := m.MemoryPlan(graph.FP32, 8, 500, 256), m.MemoryPlan(graph.FP16, 8, 500, 256)
	if l.Weights != m.WeightBytes() || half.Weights != l.Weights/2 || half.Slot != l.Slot/2 || l.Tower <= 0 ||
		l.Decoder <= 0 {
		t.Errorf("%+v, in fp16 %+v", l, half)
	}
	// 4 layers of 2 heads of 32 values, keys and values, for 500 positions in blocks of 64
	if want := int64(4 * 2 * 32 * 2 * 4 * 512); l.Slot != want {
		t.Errorf("a slot takes %d bytes, want %d", l.Slot, want)
	}
	for slots := range 5 {
		if got := l.Slots(l.Total(slots)); got != slots {
			t.Errorf("%d slots fit into what %d take", got, slots)
		}
		if got := l.Slots(l.Total(slots) - 1); got != max(0, slots-1) {
			t.Errorf("%d slots fit into a byte less than what %d take", got, slots)
		}
	}
	if n := l.Slots(1 << 10); n != 0 {
		t.Errorf("%d slots fit into a KiB", n)
	}
}
