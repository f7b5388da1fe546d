package serving

import (
	"strings"
	"testing"
)

// "auto" takes what runs a graph, and says why. Without a GPU that is the processor, whatever Vulkan says.
func TestAutoProvider(t *testing.T) {
	if err := StartRuntime(""); err != nil {
		t.Skip(err)
	}
	var p Plan
	if err := (Config{Provider: "auto"}).chooseProviders(&p); err != nil {
		t.Fatal(err)
	}
	if p.Decoder.Provider.Name() != p.Vision.Provider.Name() ||
		!strings.HasPrefix(p.ProviderReason, "--provider auto chose "+p.Decoder.Provider.Name()+": ") {
		t.Errorf("chose %v and %v: %s", p.Decoder.Provider, p.Vision.Provider, p.ProviderReason)
	}
	if p.Decoder.Provider.Name() == "cpu" && !strings.Contains(p.ProviderReason, "cuda: failed to load") {
		t.Errorf("no reason against cuda in %q", p.ProviderReason)
	}
}
