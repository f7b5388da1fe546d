package serving

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

	"golang.org/x/sync/errgroup"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/synth"
	"github.com/mmserve/mmserve/vision"
)

// Config says which model to run and how. The zero value runs the embedded model.
type Config struct {
	// Dir is the model folder; empty: the embedded model. Name is what requests call it; empty: the folder's name.
	Dir, Name string
	// Dummy runs random weights in the shape of the folder's config.json.
	Dummy bool
	// ONNXDType asks for the folder's ready-made graphs, and says which; see model.OpenExport.
	ONNXDType string
	// CacheDir keeps quantised weights and digests between starts; empty: nothing does.
	CacheDir string
	// Library is ONNX Runtime's shared library; empty: it is looked for.
	Library string

	// Provider is the execution provider with its settings, or auto; empty: cpu. VisionProvider is the tower's; empty:
	// the same.
	Provider, VisionProvider string
	// AllowCPUFallback runs on the processor what the execution provider has no kernel for.
	AllowCPUFallback bool
	// Precision is what the linear layers multiply in, or auto; empty: fp32. VisionPrecision is the tower's; empty:
	// the same, but int8 where that is int4.
	Precision, VisionPrecision string
	// DraftDir is the folder of a smaller model of the same vocabulary, which guesses tokens; empty: there is none.
	// DraftPrecision is its precision, or auto; empty: as Precision.
	DraftDir, DraftPrecision string
	// Threads of each session; 0: one for each usable processor.
	Threads int

	// Slots is the number of sequences that run at once; 16 if 0. MaxLen is the context in tokens; 0: the model's.
	Slots, MaxLen int
	// KVCacheBytes is the most memory of the KV cache; 0: a quarter of what the process may use.
	KVCacheBytes int64
	// DeviceMemory is how much of a device's memory may be taken; 0: half of the machine's.
	DeviceMemory int64
	// Batching is the engine's policy. Open sets KVTokens.
	Batching batching.Options

	// EncoderCacheBytes is the memory for patch embeddings of images that come again.
	EncoderCacheBytes int64
	// EncoderCacheDir is a folder that keeps them between starts, EncoderCacheDisk bytes of them; empty: nothing does.
	EncoderCacheDir  string
	EncoderCacheDisk int64
	// Images bounds each image; its budget may be shared with other deployments. The zero value is
	// vision.DefaultLimits.
	Images vision.Limits
	// NoSelfTest leaves out the cases of the folder's mmserve-gold.jsonl.
	NoSelfTest bool
	// Pace runs no model: each prompt token and each step take a time, as 1ms,20ms.
	Pace string
	// Observe, unless nil, gives what is told of the steps of a model's engine.
	Observe func(model string) func(batching.Step)
	// Logger is slog.Default if nil.
	Logger *slog.Logger

	disk       *vision.DiskCache  // EncoderCacheDir's, where deployments share it
	reserve    func(Memory) error // the registry's: refuses what does not fit, before it is loaded
	unreserve  func(Memory)       // takes that back
	deviceHeld func() int64       // what other deployments hold of the device
}

