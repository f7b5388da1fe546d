package serving

import (
	"errors"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/verify"
)

func embedded(t *testing.T) *model.Model {
	t.Helper()
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// The KV cache takes what sequences can fill, or what there is; what does not hold one sequence is refused.
func TestPlanKV(t *testing.T) {
	m := embedded(t)
	const slots, maxLen = 3, 512
	full, one := m.KVBytes(slots*maxLen, slots), m.KVBytes(maxLen, slots)
	for _, c := range []struct {
		name           string
		slots, maxLen  int
		budget         int64
		length, tokens int
		says           string
	}{
		{"a quarter of the memory is more than enough", slots, 0, 0, maxLen, slots * maxLen, ""},
		{"just enough for all", slots, 0, full, maxLen, slots * maxLen, ""},
		{"just enough for one", slots, 0, one, maxLen, m.KVTokens(one, slots), ""},
		{"a byte less than for one", slots, 0, one - 1, 0, 0, "--kv-cache-bytes"},
		{"a shorter context", slots, 100, 0, 100, slots * 100, ""},
		{"the model's own context", slots, maxLen, 0, maxLen, slots * maxLen, ""},
		{"a longer one", slots, maxLen + 1, 0, 0, 0, "--max-len 513: want at most 512, the context that"},
		{"one slot", 1, 0, 0, maxLen, maxLen, ""},
		{"no slots", 0, 0, 0, 0, 0, "--slots 0: want 1 or more"},
	} {
		p, err := PlanKV(m, c.slots, c.maxLen, c.budget)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", c.name, err, c.says)
			}
			continue
		}
		if err != nil || p.Slots != c.slots || p.MaxLen != c.length || p.Tokens != c.tokens {
			t.Errorf("%s: %+v, %v; want %d tokens of %d", c.name, p, err, c.tokens, c.length)
		}
		if p.Tokens == c.slots*c.length && p.Bytes != m.KVBytes(p.Tokens, c.slots) {
			t.Errorf("%s: %d bytes for all sequences, they take %d", c.name, p.Bytes, m.KVBytes(p.Tokens, c.slots))
		}
	}
	p := KVPlan{Slots: 2, MaxLen: 10, Tokens: 15, Bytes: 1 << 20}
	if got := p.String(); got != host.FormatBytes(1<<20)+" for 15 tokens, of up to 2 sequences with up to 10 each" {
		t.Error(got)
	}
}

// A context that is too long for memory nobody asked about is cut, unless less than 64 tokens are left.
func TestPlanKVCutsTheContext(t *testing.T) {
	m := embedded(t)
	quarter := int64(host.ReadMemory().Limit) / 4
	m.Decoder.MaxLen = int(quarter) // a byte for each position is too little
	p, err := PlanKV(m, 1, 0, 0)
	if err != nil || p.MaxLen != p.Tokens || p.Tokens != m.KVTokens(quarter, 1) || p.Bytes != quarter {
		t.Errorf("%+v %v, want a context of %d", p, err, m.KVTokens(quarter, 1))
	}
	for tokens := 63; tokens <= 64; tokens++ {
		m := embedded(t)
		m.Decoder.KVHeads = sort.Search(1<<30, func(heads int) bool {
			m.Decoder.KVHeads = heads
			return m.KVTokens(quarter, 1) <= tokens
		})
		if got := m.KVTokens(quarter, 1); got != tokens {
			t.Fatalf("%d tokens fit, want %d", got, tokens)
		}
		if p, err := PlanKV(m, 1, 0, 0); (err == nil) != (tokens == 64) || err == nil && p.MaxLen != tokens {
			t.Errorf("where %d tokens fit: %+v, %v", tokens, p, err)
		}
	}
}

