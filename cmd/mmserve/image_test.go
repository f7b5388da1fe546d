package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"image/png"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/racetest"
)

// TestImageCommand: each file has its line in the order given; bad ones and a pipe, which is refused at once, stop
// none.
func TestImageCommand(t *testing.T) {
	dir := t.TempDir()
	name := func(s string) string { return filepath.Join(dir, s) }
	if err := errors.Join(os.WriteFile(name("bad.png"), []byte("\x89PNG\r\n\x1a\nand no more"), 0o600),
		syscall.Mkfifo(name("pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	good := "../../vision/testdata/made/rgb.bmp"
	c := imageCmd{
		JSON: true, Detail: "auto", Out: name("tiles"),
		Files: []string{name("bad.png"), good, name("pipe"), dir, name("none"), good},
	}
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var code exitError
	if err := c.Run(ctx, slog.New(slog.DiscardHandler), &out); !errors.As(err, &code) || code != 1 {
		t.Errorf("error %v, want exit status 1", err)
	}
	want := map[int]string{0: "unusable image: png of 19 bytes", 2: "not a regular file", 3: "not a regular file", 4: "no such file"}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(c.Files) {
		t.Fatalf("%d lines of %d files", len(lines), len(c.Files))
	}
	for i, line := range lines {
		var r imageReport
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.File != c.Files[i] {
			t.Fatalf("line %d: %v %q", i, err, line)
		}
		part, bad := want[i]
		switch {
		case bad && (!strings.Contains(r.Error, part) || r.RGB != ""):
			t.Errorf("line %d: %q, want an error with %q", i, line, part)
		case !bad &&
			(r.Error != "" || r.Format != "bmp" || r.Width != 40 || r.Height != 30 || r.Tiles < 1 || r.Tokens < r.Tiles ||
				!strings.HasPrefix(r.RGB, "dd238c7e4021c778e0ae")):
			t.Errorf("line %d: %q", i, line)
		}
	}
	tiles, err := filepath.Glob(name("tiles/00[15]-rgb-*.png"))
	if err != nil || len(tiles) < 2 {
		t.Fatalf("tiles %v, %v", tiles, err)
	}
	for _, tile := range tiles {
		f, err := os.Open(tile)
		if err != nil {
			t.Fatal(err)
		}
		m, err := png.Decode(f)
		if err := errors.Join(err, f.Close()); err != nil || m.Bounds().Dx() < 16 {
			t.Errorf("%s: %v", tile, err)
		}
	}
}

// TestImageCommandIsCheap: a file of a few kilobytes that stands for 48 megapixels costs a part of what they would
// take.
func TestImageCommandIsCheap(t *testing.T) {
	if racetest.Enabled {
		t.Skip("memory is measured without the race detector")
	}
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewPaletted(image.Rect(0, 0, 8000, 6000), color.Palette{color.Black})); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "black.png")
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(name string) string {
		var out bytes.Buffer
		see := imageCmd{Detail: "auto", Files: []string{name}}
		if err := see.Run(t.Context(), slog.New(slog.DiscardHandler), &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	look("../../vision/testdata/made/rgb.bmp") // what opening the model takes is measured and left out
	var start, before, after runtime.MemStats
	runtime.ReadMemStats(&start)
	look("../../vision/testdata/made/rgb.bmp")
	runtime.ReadMemStats(&before)
	line := look(name)
	runtime.ReadMemStats(&after)
	model := before.TotalAlloc - start.TotalAlloc
	if n := int64(after.TotalAlloc - before.TotalAlloc - model); n > 128<<20 {
		t.Errorf("%d bytes were allocated beside the model's %d", n, model)
	}
	sum := sha256.New()
	for range 6000 {
		sum.Write(make([]byte, 3*8000))
	}
	if !strings.Contains(line, hex.EncodeToString(sum.Sum(nil))) {
		t.Errorf("other pixels: %s", line)
	}
}
