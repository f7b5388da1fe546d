package serving

import (
	"cmp"
	"errors"
	"fmt"
	"sort"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

// A draft model is a smaller checkpoint of the same vocabulary, which guesses the tokens that a deployment's model then
// checks (decoder.Speculator). Only its decoder is opened: it sees images where the model's patch embeddings fit it.
type draftModel struct {
	model     *model.Model
	precision graph.Precision
	runner    decoder.Runner
}

// openDraftModel reads the draft model's folder, if there is one, so that its memory can be planned.
func (d *Deployment) openDraftModel() (err error) {
	if d.config.DraftDir == "" {
		return nil
	}
	if d.draft.model, err = model.Open(d.config.DraftDir); err != nil {
		return fmt.Errorf("--draft-model: %w", err)
	}
	if d.draft.model.Weights == nil {
		return fmt.Errorf("--draft-model: %s has ready-made graphs, want a checkpoint", d.draft.model.Name)
	}
	d.draft.model.Remember(digest.Store(d.config.CacheDir))
	return nil
}

// cost is what positions take of memory, in the draft model's cache too.
func (d draftModel) cost(m *model.Model) decoder.KVCost {
	if d.model == nil {
		return m
	}
	return bothCosts{m, d.model}
}

// bothCosts is the cost of positions that two caches have.
type bothCosts [2]decoder.KVCost

func (b bothCosts) KVBytesPerToken() int64 { return b[0].KVBytesPerToken() + b[1].KVBytesPerToken() }

func (b bothCosts) KVBytes(n, sequences int) int64 {
	return b[0].KVBytes(n, sequences) + b[1].KVBytes(n, sequences)
}

func (b bothCosts) KVTokens(bytes int64, sequences int) int {
	most := b[0].KVTokens(bytes, sequences)
	return max(sort.Search(most+1, func(n int) bool { return b.KVBytes(n, sequences) > bytes })-1, 0)
}

// choose settles what the draft model runs in.
func (d *draftModel) choose(c Config, p *Plan) (err error) {
	if d.model == nil {
		return nil
	}
	if p.Decoder.Provider.Can().DeviceTensors {
		return fmt.Errorf("--draft-model: drafts are checked on the cpu provider only, the decoder runs on %s", p.Decoder.Provider.Name())
	}
	precision := cmp.Or(c.DraftPrecision, string(p.Decoder.Precision), string(graph.FP32))
	d.precision, err = pick("--draft-precision", precision, d.model, p.Decoder.Provider, &p.PrecisionReason)
	return err
}

// weights is the most memory that the draft model's weights take.
func (d draftModel) weights() int64 {
	if d.model == nil {
		return 0
	}
	return WeightBytes(d.model, d.precision)
}

// checkVocabulary refuses a draft model whose ids mean other tokens.
func (d *Deployment) checkVocabulary() error {
	text, err := d.draft.model.OpenProcessor()
	if err == nil {
		err = d.text.SameVocabulary(text)
	}
	if n := d.draft.model.Decoder.Vocab; err == nil && n < d.text.Tokenizer.Size() {
		err = fmt.Errorf("it knows %d tokens, the vocabulary of %s has %d", n, d.model.Name, d.text.Tokenizer.Size())
	}
	if err != nil {
		return fmt.Errorf("--draft-model: %s cannot draft for %s: %w", d.draft.model.Name, d.model.Name, err)
	}
	return nil
}

// stepper is what the engine runs: the decoder, with the draft model if there is one.
func (d *Deployment) stepper() (batching.Runner, error) {
	if d.draft.model == nil {
		return d.runner, nil
	}
	if err := d.checkVocabulary(); err != nil {
		return nil, err
	}
	if d.draft.precision.Quantized() {
		if _, err := d.draft.model.LoadQuantized(d.config.CacheDir, graph.FP32, d.draft.precision); err != nil {
			return nil, fmt.Errorf("--draft-model: %w", err)
		}
	}
	o := d.plan.options(StagePlan{d.plan.Decoder.Provider, d.draft.precision}, d.config)
	o.Opened = func(at ort.Placement) {
		at.Graph = "draft " + at.Graph
		d.sessions = append(d.sessions, at)
	}
	m := d.draft.model
	r, err := m.OpenDecoder(decoder.OpenOptions{
		Slots: d.plan.KV.Slots, MaxLen: min(d.plan.KV.MaxLen, m.Decoder.MaxLen), Precision: d.draft.precision, Session: o,
	})
	if err != nil {
		return nil, fmt.Errorf("--draft-model: %w", err)
	}
	d.draft.runner = r
	if err := warmUp(m, r); err != nil {
		return nil, fmt.Errorf("--draft-model: %w", err)
	}
	patches := m.Decoder.PatchWidth() == d.model.Decoder.PatchWidth()
	s, err := decoder.NewSpeculator(d.runner, r, min(m.Decoder.Vocab, d.model.Decoder.Vocab), patches)
	if err != nil {
		return nil, fmt.Errorf("--draft-model: %s cannot draft for %s: %w", m.Name, d.model.Name, err)
	}
	d.config.Logger.Info("draft model", "model", m.Name, "precision", string(d.draft.precision), "context",
		r.Capacity().MaxLen, "sees_images", patches, "drafts", d.config.Batching.Drafts)
	return s, nil
}

// close frees what was opened.
func (d *draftModel) close() (err error) {
	if d.runner != nil {
		err = d.runner.Close()
	}
	if d.model != nil {
		err = errors.Join(err, d.model.Close())
	}
	return err
}
