package families

import (
	"testing"

	"github.com/mmserve/mmserve/vision"
)

func TestFlorence2Prompts(t *testing.T) {
	_, s, _, err := ReadGraphs([]byte(`{"model_type": "florence2", "text_config": {"d_model": 768, "decoder_start_token_id": 2, "forced_bos_token_id": 0}}`))
	if err != nil {
		t.Fatal(err)
	}
	s.SingleTile(vision.InGraph{PerTile: 2, TextHidden: 768})
	for text, want := range map[string]string{
		"<CAPTION>":                           "What does the image describe?",
		" <OD>\n":                             "Locate the objects with category name in the image.",
		"<OPEN_VOCABULARY_DETECTION> a cat":   "Locate a cat in the image.",
		"<OPEN_VOCABULARY_DETECTION>":         "<OPEN_VOCABULARY_DETECTION>",
		"<CAPTION> of a cat":                  "<CAPTION> of a cat",
		"What is 1 > 0?":                      "What is 1 > 0?",
		"<CAPTION_TO_PHRASE_GROUNDING>a {in}": "Locate the phrases in the caption: a {in}",
	} {
		got, err := s.Layout.ExpandPrompt(text, []vision.Grid{{}})
		if want = "<image><image><s>" + want + "</s></s><s>"; err != nil || got != want {
			t.Errorf("%q gives %q %v, want %q", text, got, err, want)
		}
	}
	for _, config := range []string{
		`{"model_type": "florence2", "text_config": {"decoder_start_token_id": 3}}`,
		`{"model_type": "florence2", "text_config": {"vocab_size": 0}}`,
	} {
		if _, _, _, err := ReadGraphs([]byte(config)); err == nil {
			t.Errorf("%s was taken", config)
		}
	}
}

func TestMoondreamPrompts(t *testing.T) {
	_, s, _, err := ReadGraphs([]byte(`{"model_type": "moondream1", "image_token_index": -200, "text_config": {"model_type": "phi"}}`))
	if err != nil {
		t.Fatal(err)
	}
	s.SingleTile(vision.InGraph{PerTile: 3, TextHidden: 2048})
	got, err := s.Layout.ExpandPrompt("What is this?", []vision.Grid{{}})
	if want := "<|endoftext|><image><image><image>\n\nQuestion: What is this?\n\nAnswer:"; err != nil || got != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
}
