package serving

import (
	"fmt"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

// KVPlan says how much KV cache there is: Slots are reserved, MaxLen positions each, and at most Tokens of them have
// memory at once.
type KVPlan struct {
	Slots, MaxLen, Tokens int
	Bytes                 int64
}

// PlanKV divides a budget of bytes, 0 for a quarter of the usable memory. A model whose context is too long for that is
// cut to what fits, unless maxLen or the budget was asked for.
func PlanKV(m *model.Model, slots, maxLen int, budget int64) (p KVPlan, err error) {
	return planKV(m, m, KVPlan{Slots: slots, MaxLen: maxLen, Bytes: budget})
}

// planKV is PlanKV for positions of that cost.
func planKV(m *model.Model, cost decoder.KVCost, p KVPlan) (_ KVPlan, err error) {
	slots, maxLen, budget := p.Slots, p.MaxLen, p.Bytes
	if slots < 1 {
		return p, fmt.Errorf("--slots %d: want 1 or more", slots)
	}
	asked := maxLen > 0 || budget > 0
	if p.MaxLen, err = contextLen(m, maxLen); err != nil {
		return p, err
	}
	if p.Bytes == 0 {
		p.Bytes = int64(host.ReadMemory().Limit) / 4
	}
	p.Tokens = cost.KVTokens(p.Bytes, slots)
	if full := p.Slots * p.MaxLen; p.Tokens > full {
		p.Tokens, p.Bytes = full, cost.KVBytes(full, slots)
	}
	if p.Tokens >= p.MaxLen {
		return p, nil
	}
	if asked || p.Tokens < 64 {
		return p, fmt.Errorf("the KV cache of one sequence of %d tokens and %d slots takes %s, there are %s; give --kv-cache-bytes more, or --max-len or --slots less",
			p.MaxLen, slots, host.FormatBytes(cost.KVBytes(p.MaxLen, slots)), host.FormatBytes(p.Bytes))
	}
	p.MaxLen = p.Tokens
	return p, nil
}

// contextLen is the context that --max-len asks for, the model's own where it is 0.
func contextLen(m *model.Model, maxLen int) (int, error) {
	if maxLen > m.Decoder.MaxLen {
		return 0, fmt.Errorf("--max-len %d: want at most %d, the context that %s was made for", maxLen, m.Decoder.MaxLen, m.Name)
	}
	if maxLen == 0 {
		return m.Decoder.MaxLen, nil
	}
	return maxLen, nil
}

func (p KVPlan) String() string {
	return fmt.Sprintf("%s for %d tokens, of up to %d sequences with up to %d each", host.FormatBytes(p.Bytes), p.Tokens, p.Slots, p.MaxLen)
}

// shortContext is the context below which that of a model is not cut to make room for more sequences on a device.
const shortContext = 4096

// deviceBudget is how much of a device's memory all models together may take.
func deviceBudget(c Config) int64 {
	if c.DeviceMemory > 0 {
		return c.DeviceMemory
	}
	return int64(host.ReadMemory().Limit) / 2
}

// planDevice says how many sequences fit into a device's memory, with whatever else is there: KV is reserved whole. A
// context that was not asked for is halved while fewer than four of them fit.
func planDevice(m *model.Model, c Config, p graph.Precision) (KVPlan, model.MemoryPlan, error) {
	memory := deviceBudget(c)
	if c.deviceHeld != nil {
		memory -= c.deviceHeld()
	}
	maxLen, err := contextLen(m, c.MaxLen)
	if err != nil {
		return KVPlan{}, model.MemoryPlan{}, err
	}
	for {
		l := m.MemoryPlan(p, c.Slots, maxLen, c.Batching.PrefillChunk)
		slots := l.Slots(memory)
		if c.KVCacheBytes > 0 {
			slots = min(slots, int(c.KVCacheBytes/l.Slot)-1)
		}
		if slots < min(c.Slots, 4) && c.MaxLen == 0 && maxLen > shortContext {
			maxLen /= 2
			continue
		}
		if slots = min(slots, c.Slots); slots < 1 {
			return KVPlan{}, l, fmt.Errorf("the model does not fit: %s, of %s of the device's memory (--device-memory) and with a KV cache of %s (--kv-cache-bytes); --max-len makes the last smaller",
				l, host.FormatBytes(memory), orAny(c.KVCacheBytes))
		}
		return KVPlan{Slots: slots, MaxLen: maxLen, Tokens: slots * maxLen, Bytes: int64(slots+1) * l.Slot}, l, nil
	}
}

func orAny(bytes int64) string {
	if bytes == 0 {
		return "any size"
	}
	return host.FormatBytes(bytes)
}

// Memory is what a deployment was planned to take, in bytes: of the process's memory, weights, the whole KV cache and
// the encoder cache; of a device's, all that is there.
type Memory struct {
	Host, Device int64
	weights      int64 // part of Host
}

// memory sums up what the plan takes.
func (p Plan) memory(m *model.Model, c Config) Memory {
	if p.OnDevice {
		return Memory{Host: c.EncoderCacheBytes, Device: p.Device.Total(p.KV.Slots)}
	}
	w := p.weights(m) + p.DraftWeights
	return Memory{Host: w + p.KV.Bytes + c.EncoderCacheBytes, weights: w}
}

// weights is the most memory that a model's weights take, the rest beside the table in the wider of both precisions.
func (p Plan) weights(m *model.Model) int64 {
	return max(WeightBytes(m, p.Vision.Precision), WeightBytes(m, p.Decoder.Precision))
}

// WeightBytes is the most memory that a model's weights take in a precision: the embedding table as float32, and a
// quantised copy of it where it is the head as well.
func WeightBytes(m *model.Model, p graph.Precision) int64 {
	all := m.WeightBytes()
	if m.Weights == nil {
		return all
	}
	table := min(all, 4*int64(m.Decoder.Vocab)*int64(m.Decoder.Hidden))
	rest := all - table
	if m.Decoder.Tied && p.Quantized() {
		rest = all
	}
	return table + p.WeightBytes(rest)
}

// ReleaseMemory returns to the system what requests have left: the collector's dead objects, and free memory of the C
// library's. It takes as long as a collection.
func ReleaseMemory() { ort.ReleaseMemory() }
