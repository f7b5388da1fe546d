package serving

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mmserve/mmserve/internal/ort"
)

// StartRuntime loads the named ONNX Runtime library, or the one that is found.
func StartRuntime(named string) error {
	lib, err := ort.FindLibrary(named)
	if err != nil {
		return err
	}
	return ort.Start(lib)
}

// chooseProviders settles what runs each stage. ONNX Runtime is loaded.
func (c Config) chooseProviders(p *Plan) (err error) {
	if p.Decoder.Provider, err = chooseProvider("--provider", c.Provider, &p.ProviderReason); err != nil {
		return err
	}
	p.Vision.Provider = p.Decoder.Provider
	if c.VisionProvider != "" {
		p.Vision.Provider, err = chooseProvider("--vision-provider", c.VisionProvider, &p.ProviderReason)
	}
	return err
}

// SessionOptions are those of sessions of both stages, which have to run on one provider. ONNX Runtime is loaded.
func (c Config) SessionOptions() (ort.Options, error) {
	var p Plan
	if err := c.chooseProviders(&p); err != nil {
		return ort.Options{}, err
	}
	if p.Vision.Provider.Name() != p.Decoder.Provider.Name() {
		return ort.Options{}, errors.New("--vision-provider: both stages are verified on one provider")
	}
	return p.options(p.Decoder, c), nil
}

// chooseProvider reads the flag's text, chooses where that is auto, and probes.
func chooseProvider(flag, text string, why *string) (ort.Provider, error) {
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
