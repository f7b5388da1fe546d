package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/loadtest"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// The flags that several commands share, each declared once. A command embeds the groups that it takes; where its
// default or its words differ it sets a variable (`set`), for which flagVariables has the common value.

// flagVariables are the common values of what a command may set for a group of flags, and what help texts tell.
var flagVariables = kong.Vars{
	"imageSizes":       loadtest.DefaultImageSizes,
	"provider":         "cpu",
	"maxTokens":        "256",
	"server":           "",
	"ask":              "Ask the server at host:port instead of running the model in this process.",
	"items":            "Items",
	"providers":        strings.Join(ort.Providers(), ", "),
	"precisions":       precisionNames(),
	"precisionDefault": "auto",
	"precision":        precisionHelp(),
}

// precisionNames lists the precisions as kong's enum does.
func precisionNames() string {
	var names []string
	for _, p := range graph.Precisions() {
		names = append(names, string(p))
	}
	return strings.Join(names, ",")
}

// precisionHelp tells of each precision.
func precisionHelp() string {
	var list []string
	for _, p := range graph.Precisions() {
		list = append(list, p.Help())
	}
	return strings.Join(list, ", ")
}

// modelFlags say which model to run and how; serve and the in-process commands share them.
type modelFlags struct {
	folderFlags
	formatFlags
	cacheFlags
	providerFlags
	precisionFlags
	memoryFlags
	engineFlags
	Threads       int           `placeholder:"N" env:"MMSERVE_THREADS" help:"Threads of each ONNX Runtime session (default: one per usable processor)."`
	EncoderCache  int64         `default:"256" name:"encoder-cache-mib" env:"MMSERVE_ENCODER_CACHE_MIB" help:"Memory for patch embeddings of images that come again, in MiB."`
	EncoderDir    string        `name:"encoder-cache-dir" placeholder:"DIR" env:"MMSERVE_ENCODER_CACHE_DIR" help:"Keep patch embeddings in DIR too, for images that come again after a restart (default: in memory alone). They tell of the images: DIR is its user's alone."`
	EncoderDisk   byteSize      `name:"encoder-cache-disk" default:"10GiB" placeholder:"SIZE" env:"MMSERVE_ENCODER_CACHE_DISK" help:"Most bytes of --encoder-cache-dir; the least recently used go."`
	MaxPixels     int64         `placeholder:"N" env:"MMSERVE_MAX_PIXELS" help:"Largest image accepted, in pixels, judged by its header."`
	MaxDecode     int64         `default:"1024" name:"max-decode-mib" env:"MMSERVE_MAX_DECODE_MIB" help:"Memory that all images being decoded and resized share, in MiB; one image may take 7/8 of it."`
	MaxDecodeTime time.Duration `default:"30s" env:"MMSERVE_MAX_DECODE_TIME" help:"How long decoding and scaling one image may take, once the memory for it is there."`
	SelfTest      bool          `default:"true" negatable:"" env:"MMSERVE_SELF_TEST" help:"Before serving, check the cases of the folder's mmserve-gold.jsonl (model verify --write-references records them)."`
	Pace          string        `placeholder:"TOKEN,STEP" env:"MMSERVE_PACE" help:"Run no model: take this long for each prompt token and each decode step, as 1ms,20ms, and answer with words drawn by lot. For load tests."`
}

