package synth

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/families"
	"github.com/mmserve/mmserve/vision"
)

// writeSynthetic makes up the files that a servable folder lacks: a tokenizer with the default model's merges whose
// special tokens have the ids that config.json gives them, its chat template where the family takes one, and a
// preprocessor.
func writeSynthetic(s families.Spec, config []byte, dir string) error {
	write := func(name string, data func() ([]byte, error)) error {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		raw, err := data()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return os.WriteFile(file, raw, 0o644)
	}
	if err := write("preprocessor_config.json", func() ([]byte, error) { return preprocessorConfig(s) }); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "tokenizer.json")); err == nil {
		return nil
	}
	ids, err := specialIDs(config)
	if err != nil {
		return err
	}
	v, err := newVocabulary(s, ids)
	if err != nil {
		return err
	}
	if s.Layout.Frame == nil {
		if err := write("chat_template.jinja",
			func() ([]byte, error) { return chatTemplate(s.Layout.Placeholder) }); err != nil {
			return err
		}
	}
	if err := write("tokenizer.json", v.tokenizerJSON); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "tokenizer_config.json"), map[string]any{
		"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": v.bos, "eos_token": v.eos, "unk_token": unkToken,
		"model_max_length": s.Decoder.MaxLen,
	}); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, "generation_config.json"),
		map[string]any{"bos_token_id": v.ids[v.bos], "eos_token_id": v.ids[v.eos]})
}

// chatTemplate is the default model's, with a family's own placeholder.
func chatTemplate(placeholder string) ([]byte, error) {
	raw, err := fs.ReadFile(model.DefaultFiles(), "chat_template.jinja")
	return bytes.ReplaceAll(raw, []byte("'<image>'"), []byte("'"+placeholder+"'")), err
}

// preprocessorConfig is a preprocessor_config.json that makes tiles of the tower's size with the family's image
// processor.
func preprocessorConfig(s families.Spec) ([]byte, error) {
	if s.AnySize != nil {
		return json.MarshalIndent(patchesConfig(s), "", " ")
	}
	side := s.Tower.ImageSize
	square := map[string]int{"height": side, "width": side}
	c := map[string]any{
		"image_processor_type": s.ImageProcessor,
		"size":                 map[string]int{"height": side, "width": side, "longest_edge": min(4*side, 4096)},
		"max_image_size":       map[string]int{"longest_edge": side},
		"crop_size":            square,
	}
	if packed, ok := s.Connector.(vision.AnyRes); ok {
		var list [][2]int
		for _, r := range packed.Pinpoints {
			list = append(list, [2]int{r[0] * side, r[1] * side})
		}
		c["image_grid_pinpoints"] = list
	}
	return json.MarshalIndent(c, "", " ")
}

// patchesConfig is that of a tower for images of any size.
func patchesConfig(s families.Spec) map[string]any {
	t := s.AnySize
	block, least, side := t.PatchSize*t.MergeSize, 4, 32 // tokens an image, and along its side
	for side > 2 && side*(side+1) > s.Decoder.MaxLen/4 {
		side /= 2
	}
	most := side * side
	tiled := t.TileSize > 0 && 3*t.TileTokens() <= s.Decoder.MaxLen/4
	return map[string]any{
		"image_processor_type": s.ImageProcessor, "patch_size": t.PatchSize, "merge_size": t.MergeSize,
		"temporal_patch_size": max(t.Frames, 1), "min_pixels": least * block * block, "max_pixels": most * block * block,
		"size": map[string]int{"longest_edge": min(side*block, 4096)},
		// LFM2-VL's names of these
		"encoder_patch_size": t.PatchSize, "downsample_factor": t.MergeSize, "min_image_tokens": least,
		"max_image_tokens": most, "tile_size": max(t.TileSize, block), "do_image_splitting": tiled,
	}
}

// special are the ids that config.json gives to special tokens; -1 where it does not say.
type special struct{ bos, eos int32 }

