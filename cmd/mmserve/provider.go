package main

import (
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/internal/ort"
)

// providers are those of a model's two stages.
type providers struct {
	vision, decoder ort.Provider
	why             string // what "auto" went by
}

// open chooses and probes. ONNX Runtime is loaded.
func (f providerFlags) open() (p providers, err error) {
	if p.decoder, err = f.provider("--provider", f.Provider, &p.why); err != nil {
		return p, err
	}
	p.vision = p.decoder
	if f.VisionProvider != "" {
		p.vision, err = f.provider("--vision-provider", f.VisionProvider, &p.why)
	}
	return p, err
}

func (f providerFlags) provider(flag, text string, why *string) (ort.Provider, error) {
	switch text {
	case "":
		return ort.Provider{}, nil
	case "auto":
		p, reason := ort.Choose()
		*why = fmt.Sprintf("%s auto chose %s: %s", flag, p.Name(), reason)
		return p, nil
	}
	p, err := ort.ParseProvider(text)
	if err != nil {
		return p, fmt.Errorf("%s: %w", flag, err)
	}
	if p.Name() == "cpu" {
		return p, nil
	}
	if err := p.Probe(); err != nil {
		return p, fmt.Errorf("%s: %w; what works here: %s", flag, err, strings.Join(working(), ", "))
	}
	return p, nil
}

// working lists the providers that run a graph here.
func working() (list []string) {
	for _, name := range ort.Providers() {
		if ort.Working(name) == nil {
			list = append(list, name)
		}
	}
	return list
}

// options are those of a stage's sessions.
func (f providerFlags) options(p ort.Provider, threads int, opened func(ort.Placement)) ort.Options {
	return ort.Options{Provider: p, AllowCPUFallback: f.AllowCPUFallback, Threads: threads, Opened: opened}
}
