package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

type doctorCmd struct {
	Model        string   `placeholder:"DIR" env:"MMSERVE_MODEL" help:"Model folder to look at (default: the embedded model)."`
	Slots        int      `default:"16" env:"MMSERVE_SLOTS" help:"As with serve."`
	MaxLen       int      `placeholder:"N" env:"MMSERVE_MAX_LEN" help:"As with serve."`
	KVCacheBytes byteSize `name:"kv-cache-bytes" placeholder:"SIZE" env:"MMSERVE_KV_CACHE_BYTES" help:"As with serve."`
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
		report("provider", ort.Provider{}.Probe(), "cpu works (ran a graph)")
	}
	m, err := model.Open(d.Model)
	if err != nil {
		report("model", err, "")
	} else {
		defer m.Close()
		_, err := m.OpenText()
		report("model", err, fmt.Sprintf("%s (%s), %s parameters", m.Name, m.Type, count(m.Parameters())))
		kv, err := planKV(m, d.Slots, d.MaxLen, int64(d.KVCacheBytes))
		report("KV cache", err, kv.String())
	}
	if !healthy {
		return exitError(1)
	}
	return nil
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
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