// config is what serving opens, but for the model.
func (f modelFlags) config(library string, log *slog.Logger) serving.Config {
	return serving.Config{
		Dummy: f.LoadFormat == "dummy", ONNXDType: f.ONNXDType, CacheDir: f.dir(), Library: library,
		Provider: f.Provider, VisionProvider: f.VisionProvider, AllowCPUFallback: f.AllowCPUFallback,
		Precision: f.Precision, VisionPrecision: f.VisionPrecision, Threads: f.Threads,
		DraftDir: f.DraftModel, DraftPrecision: f.DraftPrecision,
		Slots: f.Slots, MaxLen: f.MaxLen, KVCacheBytes: int64(f.KVCacheBytes), DeviceMemory: int64(f.DeviceMemory),
		Batching: batching.Options{
			MaxWaiting: f.MaxWaiting, BatchPlaces: f.BatchPlaces, TenantPlaces: f.TenantPlaces,
			PrefillChunk: f.PrefillChunk, PrefillShare: f.PrefillShare, Drafts: f.Drafts,
			NoPrefixCache: !f.PrefixCache, SharePrefixes: f.SharePrefixes, TenantWeights: f.TenantWeights, AgeAfter: f.AgeAfter,
		},
		EncoderCacheDir: f.EncoderDir, EncoderCacheDisk: int64(f.EncoderDisk),
		EncoderCacheBytes: f.EncoderCache << 20, Images: f.imageLimits(), NoSelfTest: !f.SelfTest, Pace: f.Pace, Logger: log,
	}
}

// imageLimits are those of one image, with the budget that all share.
func (f modelFlags) imageLimits() vision.Limits {
	l := vision.DefaultLimits()
	if f.MaxPixels > 0 {
		l.MaxPixels = f.MaxPixels
	}
	l.MaxTime = f.MaxDecodeTime
	l.Budget = vision.NewBudget(cmp.Or(f.MaxDecode<<20, vision.DefaultDecodeBytes))
	return l
}

// folderFlags name a model.
type folderFlags struct {
	hubFlags
	Model []modelFolder `sep:"none" placeholder:"[NAME=]MODEL" env:"MMSERVE_MODEL" help:"Hugging Face model folder, or ORG/NAME[@REVISION] of a hub where there is no such folder (hf://ORG/NAME in any case), and the name that requests call it (default: the embedded model; the folder's name, or NAME). serve takes several, of which the first is the default."`
}

// one is the model of a command that runs one, in a folder. A hub's is fetched.
func (f folderFlags) one(ctx context.Context, o model.WantedOptions, log *slog.Logger) (m modelFolder, err error) {
	switch len(f.Model) {
	case 0:
		return m, nil
	case 1:
		return f.find(ctx, f.Model[0], o, log)
	}
	return m, fmt.Errorf("--model: %d are given; want one", len(f.Model))
}

// formatFlags say what of a model's folder is run.
type formatFlags struct {
	LoadFormat string `enum:"auto,dummy" default:"auto" env:"MMSERVE_LOAD_FORMAT" help:"auto reads the folder's weights; dummy makes random ones for the config.json that --model names, to size a machine."`
	ONNXDType  string `name:"onnx-dtype" placeholder:"NAME" env:"MMSERVE_ONNX_DTYPE" help:"Run the folder's ready-made graphs in onnx/, and which: fp32, fp16, q8, q4, … or decoder_model_merged=q4,… (default: they are run, the most faithful, where the folder has no safetensors)."`
}

// wanted is what of a hub's model is fetched.
func (f formatFlags) wanted() model.WantedOptions {
	return model.WantedOptions{ONNXDType: f.ONNXDType, NoWeights: f.LoadFormat == "dummy"}
}

// cacheFlags say where derived files are kept.
type cacheFlags struct {
	CacheDir string `placeholder:"DIR" env:"MMSERVE_CACHE_DIR" help:"Where quantised weights and the digests of checkpoints are kept between starts (default: the user's cache folder)."`
}

// dir is where derived files are kept, "" for nowhere.
func (f cacheFlags) dir() string {
	if f.CacheDir != "" {
		return f.CacheDir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "" // a folder that all users share is no cache
	}
	return filepath.Join(dir, "mmserve")
}

