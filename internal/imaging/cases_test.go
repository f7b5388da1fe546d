package imaging

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCasesAsPillow: files that decoders in the wild disagree on, and what Pillow 13 gives.
func TestCasesAsPillow(t *testing.T) {
	raw, err := os.ReadFile("testdata/cases/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var expected map[string]struct {
		Refused       string
		Format        string
		Width, Height int
		RGB           string `json:"rgb_sha256"`
	}
	if err := json.Unmarshal(raw, &expected); err != nil {
		t.Fatal(err)
	}
	if len(expected) < 40 {
		t.Fatalf("%d cases only", len(expected))
	}
	for name, want := range expected {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata/cases", name))
			if err != nil {
				t.Fatal(err)
			}
			h, err := ReadHeader(context.Background(), data, Limits{})
			var p *RGB
			if err == nil {
				p, err = h.Decode(context.Background())
			}
			if want.Refused != "" {
				if err == nil {
					t.Errorf("decoded, Pillow says %q", want.Refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Format != strings.ToLower(want.Format) || h.Width != want.Width || h.Height != want.Height {
				t.Errorf("%s %d×%d, want %s %d×%d", h.Format, h.Width, h.Height, want.Format, want.Width, want.Height)
			}
			if sum := sha256.Sum256(p.Pix); hex.EncodeToString(sum[:]) != want.RGB {
				t.Error("other pixels than Pillow's")
			}
		})
	}
}
