package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
	"golang.org/x/sync/errgroup"
)

// app is a model that runs: its sessions, its engine, and what the server needs of it.
type app struct {
	model   *model.Model
	text    *model.Text
	tower   *vision.Tower
	encoder *vision.Encoder
	runner  model.Runner
	engine  *batching.Engine
	server  serving.Model

	stop    context.CancelFunc
	stopped chan error
}

// openApp starts everything below the server: ONNX Runtime, model, warm-up, KV cache, engine. steps, unless nil, is told of
// the engine's steps.
func openApp(ortLib string, f modelFlags, steps func(batching.Step), log *slog.Logger) (_ *app, err error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if f.Pace != "" {
		return openPaced(f, steps, log)
	}
	if err := startRuntime(ortLib); err != nil {
		return nil, err
	}
	started := time.Now()
	a := &app{}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	switch {
	case f.LoadFormat == "dummy" && f.ONNXDType != "":
		return nil, errors.New("--onnx-dtype: --load-format dummy runs no ready-made graphs")
	case f.LoadFormat == "dummy":
		a.model, err = model.OpenDummy(f.Model)
	default:
		a.model, err = openModel(f.Model, f.ONNXDType)
	}
	if err != nil {
		return nil, err
	}
	where, err := f.providerFlags.open()
	if err != nil {
		return nil, err
	}
	in, err := f.choose(a.model, where)
	if err != nil {
		return nil, err
	}
	for _, why := range []string{where.why, in.why} {
		if why != "" {
			log.Info(why)
		}
	}
	a.model.Remember(digest.Store(f.dir()))
	var text errgroup.Group // a vocabulary takes a core for as long as the sessions take another
	text.Go(func() (err error) {
		a.text, err = a.model.OpenText()
		return err
	})
	defer text.Wait()
	if in.quantized() {
		dir := f.dir()
		from, err := a.model.LoadQuantized(dir, in.vision, in.decoder)
		if err != nil {
			return nil, err
		}
		if from.Why != "" {
			log.Warn("the cache of quantised weights was passed over", "why", from.Why)
		}
		log.Info("quantised weights", "made_now", from.Fresh, "dir", from.Dir, "seconds", time.Since(started).Seconds())
	}
	var sessions []ort.Placement
	opened := func(at ort.Placement) { sessions = append(sessions, at) }
	if a.tower, err = a.model.OpenTower(in.vision, f.options(where.vision, f.Threads, opened)); err != nil {
		return nil, err
	}
	var kv kvPlan
	device := onDevice(a.model, where)
	if device {
		var l model.Ledger
		kv, l, err = planDevice(a.model, f.memoryFlags, in.decoder)
		log.Info("device memory", "provider", where.decoder.Name(), "slots", kv.slots, "weights", l.Weights, "vision_tower", l.Tower, "decoder", l.Decoder, "slot", l.Slot, "total", l.Total(kv.slots))
	} else {
		kv, err = planKV(a.model, f.Slots, f.MaxLen, int64(f.KVCacheBytes))
	}
	if err != nil {
		return nil, err
	}
	if a.runner, err = a.model.OpenDecoder(decoder.OpenOptions{Slots: kv.slots, MaxLen: kv.maxLen, Precision: in.decoder, Session: f.options(where.decoder, f.Threads, opened)}); err != nil {
		return nil, err
	}
	if err := a.warmUp(f.PrefillChunk); err != nil {
		return nil, fmt.Errorf("warm-up: %w", err)
	}
	if err := text.Wait(); err != nil {
		return nil, err
	}
	for _, w := range slices.Concat(a.model.Warnings, a.text.Warnings) {
		log.Warn("model folder: " + w)
	}
	if len(a.text.Ignored) > 0 {
		log.Warn("settings of generation_config.json are not applied", "settings", a.text.Ignored)
	}
	if f.SelfTest {
		if err := a.selfTest(in.decoder, log); err != nil {
			return nil, err
		}
	}
	a.encoder = vision.NewEncoder(a.tower, a.text.Preprocessor.Normalize, f.EncoderCache<<20)
	if err := a.start(a.runner, a.encoder.Encode, f, kv.tokens, steps); err != nil {
		return nil, err
	}
	a.server.EncoderStats = a.encoder.Stats
	if device {
		a.server.DeviceStats = func() serving.DeviceStats {
			s := ort.AllDevices()
			return serving.DeviceStats{To: s.ToDevice, From: s.ToHost, Held: s.Held}
		}
		if in.decoder == graph.FP16 {
			a.server.KVBytesPerToken /= 2
		}
	}
	a.server.ProviderReason = where.why
	for _, at := range sessions {
		a.server.Sessions = append(a.server.Sessions, serving.Session(at))
		if len(at.Fallbacks) > 0 {
			log.Warn("the processor runs what the execution provider does not", "graph", at.Graph, "provider", at.Provider, "nodes", at.Nodes, "fallbacks", at.Fallbacks)
		}
	}
	if x, ok := a.runner.(*decoder.Exported); ok && !x.Together() && kv.slots > 1 {
		log.Warn("rows of this decoder's graph cannot share a run: each has one of its own, which takes longer")
	}
	log.Info("model ready", "model", a.model.Name, "family", a.model.Type, "path", a.model.Path(), "precision", precisionText(a.model, in.decoder), "vision_precision", precisionText(a.model, in.vision), "provider", where.decoder.String(), "vision_provider", where.vision.String(),
		"slots", kv.slots, "kv_tokens", kv.tokens, "kv_bytes", kv.bytes, "context", kv.maxLen, "seconds", time.Since(started).Seconds())
	return a, nil
}