// providerFlags say what runs the graphs.
type providerFlags struct {
	Provider         string `default:"${provider}" placeholder:"NAME[:K=V,…]" env:"MMSERVE_PROVIDER" help:"Execution provider, with settings of its own: ${providers}; or auto for the best that works here. One that does not run all of the model is refused."`
	VisionProvider   string `placeholder:"NAME[:K=V,…]" env:"MMSERVE_VISION_PROVIDER" help:"The same for the vision tower (default: as --provider)."`
	AllowCPUFallback bool   `name:"allow-cpu-fallback" env:"MMSERVE_ALLOW_CPU_FALLBACK" help:"Run on the processor what the execution provider has no kernel for."`
}

// precisionFlags say what the linear layers of a model multiply in.
type precisionFlags struct {
	Precision       string `enum:"auto,${precisions}" default:"${precisionDefault}" env:"MMSERVE_PRECISION" help:"Precision of the linear layers: ${precision}; or auto for the fastest here that keeps the model's answers, which is then told. fp32 gives the reference's answers to the last id."`
	VisionPrecision string `enum:"auto,${precisions}," default:"" env:"MMSERVE_VISION_PRECISION" help:"The same for the vision tower (default: as --precision, but int8 where that is int4)."`
}

// memoryFlags bound the memory of a model's sequences.
type memoryFlags struct {
	Slots        int      `default:"16" env:"MMSERVE_SLOTS" help:"Sequences that run at once; the others wait."`
	MaxLen       int      `placeholder:"N" env:"MMSERVE_MAX_LEN" help:"Most tokens of prompt and answer together (default: what the model was made for)."`
	KVCacheBytes byteSize `name:"kv-cache-bytes" placeholder:"SIZE" env:"MMSERVE_KV_CACHE_BYTES" help:"Most memory of the KV cache, such as 4GiB (default: a quarter of what this process may use)."`
	DeviceMemory byteSize `name:"device-memory" placeholder:"SIZE" env:"MMSERVE_DEVICE_MEMORY" help:"Memory of the GPU that mmserve may take, such as 24GiB; it decides how many of --slots there are (default: half of this machine's, as with a GPU that shares it)."`
	PrefillChunk int      `default:"256" env:"MMSERVE_PREFILL_CHUNK" help:"Most prompt tokens in one step; running answers wait no longer than that."`
}

// engineFlags say who runs next.
type engineFlags struct {
	PrefixCache    bool               `default:"true" negatable:"" env:"MMSERVE_PREFIX_CACHE" help:"Start prompts from the KV of earlier ones of the same tenant that began alike."`
	SharePrefixes  bool               `env:"MMSERVE_SHARE_PREFIXES" help:"Start prompts from those of other tenants too, and reuse the embeddings of images that those sent."`
	Drafts         int                `default:"4" env:"MMSERVE_DRAFTS" help:"Most tokens guessed and checked in one step, for requests that want it; 0 for none."`
	DraftModel     string             `placeholder:"DIR" env:"MMSERVE_DRAFT_MODEL" help:"Folder of a smaller model with the same vocabulary, which guesses the tokens that the model (the first of several) then checks: answers are the same, single ones come faster."`
	DraftPrecision string             `enum:"auto,${precisions}," default:"" env:"MMSERVE_DRAFT_PRECISION" help:"Precision of --draft-model (default: as --precision)."`
	Speculative    bool               `default:"true" negatable:"" env:"MMSERVE_SPECULATIVE" help:"Guess tokens for requests that do not say."`
	PrefillShare   float64            `default:"0.5" env:"MMSERVE_PREFILL_SHARE" help:"Part of the time that prompts get while answers are being generated; at 0.5 no token takes longer than two steps, at 0.8 five."`
	TenantWeights  map[string]float64 `name:"tenant-weight" placeholder:"TENANT=WEIGHT" env:"MMSERVE_TENANT_WEIGHT" help:"Share of a tenant where several wait; 1 for the others."`
	AgeAfter       time.Duration      `default:"30s" env:"MMSERVE_AGE_AFTER" help:"How long a request waits in one priority before it rises to the next."`
	BatchPlaces    float64            `default:"0.75" env:"MMSERVE_BATCH_PLACES" help:"Part of --max-waiting that batch requests may take together; the rest is for the others."`
	TenantPlaces   float64            `default:"0.75" env:"MMSERVE_TENANT_PLACES" help:"Part of --max-waiting that one tenant may take, or one connection without a tenant."`
	MaxWaiting     int                `default:"64" env:"MMSERVE_MAX_WAITING" help:"Requests accepted beyond the slots; more are refused at once."`
}

