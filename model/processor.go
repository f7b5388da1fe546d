package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

// Processor is the part of a model that turns messages into ids and images into tiles.
type Processor struct {
	// Prompter has the limits of images that are the defaults.
	fusion.Prompter
	// EOS are the ids that end an answer.
	EOS []int32
	// Defaults is how generation_config.json wants tokens picked; its Seed is not used.
	Defaults decoder.Sampling
	// Ignored names settings of generation_config.json that would change answers and are not applied.
	Ignored []string
	// Warnings are as a Model's, of the tokenizer's and the image processor's files.
	Warnings []string
}

// OpenProcessor reads the tokenizer, the chat template, the preprocessor and the generation settings.
func (m *Model) OpenProcessor() (*Processor, error) {
	t, err := m.openText()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	return t, nil
}

func (m *Model) openText() (*Processor, error) {
	raw, err := folder.Read(m.files, "tokenizer.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, m.noTokenizer()
	}
	if err != nil {
		return nil, err
	}
	if m.Layout.AddPlaceholder {
		if raw, err = addPlaceholder(raw, m.Layout); err != nil {
			return nil, fmt.Errorf("tokenizer.json: %w", err)
		}
	}
	special, added, err := m.specialTokens()
	if err != nil {
		return nil, err
	}
	if raw, err = withAdded(raw, added); err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	t := &Processor{Prompter: fusion.Prompter{AddSpecial: m.Layout.Frame == nil, Layout: m.Layout,
		Limits: vision.DefaultLimits()}}
	if t.Tokenizer, err = tokenizer.Parse(raw); err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	image := m.Layout.PatchToken()
	if id, ok := t.Tokenizer.TokenID(image); !ok || id != m.Layout.ImageTokenID {
		return nil, fmt.Errorf("tokenizer.json: %q has id %d (found: %t), config.json says the image token is %d", image, id, ok, m.Layout.ImageTokenID)
	}
	if f := m.Layout.Frame; f != nil {
		for _, s := range []string{f.Before, f.Start} {
			if _, ok := t.Tokenizer.TokenID(s); !ok && strings.HasPrefix(s, "<") { // a special token, not words
				return nil, fmt.Errorf("tokenizer.json has no token %q, which goes before the text of a prompt", s)
			}
		}
	}
	for _, a := range t.Tokenizer.AddedTokens() {
		// Added tokens that are runs of blanks (CodeGen has them) are text like any other.
		if a.Special || strings.TrimSpace(a.Content) != "" {
			t.Guarded = append(t.Guarded, a.Content)
		}
	}
	for _, text := range []string{m.Layout.Placeholder, image} {
		if !slices.Contains(t.Guarded, text) {
			t.Guarded = append(t.Guarded, text)
		}
	}
	t.BOS = string(special.BOS)
	source, err := m.parseTemplate(t, special)
	if err != nil {
		return nil, err
	}
	t.Thinking = fusion.FindThinking(source, t.Tokenizer)
	if t.Preprocessor, err = m.preprocessor(); err != nil {
		return nil, err
	}
	var warning string
	if t.Preprocessor, warning, err = m.fitMemory(t.Preprocessor); err != nil {
		return nil, err
	}
	if warning != "" {
		t.Warnings = append(t.Warnings, warning)
	}
	if t.EOS, err = m.eos(t.Tokenizer, special); err != nil {
		return nil, err
	}
	m.textWarnings(t, special, added)
	t.Defaults, t.Ignored, err = m.defaults(t.EOS)
	return t, err
}

// addPlaceholder gives a tokenizer that knows no images a token for them, unless it has one.
func addPlaceholder(tokenizerJSON []byte, l fusion.Layout) ([]byte, error) {
	var file map[string]json.RawMessage
	if err := json.Unmarshal(tokenizerJSON, &file); err != nil {
		return nil, err
	}
	var added []json.RawMessage
	if raw, ok := file["added_tokens"]; ok {
		if err := json.Unmarshal(raw, &added); err != nil {
			return nil, fmt.Errorf("added_tokens: %w", err)
		}
	}
	for _, raw := range added {
		var t struct{ Content string }
		if json.Unmarshal(raw, &t) == nil && t.Content == l.Placeholder {
			return tokenizerJSON, nil
		}
	}
	added = append(added, fmt.Appendf(nil, `{"id": %d, "content": %q, "special": true}`, l.ImageTokenID, l.Placeholder))
	var err error
	if file["added_tokens"], err = json.Marshal(added); err != nil {
		return nil, err
	}
	return json.Marshal(file)
}

