package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

type imageCmd struct {
	folderFlags
	JSON      bool     `name:"json" help:"Write one JSON object a line."`
	Out       string   `placeholder:"DIR" help:"Write the tiles there as PNG."`
	Detail    string   `enum:"auto,low,high" default:"auto" help:"auto, low (one tile, fewest tokens) or high."`
	MaxPixels int64    `placeholder:"N" range:"1..4294967296" help:"Largest image accepted, in pixels, judged by its header."`
	Files     []string `arg:"" name:"file" help:"Image files."`
}

// imageReport is what the model would see of a file.
type imageReport struct {
	File   string `json:"file"`
	Format string `json:"format,omitempty"`
	Width  int    `json:"width,omitempty"`
	Height int    `json:"height,omitempty"`
	// RGB is the SHA-256 of the RGB bytes after orientation.
	RGB    string `json:"rgb_sha256,omitempty"`
	Tiles  int    `json:"tiles,omitempty"`
	Tokens int    `json:"tokens,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Run tells of every file what the model would see. A bad one does not stop the others. It opens no session.
func (c imageCmd) Run(ctx context.Context, log *slog.Logger, out io.Writer) error {
	named, err := c.one(ctx, model.WantedOptions{}, log)
	if err != nil {
		return err
	}
	m, err := openModel(named, "")
	if err != nil {
		return err
	}
	defer m.Close()
	text, err := m.OpenProcessor()
	if err != nil {
		return err
	}
	if text.Preprocessor == nil {
		return errors.New("the model takes no images")
	}
	if c.Out != "" {
		if err := os.MkdirAll(c.Out, 0o777); err != nil {
			return err
		}
	}
	limits := vision.DefaultLimits()
	if c.MaxPixels > 0 {
		limits.MaxPixels = c.MaxPixels
	}
	see := imageEye{processor: text.Preprocessor, layout: m.Layout, limits: limits, split: c.Detail != "low", out: c.Out}
	failed := false
	for i, name := range c.Files {
		r := imageReport{File: name}
		if err := see.look(ctx, i, &r); err != nil {
			r.Error, failed = err.Error(), true
		}
		if err := r.write(out, c.JSON); err != nil {
			return err
		}
	}
	if failed {
		return exitError(1)
	}
	return nil
}

func (r imageReport) write(out io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	if r.Error != "" {
		_, err := fmt.Fprintf(out, "%s: %s\n", printable(r.File), r.Error)
		return err
	}
	_, err := fmt.Fprintf(out, "%s: %s, %d×%d pixels, %d tiles, %d tokens, rgb sha256 %s\n", printable(r.File), r.Format, r.Width,
		r.Height, r.Tiles, r.Tokens, r.RGB)
	return err
}

// imageEye prepares files as the server would.
type imageEye struct {
	processor vision.Preprocessor
	layout    fusion.Layout
	limits    vision.Limits
	split     bool
	out       string
}

func (e imageEye) look(ctx context.Context, i int, r *imageReport) error {
	data, err := readRegular(r.File, vision.DefaultLimits().MaxBytes)
	if err != nil {
		return err
	}
	plan, err := vision.Measure(ctx, e.processor, data, e.limits, e.split)
	if err != nil {
		return err
	}
	header, err := imaging.ReadHeader(ctx, data, e.limits)
	if err != nil {
		return err
	}
	sum, err := e.sum(ctx, header)
	if err != nil {
		return err
	}
	img, err := e.processor.Prepare(ctx, data, e.limits, e.split)
	if err != nil {
		return err
	}
	r.Format, r.Width, r.Height, r.RGB = plan.Format, plan.Width, plan.Height, hex.EncodeToString(sum)
	r.Tiles, r.Tokens = img.Grid.Tiles(), img.Grid.Tiles()*e.layout.PatchTokens
	if e.layout.ImageTokens != nil {
		r.Tokens = e.layout.ImageTokens(img.Grid)
	}
	if e.out == "" {
		return nil
	}
	base := filepath.Base(r.File)
	return writeTiles(filepath.Join(e.out, fmt.Sprintf("%03d-%s", i, strings.TrimSuffix(base, filepath.Ext(base)))), img)
}

// sum gives the SHA-256 of an image's RGB bytes after orientation.
func (e imageEye) sum(ctx context.Context, h *imaging.Header) ([]byte, error) {
	release, err := e.limits.Budget.Acquire(ctx, max(h.DecodeBytes, h.ScaleBytes))
	if err != nil {
		return nil, err
	}
	defer release()
	sum := sha256.New()
	err = h.Rows(ctx, func(strip *imaging.RGB) error {
		sum.Write(strip.Pix)
		return nil
	})
	return sum.Sum(nil), err
}

// readRegular reads a file of at most most bytes. What is no regular file is an error: a pipe could wait forever.
func readRegular(name string, most int64) ([]byte, error) {
	f, err := folder.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		return nil, fmt.Errorf("%s has more bytes than the %d that are allowed", name, most)
	}
	return data, err
}

// writeTiles writes each square of planar RGB as PNG. Patches, where there are no tiles, come in one file, a block
// after the other.
func writeTiles(stem string, img *vision.Image) error {
	s := img.Size
	n := len(img.Pixels) / (3 * s * s)
	across, files := 1, n
	if n != img.Grid.Tiles() {
		across, files = max(1, img.Grid.Width/s), 1
	}
	for file := range files {
		each := n / files
		m := image.NewNRGBA(image.Rect(0, 0, across*s, (each+across-1)/across*s))
		for i := range each {
			drawTile(m, img.Pixels[3*s*s*(file*each+i):][:3*s*s], i%across*s, i/across*s, s)
		}
		if err := writePNG(fmt.Sprintf("%s-%02d.png", stem, file), m); err != nil {
			return err
		}
	}
	return nil
}

func drawTile(m *image.NRGBA, planes []uint8, x, y, s int) {
	for i := range s * s {
		m.SetNRGBA(x+i%s, y+i/s, color.NRGBA{R: planes[i], G: planes[s*s+i], B: planes[2*s*s+i], A: 255})
	}
}

func writePNG(name string, m image.Image) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(png.Encode(f, m), f.Close())
}
