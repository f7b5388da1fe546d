package main

import (
	"bytes"
	"compress/gzip"
	"image"
	"image/jpeg"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mmserve/mmserve/model/synth"
)

// A real checkpoint's shape (granite-docling-258M: config, tokenizer, template) with random weights captions a
// photo that splits into 13 tiles, in a process of its own whose peak memory is measured. It takes a minute and
// 1.5 GiB, so it runs only where it is asked for.
func TestGraniteShape(t *testing.T) {
	if os.Getenv("MMSERVE_TEST_GRANITE") == "" {
		t.Skip("set MMSERVE_TEST_GRANITE=1 to run it; make test does")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "testdata", "granite-docling"))); err != nil {
		t.Fatal(err)
	}
	gunzip(t, filepath.Join("..", "..", "internal", "tokenizer", "testdata", "granite-docling.json.gz"),
		filepath.Join(dir, "tokenizer.json"))
	if err := synth.WriteRandom(dir, 1); err != nil {
		t.Fatal(err)
	}
	photo := filepath.Join(dir, "photo.jpg")
	if err := os.WriteFile(photo, gradient(1300, 876), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "mmserve")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	inspect, err := exec.Command(bin, "model", "inspect", dir).CombinedOutput()
	if err != nil || !strings.Contains(string(inspect), "862 for 1300×876 pixels (13 tiles)") {
		t.Errorf("inspect: %v\n%s", err, inspect)
	}

	caption := exec.Command(bin, "caption", "--model", dir, "--slots", "1", "--max-tokens", "8", photo)
	var stdout, stderr bytes.Buffer
	caption.Stdout, caption.Stderr = &stdout, &stderr
	if err := caption.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	t.Logf("%s%s", stdout.String(), stderr.String())
	// 832 patches; the 30 fence, row and global tokens around them are text.
	if !strings.Contains(stderr.String(), " 832 ") {
		t.Error("the table does not show 832 image tokens")
	}
	rss := peakRSS(caption)
	// 257.4 M weights as float32, 900 positions of KV, and what four tiles need in the tower.
	const weights, kv, activations = 257.4e6 * 4, 900 * 46080, 4 * 1024 * (12*1024 + 4*3072 + 8*768) * 4
	t.Logf("peak memory %.0f MB, weights + KV + activations %.0f MB, ratio %.2f", rss/1e6, (weights+kv+activations)/1e6, rss/(weights+kv+activations))
	if rss > 1.3*(weights+kv+activations) {
		t.Errorf("peak memory %.0f MB is more than 1.3 × %.0f MB", rss/1e6, (weights+kv+activations)/1e6)
	}
}

func gunzip(t *testing.T, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// gradient is a JPEG with soft structure, as a photo has.
func gradient(w, h int) []byte {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			i := img.PixOffset(x, y)
			img.Pix[i] = uint8(128 + 120*math.Sin(float64(x)/90))
			img.Pix[i+1] = uint8(128 + 120*math.Sin(float64(y)/70))
			img.Pix[i+2] = uint8(128 + 120*math.Sin(float64(x+y)/50))
			img.Pix[i+3] = 255
		}
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, nil); err != nil {
		panic(err) // writing to memory
	}
	return b.Bytes()
}

// peakRSS is the largest resident set of a finished process, in bytes.
func peakRSS(c *exec.Cmd) float64 {
	return float64(c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) * 1024
}