func (c Config) withDefaults() Config {
	c.Provider = cmp.Or(c.Provider, "cpu")
	c.Precision = cmp.Or(c.Precision, string(graph.FP32))
	c.Slots = cmp.Or(c.Slots, defaultSlots)
	c.Batching.PrefillChunk = cmp.Or(c.Batching.PrefillChunk, defaultChunk)
	if c.Images == (vision.Limits{}) {
		c.Images = vision.DefaultLimits()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

const defaultSlots, defaultChunk = 16, 256

// Deployment is a model that runs: its sessions, its engine, and what requests need of it.
type Deployment struct {
	Model  Model
	Engine *batching.Engine
	// Dir is the folder it was opened from; empty: the embedded model.
	Dir string
	// Memory is what it was planned to take.
	Memory Memory

	config   Config
	plan     Plan
	model    *model.Model
	text     *model.Processor
	tower    vision.Tower
	encoder  *vision.Encoder
	disk     *vision.DiskCache // its own; nil where it has none, or shares one
	runner   decoder.Runner
	draft    draftModel
	sessions []ort.Placement

	meanToken func() float64 // of a token's bytes

	cutting context.Context // ends when its requests are to
	cut     context.CancelFunc

	stop  context.CancelFunc
	ended chan struct{} // closed when the engine has, which sets err
	err   error
}

// Open starts everything below the edges: ONNX Runtime, the model, warm-up, self-test, KV cache, engine. It gives up
// between two of these when ctx ends. An error leaves nothing behind.
func Open(ctx context.Context, c Config) (*Deployment, error) {
	d := newDeployment()
	d.config, d.Dir = c.withDefaults(), c.Dir
	open := d.open
	if c.Pace != "" {
		open = d.openPaced
	}
	if err := open(ctx); err != nil {
		err = errors.Join(err, d.free())
		if c.unreserve != nil && d.Memory != (Memory{}) {
			c.unreserve(d.Memory)
		}
		return nil, err
	}
	return d, nil
}

// Run makes a deployment of a model and an engine that runs already, which stays the caller's to end.
func Run(m Model, e *batching.Engine) *Deployment {
	d := newDeployment()
	d.Model, d.Engine = m, e
	return d
}

func newDeployment() *Deployment {
	d := &Deployment{}
	d.cutting, d.cut = context.WithCancel(context.Background())
	d.meanToken = sync.OnceValue(func() float64 { return meanTokenBytes(&d.Model) })
	return d
}

func (d *Deployment) open(ctx context.Context) (err error) {
	started, log := time.Now(), d.config.Logger
	if err := StartRuntime(d.config.Library); err != nil {
		return err
	}
	if d.model, err = openFolder(d.config); err != nil {
		return err
	}
	if err = d.openDraftModel(); err != nil {
		return err
	}
	d.plan, err = d.config.plan(d.model, &d.draft)
	d.plan.log(log)
	if err != nil {
		return err
	}
	if err := d.reserve(); err != nil {
		return err
	}
	d.model.Remember(digest.Store(d.config.CacheDir))
	var text errgroup.Group // a vocabulary takes a core for as long as the sessions take another
	text.Go(func() (err error) {
		d.text, err = d.model.OpenProcessor()
		return err
	})
	defer text.Wait()
	for _, stage := range []func() error{
		d.quantise, d.openSessions, d.warmUp, text.Wait, d.selfTest, d.startEncoder,
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := stage(); err != nil {
			return err
		}
	}
	d.warn()
	p, kv := d.plan, d.plan.KV
	log.Info("model ready", "model", d.model.Name, "family", d.model.Type, "path", d.model.Path(),
		"precision", PrecisionText(d.model, p.Decoder.Precision),
		"vision_precision", PrecisionText(d.model, p.Vision.Precision),
		"provider", p.Decoder.Provider.String(), "vision_provider", p.Vision.Provider.String(), "slots", kv.Slots,
		"kv_tokens", kv.Tokens, "kv_bytes", kv.Bytes, "context", kv.MaxLen, "seconds", time.Since(started).Seconds())
	return nil
}

// reserve has the registry count what the model will take.
func (d *Deployment) reserve() error {
	m := d.plan.memory(d.model, d.config)
	if d.config.reserve != nil {
		if err := d.config.reserve(m); err != nil {
			return err
		}
	}
	d.Memory = m
	return nil
}

// openFolder opens the model of c under its name.
func openFolder(c Config) (m *model.Model, err error) {
	switch {
	case c.Dummy && c.ONNXDType != "":
		return nil, errors.New("--onnx-dtype: --load-format dummy runs no ready-made graphs")
	case c.Dummy:
		m, err = synth.OpenDummy(c.Dir)
	default:
		m, err = OpenModel(c.Dir, c.ONNXDType)
	}
	if err == nil && c.Name != "" {
		m.Name = c.Name
	}
	return m, err
}

// OpenModel opens a model folder; a choice among its ready-made graphs asks for them.
func OpenModel(dir, onnxDType string) (*model.Model, error) {
	switch {
	case onnxDType == "":
		return model.Open(dir)
	case dir == "":
		return nil, errors.New("--onnx-dtype: the embedded model has no ready-made graphs")
	}
	return model.OpenExport(dir, onnxDType)
}

// quantise makes the quantised weights that the plan asks for.
func (d *Deployment) quantise() error {
	if !d.plan.quantised() {
		return nil
	}
	started, log := time.Now(), d.config.Logger
	from, err := d.model.LoadQuantized(d.config.CacheDir, d.plan.Vision.Precision, d.plan.Decoder.Precision)
	if err != nil {
		return err
	}
	if from.Why != "" {
		log.Warn("the cache of quantised weights was passed over", "why", from.Why)
	}
	log.Info("quantised weights", "made_now", from.Fresh, "dir", from.Dir, "seconds", time.Since(started).Seconds())
	return nil
}

// openSessions opens the tower and the decoder with its KV cache.
func (d *Deployment) openSessions() (err error) {
	opened := func(at ort.Placement) { d.sessions = append(d.sessions, at) }
	d.tower, d.runner, err = d.plan.open(d.model, d.config, opened)
	return err
}

// warmUp runs the decoder once, so that the first request pays for no lazy allocation. A tower's first run takes
// little longer than the others, which is no reason to have everyone wait for one. On a device both run in all shapes
// that requests may have, in which kernels would be compiled.
func (d *Deployment) warmUp() error {
	err := d.tower.WarmUp()
	if r, ok := d.runner.(*decoder.DeviceRunner); ok && err == nil {
		err = r.WarmUp(d.config.Batching.PrefillChunk)
	} else if err == nil {
		return warmUp(d.model, d.runner)
	}
	if err != nil {
		return fmt.Errorf("warm-up: %w", err)
	}
	return nil
}

// warmUp runs a decoder once.
func warmUp(m *model.Model, r decoder.Runner) error {
	row := m.ShortestRow()
	row.Sampler = decoder.NewSampler(decoder.Sampling{})
	if _, err := r.Run(context.Background(), &decoder.Batch{Rows: []decoder.Row{row}}); err != nil {
		return fmt.Errorf("warm-up: %w", err)
	}
	return nil
}

// startEncoder starts the vision worker, and the engine over the decoder.
func (d *Deployment) startEncoder() error {
	d.encoder = vision.NewEncoder(d.tower, d.text.Preprocessor.Normalize, d.config.EncoderCacheBytes)
	r, err := d.stepper()
	if err != nil {
		return err
	}
	if err := d.start(r, d.encoder.Encode); err != nil {
		return err
	}
	if err := d.keepOnDisk(); err != nil {
		return err
	}
	d.Model.EncoderStats, d.Model.Forget = d.encoder.Stats, d.encoder.Forget
	if d.plan.OnDevice {
		d.Model.DeviceStats = func() DeviceStats {
			s := ort.AllDevices()
			return DeviceStats{To: s.ToDevice, From: s.ToHost, Held: s.Held}
		}
		d.Model.KVBytesPerToken = d.plan.Decoder.Precision.ValueBytes(d.Model.KVBytesPerToken)
	}
	d.Model.ProviderReason = d.plan.ProviderReason
	for _, at := range d.sessions {
		d.Model.Sessions = append(d.Model.Sessions, Session(at))
	}
	return nil
}

// start runs the engine over r, and says what requests need.
func (d *Deployment) start(r batching.Runner,
	encode func(context.Context, *vision.Image) ([]float32, bool, error)) error {
	prompter := d.text.Prompter
	prompter.Limits = d.config.Images
	sum, err := d.model.Digest()
	if err != nil {
		return err
	}
	o := d.config.Batching
	o.KVTokens = d.plan.KV.Tokens
	if d.config.Observe != nil {
		o.Observe = d.config.Observe(d.model.Name)
	}
	d.Engine = batching.New(r, o)
	ctx, cancel := context.WithCancel(context.Background())
	d.stop, d.ended = cancel, make(chan struct{})
	go func() {
		defer close(d.ended)
		d.err = d.Engine.Run(ctx)
	}()
	d.Model = Model{
		Name: d.model.Name, Digest: hex.EncodeToString(sum), Card: d.model.Card(),
		MaxLen: r.Capacity().MaxLen, Vocab: d.model.Decoder.Vocab, EOS: d.text.EOS,
		Prompter: &prompter, Hidden: d.model.Decoder.Hidden, Deepstack: d.model.Decoder.Deepstack,
		Encode: encode, KVBytesPerToken: d.model.KVBytesPerToken(),
		Defaults: d.text.Defaults,
		Compiler: sync.OnceValues(func() (*constrain.Compiler, error) {
			return constrain.NewCompiler(d.text.Tokenizer, d.text.EOS)
		}),
	}
	d.Model.Fingerprint = d.fingerprint()
	return nil
}

// warn says what an operator should know of the folder and of where it runs.
func (d *Deployment) warn() {
	log := d.config.Logger
	for _, w := range slices.Concat(d.model.Warnings, d.text.Warnings) {
		log.Warn("model folder: " + w)
	}
	if len(d.text.Ignored) > 0 {
		log.Warn("settings of generation_config.json are not applied", "settings", d.text.Ignored)
	}
	for _, at := range d.sessions {
		if len(at.Fallbacks) > 0 {
			log.Warn("the processor runs what the execution provider does not", "graph", at.Graph,
				"provider", at.Provider, "nodes", at.Nodes, "fallbacks", at.Fallbacks)
		}
	}
	if x, ok := d.runner.(*decoder.ExportRunner); ok && !x.Together() && d.plan.KV.Slots > 1 {
		log.Warn("rows of this decoder's graph cannot share a run: each has one of its own, which takes longer")
	}
}

// Ended is closed when the engine has ended: after Close, or because the device is lost, which Err then says. It is
// nil after Run.
func (d *Deployment) Ended() <-chan struct{} { return d.ended }

// Err is why the engine ended by itself; nil before, and after Close.
func (d *Deployment) Err() error {
	select {
	case <-d.ended:
		return d.err
	default:
		return nil
	}
}

// Cutting ends when requests that still use the deployment are to end.
func (d *Deployment) Cutting() context.Context { return d.cutting }

// Close takes no more requests, lets the open ones finish until ctx ends, cuts the others, and gives all memory back.
// It is called once.
func (d *Deployment) Close(ctx context.Context) error {
	drained, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // an engine that has ended by itself drains nothing
		select {
		case <-d.ended:
			cancel()
		case <-drained.Done():
		}
	}()
	_ = d.Engine.Drain(drained) // what is left is cut
	return d.free()
}

// free ends the engine, then frees what it ran on, as far as that was opened.
func (d *Deployment) free() error {
	var err error
	d.cut()
	if d.stop != nil {
		d.stop()
		<-d.ended
		err = d.err
	}
	if d.encoder != nil {
		d.encoder.Close()
	}
	if d.disk != nil {
		err = errors.Join(err, d.disk.Close())
	}
	if d.runner != nil {
		err = errors.Join(err, d.runner.Close())
	}
	err = errors.Join(err, d.draft.close())
	if d.tower != nil {
		err = errors.Join(err, d.tower.Close())
	}
	if d.model != nil {
		err = errors.Join(err, d.model.Close())
	}
	return err
}
