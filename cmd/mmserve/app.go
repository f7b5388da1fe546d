package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	"github.com/mmserve/mmserve/model/synth"
	"github.com/mmserve/mmserve/model/verify"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
	"golang.org/x/sync/errgroup"
)

// modelFlags say which model to run and how; serve and the in-process commands share them.
type modelFlags struct {
	providerFlags
	precisionFlags
	Model         string             `placeholder:"DIR" env:"MMSERVE_MODEL" help:"Hugging Face model folder (default: the embedded model)."`
	LoadFormat    string             `enum:"auto,dummy" default:"auto" env:"MMSERVE_LOAD_FORMAT" help:"auto reads the folder's weights; dummy makes random ones for the config.json that --model names, to size a machine."`
	ONNXDType     string             `name:"onnx-dtype" placeholder:"NAME" env:"MMSERVE_ONNX_DTYPE" help:"Run the folder's ready-made graphs in onnx/, and which: fp32, fp16, q8, q4, … or decoder_model_merged=q4,… (default: they are run, the most faithful, where the folder has no safetensors)."`
	CacheDir      string             `placeholder:"DIR" env:"MMSERVE_CACHE_DIR" help:"Where quantised weights and the digests of checkpoints are kept between starts (default: the user's cache folder)."`
	Threads       int                `placeholder:"N" env:"MMSERVE_THREADS" help:"Threads of each ONNX Runtime session (default: one per usable processor)."`
	Slots         int                `default:"16" env:"MMSERVE_SLOTS" help:"Sequences that run at once; the others wait."`
	KVCacheBytes  byteSize           `name:"kv-cache-bytes" placeholder:"SIZE" env:"MMSERVE_KV_CACHE_BYTES" help:"Most memory of the KV cache, such as 4GiB (default: a quarter of what this process may use)."`
	DeviceMemory  byteSize           `name:"device-memory" placeholder:"SIZE" env:"MMSERVE_DEVICE_MEMORY" help:"Memory of the GPU that mmserve may take, such as 24GiB; it decides how many of --slots there are (default: half of this machine's, as with a GPU that shares it)."`
	PrefixCache   bool               `default:"true" negatable:"" env:"MMSERVE_PREFIX_CACHE" help:"Start prompts from the KV of earlier ones of the same tenant that began alike."`
	SharePrefixes bool               `env:"MMSERVE_SHARE_PREFIXES" help:"Start prompts from those of other tenants too, and reuse the embeddings of images that those sent."`
	Drafts        int                `default:"4" env:"MMSERVE_DRAFTS" help:"Most tokens guessed and checked in one step, for requests that want it; 0 for none."`
	Speculative   bool               `default:"true" negatable:"" env:"MMSERVE_SPECULATIVE" help:"Guess tokens for requests that do not say."`
	PrefillShare  float64            `default:"0.5" env:"MMSERVE_PREFILL_SHARE" help:"Part of the time that prompts get while answers are being generated; at 0.5 no token takes longer than two steps, at 0.8 five."`
	TenantWeights map[string]float64 `name:"tenant-weight" placeholder:"TENANT=WEIGHT" env:"MMSERVE_TENANT_WEIGHT" help:"Share of a tenant where several wait; 1 for the others."`
	AgeAfter      time.Duration      `default:"30s" env:"MMSERVE_AGE_AFTER" help:"How long a request waits in one priority before it rises to the next."`
	MaxWaiting    int                `default:"64" env:"MMSERVE_MAX_WAITING" help:"Requests accepted beyond the slots; more are refused at once."`
	MaxLen        int                `placeholder:"N" env:"MMSERVE_MAX_LEN" help:"Most tokens of prompt and answer together (default: what the model was made for)."`
	PrefillChunk  int                `default:"256" env:"MMSERVE_PREFILL_CHUNK" help:"Most prompt tokens in one step; running answers wait no longer than that."`
	EncoderCache  int64              `default:"256" name:"encoder-cache-mib" env:"MMSERVE_ENCODER_CACHE_MIB" help:"Memory for patch embeddings of images that come again, in MiB."`
	MaxPixels     int64              `placeholder:"N" env:"MMSERVE_MAX_PIXELS" help:"Largest image accepted, in pixels, judged by its header."`
	MaxDecode     int64              `default:"1024" name:"max-decode-mib" env:"MMSERVE_MAX_DECODE_MIB" help:"Memory that all images being decoded and resized share, in MiB; one image may take 7/8 of it."`
	SelfTest      bool               `default:"true" negatable:"" env:"MMSERVE_SELF_TEST" help:"Before serving, check the cases of the folder's mmserve-gold.jsonl (model verify --write-gold records them)."`
	Pace          string             `placeholder:"TOKEN,STEP" env:"MMSERVE_PACE" help:"Run no model: take this long for each prompt token and each decode step, as 1ms,20ms, and answer with words drawn by lot. For load tests."`
}

