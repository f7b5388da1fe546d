package main

import (
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

type doctorCmd struct {
	Model        string   `placeholder:"DIR" env:"MMSERVE_MODEL" help:"Model folder to look at (default: the embedded model)."`
	Slots        int      `default:"16" env:"MMSERVE_SLOTS" help:"As with serve."`
	MaxLen       int      `placeholder:"N" env:"MMSERVE_MAX_LEN" help:"As with serve."`
	KVCacheBytes byteSize `name:"kv-cache-bytes" placeholder:"SIZE" env:"MMSERVE_KV_CACHE_BYTES" help:"As with serve."`

	DeviceMemory byteSize `name:"device-memory" placeholder:"SIZE" env:"MMSERVE_DEVICE_MEMORY" help:"As with serve."`
	PrefillChunk int      `default:"256" env:"MMSERVE_PREFILL_CHUNK" help:"As with serve."`
	CacheDir     string   `placeholder:"DIR" env:"MMSERVE_CACHE_DIR" help:"As with serve."`

	precisionFlags
	Provider         string `placeholder:"NAME[:K=V,…]" env:"MMSERVE_PROVIDER" help:"Open the model's sessions as serve does, and show where their nodes run."`
	VisionProvider   string `placeholder:"NAME[:K=V,…]" env:"MMSERVE_VISION_PROVIDER" help:"As with serve."`
	AllowCPUFallback bool   `name:"allow-cpu-fallback" env:"MMSERVE_ALLOW_CPU_FALLBACK" help:"As with serve."`
}

// Run prints what was found; it fails when mmserve could not serve here.
func (d doctorCmd) Run(c *cli, out io.Writer) error {
	usable, online := host.Processors()
	mem := host.ReadMemory()
	fmt.Fprintf(out, "system      %s/%s, %s\n", runtime.GOOS, runtime.GOARCH, runtime.Version())
	fmt.Fprintf(out, "processors  %d usable of %d\n", usable, online)
	fmt.Fprintf(out, "features    %s\n", orNone(host.Features()))
	fmt.Fprintf(out, "memory      %s usable of %s\n", bytesText(int64(mem.Limit)), bytesText(int64(mem.Total)))

	healthy := true
	report := func(label string, err error, ok string) {
		if err != nil {
			healthy = false
			ok = "FAILED: " + err.Error()
		}
		fmt.Fprintf(out, "%-11s %s\n", label, ok)
	}
	err := startRuntime(c.OrtLib)
	v, lib := ort.Loaded()
	if err == nil && v != ort.Version {
		err = fmt.Errorf("version %s at %s, mmserve is made for %s", v, lib, ort.Version)
	}
	report("onnxruntime", err, v+" at "+lib)
	if lib != "" {
		for _, name := range ort.Providers() {
			err := ort.Working(name)
			if err != nil && name != "cpu" {
				fmt.Fprintf(out, "%-11s %s is not here: %s\n", "provider", name, strings.TrimPrefix(err.Error(), "execution provider "+name+": "))
				continue
			}
			report("provider", err, name+" works (ran a graph)")
		}
	}
	m, err := model.Open(d.Model)
	if err != nil {
		report("model", err, "")
	} else {
		defer m.Close()
		_, err := m.OpenProcessor()
		report("model", err, fmt.Sprintf("%s (%s), %s parameters", m.Name, m.Type, count(m.Parameters())))
		if lib != "" && d.Provider+d.VisionProvider != "" {
			report("placement", d.place(m, out), "all sessions opened")
		} else {
			kv, err := planKV(m, d.Slots, d.MaxLen, int64(d.KVCacheBytes))
			report("KV cache", err, kv.String())
		}
	}
	if !healthy {
		return exitError(1)
	}
	return nil
}

// place opens the model's sessions where, in what and with as much memory as serve would, tells of all that, and closes them.
func (d doctorCmd) place(m *model.Model, out io.Writer) error {
	f := modelFlags{
		providerFlags: providerFlags{d.Provider, d.VisionProvider, d.AllowCPUFallback}, precisionFlags: d.precisionFlags, CacheDir: d.CacheDir,
		Slots: d.Slots, MaxLen: d.MaxLen, KVCacheBytes: d.KVCacheBytes, DeviceMemory: d.DeviceMemory, PrefillChunk: d.PrefillChunk,
	}
	where, err := f.open()
	if err != nil {
		return err
	}
	in, err := f.choose(m, where)
	if err != nil {
		return err
	}
	line := func(label, text string) { fmt.Fprintf(out, "%-11s %s\n", label, text) }
	for _, why := range []string{where.why, in.why} {
		if why != "" {
			line("chosen", why)
		}
	}
	line("precision", fmt.Sprintf("vision %s, decoder %s", precisionText(m, in.vision), precisionText(m, in.decoder)))
	var kv kvPlan
	if onDevice(m, where) {
		var l model.Ledger
		if kv, l, err = planDevice(m, f, in.decoder); err == nil {
			line("device", fmt.Sprintf("%s in all: %s", bytesText(l.Total(kv.slots)), l))
		}
	} else {
		kv, err = planKV(m, f.Slots, f.MaxLen, int64(f.KVCacheBytes))
	}
	if err != nil {
		return err
	}
	line("KV cache", kv.String())
	if in.quantized() {
		from, err := m.LoadQuantized(cacheDir(f.CacheDir), in.vision, in.decoder)
		if err != nil {
			return err
		}
		if from.Why != "" {
			line("quantised weights", from.Why)
		}
	}
	opened := func(at ort.Placement) { line("placement", placementText(at)) }
	tower, err := m.OpenTower(in.vision, f.options(where.vision, 0, opened))
	if err != nil {
		return err
	}
	defer tower.Close()
	r, err := m.OpenDecoder(decoder.OpenOptions{Slots: kv.slots, MaxLen: kv.maxLen, Precision: in.decoder, Session: f.options(where.decoder, 0, opened)})
	if err != nil {
		return err
	}
	return r.Close()
}

// placementText is a line that says where a graph's nodes run.
func placementText(at ort.Placement) string {
	text := fmt.Sprintf("%s on %s:%s", at.Graph, at.Provider, countsText(at.Nodes))
	if len(at.Fallbacks) > 0 {
		text += "; on the processor for want of a kernel:" + countsText(at.Fallbacks)
	}
	return text
}

func countsText(m map[string]int) string {
	var text strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&text, " %d %s", m[k], k)
	}
	return text.String()
}

// startRuntime finds and loads ONNX Runtime.
func startRuntime(named string) error {
	lib, err := ort.FindLibrary(named)
	if err != nil {
		return err
	}
	return ort.Start(lib)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none that matter"
	}
	return strings.Join(list, " ")
}

// bytesText writes a size with a binary unit.
func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// count writes a number of parameters as model cards do.
func count(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f B", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f M", float64(n)/1e6)
	}
	return fmt.Sprint(n)
}