// readJSON decodes an optional file; it tells whether the file is there.
func (m *Model) readJSON(name string, v any) (bool, error) {
	raw, err := folder.JSON(m.files, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}

// tokenText is a special token as tokenizer_config.json writes it: a string or an object with content.
type tokenText string

func (t *tokenText) UnmarshalJSON(b []byte) error {
	var o struct {
		Content string `json:"content"`
	}
	if string(b) == "null" {
		return nil
	}
	if json.Unmarshal(b, &o) == nil {
		*t = tokenText(o.Content)
		return nil
	}
	return json.Unmarshal(b, (*string)(t))
}

// parseTemplate reads the chat template into t, which has its other texts, and gives its source, "" without one.
func (m *Model) parseTemplate(t *Processor, s specialTokens) (source string, err error) {
	source, file, err := m.templateSource()
	if err != nil || source == "" {
		return "", err
	}
	t.Template, err = chat.Parse(source, chat.Options{
		BOS: string(s.BOS), EOS: string(s.EOS), Unk: string(s.Unk), Pad: string(s.Pad),
		Sep: string(s.Sep), Cls: string(s.Cls), Mask: string(s.Mask),
		Guarded: t.Guarded, Placeholder: m.Layout.Placeholder,
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return source, nil
}

// templateSource looks where a processor of the reference does, in its order, and then, which no processor does, in
// tokenizer_config.json. Reference: transformers 5.12.1 ProcessorMixin.get_processor_dict.
func (m *Model) templateSource() (source, file string, err error) {
	names, err := fs.Glob(m.files, "additional_chat_templates/*.jinja")
	if err != nil {
		return "", "", err
	}
	const legacy = "chat_template.json"
	if len(names) > 0 && folder.Exists(m.files, legacy) {
		return "", legacy, fmt.Errorf("both %s and %s are here, and transformers takes neither: remove the one that is out of date",
			legacy, strings.Join(names, ", "))
	}
	for _, file := range []string{"processor_config.json", legacy} {
		if source, err := m.templateKey(file); source != "" || err != nil {
			return source, file, err
		}
	}
	for _, file := range []string{"chat_template.jinja", "additional_chat_templates/default.jinja"} {
		raw, err := folder.Read(m.files, file)
		if err == nil {
			return string(raw), file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", file, err
		}
	}
	const last = "tokenizer_config.json"
	if source, err := m.templateKey(last); source != "" || err != nil {
		return source, last, err
	}
	if len(names) > 0 {
		return "", names[0], fmt.Errorf("there is no chat_template.jinja, and none of %s is the default",
			strings.Join(names, ", "))
	}
	return "", "", nil
}

// templateKey is the chat_template of a JSON file, "" where there is none.
func (m *Model) templateKey(file string) (string, error) {
	var c struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if _, err := m.readJSON(file, &c); err != nil {
		return "", err
	}
	if len(c.Template) == 0 || string(c.Template) == "null" {
		return "", nil
	}
	source, err := defaultTemplate(c.Template)
	if err != nil {
		return "", fmt.Errorf("%s: chat_template: %w", file, err)
	}
	return source, nil
}

// defaultTemplate reads a template that is written as a string, as a list of templates with names or as an object of
// them.
func defaultTemplate(raw json.RawMessage) (string, error) {
	switch raw[0] {
	case '[':
		var list []struct{ Name, Template string }
		if err := json.Unmarshal(raw, &list); err != nil {
			return "", err
		}
		var names []string
		for _, t := range list {
			if t.Name == "default" {
				return t.Template, nil
			}
			names = append(names, t.Name)
		}
		return "", fmt.Errorf("none of %q is named \"default\"", names)
	case '{':
		var named map[string]string
		if err := json.Unmarshal(raw, &named); err != nil {
			return "", err
		}
		if t, ok := named["default"]; ok {
			return t, nil
		}
		return "", fmt.Errorf("none of %q is named \"default\"", slices.Sorted(maps.Keys(named)))
	}
	var source string
	err := json.Unmarshal(raw, &source)
	return source, err
}

// preprocessor reads the image_processor section of processor_config.json, or else preprocessor_config.json.
// Reference: transformers 5.12.1 AutoImageProcessor.
func (m *Model) preprocessor() (vision.Preprocessor, error) {
	raw, file, err := m.imageProcessor()
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, errors.New("no preprocessor_config.json: it says how images are resized and normalised")
	}
	var tower vision.Patches
	if n := m.NativeResolution; n != nil {
		tower = vision.Patches{Patch: n.PatchSize, Merge: n.MergeSize}
	}
	if a := m.AnySize; a != nil { // what a graph takes is known when it is opened
		tower.Frames = max(a.Frames, 1)
	}
	p, err := vision.ParsePreprocessorFor(raw, m.ImageProcessor, tower)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := m.fits(p, raw); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if m.NativeResolution != nil {
		return p, m.fitsPatches(file, p)
	}
	if p.Side() != m.Tower.ImageSize {
		return nil, fmt.Errorf("%s: tiles are %d pixels a side, config.json's vision tower takes %d", file, p.Side(), m.Tower.ImageSize)
	}
	if m.WholeImages {
		return whole{p}, nil
	}
	return p, nil
}

// imageProcessor is what the files say of the image processor; nil where they say nothing.
func (m *Model) imageProcessor() (raw json.RawMessage, file string, err error) {
	file = "processor_config.json"
	var c struct {
		ImageProcessor json.RawMessage `json:"image_processor"`
	}
	if _, err := m.readJSON(file, &c); err != nil {
		return nil, file, err
	}
	if len(c.ImageProcessor) > 0 && string(c.ImageProcessor) != "null" {
		return c.ImageProcessor, file, nil
	}
	file = "preprocessor_config.json"
	if found, err := m.readJSON(file, &raw); err != nil || !found {
		return nil, file, err
	}
	return raw, file, nil
}

// sizeTower gives a DaViT, whose images no config.json sizes, the side that the image processor brings them to.
func (m *Model) sizeTower() error {
	raw, file, err := m.imageProcessor()
	if err != nil || raw == nil {
		return err
	}
	p, err := vision.ParsePreprocessor(raw, m.ImageProcessor)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	t := *m.DaViT
	t.ImageSize = p.Side()
	if err := t.Validate(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	m.DaViT, m.Tower.ImageSize = &t, t.ImageSize
	m.SingleTile(vision.InGraph{PerTile: t.Tokens(), TextHidden: t.TextHidden})
	return nil
}

// fitsPatches refuses an image processor that cuts images otherwise than the tower takes them.
func (m *Model) fitsPatches(file string, p vision.Preprocessor) error {
	n := m.NativeResolution
	q, ok := p.(vision.Patcher)
	if !ok || q.Patches().Patch != n.PatchSize || q.Patches().Merge != n.MergeSize {
		return fmt.Errorf("%s: tiles or patches are %d pixels a side, config.json's vision tower takes patches of %d in blocks of %d×%d",
			file, p.Side(), n.PatchSize, n.MergeSize, n.MergeSize)
	}
	if l, ok := p.(vision.Lfm2VL); ok && l.MaxTiles > 1 && l.TileSize != n.TileSize {
		return fmt.Errorf("%s: tile_size is %d, config.json's is %d", file, l.TileSize, n.TileSize)
	}
	if _, ok := p.(vision.Lfm2VL); ok {
		return m.fitsMarks()
	}
	if _, ok := p.(vision.Pixtral); !ok {
		return nil
	}
	// What PixtralProcessor hands its image processor.
	var c struct {
		Patch *int `json:"patch_size"`
		Merge *int `json:"spatial_merge_size"`
	}
	if _, err := m.readJSON("processor_config.json", &c); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		file *int
		want int
	}{{"patch_size", c.Patch, n.PatchSize}, {"spatial_merge_size", c.Merge, n.MergeSize}} {
		if s.file != nil && *s.file != s.want {
			return fmt.Errorf("processor_config.json: %s is %d, config.json says %d", s.name, *s.file, s.want)
		}
	}
	return nil
}

// fitsMarks refuses a processor that leaves out the marks around an image and before its tiles.
func (m *Model) fitsMarks() error {
	var c struct {
		Marks *bool `json:"use_image_special_tokens"`
	}
	if _, err := m.readJSON("processor_config.json", &c); err != nil || c.Marks == nil || *c.Marks {
		return err
	}
	return errors.New("processor_config.json: use_image_special_tokens is false, supported is true")
}

// whole makes one tile of every image.
type whole struct{ vision.Preprocessor }

func (whole) Grid(int, int) vision.Grid { return vision.Grid{} }

func (p whole) Measure(w, h int, _ bool) (vision.Measured, error) {
	return p.Preprocessor.Measure(w, h, false)
}

func (p whole) Prepare(ctx context.Context, data []byte, l vision.Limits, _ bool) (*vision.Image, error) {
	return p.Preprocessor.Prepare(ctx, data, l, false)
}

// eos gathers the ids that end an answer: generation_config.json's, or else config.json's, or else its text
// model's; and the tokenizer's.
func (m *Model) eos(t *tokenizer.Tokenizer, s specialTokens) ([]int32, error) {
	var list families.IDs
	for _, file := range []string{"generation_config.json", "config.json"} {
		var c struct {
			EOS  families.IDs `json:"eos_token_id"`
			Text struct {
				EOS families.IDs `json:"eos_token_id"`
			} `json:"text_config"`
		}
		if _, err := m.readJSON(file, &c); err != nil {
			return nil, err
		}
		if list = c.EOS; len(list) == 0 {
			list = c.Text.EOS
		}
		if len(list) > 0 {
			break
		}
	}
	if id, ok := t.TokenID(string(s.EOS)); ok {
		list = append(list, id)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}
