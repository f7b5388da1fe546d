package model

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

type specialTokens struct {
	BOS  tokenText `json:"bos_token"`
	EOS  tokenText `json:"eos_token"`
	Unk  tokenText `json:"unk_token"`
	Pad  tokenText `json:"pad_token"`
	Sep  tokenText `json:"sep_token"`
	Cls  tokenText `json:"cls_token"`
	Mask tokenText `json:"mask_token"`
}

// addedToken is an element of tokenizer.json's added_tokens, and of tokenizer_config.json's added_tokens_decoder.
type addedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
	named      bool   // it has no id of its own in the files
}

// specialTokens reads tokenizer_config.json and, where that has no added_tokens_decoder, what older folders say over
// it: special_tokens_map.json and added_tokens.json. added are the tokens that these files add to tokenizer.json's, in
// order.
// Reference: transformers 5.12.1 PreTrainedTokenizerBase._from_pretrained and TokenizersBackend.
func (m *Model) specialTokens() (s specialTokens, added []addedToken, err error) {
	var c struct {
		specialTokens
		Decoder    map[string]addedToken `json:"added_tokens_decoder"`
		Additional json.RawMessage       `json:"additional_special_tokens"`
		Extra      json.RawMessage       `json:"extra_special_tokens"`
	}
	const config = "tokenizer_config.json"
	if _, err := m.readJSON(config, &c); err != nil {
		return s, nil, err
	}
	if c.Decoder == nil {
		if _, err := m.readJSON("special_tokens_map.json", &c); err != nil {
			return s, nil, err
		}
		var ids map[string]int32
		if _, err := m.readJSON("added_tokens.json", &ids); err != nil {
			return s, nil, err
		}
		for content, id := range ids {
			added = append(added, addedToken{ID: id, Content: content, Normalized: true})
		}
	}
	for key, t := range c.Decoder {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil || id < 0 {
			return s, nil, fmt.Errorf("%s: added_tokens_decoder has the id %q, want a number from 0", config, key)
		}
		t.ID = int32(id)
		added = append(added, t)
	}
	slices.SortFunc(added, func(a, b addedToken) int { return int(int64(a.ID) - int64(b.ID)) })
	s = c.specialTokens
	for _, t := range []tokenText{s.BOS, s.EOS, s.Unk, s.Sep, s.Pad, s.Cls, s.Mask} {
		added = asSpecial(added, string(t))
	}
	for _, raw := range []json.RawMessage{c.Additional, c.Extra} {
		list, err := tokenTexts(raw)
		if err != nil {
			return s, nil, fmt.Errorf("%s: additional_special_tokens: %w", config, err)
		}
		for _, t := range list {
			added = asSpecial(added, t)
		}
	}
	return s, added, nil
}

// asSpecial adds a token by its text, or marks the one of that text.
func asSpecial(list []addedToken, content string) []addedToken {
	if content == "" {
		return list
	}
	for i := range list {
		if list[i].Content == content {
			list[i].Special = true
			return list
		}
	}
	return append(list, addedToken{ID: -1, Content: content, Special: true, named: true})
}

// tokenTexts reads a list of tokens, or an object of them by name.
func tokenTexts(raw json.RawMessage) (list []string, err error) {
	if !set(raw) {
		return nil, nil
	}
	var texts []tokenText
	if raw[0] == '{' {
		var named map[string]tokenText
		if err := json.Unmarshal(raw, &named); err != nil {
			return nil, err
		}
		for _, t := range named {
			texts = append(texts, t)
		}
		slices.Sort(texts)
	} else if err := json.Unmarshal(raw, &texts); err != nil {
		return nil, err
	}
	for _, t := range texts {
		list = append(list, string(t))
	}
	return list, nil
}

// withAdded puts tokens into a tokenizer.json that its added_tokens lack; one that they have stays as it is, but may
// become special.
func withAdded(tokenizerJSON []byte, tokens []addedToken) ([]byte, error) {
	if len(tokens) == 0 {
		return tokenizerJSON, nil
	}
	var file map[string]json.RawMessage
	if err := json.Unmarshal(tokenizerJSON, &file); err != nil {
		return nil, err
	}
	var there []addedToken
	if raw, ok := file["added_tokens"]; ok {
		if err := json.Unmarshal(raw, &there); err != nil {
			return nil, fmt.Errorf("added_tokens: %w", err)
		}
	}
	at := map[string]int{}
	for i, t := range there {
		at[t.Content] = i
	}
	changes := false
	for _, t := range tokens {
		i, ok := at[t.Content]
		switch {
		case t.Content == "":
		case !ok:
			at[t.Content], changes = len(there), true
			there = append(there, t)
		case t.Special && !there[i].Special:
			there[i].Special, changes = true, true
		}
	}
	if !changes {
		return tokenizerJSON, nil
	}
	var err error
	if file["added_tokens"], err = json.Marshal(there); err != nil {
		return nil, err
	}
	return json.Marshal(file)
}

