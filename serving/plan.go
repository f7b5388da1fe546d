package serving

import (
	"cmp"
	"errors"
	"log/slog"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// Plan is where a model runs, in which precision, and with how much memory.
type Plan struct {
	Vision, Decoder StagePlan
	// ProviderReason and PrecisionReason say what "auto" went by; empty where nobody asked for it.
	ProviderReason, PrecisionReason string
	// OnDevice says whether the KV cache is in a device's memory, of which Device is then the plan.
	OnDevice bool
	Device   model.MemoryPlan
	KV       KVPlan
	// DraftWeights is the most memory that the weights of a draft model take.
	DraftWeights int64
}

// StagePlan is what one of a model's two stages runs on, and in.
type StagePlan struct {
	Provider  ort.Provider
	Precision graph.Precision
}

// plan settles what c leaves open, and in what a draft model runs. An error comes with what had been settled. ONNX
// Runtime is loaded.
func (c Config) plan(m *model.Model, draft *draftModel) (p Plan, err error) {
	if err = c.chooseProviders(&p); err != nil {
		return p, err
	}
	if err = c.choosePrecisions(m, &p); err != nil {
		return p, err
	}
	if err = draft.choose(c, &p); err != nil {
		return p, err
	}
	p.DraftWeights = draft.weights()
	p.OnDevice = p.Decoder.Provider.Can().DeviceTensors && m.Weights != nil
	if p.OnDevice {
		p.KV, p.Device, err = planDevice(m, c, p.Decoder.Precision)
	} else {
		p.KV, err = planKV(m, draft.cost(m), KVPlan{Slots: c.Slots, MaxLen: c.MaxLen, Bytes: c.KVCacheBytes})
	}
	return p, err
}

func (p Plan) quantised() bool {
	return p.Vision.Precision.Quantized() || p.Decoder.Precision.Quantized()
}

// Reasons are those that are not empty.
func (p Plan) Reasons() (list []string) {
	for _, why := range []string{p.ProviderReason, p.PrecisionReason} {
		if why != "" {
			list = append(list, why)
		}
	}
	return list
}

// Reasons say what the model runs on and in where that was left to "auto", and why.
func (d *Deployment) Reasons() []string { return d.plan.Reasons() }

// Precisions are those of the decoder and of the vision tower, by the names that Config takes. That of the tower is
// empty if it follows from the decoder's.
func (d *Deployment) Precisions() (decoder, vision string) {
	at := cmp.Or(d.plan.Decoder.Precision, graph.FP32)
	if v := d.plan.Vision.Precision; v != "" && v != at.Vision() {
		vision = string(v)
	}
	return string(at), vision
}

// log says what was chosen, and how a device's memory is divided.
func (p Plan) log(log *slog.Logger) {
	for _, why := range p.Reasons() {
		log.Info(why)
	}
	if l := p.Device; p.OnDevice {
		log.Info("device memory", "provider", p.Decoder.Provider.Name(), "slots", p.KV.Slots, "weights", l.Weights,
			"vision_tower", l.Tower, "decoder", l.Decoder, "slot", l.Slot, "total", l.Total(p.KV.Slots))
	}
}

// options are those of a stage's sessions.
func (p Plan) options(at StagePlan, c Config) ort.Options {
	return ort.Options{Provider: at.Provider, AllowCPUFallback: c.AllowCPUFallback, Threads: c.Threads}
}

// open opens the sessions of both stages. opened is told of each.
func (p Plan) open(m *model.Model, c Config, opened func(ort.Placement)) (vision.Tower, decoder.Runner, error) {
	options := func(at StagePlan) ort.Options {
		o := p.options(at, c)
		o.Opened = opened
		return o
	}
	tower, err := m.OpenTower(p.Vision.Precision, options(p.Vision))
	if err != nil {
		return nil, nil, err
	}
	runner, err := m.OpenDecoder(decoder.OpenOptions{
		Slots: p.KV.Slots, MaxLen: p.KV.MaxLen, Precision: p.Decoder.Precision, Session: options(p.Decoder),
	})
	if err != nil {
		return tower, nil, err
	}
	return tower, runner, nil
}

// Report is what Examine finds.
type Report struct {
	Plan
	// CacheWarning says why the cache of quantised weights was passed over.
	CacheWarning string
	// Sessions are those that could be opened.
	Sessions []ort.Placement
}

// Examine opens a model's sessions as Open does, and closes them. What was found before an error is in the report.
func Examine(m *model.Model, c Config) (r Report, err error) {
	c = c.withDefaults()
	if r.Plan, err = c.plan(m, &draftModel{}); err != nil {
		return r, err
	}
	from, err := m.LoadQuantized(c.CacheDir, r.Vision.Precision, r.Decoder.Precision)
	if err != nil {
		return r, err
	}
	r.CacheWarning = from.Why
	tower, runner, err := r.open(m, c, func(at ort.Placement) { r.Sessions = append(r.Sessions, at) })
	if runner != nil {
		err = errors.Join(err, runner.Close())
	}
	if tower != nil {
		err = errors.Join(err, tower.Close())
	}
	return r, err
}
