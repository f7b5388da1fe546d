package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/hub"
	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/serving"
)

type doctorCmd struct {
	folderFlags
	cacheFlags
	// Without a provider no session is opened.
	providerFlags `set:"provider="`
	precisionFlags
	memoryFlags
	securityFlags
}

// Run prints what was found; it fails when mmserve could not serve here.
func (d doctorCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	usable, online := host.Processors()
	mem := host.ReadMemory()
	fmt.Fprintf(out, "system      %s/%s, %s\n", runtime.GOOS, runtime.GOARCH, runtime.Version())
	fmt.Fprintf(out, "processors  %d usable of %d\n", usable, online)
	fmt.Fprintf(out, "features    %s\n", orNone(host.Features()))
	fmt.Fprintf(out, "kernels     %s\n", kernels.Instructions())
	fmt.Fprintf(out, "memory      %s usable of %s\n", host.FormatBytes(int64(mem.Limit)), host.FormatBytes(int64(mem.Total)))

	healthy := true
	report := func(label string, err error, ok string) {
		if err != nil {
			healthy = false
			ok = "FAILED: " + err.Error()
		}
		fmt.Fprintf(out, "%-11s %s\n", label, ok)
	}
	err := serving.StartRuntime(c.OrtLib)
	v, lib := ort.Loaded()
	if err == nil && v != ort.Version {
		err = fmt.Errorf("version %s at %s, mmserve is made for %s", v, lib, ort.Version)
	}
	report("onnxruntime", err, v+" at "+lib)
	if lib != "" {
		for _, name := range ort.Providers() {
			err := ort.Working(name)
			if err != nil && name != "cpu" {
				fmt.Fprintf(out, "%-11s %s is not here: %s\n", "provider", name,
					strings.TrimPrefix(err.Error(), "execution provider "+name+": "))
				continue
			}
			report("provider", err, name+" works (ran a graph)")
		}
	}
	var m *model.Model
	named, err := d.one(ctx, model.WantedOptions{}, log)
	if err == nil {
		m, err = openModel(named, "")
	}
	if err != nil {
		report("model", err, "")
	} else {
		defer m.Close()
		_, err := m.OpenProcessor()
		report("model", err, fmt.Sprintf("%s (%s), %s parameters", m.Name, m.Type, count(m.Parameters())))
		if lib != "" && d.Provider+d.VisionProvider != "" {
			report("placement", d.place(m, out), "all sessions opened")
		} else {
			kv, err := serving.PlanKV(m, d.Slots, d.MaxLen, int64(d.KVCacheBytes))
			report("KV cache", err, kv.String())
		}
	}
	d.hub(report)
	d.secure(report)
	if !healthy {
		return exitError(1)
	}
	return nil
}

// hub tells of the hub that models would be fetched from, and of its cache. It asks nobody.
func (d doctorCmd) hub(report func(label string, err error, ok string)) {
	c, err := d.client(slog.New(slog.DiscardHandler))
	if err != nil {
		report("hub", err, "")
		return
	}
	list, err := hub.List(c.Cache())
	report("hub", err, fmt.Sprintf("%s, %d models in %s", c, len(list), c.Cache()))
}

// secure tells of what decides who may ask, where that is given.
func (d doctorCmd) secure(report func(label string, err error, ok string)) {
	if err := d.securityFlags.check(); err != nil {
		report("security", err, "")
		return
	}
	s, err := d.securityFlags.open(slog.New(slog.DiscardHandler))
	if err != nil {
		report("security", err, "")
		return
	}
	if s.tls != nil {
		c := s.tls.Leaf()
		err = nil
		if time.Now().After(c.NotAfter) {
			err = fmt.Errorf("the certificate has expired on %v", c.NotAfter.Format(time.DateOnly))
		}
		report("TLS", err, fmt.Sprintf("certificate of %s until %s", c.Subject, c.NotAfter.Format(time.DateOnly)))
	}
	if s.auth != nil && s.auth.Keys != nil {
		all, expired := s.auth.Keys.Value().Len(time.Now())
		report("API keys", nil, fmt.Sprintf("%d, of which %d have expired", all, expired))
	}
	if s.auth != nil && s.auth.Tokens != nil {
		text, err := s.auth.Tokens.Describe()
		report("issuer", err, text)
	}
}

// place opens the model's sessions where, in what and with as much memory as serve would, tells of all that, and closes
// them.
func (d doctorCmd) place(m *model.Model, out io.Writer) error {
	r, err := serving.Examine(m, serving.Config{
		Provider: d.Provider, VisionProvider: d.VisionProvider, AllowCPUFallback: d.AllowCPUFallback,
		Precision: d.Precision, VisionPrecision: d.VisionPrecision, CacheDir: d.dir(),
		Slots: d.Slots, MaxLen: d.MaxLen, KVCacheBytes: int64(d.KVCacheBytes), DeviceMemory: int64(d.DeviceMemory),
		Batching: batching.Options{PrefillChunk: d.PrefillChunk},
	})
	line := func(label, text string) { fmt.Fprintf(out, "%-11s %s\n", label, text) }
	for _, why := range r.Reasons() {
		line("chosen", why)
	}
	if r.Decoder.Precision != "" && r.Vision.Precision != "" {
		line("precision", fmt.Sprintf("vision %s, decoder %s",
			serving.PrecisionText(m, r.Vision.Precision), serving.PrecisionText(m, r.Decoder.Precision)))
	}
	if r.KV.Tokens > 0 {
		if r.OnDevice {
			line("device", fmt.Sprintf("%s in all: %s", host.FormatBytes(r.Device.Total(r.KV.Slots)), r.Device))
		}
		line("KV cache", r.KV.String())
	}
	if r.CacheWarning != "" {
		line("quantised weights", r.CacheWarning)
	}
	for _, at := range r.Sessions {
		line("placement", placementText(at))
	}
	return err
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

func orNone(list []string) string {
	if len(list) == 0 {
		return "none that matter"
	}
	return strings.Join(list, " ")
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
