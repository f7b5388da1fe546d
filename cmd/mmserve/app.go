package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/vision"
)

// modelFlags say which model to run and how; serve and the in-process commands share them.
type modelFlags struct {
	Model        string `placeholder:"DIR" env:"MMSERVE_MODEL" help:"Hugging Face model folder (default: the embedded model)."`
	LoadFormat   string `enum:"auto,dummy" default:"auto" env:"MMSERVE_LOAD_FORMAT" help:"auto reads the folder's weights; dummy makes random ones for the config.json that --model names, to size a machine."`
	Precision    string `enum:"fp32,int8" default:"fp32" env:"MMSERVE_PRECISION" help:"Precision of the linear layers: fp32, or int8 with one scale a row."`
	ONNXDType    string `name:"onnx-dtype" placeholder:"NAME" env:"MMSERVE_ONNX_DTYPE" help:"Run the folder's ready-made graphs in onnx/, and which: fp32, fp16, q8, q4, … or decoder_model_merged=q4,… (default: they are run, the most faithful, where the folder has no safetensors)."`
	CacheDir     string `placeholder:"DIR" env:"MMSERVE_CACHE_DIR" help:"Where int8 weights are kept between starts (default: the user's cache folder)."`
	Threads      int    `placeholder:"N" env:"MMSERVE_THREADS" help:"Threads of each ONNX Runtime session (default: one per usable processor)."`
	Slots        int    `placeholder:"N" env:"MMSERVE_SLOTS" help:"Sequences whose KV cache is resident (default: what a quarter of the memory holds, at most 16)."`
	MaxWaiting   int    `default:"64" env:"MMSERVE_MAX_WAITING" help:"Requests accepted beyond the slots; more are refused at once."`
	MaxLen       int    `placeholder:"N" env:"MMSERVE_MAX_LEN" help:"Most tokens of prompt and answer together (default: what the model was made for)."`
	PrefillChunk int    `default:"256" env:"MMSERVE_PREFILL_CHUNK" help:"Most prompt tokens in one step; running answers wait no longer than that."`
	EncoderCache int64  `default:"256" name:"encoder-cache-mib" env:"MMSERVE_ENCODER_CACHE_MIB" help:"Memory for patch embeddings of pictures that come again, in MiB."`
	MaxPixels    int64  `placeholder:"N" env:"MMSERVE_MAX_PIXELS" help:"Largest picture accepted, in pixels, judged by its header."`
}

// app is a model that runs: its sessions, its engine, and what the server needs of it.
type app struct {
	model   *model.Model
	text    *model.Text
	tower   *vision.Tower
	encoder *vision.Encoder
	runner  model.Runner
	engine  *batching.Engine
	server  server.Model

	stop    context.CancelFunc
	stopped chan error
}

// openApp starts everything below the server: ONNX Runtime, model, warm-up, KV cache, engine.
func openApp(ortLib string, f modelFlags, log *slog.Logger) (_ *app, err error) {
	if f.Slots < 0 || f.MaxWaiting < 0 || f.MaxLen < 0 || f.PrefillChunk < 1 || f.Threads < 0 || f.EncoderCache < 0 || f.MaxPixels < 0 {
		return nil, errors.New("--slots, --max-waiting, --max-len, --threads, --encoder-cache-mib and --max-pixels take 0 or more, --prefill-chunk 1 or more")
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
	if a.text, err = a.model.OpenText(); err != nil {
		return nil, err
	}
	p := graph.Precision(f.Precision)
	if p == graph.INT8 {
		dir := cacheDir(f.CacheDir)
		fresh, err := a.model.LoadInt8(dir)
		if err != nil {
			return nil, err
		}
		log.Info("int8 weights", "made_now", fresh, "dir", dir, "seconds", time.Since(started).Seconds())
	}
	o := ort.Options{Threads: f.Threads}
	if a.tower, err = a.model.OpenTower(p, o); err != nil {
		return nil, err
	}
	slots := f.Slots
	if slots == 0 {
		slots = defaultSlots(a.model, f.MaxLen)
	}
	if a.runner, err = a.model.OpenDecoder(decoder.OpenOptions{Slots: slots, MaxLen: f.MaxLen, Precision: p, Session: o}); err != nil {
		return nil, err
	}
	if err := a.warmUp(); err != nil {
		return nil, fmt.Errorf("warm-up: %w", err)
	}
	pre := a.text.Preprocessor
	a.encoder = vision.NewEncoder(a.tower, pre.Normalize, f.EncoderCache<<20)
	a.engine = batching.New(a.runner, batching.Options{MaxWaiting: f.MaxWaiting, PrefillChunk: f.PrefillChunk})
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.stopped = cancel, make(chan error, 1)
	go func() { a.stopped <- a.engine.Run(ctx) }()

	digest, err := a.model.Digest()
	if err != nil {
		return nil, err
	}
	limits := vision.DefaultLimits()
	if f.MaxPixels > 0 {
		limits.MaxPixels = f.MaxPixels
	}
	a.server = server.Model{
		Name: a.model.Name, Digest: hex.EncodeToString(digest),
		MaxLen: a.runner.Capacity().MaxLen, Vocab: a.model.Decoder.Vocab, EOS: a.text.EOS,
		Tokenizer: a.text.Tokenizer, AddSpecial: a.text.AddSpecial, BOS: a.text.BOS, Template: a.text.Template, Guarded: a.text.Guarded,
		Layout: a.model.Layout, Hidden: a.model.Decoder.Hidden,
		Prepare: func(data []byte, d pb.Detail) (*vision.Image, error) {
			return pre.Prepare(data, limits, d != pb.Detail_DETAIL_LOW)
		},
		Encode:   a.encoder.Encode,
		Defaults: a.text.Defaults,
		Compiler: sync.OnceValues(func() (*constrain.Compiler, error) { return constrain.NewCompiler(a.text.Tokenizer, a.text.EOS) }),
	}
	if x, ok := a.runner.(*decoder.Exported); ok && !x.Together() && slots > 1 {
		log.Warn("rows of this decoder's graph cannot share a run: each has one of its own, which takes longer")
	}
	log.Info("model ready", "model", a.model.Name, "family", a.model.Type, "path", a.model.Path(), "precision", a.precision(p), "slots", slots,
		"context", a.server.MaxLen, "seconds", time.Since(started).Seconds())
	return a, nil
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

// precision names that of the decoder.
func (a *app) precision(p graph.Precision) string {
	for _, g := range a.model.Graphs() {
		if g.Session == "decoder_model_merged" {
			return g.DType
		}
	}
	return string(p)
}

// warmUp runs the tower and the decoder once, so that the first request pays for no lazy allocation.
func (a *app) warmUp() error {
	if err := a.tower.WarmUp(); err != nil {
		return err
	}
	row := a.model.ShortestRow()
	row.Sampler = decoder.NewSampler(decoder.Sampling{})
	_, err := a.runner.Run(context.Background(), &decoder.Batch{Rows: []decoder.Row{row}})
	return err
}

// defaultSlots is the number of full-length sequences that a quarter of the usable memory holds, 1 to 16.
func defaultSlots(m *model.Model, maxLen int) int {
	const most = 16
	if maxLen == 0 || maxLen > m.Decoder.MaxLen {
		maxLen = m.Decoder.MaxLen
	}
	fit := int64(host.ReadMemory().Limit) / 4 / (m.KVBytesPerToken() * int64(maxLen))
	return int(max(1, min(fit, most)))
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

// cacheDir is where derived files are kept.
func cacheDir(named string) string {
	if named != "" {
		return named
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "mmserve")
}