// textWarnings says where the tokenizer's files and the model do not agree.
func (m *Model) textWarnings(t *Processor, s specialTokens, added []addedToken) {
	warn := func(format string, args ...any) { t.Warnings = append(t.Warnings, fmt.Sprintf(format, args...)) }
	var moved, beyond []string
	for _, a := range added {
		if id, ok := t.Tokenizer.TokenID(a.Content); ok && !a.named && id != a.ID {
			moved = append(moved, fmt.Sprintf("%q has %d, not %d", a.Content, id, a.ID))
		}
	}
	if len(moved) > 0 {
		warn("added tokens have other ids in tokenizer.json than in the tokenizer's other files: %s", shortList(moved))
	}
	for _, a := range t.Tokenizer.AddedTokens() {
		if int(a.ID) >= m.Decoder.Vocab && a.Content != m.Layout.PatchToken() {
			beyond = append(beyond, fmt.Sprintf("%q (%d)", a.Content, a.ID))
		}
	}
	if len(beyond) > 0 {
		warn("tokens have no embedding, the table has %d rows: %s", m.Decoder.Vocab, shortList(beyond))
	} else if n := t.Tokenizer.Size(); n > m.Decoder.Vocab && !m.Layout.AddPlaceholder {
		warn("the tokenizer has %d tokens, the embedding table %d rows", n, m.Decoder.Vocab)
	}
	if _, ok := t.Tokenizer.TokenID(string(s.EOS)); s.EOS != "" && !ok {
		warn("eos_token %q is no token of tokenizer.json", s.EOS)
	}
	for _, id := range t.EOS {
		if id < 0 || int(id) >= m.Decoder.Vocab {
			warn("eos_token_id %d is no id of the model, which has %d: it never ends an answer", id, m.Decoder.Vocab)
		}
	}
	m.processorWarnings(warn)
	m.pinpointWarning(t.Preprocessor, warn)
}

// pinpointWarning says where the image processor cuts images by other resolutions than config.json has.
func (m *Model) pinpointWarning(p vision.Preprocessor, warn func(string, ...any)) {
	want, ok := m.Connector.(vision.AnyRes)
	if !ok {
		return
	}
	var got vision.Pinpoints
	switch p := p.(type) {
	case vision.AnyResTiles:
		got = p.Pinpoints
	case vision.LlavaNext:
		got = p.Pinpoints
	default:
		return
	}
	if !slices.Equal(got, want.Pinpoints) {
		warn("image_grid_pinpoints of the image processor, which count, are not those of config.json")
	}
}

// processorWarnings compares settings of a transformers processor with what config.json gives, which counts here.
func (m *Model) processorWarnings(warn func(string, ...any)) {
	var c struct {
		SeqLen    *int    `json:"image_seq_len"`
		SeqLength *int    `json:"image_seq_length"`
		Patch     *int    `json:"patch_size"`
		Select    *string `json:"vision_feature_select_strategy"`
	}
	if _, err := m.readJSON("processor_config.json", &c); err != nil || m.NativeResolution != nil || m.AnyProcessor {
		return
	}
	for name, n := range map[string]*int{"image_seq_len": c.SeqLen, "image_seq_length": c.SeqLength} {
		if n != nil && *n != m.Layout.PatchTokens {
			warn("processor_config.json: %s is %d, config.json makes %d tokens of a tile, which count", name, *n, m.Layout.PatchTokens)
		}
	}
	if c.Patch != nil && *c.Patch != m.Tower.PatchSize {
		warn("processor_config.json: patch_size is %d, config.json's vision tower has %d, which counts", *c.Patch, m.Tower.PatchSize)
	}
	if c.Select != nil && m.Tower.ClassToken && (*c.Select == "default") != m.Tower.DropFirst {
		warn("processor_config.json: vision_feature_select_strategy is %q, config.json says otherwise, which counts", *c.Select)
	}
}

// fits refuses an image processor of another kind than the family's, whose tiles its prompts do not describe.
func (m *Model) fits(p vision.Preprocessor, file []byte) error {
	if m.AnyProcessor {
		return nil
	}
	if !vision.SameKind(p, file, m.ImageProcessor) {
		kind := strings.TrimPrefix(fmt.Sprintf("%T", p), "vision.")
		return fmt.Errorf("the image processor is of the kind %s, model_type %q takes one like %s", kind, m.Type, m.ImageProcessor)
	}
	for _, size := range [][2]int{{4096, 4096}, {4096, 1}, {1, 4096}, {32768, 32768}} {
		grid := p.Grid(size[0], size[1])
		if n := grid.Tiles(); n > families.MaxTiles {
			return fmt.Errorf("an image of %d×%d pixels would be cut into %d tiles of %d pixels, want at most %d: size.longest_edge is too large or the tiles too small",
				size[0], size[1], n, p.Side(), families.MaxTiles)
		}
		if n := m.Layout.Patches(grid); n > families.MaxImageTokens {
			return fmt.Errorf("an image of %d×%d pixels would take %d positions in %d tiles, want at most %d",
				size[0], size[1], n, grid.Tiles(), families.MaxImageTokens)
		}
	}
	return nil
}

// slowTokenizers are files that a tokenizer.json can be made of.
var slowTokenizers = []string{"tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json",
	"merges.txt", "vocab.txt", "qwen.tiktoken", "tokenizer.tiktoken"}

// noTokenizer says what a folder without tokenizer.json has instead.
func (m *Model) noTokenizer() error {
	var there []string
	for _, name := range slowTokenizers {
		if folder.Exists(m.files, name) {
			there = append(there, name)
		}
	}
	const todo = `transformers writes it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`
	if len(there) > 0 {
		return fmt.Errorf("no tokenizer.json; there is %s, which mmserve does not read: %s", strings.Join(there, ", "), todo)
	}
	return fmt.Errorf("no tokenizer.json: download it, or %s", todo)
}