// On a device a long context that was not asked for is halved while fewer than four sequences fit, down to 4096.
func TestPlanDeviceHalves(t *testing.T) {
	m := embedded(t)
	m.Decoder.MaxLen = 4 * shortContext
	fit := func(maxLen, slots int) int64 { return m.MemoryPlan(graph.FP32, 16, maxLen, 256).Total(slots) }
	for _, c := range []struct {
		memory        int64
		slots, maxLen int // that are asked for
		wantSlots     int
		wantLen       int
	}{
		{fit(4*shortContext, 4), 16, 0, 4, 4 * shortContext},
		{fit(2*shortContext, 4), 16, 0, 4, 2 * shortContext},
		{fit(shortContext, 1), 16, 0, 1, shortContext},
		{fit(4*shortContext, 2), 16, 4 * shortContext, 2, 4 * shortContext},
	} {
		config := Config{Slots: c.slots, MaxLen: c.maxLen, DeviceMemory: c.memory}.withDefaults()
		kv, l, err := planDevice(m, config, graph.FP32)
		if err != nil || kv.Slots != c.wantSlots || kv.MaxLen != c.wantLen || kv.Tokens != c.wantSlots*c.wantLen {
			t.Errorf("in %d bytes: %+v, %v; want %d of %d", c.memory, kv, err, c.wantSlots, c.wantLen)
		}
		if kv.Bytes != int64(kv.Slots+1)*l.Slot {
			t.Errorf("%d bytes of KV, want those of %d slots and one more", kv.Bytes, kv.Slots)
		}
	}
	held := Config{Slots: 16, DeviceMemory: fit(shortContext, 4) + 100, MaxLen: shortContext}.withDefaults()
	held.deviceHeld = func() int64 { return 101 }
	if kv, _, err := planDevice(m, held, graph.FP32); err != nil || kv.Slots != 3 {
		t.Errorf("beside what others hold: %+v, %v; want 3 slots", kv, err)
	}
	if _, _, err := planDevice(m, Config{Slots: 4, MaxLen: 1 << 30, DeviceMemory: 1 << 40}, graph.FP32); err == nil {
		t.Error("a context longer than the model's was planned")
	}
	if d := deviceBudget(Config{DeviceMemory: 7}); d != 7 {
		t.Errorf("a budget of 7 bytes is %d", d)
	}
	if d, half := deviceBudget(Config{}), int64(host.ReadMemory().Limit)/2; d != half {
		t.Errorf("the budget is %d, want half of the machine's, %d", d, half)
	}
	if orAny(0) != "any size" || orAny(1<<20) != host.FormatBytes(1<<20) {
		t.Errorf("%q, %q", orAny(0), orAny(1<<20))
	}
}

// What a deployment takes is its weights, its KV and its encoder cache: of the device's memory what is there.
func TestMemoryOfAPlan(t *testing.T) {
	m := embedded(t)
	p := Plan{
		Vision: StagePlan{Precision: graph.FP32}, Decoder: StagePlan{Precision: graph.INT8},
		KV: KVPlan{Slots: 2, Bytes: 1000},
	}
	all := m.WeightBytes()
	if w := p.weights(m); w != all {
		t.Errorf("weights take %d, want %d: the tower's are float32", w, all)
	}
	if got := p.memory(m, Config{EncoderCacheBytes: 50}); got != (Memory{Host: all + 1050, weights: all}) {
		t.Errorf("%+v", got)
	}
	p.Vision.Precision = graph.INT8
	table := 4 * int64(m.Decoder.Vocab) * int64(m.Decoder.Hidden)
	if w := p.weights(m); !m.Decoder.Tied || w != table+graph.INT8.WeightBytes(all) {
		t.Errorf("weights take %d: want the table of %d as float32, the rest and the head that it is too in int8", w, table)
	}
	p.OnDevice, p.Device = true, m.MemoryPlan(graph.FP32, 2, 100, 16)
	if got := p.memory(m, Config{EncoderCacheBytes: 50}); got != (Memory{Host: 50, Device: p.Device.Total(2)}) {
		t.Errorf("%+v", got)
	}
}

