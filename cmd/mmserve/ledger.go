package main

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/model"
)

// shortContext is the context below which that of a model is not cut to make room for more sequences on a device.
const shortContext = 4096

// onDevice says whether a model's decoder keeps its KV cache in a device's memory.
func onDevice(m *model.Model, at providers) bool {
	return at.decoder.Can().DeviceTensors && m.Weights != nil
}

// planDevice says how many sequences fit into a device's memory, with whatever else is there: KV is reserved whole. A context
// that was not asked for is halved while fewer than four of them fit.
func planDevice(m *model.Model, f memoryFlags, p graph.Precision) (kvPlan, model.Ledger, error) {
	memory := int64(f.DeviceMemory)
	if memory == 0 {
		memory = int64(host.ReadMemory().Limit) / 2
	}
	maxLen, err := contextLen(m, f.MaxLen)
	if err != nil {
		return kvPlan{}, model.Ledger{}, err
	}
	for {
		l := m.Ledger(p, f.Slots, maxLen, f.PrefillChunk)
		slots := l.Slots(memory)
		if f.KVCacheBytes > 0 {
			slots = min(slots, int(int64(f.KVCacheBytes)/l.Slot)-1)
		}
		if slots < min(f.Slots, 4) && f.MaxLen == 0 && maxLen > shortContext {
			maxLen /= 2
			continue
		}
		if slots = min(slots, f.Slots); slots < 1 {
			return kvPlan{}, l, fmt.Errorf("the model does not fit: %s, of %s of the device's memory (--device-memory) and with a KV cache of %s (--kv-cache-bytes); --max-len makes the last smaller",
				l, bytesText(memory), orAny(int64(f.KVCacheBytes)))
		}
		return kvPlan{slots: slots, maxLen: maxLen, tokens: slots * maxLen, bytes: int64(slots+1) * l.Slot}, l, nil
	}
}

func orAny(bytes int64) string {
	if bytes == 0 {
		return "any size"
	}
	return bytesText(bytes)
}