// app is a model that runs: its sessions, its engine, and what the server needs of it.
type app struct {
	model   *model.Model
	text    *model.Processor
	tower   vision.Tower
	encoder *vision.Encoder
	runner  decoder.Runner
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
		a.model, err = synth.OpenDummy(f.Model)
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
	a.model.Remember(digest.Store(cacheDir(f.CacheDir)))
	var text errgroup.Group // a vocabulary takes a core for as long as the sessions take another
	text.Go(func() (err error) {
		a.text, err = a.model.OpenProcessor()
		return err
	})
	defer text.Wait()
	if in.quantized() {
		dir := cacheDir(f.CacheDir)
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
		kv, l, err = planDevice(a.model, f, in.decoder)
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
	if x, ok := a.runner.(*decoder.ExportRunner); ok && !x.Together() && kv.slots > 1 {
		log.Warn("rows of this decoder's graph cannot share a run: each has one of its own, which takes longer")
	}
	log.Info("model ready", "model", a.model.Name, "family", a.model.Type, "path", a.model.Path(), "precision", precisionText(a.model, in.decoder), "vision_precision", precisionText(a.model, in.vision), "provider", where.decoder.String(), "vision_provider", where.vision.String(),
		"slots", kv.slots, "kv_tokens", kv.tokens, "kv_bytes", kv.bytes, "context", kv.maxLen, "seconds", time.Since(started).Seconds())
	return a, nil
}

// start runs the engine over r, and says what the server needs.
func (a *app) start(r batching.Runner, encode func(context.Context, *vision.Image) ([]float32, bool, error), f modelFlags, kvTokens int, steps func(batching.Step)) error {
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

	prompter := a.text.Prompter
	prompter.Limits = f.imageLimits()
	a.server = serving.Model{
		Name: a.model.Name, Digest: hex.EncodeToString(digest),
		MaxLen: r.Capacity().MaxLen, Vocab: a.model.Decoder.Vocab, EOS: a.text.EOS,
		Prompter: &prompter, Hidden: a.model.Decoder.Hidden,
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
	if r, ok := a.runner.(*decoder.DeviceRunner); ok {
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
	var first verify.Case
	found, err := verify.SelfTest(a.model, a.text, a.tower, a.runner, p, func(c verify.Case) {
		cases++
		if slices.ContainsFunc(c.Checks, func(k verify.Check) bool { return k.Name == "generated_ids" }) {
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

// check refuses what is out of range.
func (f modelFlags) check() error {
	for _, c := range []struct {
		flag               string
		value, least, most int64
	}{
		{"--slots", int64(f.Slots), 1, 4096}, {"--prefill-chunk", int64(f.PrefillChunk), 1, 1 << 20}, {"--drafts", int64(f.Drafts), 0, 64},
		{"--max-waiting", int64(f.MaxWaiting), 0, 1 << 20}, {"--max-len", int64(f.MaxLen), 0, 1 << 24}, {"--threads", int64(f.Threads), 0, 1024},
		{"--encoder-cache-mib", f.EncoderCache, 0, 1 << 24}, {"--max-pixels", f.MaxPixels, 0, 1 << 32},
		{"--max-decode-mib", f.MaxDecode, 16, 1 << 20},
	} {
		if c.value < c.least || c.value > c.most {
			return fmt.Errorf("%s %d: want %d or more, up to %d", c.flag, c.value, c.least, c.most)
		}
	}
	if !(f.PrefillShare > 0 && f.PrefillShare < 1) { // NaN fails it
		return fmt.Errorf("--prefill-share %v: want more than 0 and less than 1", f.PrefillShare)
	}
	if f.AgeAfter <= 0 || f.AgeAfter > maxDuration {
		return fmt.Errorf("--age-after %v: want more than 0s, up to %v", f.AgeAfter, maxDuration)
	}
	for tenant, w := range f.TenantWeights {
		if !(w >= minTenantWeight && w <= 1/minTenantWeight) || tenant == "" {
			return fmt.Errorf("--tenant-weight %s=%v: want a tenant and a weight of %v to %v", tenant, w, minTenantWeight, 1/minTenantWeight)
		}
	}
	return nil
}

// minTenantWeight is the least weight, its inverse the largest: between them shares can still be told apart.
const minTenantWeight = 1e-6

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

// cacheDir is where derived files are kept, "" for nowhere.
func cacheDir(named string) string {
	if named != "" {
		return named
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "" // a folder that all users share is no cache
	}
	return filepath.Join(dir, "mmserve")
}
