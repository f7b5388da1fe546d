package safety

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/tokenizer"
)

// textClassifier is a classifier of texts: a sequence classifier as transformers exports them, which takes input_ids,
// and attention_mask and token_type_ids if it likes, and gives logits [1, labels].
type textClassifier struct {
	*classifier
	tokenizer      *tokenizer.Tokenizer
	prefix, suffix []int32 // the template's tokens around a text
	pad            int32
	window         int // tokens that it takes at once, those of the template among them
	fixed          int // tokens that it always takes; 0: any number
}

// Bounds of text classifiers.
const (
	defaultWindow = 512
	maxTokens     = 1024 // tokens at once, whatever a folder says: the work of attention is quadratic
	maxWindows    = 256  // of one text
	overlapPart   = 8    // of a window, the part that it shares with the one before
	maxTokenizer  = 64 << 20
)

// textInputs are those that a model may have, in no order.
var textInputs = []string{"input_ids", "attention_mask", "token_type_ids"}

func openTextClassifier(c ClassifierConfig, threads int) (_ *textClassifier, err error) {
	base, err := openClassifier(c, threads)
	if err != nil {
		return nil, err
	}
	out := &textClassifier{classifier: base}
	defer func() {
		if err != nil {
			err = errors.Join(err, base.close())
		}
	}()
	if err := out.checkInputs(); err != nil {
		return nil, err
	}
	raw, err := folder.ReadFile(filepath.Join(c.Folder, "tokenizer.json"), maxTokenizer)
	if err != nil {
		return nil, err
	}
	if out.tokenizer, err = tokenizer.Parse(raw); err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	if err := out.findTemplate(); err != nil {
		return nil, err
	}
	return out, out.size(c.Folder)
}

// checkInputs holds the graph to what is given to it.
func (c *textClassifier) checkInputs() error {
	ids := false
	for _, in := range c.inputs {
		if !slices.Contains(textInputs, in.Name) {
			return fmt.Errorf("model.onnx: input %.40q; want %s", in.Name, strings.Join(textInputs, ", "))
		}
		ids = ids || in.Name == "input_ids"
		if in.Type != onnx.I64 && in.Type != onnx.I32 {
			return fmt.Errorf("model.onnx: input %s: %v; want int64 or int32", in.Name, in.Type)
		}
		if len(in.Dims) != 2 || in.Dims[0].Size > 1 || in.Dims[0].Size == 0 {
			return fmt.Errorf("model.onnx: input %s: want [batch, tokens]", in.Name)
		}
		if n := in.Dims[1].Size; n >= 0 {
			if n == 0 || n > maxTokens || c.fixed != 0 && c.fixed != n {
				return fmt.Errorf("model.onnx: input %s: %d tokens; want 1 to %d, or any number", in.Name, n, maxTokens)
			}
			c.fixed = n
		}
	}
	if !ids {
		return errors.New("model.onnx: no input input_ids")
	}
	return nil
}

// findTemplate finds what the tokenizer's template puts around a text.
func (c *textClassifier) findTemplate() error {
	const probe = "a"
	plain, whole := c.tokenizer.Encode(probe, false), c.tokenizer.Encode(probe, true)
	for i := 0; len(plain) > 0 && i+len(plain) <= len(whole); i++ {
		if slices.Equal(whole[i:i+len(plain)], plain) {
			c.prefix, c.suffix = whole[:i:i], whole[i+len(plain):]
			return nil
		}
	}
	return errors.New("tokenizer.json: the template does not keep a text as it is")
}