// check refuses what is out of range.
func (f modelFlags) check() error {
	for _, c := range []struct {
		flag               string
		value, least, most int64
	}{
		{"--slots", int64(f.Slots), 1, 4096}, {"--prefill-chunk", int64(f.PrefillChunk), 1, 1 << 20},
		{"--drafts", int64(f.Drafts), 0, 64},
		{"--max-waiting", int64(f.MaxWaiting), 0, 1 << 20}, {"--max-len", int64(f.MaxLen), 0, 1 << 24},
		{"--threads", int64(f.Threads), 0, 1024},
		{"--encoder-cache-disk", int64(f.EncoderDisk), 1 << 20, 1 << 50},
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
	if f.DraftModel != "" && (f.Drafts == 0 || f.Pace != "") {
		return errors.New("--draft-model guesses nothing with --drafts 0 or --pace: leave one of them out")
	}
	if f.MaxDecodeTime < time.Millisecond || f.MaxDecodeTime > maxDuration {
		return fmt.Errorf("--max-decode-time %v: want %v to %v", f.MaxDecodeTime, time.Millisecond, maxDuration)
	}
	for _, c := range []struct {
		flag string
		part float64
	}{{"--batch-places", f.BatchPlaces}, {"--tenant-places", f.TenantPlaces}} {
		if !(c.part > 0 && c.part <= 1) {
			return fmt.Errorf("%s %v: want more than 0, up to 1", c.flag, c.part)
		}
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

// connectFlags say where the model runs that a terminal command talks to.
type connectFlags struct {
	modelFlags
	serverFlags
}

// serverFlags name a server.
type serverFlags struct {
	credentialFlags
	Server string `default:"${server}" placeholder:"ADDR" env:"MMSERVE_SERVER" help:"${ask}"`
}

// lengthFlags bound an answer.
type lengthFlags struct {
	MaxTokens uint32 `default:"${maxTokens}" range:"1.." help:"Most tokens of an answer."`
}

// temperatureFlags say how tokens are drawn.
type temperatureFlags struct {
	Temperature *float32 `placeholder:"T" range:"0..2" help:"0 (always the likeliest token) to 2 (default: the model's)."`
}

// jobFlags say how to go through a file of work.
type jobFlags struct {
	InFlight  int           `short:"j" placeholder:"N" range:"1..65536" help:"${items} at once (default: adapts to what the servers take)."`
	Priority  string        `enum:"interactive,default,batch" default:"batch" help:"Who goes first on the server: interactive, default or batch."`
	Retry     string        `enum:"transient,all,none" default:"transient" help:"Which of those that failed in an earlier run are asked again: transient, all or none."`
	MaxErrors string        `placeholder:"N|P%" help:"Give up when more than that failed."`
	Wait      time.Duration `default:"10m" range:"0s..720h" help:"How long to wait for servers that take no requests."`
	Progress  string        `enum:"auto,plain,json,none" default:"auto" help:"auto (a bar on a terminal), plain, json or none; on standard error."`
}

// byteSize is a number of bytes on the command line: 1073741824, 1024MiB, 1GiB.
type byteSize int64

// UnmarshalText reads a whole number with an optional binary unit.
func (b *byteSize) UnmarshalText(text []byte) error {
	number, shift := strings.TrimSpace(string(text)), 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if rest, ok := strings.CutSuffix(number, unit); ok {
			number, shift = strings.TrimSpace(rest), 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return fmt.Errorf("%q; want a number of bytes such as 4294967296, 4096MiB or 4GiB", text)
	}
	*b = byteSize(n << shift)
	return nil
}