// start runs the engine over r, and says what the server needs.
func (a *app) start(r batching.Runner, encode func(context.Context, *vision.Image) ([]float32, bool, error), f modelFlags, kvTokens int, steps func(batching.Step)) error {
	pre := a.text.Preprocessor
	digest, err := a.model.Digest()
	if err != nil {
		return err
	}
	a.engine = batching.New(r, batching.Options{
		MaxWaiting: f.MaxWaiting, PrefillChunk: f.PrefillChunk, PrefillShare: f.PrefillShare, KVTokens: kvTokens, Drafts: f.Drafts,
		NoPrefixCache: !f.PrefixCache, SharePrefixes: f.SharePrefixes, TenantWeights: f.TenantWeights, AgeAfter: f.AgeAfter,
		Observe: steps,
	})
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.stopped = cancel, make(chan error, 1)
	go func() { a.stopped <- a.engine.Run(ctx) }()

	limits := f.imageLimits()
	a.server = serving.Model{
		Name: a.model.Name, Digest: hex.EncodeToString(digest),
		MaxLen: r.Capacity().MaxLen, Vocab: a.model.Decoder.Vocab, EOS: a.text.EOS,
		Tokenizer: a.text.Tokenizer, AddSpecial: a.text.AddSpecial, BOS: a.text.BOS, Template: a.text.Template, Guarded: a.text.Guarded,
		Layout: a.model.Layout, Hidden: a.model.Decoder.Hidden,
		Prepare: func(ctx context.Context, data []byte, d vision.Detail) (*vision.Image, error) {
			return pre.Prepare(ctx, data, limits, d.Split())
		},
		Encode: encode, KVBytesPerToken: a.model.KVBytesPerToken(),
		Defaults: a.text.Defaults,
		Compiler: sync.OnceValues(func() (*constrain.Compiler, error) { return constrain.NewCompiler(a.text.Tokenizer, a.text.EOS) }),
	}
	return nil
}

// openModel opens a model folder; a choice among its ready-made graphs asks for them.
func openModel(dir, onnxDType string) (*model.Model, error) {
	switch {
	case onnxDType == "":
		return model.Open(dir)
	case dir == "":
		return nil, errors.New("--onnx-dtype: the embedded model has no ready-made graphs")
	}
	return model.OpenExport(dir, onnxDType)
}

// precisionText names a stage's precision, which in ready-made graphs is the decoder's own.
func precisionText(m *model.Model, p graph.Precision) string {
	for _, g := range m.Graphs() {
		if g.Session == "decoder_model_merged" {
			return g.DType
		}
	}
	return string(p)
}

// warmUp runs the decoder once, so that the first request pays for no lazy allocation. A tower's first run takes little longer
// than the others, which is no reason to have everyone wait for one. On a device both run in all shapes that requests may
// have, in which kernels would be compiled.
func (a *app) warmUp(chunk int) error {
	if err := a.tower.WarmUp(); err != nil {
		return err
	}
	if r, ok := a.runner.(*decoder.Resident); ok {
		return r.WarmUp(chunk)
	}
	row := a.model.ShortestRow()
	row.Sampler = decoder.NewSampler(decoder.Sampling{})
	_, err := a.runner.Run(context.Background(), &decoder.Batch{Rows: []decoder.Row{row}})
	return err
}

// selfTest runs the gold cases that the model's folder carries. One that differs is an error that names it.
func (a *app) selfTest(p graph.Precision, log *slog.Logger) error {
	started := time.Now()
	cases, computed, missed := 0, 0, 0
	var first model.Case
	found, err := a.model.SelfTest(a.text, a.tower, a.runner, p, func(c model.Case) {
		cases++
		if slices.ContainsFunc(c.Checks, func(k model.Check) bool { return k.Name == "generated_ids" }) {
			computed++
		}
		if !c.OK() {
			if missed++; missed == 1 {
				first = c
			}
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("self-test: %w", err)
	case missed > 0:
		return fmt.Errorf("self-test: %d of %d cases of %s's mmserve-gold.jsonl differ (--no-self-test serves all the same); the first: %s",
			missed, cases, a.model.Name, caseText(first))
	case found:
		log.Info("self-test passed", "cases", cases, "computed", computed, "seconds", time.Since(started).Seconds())
	}
	return nil
}

// imageLimits are those of one image, with the budget that all share.
func (f modelFlags) imageLimits() vision.Limits {
	l := vision.DefaultLimits()
	if f.MaxPixels > 0 {
		l.MaxPixels = f.MaxPixels
	}
	l.Budget = vision.NewBudget(cmp.Or(f.MaxDecode<<20, vision.DefaultDecodeBytes))
	return l
}

// close ends the engine, then frees what it ran on. It may be called on a half-open app.
func (a *app) close() error {
	var err error
	if a.stop != nil {
		a.stop()
		err = <-a.stopped
	}
	if a.encoder != nil {
		a.encoder.Close()
	}
	if a.runner != nil {
		err = errors.Join(err, a.runner.Close())
	}
	if a.tower != nil {
		err = errors.Join(err, a.tower.Close())
	}
	if a.model != nil {
		err = errors.Join(err, a.model.Close())
	}
	return err
}