// Reasons are told in order, and those that are none are not.
func TestPlanReasons(t *testing.T) {
	p := Plan{ProviderReason: "a", PrecisionReason: "b"}
	if got := strings.Join(p.Reasons(), " "); got != "a b" {
		t.Error(got)
	}
	if got := (Plan{PrecisionReason: "b"}).Reasons(); len(got) != 1 || got[0] != "b" {
		t.Error(got)
	}
	for _, c := range []struct {
		vision, decoder graph.Precision
		want            bool
	}{
		{graph.FP32, graph.FP32, false}, {graph.INT8, graph.FP32, true}, {graph.FP32, graph.INT4, true},
	} {
		p := Plan{Vision: StagePlan{Precision: c.vision}, Decoder: StagePlan{Precision: c.decoder}}
		if p.quantised() != c.want {
			t.Errorf("%s and %s are quantised: %t", c.vision, c.decoder, !c.want)
		}
	}
}

// A provider that cannot be is refused in words that name its flag, and what works instead.
func TestProvidersRefused(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct {
		config Config
		says   []string
	}{
		{Config{Provider: "abacus"}, []string{"--provider: ", "abacus"}},
		{Config{Provider: "cpu", VisionProvider: "abacus"}, []string{"--vision-provider: ", "abacus"}},
		{Config{Provider: "cuda"}, []string{"--provider: ", "what works here: ", "cpu"}},
	} {
		_, err := c.config.SessionOptions()
		for _, says := range c.says {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%+v: %v, want %q", c.config, err, says)
			}
		}
	}
	o, err := Config{Provider: "cpu", VisionProvider: "cpu", Threads: 3, AllowCPUFallback: true}.SessionOptions()
	if err != nil || o.Provider.Name() != "cpu" || o.Threads != 3 || !o.AllowCPUFallback {
		t.Errorf("%+v, %v", o, err)
	}
	list := working()
	if len(list) == 0 || !strings.Contains(strings.Join(list, " "), "cpu") {
		t.Errorf("what works is %v", list)
	}
	for _, name := range list {
		if err := ort.Working(name); err != nil {
			t.Errorf("%s does not work: %v", name, err)
		}
	}
}

// What Examine opens it closes, and says where it ran.
func TestExamine(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	r, err := Examine(embedded(t), Config{Slots: 1})
	if err != nil || len(r.Sessions) < 2 || r.Decoder.Provider.Name() != "cpu" || r.KV.Slots != 1 ||
		r.CacheWarning != "" ||
		r.OnDevice || r.Device != (model.MemoryPlan{}) {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = Examine(embedded(t), Config{Precision: "fp7"}); err == nil || len(r.Sessions) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestParsePace(t *testing.T) {
	for text, want := range map[string][2]time.Duration{
		"1ms,20ms": {time.Millisecond, 20 * time.Millisecond}, "0s,0s": {}, "1m,1m": {time.Minute, time.Minute},
	} {
		if token, step, err := parsePace(text); err != nil || token != want[0] || step != want[1] {
			t.Errorf("%q: %v, %v, %v", text, token, step, err)
		}
	}
	for _, text := range []string{
		"", "1ms", "1ms,", ",1ms", "1,2", "-1ns,1ms", "1ms,-1ns", "60.000000001s,1ms", "1ms,60.000000001s",
	} {
		if _, _, err := parsePace(text); err == nil || !strings.Contains(err.Error(), "--pace \""+text) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A line says how a case went: what was equal, how near the rest was.
func TestCaseText(t *testing.T) {
	good := verify.Case{ID: "a", Checks: []verify.Check{
		{Name: "ids", Exact: true, OK: true, Value: 1}, {Name: "logits", OK: true, Value: 0.0001},
	}}
	bad := verify.Case{ID: "b", Checks: []verify.Check{
		{Name: "ids", Exact: true, Value: 0.5}, {Name: "logits", Value: 0.25},
	}}
	for want, c := range map[string]verify.Case{
		"ok    a  ids equal  logits ≤1.0e-04":             good,
		"MISS  b  ids 50.0% AGREE  logits OFF BY 2.5e-01": bad,
		"MISS c: no image":                                {ID: "c", Err: errors.New("no image")},
	} {
		if got := CaseText(c); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
