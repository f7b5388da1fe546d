package fusion

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/vision"
)

// asked is a preprocessor that notes whether an image was to be split.
type asked struct {
	vision.Preprocessor
	split *bool
}

func (p asked) Measure(w, h int, split bool) (vision.Measured, error) {
	*p.split = split
	return vision.Measured{Grid: vision.Grid{Width: w, Height: h}}, nil
}

func (p asked) Prepare(_ context.Context, _ []byte, _ vision.Limits, split bool) (*vision.Image, error) {
	*p.split = split
	return &vision.Image{}, nil
}

// prompter has a byte a token, <s> put first by the post-processor, and places for images.
func prompter(t *testing.T, template string) *Prompter {
	t.Helper()
	vocab := `"<s>":0,"<image>":9`
	for i, c := range []string{"a", "b", "c", ":", "Ġ", "<", ">", "s"} {
		vocab += `,"` + c + `":` + string(rune('1'+i))
	}
	tok, err := tokenizer.Parse([]byte(`{"model":{"type":"BPE","vocab":{` + vocab + `},"merges":[]},
		"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},
		"added_tokens":[{"id":0,"content":"<s>","special":true},{"id":9,"content":"<image>","special":true}],
		"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}],
			"special_tokens":{"<s>":{"ids":[0]}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	p := &Prompter{
		Tokenizer: tok, AddSpecial: true, BOS: "<s>", Guarded: []string{"<s>", "<image>"},
		Layout: Layout{
			Placeholder: "<image>", ImageTokenID: 9, PatchTokens: 2,
			Expand: func(vision.Grid) string { return "<image><image>" },
		},
	}
	if template != "" {
		o := chat.Options{BOS: "<s>", Guarded: p.Guarded, Placeholder: "<image>"}
		if p.Template, err = chat.Parse(template, o); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

const loop = `{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}:{% endfor %}`

func TestPrompterBOS(t *testing.T) {
	say := []chat.Part{{Image: true}, {Text: "ab"}}
	asked := Prompt{Messages: []chat.Message{{Role: "user", Parts: say}}}
	begins := "{{ bos_token }}" + loop
	for name, c := range map[string]struct {
		template, bos string
		add           bool
		in            Prompt
		want          []int32
		text          string
	}{
		"the template writes it":    {begins, "<s>", true, asked, []int32{0, 9, 9, 1, 2, 4}, "<s><image>ab:"},
		"the template leaves it":    {loop, "<s>", true, asked, []int32{0, 9, 9, 1, 2, 4}, "<image>ab:"},
		"the tokenizer has no name": {begins, "", true, asked, []int32{0, 0, 9, 9, 1, 2, 4}, "<s><image>ab:"},
		"none is wanted":            {loop, "<s>", false, asked, []int32{9, 9, 1, 2, 4}, "<image>ab:"},
		"a raw prompt":              {"", "<s>", true, Prompt{Raw: say}, []int32{0, 9, 9, 1, 2}, "<image>ab"},
		"a user writes it": {
			"", "<s>", true, Prompt{Raw: []chat.Part{{Text: "<s>"}, {Image: true}}}, []int32{0, 6, 8, 7, 9, 9}, "<s><image>",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := prompter(t, c.template)
			p.BOS, p.AddSpecial = c.bos, c.add
			r, err := p.Render(t.Context(), c.in)
			if err != nil {
				t.Fatal(err)
			}
			in, err := p.Input(r, []*vision.Image{{}})
			if err != nil || !slices.Equal(in.IDs, c.want) || in.ImageTokens() != 2 || r.Text() != c.text {
				t.Errorf("ids %v, %d of images, text %q, %v; want %v, 2, %q", in.IDs, in.ImageTokens(), r.Text(), err, c.want, c.text)
			}
		})
	}
}

// Tokens stand where they are given. Neither the tokenizer nor the layout adds any, text and tokens form nothing
// together, and a user's text stands for no image beside them either.
func TestPrompterTokens(t *testing.T) {
	text := func(s string) chat.Part { return chat.Part{Text: s} }
	image := chat.Part{Image: true}
	frame := &Frame{Before: "<s>", Start: "a", End: "b"}
	for name, c := range map[string]struct {
		parts []chat.Part
		ids   map[int][]int32
		frame *Frame
		want  []int32
		spans int
	}{
		"tokens alone":     {[]chat.Part{{}}, map[int][]int32{0: {0, 3, 3}}, nil, []int32{0, 3, 3}, 0},
		"before a text":    {[]chat.Part{{}, text("ab")}, map[int][]int32{0: {0}}, nil, []int32{0, 1, 2}, 0},
		"after an image":   {[]chat.Part{image, {}, text("c")}, map[int][]int32{1: {4}}, nil, []int32{9, 9, 4, 3}, 1},
		"between images":   {[]chat.Part{image, {}, image}, map[int][]int32{1: {4}}, nil, []int32{9, 9, 4, 9, 9}, 2},
		"within a special": {[]chat.Part{text("<"), {}, text("s>")}, map[int][]int32{1: {1}}, nil, []int32{6, 1, 8, 7}, 0},
		"a special's text": {[]chat.Part{text("<s>"), {}}, map[int][]int32{1: {1}}, nil, []int32{6, 8, 7, 1}, 0},
		"a frame":          {[]chat.Part{image, {}, text("c")}, map[int][]int32{1: {4}}, frame, []int32{9, 9, 4, 3}, 1},
	} {
		p := prompter(t, "")
		p.Layout.Frame = c.frame
		r, err := p.Render(t.Context(), Prompt{Raw: c.parts, Tokens: c.ids})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		images := make([]*vision.Image, c.spans)
		for i := range images {
			images[i] = &vision.Image{}
		}
		in, err := p.Input(r, images)
		if err != nil || !slices.Equal(in.IDs, c.want) || len(in.Spans) != c.spans {
			t.Errorf("%s: %v, %v, %v; want %v", name, in.IDs, in.Spans, err, c.want)
		}
		if _, err := p.Input(r, append(images, &vision.Image{})); !errors.As(err, new(*ErrCount)) {
			t.Errorf("%s: with an image too many: %v", name, err)
		}
	}
	p := prompter(t, "")
	p.Layout.Frame = &Frame{OneImage: true}
	_, err := p.Render(t.Context(), Prompt{Raw: []chat.Part{{}}, Tokens: map[int][]int32{0: {1}}})
	if !errors.As(err, new(*PromptError)) {
		t.Errorf("a model of one image alone: %v", err)
	}
}

func TestPrompterSplits(t *testing.T) {
	p := prompter(t, "")
	if _, err := p.PrepareImage(t.Context(), nil, vision.DetailAuto, 1); err == nil {
		t.Error("a model without a preprocessor took an image")
	}
	split := false
	p.Preprocessor = asked{split: &split}
	for _, c := range []struct {
		alone  bool
		detail vision.Detail
		of     int
		want   bool
	}{
		{false, vision.DetailAuto, 1, true},
		{false, vision.DetailHigh, 1, true},
		{false, vision.DetailLow, 1, false},
		{false, vision.DetailHigh, 2, true},
		{true, vision.DetailHigh, 1, true},
		{true, vision.DetailLow, 1, false},
		{true, vision.DetailHigh, 2, false},
	} {
		p.Layout.SplitAlone = c.alone
		if _, err := p.PrepareImage(t.Context(), nil, c.detail, c.of); err != nil || split != c.want {
			t.Errorf("%+v: split %t, %v", c, split, err)
		}
	}
}

// What a caller can mend is marked as such, and what the model's files get wrong is not.
func TestPrompterErrors(t *testing.T) {
	input := func(p *Prompter, in Prompt, images int) error {
		r, err := p.Render(t.Context(), in)
		if err != nil {
			return err
		}
		list := make([]*vision.Image, images)
		for i := range list {
			list[i] = &vision.Image{}
		}
		_, err = p.Input(r, list)
		return err
	}
	plain := prompter(t, "")
	plain.AddSpecial = false
	one := prompter(t, "")
	one.Layout.Frame = &Frame{OneImage: true}
	strict := prompter(t, `{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}`+loop)
	message := chat.Message{Role: "user", Parts: []chat.Part{{Text: "a"}}}
	var every strings.Builder
	for c := '\ufdd0'; c <= '\ufdef'; c++ {
		every.WriteRune(c)
	}
	image := chat.Part{Image: true}
	for name, c := range map[string]struct {
		err  error
		mine bool
	}{
		"nothing":              {input(plain, Prompt{Raw: []chat.Part{{}}}, 0), true},
		"no image":             {input(one, Prompt{Raw: []chat.Part{{Text: "a"}}}, 0), true},
		"two images":           {input(one, Prompt{Raw: []chat.Part{image, image}}, 2), true},
		"the template refuses": {input(strict, Prompt{Messages: []chat.Message{message, message}}, 0), true},
		"no guard is left":     {input(plain, Prompt{Raw: []chat.Part{{Text: every.String()}}}, 0), true},
		"no template":          {input(plain, Prompt{Messages: []chat.Message{message}}, 0), false},
		"images are lost":      {input(plain, Prompt{Raw: []chat.Part{image}}, 0), false},
	} {
		if c.err == nil || errors.As(c.err, new(*PromptError)) != c.mine {
			t.Errorf("%s: %v; want an error that the caller can mend: %t", name, c.err, c.mine)
		}
	}
}

func TestPrompterAnswer(t *testing.T) {
	ids, err := prompter(t, "").Answer("<s>a")
	if want := []int32{6, 8, 7, 1}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("ids %v, %v; want %v", ids, err, want)
	}
}

// A prompt without guards is its text, whatever is in it; one with guards is its text without them.
func TestRenderedText(t *testing.T) {
	for want, p := range map[string]chat.Prompt{
		"a\x00b": {Text: "a\x00b"}, "a\x00c": {Text: "\ufdd0a\x00c\ufdd0", Guard: '\ufdd0'},
	} {
		if got := (Rendered{text: p}).Text(); got != want {
			t.Errorf("%+v is %q, want %q", p, got, want)
		}
	}
}