// size reads how many tokens the model takes at once.
func (c *textClassifier) size(dir string) error {
	var config struct {
		Positions int    `json:"max_position_embeddings"`
		Pad       *int32 `json:"pad_token_id"`
		Type      string `json:"model_type"`
	}
	if err := readJSON(filepath.Join(dir, "config.json"), &config); err != nil {
		return err
	}
	var limit struct {
		Length float64 `json:"model_max_length"`
	}
	err := readJSON(filepath.Join(dir, "tokenizer_config.json"), &limit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.window = cmp.Or(config.Positions, defaultWindow)
	if config.Pad != nil {
		c.pad = *config.Pad
	}
	if strings.Contains(config.Type, "roberta") || config.Type == "camembert" { // positions begin behind the padding's
		c.window -= int(c.pad) + 1
	}
	if limit.Length >= 1 && limit.Length < float64(c.window) {
		c.window = int(limit.Length)
	}
	if c.window = min(c.window, maxTokens); c.fixed > 0 {
		if c.fixed > c.window {
			return fmt.Errorf("model.onnx takes %d tokens, config.json and tokenizer_config.json allow %d", c.fixed, c.window)
		}
		c.window = c.fixed
	}
	if least := 2 * (len(c.prefix) + len(c.suffix) + 1); c.window < least {
		return fmt.Errorf("config.json: %d tokens at once; want at least %d", c.window, least)
	}
	if c.pad < 0 || int(c.pad) >= c.tokenizer.Size() {
		return fmt.Errorf("config.json: pad_token_id: %d; want 0 to %d", c.pad, c.tokenizer.Size()-1)
	}
	return nil
}

// ErrLongText is wrapped by errors of texts that are longer than classifiers look at.
var ErrLongText = errors.New("the text is longer than the content policy looks at")

// classify says what a text is of: of each category the highest score of a window.
func (c *textClassifier) classify(ctx context.Context, text string) ([]Finding, error) {
	ids := c.tokenizer.Encode(text, false)
	room := c.window - len(c.prefix) - len(c.suffix)
	step := max(1, room-room/overlapPart)
	if n := (max(0, len(ids)-room) + step - 1) / step; n >= maxWindows {
		return nil, fmt.Errorf("%w: %d tokens of classifier %q; want at most %d", ErrLongText, len(ids), c.name,
			room+(maxWindows-1)*step)
	}
	var best []Finding
	for at := 0; ; at += step {
		scores, err := c.scores(ctx, ids[at:min(len(ids), at+room)])
		if err != nil {
			return nil, err
		}
		for _, f := range c.findings(scores) {
			f.End = len(text)
			i := slices.IndexFunc(best, func(o Finding) bool { return o.Category == f.Category })
			if i < 0 {
				best = append(best, f)
			} else {
				best[i].Score = max(best[i].Score, f.Score)
			}
		}
		if at+room >= len(ids) {
			return best, nil
		}
	}
}

// scores are the labels' outputs for the tokens of a window, without those of the template.
func (c *textClassifier) scores(ctx context.Context, ids []int32) (_ []float32, err error) {
	row := slices.Concat(c.prefix, ids, c.suffix)
	n := len(row)
	for len(row) < c.fixed {
		row = append(row, c.pad)
	}
	var inputs []ort.Tensor
	defer func() {
		for _, t := range inputs {
			t.Destroy()
		}
	}()
	in, err := ort.Alloc[int64](len(c.inputs) * len(row))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Free()) }()
	narrow, err := ort.Alloc[int32](len(c.inputs) * len(row))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, narrow.Free()) }()
	for i, v := range c.inputs {
		wide, small := in.Slice()[i*len(row):(i+1)*len(row)], narrow.Slice()[i*len(row):(i+1)*len(row)]
		for k, id := range row {
			switch {
			case v.Name == "input_ids":
				small[k] = id
			case v.Name == "attention_mask" && k < n:
				small[k] = 1
			}
			wide[k] = int64(small[k])
		}
		var t ort.Tensor
		if v.Type == onnx.I32 {
			t, err = ort.View(small, 1, len(row))
		} else {
			t, err = ort.View(wide, 1, len(row))
		}
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, t)
	}
	return c.run(ctx, inputs)
}

// run gives the labels' outputs.
func (c *classifier) run(ctx context.Context, inputs []ort.Tensor) (_ []float32, err error) {
	out, err := ort.Alloc[float32](len(c.known))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Free()) }()
	y, err := ort.View(out.Slice(), 1, len(c.known))
	if err != nil {
		return nil, err
	}
	defer y.Destroy()
	if err := c.session.RunContext(ctx, inputs, []ort.Tensor{y}); err != nil {
		return nil, err
	}
	return slices.Clone(out.Slice()[:len(c.known)]), nil
}
