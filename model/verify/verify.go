// Package verify compares a model with reference values: of another implementation, or what the model gave on another
// machine, which its folder carries in mmserve-gold.jsonl. Cases go the way that requests go.
package verify

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// Verifier runs reference cases on a model's sessions, outside any engine.
type Verifier struct {
	Sessions
	tolerance float64
}

// Sessions are what cases run on. Nothing else uses them meanwhile.
type Sessions struct {
	Model     *model.Model
	Processor *model.Processor
	Tower     vision.Tower
	Runner    decoder.Runner
	// Precision is that of the decoder's linear layers.
	Precision graph.Precision
}

// New opens a model's sessions with one KV slot. tolerance bounds the absolute difference of image features and logits;
// half of it, a ten-thousandth at most, times a reference tensor's largest value passes, too. Where weights are
// quantised the model's LoadQuantized comes first.
func New(m *model.Model, tolerance float64, p graph.Precision, o ort.Options) (*Verifier, error) {
	v := &Verifier{Sessions{Model: m, Precision: p}, tolerance}
	var err error
	if v.Tower, err = m.OpenTower(p.Vision(), o); err != nil {
		return nil, err
	}
	if v.Runner, err = m.OpenDecoder(decoder.OpenOptions{Slots: 1, Precision: p, Session: o}); err != nil {
		return nil, errors.Join(err, v.Tower.Close())
	}
	return v, nil
}

// Close frees the sessions.
func (v *Verifier) Close() error { return errors.Join(v.Tower.Close(), v.Runner.Close()) }

// openProcessor opens the model's processor, which cases in tensors do without.
func (v *Verifier) openProcessor() (err error) {
	if v.Processor == nil {
		v.Processor, err = v.Model.OpenProcessor()
	}
	return err
}

// File runs the cases of a file of reference values: .safetensors (one case: pixel_values, input_ids, image_features,
// logits, generated) or .jsonl (a case a line: images, messages, prompt_text, prompt_ids, pixel_sha256_f32, …). Each
// result is given to report as it comes.
func (v *Verifier) File(path string, report func(Case)) error {
	if strings.HasSuffix(path, ".safetensors") {
		want, err := safetensors.OpenFile(path)
		if err != nil {
			return err
		}
		defer want.Close()
		c := Case{ID: filepath.Base(path)}
		c.Checks, c.Err = v.tensors(references{want})
		report(c)
		return nil
	}
	if err := v.openProcessor(); err != nil {
		return err
	}
	files := folder.Dir(filepath.Dir(path))
	cases, err := readCases(files, filepath.Base(path))
	if err != nil {
		return err
	}
	for _, want := range cases {
		report(v.run(files, want))
	}
	return nil
}

// run takes a case the whole way that a request takes.
func (v *Verifier) run(files fs.FS, want referenceCase) Case {
	c := Case{ID: want.ID}
	c.Checks, c.Err = v.conversation(files, want)
	return c
}
