package serving

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/model"
)

// The memory plan decides how many sequences run on a device, and says what is too large.
func TestPlanDevice(t *testing.T) {
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f := Config{Slots: 16, Batching: batching.Options{PrefillChunk: 256}, DeviceMemory: 1 << 30}
	kv, l, err := planDevice(m, f, graph.FP32)
	if err != nil || kv.Slots != 16 || kv.MaxLen != 512 || kv.Tokens != 16*512 || kv.Bytes != 17*l.Slot {
		t.Errorf("%+v %v", kv, err)
	}
	f.DeviceMemory = l.Total(5)
	if kv, _, err := planDevice(m, f, graph.FP32); err != nil || kv.Slots != 5 {
		t.Errorf("with room for 5: %+v %v", kv, err)
	}
	f.KVCacheBytes = 3 * l.Slot
	if kv, _, err := planDevice(m, f, graph.FP32); err != nil || kv.Slots != 2 {
		t.Errorf("with a KV cache of 3 slots: %+v %v", kv, err)
	}
	for _, small := range []Config{
		{DeviceMemory: 1 << 20}, {DeviceMemory: 1 << 30, KVCacheBytes: 1 << 10}, {DeviceMemory: 1 << 30, KVCacheBytes: 1},
	} {
		small.Slots, small.Batching.PrefillChunk = 16, 256
		if _, _, err := planDevice(m, small, graph.FP16); err == nil ||
			!strings.Contains(err.Error(), "--device-memory") ||
			!strings.Contains(err.Error(), "--kv-cache-bytes") {
			t.Errorf("%+v: %v, want what is too small", small, err)
		}
	}
}