func specialIDs(config []byte) (special, error) {
	type part struct {
		BOS *int32       `json:"bos_token_id"`
		EOS families.IDs `json:"eos_token_id"`
	}
	var c struct {
		part
		Decoder part `json:"decoder"`
		Text    part `json:"text_config"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return special{}, fmt.Errorf("config.json: %w", err)
	}
	found := special{-1, -1}
	for _, p := range []part{c.part, c.Decoder, c.Text} {
		if found.bos < 0 && p.BOS != nil {
			found.bos = *p.BOS
		}
		if found.eos < 0 && len(p.EOS) > 0 {
			found.eos = p.EOS[0]
		}
	}
	return found, nil
}

const unkToken = "<unk>"

// vocabulary is a made-up one: every id has a token, so that whatever random weights answer is some text.
type vocabulary struct {
	file     map[string]json.RawMessage // the default model's tokenizer.json
	ids      map[string]int32
	tokens   []string // by id; "" is free
	bos, eos string
	special  []string
	merges   [][2]string
}

func newVocabulary(s families.Spec, given special) (*vocabulary, error) {
	v := &vocabulary{ids: map[string]int32{}, tokens: make([]string, s.Decoder.Vocab), bos: "<|im_start|>",
		eos: "<end_of_utterance>"}
	if f := s.Layout.Frame; f != nil {
		v.bos, v.eos = f.Start, "<eos>"
		if given.bos == given.eos {
			v.eos = v.bos
		}
	}
	var base struct {
		Vocab  map[string]int32
		Merges []json.RawMessage
	}
	raw, err := fs.ReadFile(model.DefaultFiles(), "tokenizer.json")
	if err == nil {
		if err = json.Unmarshal(raw, &v.file); err == nil {
			err = json.Unmarshal(v.file["model"], &base)
		}
	}
	if err != nil {
		return nil, err
	}
	image := s.Layout.PatchToken()
	if !onlyImage(s) { // whose placeholder has an id outside of the vocabulary
		if id := s.Layout.ImageTokenID; id < 0 || int(id) >= len(v.tokens) {
			return nil, fmt.Errorf("config.json: the image token is %d, the vocabulary has %d", id, len(v.tokens))
		}
		v.put(image, s.Layout.ImageTokenID)
		v.special = append(v.special, image)
	}
	for _, t := range []struct {
		content string
		id      int32
	}{{v.eos, given.eos}, {v.bos, given.bos}, {unkToken, -1}} {
		if _, ok := v.ids[t.content]; !ok {
			v.put(t.content, t.id)
			v.special = append(v.special, t.content)
		}
	}
	// What stands between an image's tiles is one token each in the families' own tokenizers.
	const roomy = 1000
	if len(v.tokens) >= roomy {
		for _, t := range betweenTiles.FindAllString(s.Layout.Expand(largeGrid(s)), -1) {
			if _, ok := v.ids[t]; !ok && t != image {
				v.put(t, -1)
				v.special = append(v.special, t)
			}
		}
	}
	return v, v.fill(base.Vocab, base.Merges)
}

func onlyImage(s families.Spec) bool { return s.Layout.Frame != nil && s.Layout.Frame.OneImage }

// largeGrid is that of an image that has all the tokens between its parts.
func largeGrid(s families.Spec) vision.Grid {
	g := vision.Grid{Rows: 6, Cols: 6}
	if n := s.NativeResolution; n != nil {
		g.Width, g.Height = 2*n.PatchSize*n.MergeSize, 2*n.PatchSize*n.MergeSize
	}
	return g
}

var betweenTiles = regexp.MustCompile(`</?[a-zA-Z0-9_-]+>|\[[A-Z_]+\]`)

// put gives content an id: the given one if it is free, or else the first that is. It tells whether there is one.
func (v *vocabulary) put(content string, id int32) bool {
	if id < 0 || int(id) >= len(v.tokens) || v.tokens[id] != "" {
		id = int32(slices.Index(v.tokens, ""))
	}
	if id < 0 {
		return false
	}
	v.tokens[id], v.ids[content] = content, id
	return true
}

// fill puts the characters of the byte-level alphabet into the free ids, then what merges make of them, then words of
// no meaning.
func (v *vocabulary) fill(base map[string]int32, merges []json.RawMessage) error {
	var letters []string
	for token := range base {
		if utf8.RuneCountInString(token) == 1 {
			letters = append(letters, token)
		}
	}
	rank := func(letter string) int { // a space and small letters first: a small vocabulary has no more
		if i := strings.Index("Ġabcdefghijklmnopqrstuvwxyz.,?!0123456789", letter); i >= 0 {
			return i
		}
		return 1 << 10
	}
	slices.SortFunc(letters, func(a, b string) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a, b)) })
	for i, letter := range letters {
		if !v.put(letter, -1) {
			const fewest = 27
			if i < fewest {
				return fmt.Errorf("config.json: a vocabulary of %d has no room for letters beside %d special tokens", len(v.tokens), len(v.special))
			}
			break
		}
	}
	// Two line breaks are one token in real vocabularies, and stand before the whole image where tiles do.
	merges = append(slices.Clip(merges), json.RawMessage(`["Ċ", "Ċ"]`))
	for _, raw := range merges {
		var pair [2]string
		if json.Unmarshal(raw, &pair) != nil {
			var line string
			if err := json.Unmarshal(raw, &line); err != nil {
				return err
			}
			pair[0], pair[1], _ = strings.Cut(line, " ")
		}
		_, left := v.ids[pair[0]]
		_, right := v.ids[pair[1]]
		whole := pair[0] + pair[1]
		if _, ok := v.ids[whole]; left && right && (ok || v.put(whole, -1)) {
			v.merges = append(v.merges, pair)
		}
	}
	for id, token := range v.tokens {
		if token == "" {
			v.put("Ġ~"+strconv.FormatInt(int64(id), 36), int32(id))
		}
	}
	return nil
}

func (v *vocabulary) tokenizerJSON() ([]byte, error) {
	type added struct {
		ID         int32  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		LStrip     bool   `json:"lstrip"`
		RStrip     bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	}
	list := []added{}
	for _, content := range v.special {
		list = append(list, added{ID: v.ids[content], Content: content, Special: true})
	}
	slices.SortFunc(list, func(a, b added) int { return int(a.ID - b.ID) })
	merges := v.merges
	if merges == nil {
		merges = [][2]string{}
	}
	file := map[string]any{}
	for key, raw := range v.file {
		file[key] = raw
	}
	file["added_tokens"] = list
	file["model"] = map[string]any{"type": "BPE", "unk_token": unkToken, "fuse_unk": false, "byte_fallback": false,
		"vocab": v.ids, "merges": merges}
	return json.Marshal(file)
}
