package evaluation

import (
	"archive/zip"
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// archive is a set with these files, name and content in turn.
func archive(t testing.TB, comment string, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.SetComment(comment); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	asked   = `{"id":"a 0","kind":"a","images":["0.png"],"messages":[{"role":"user","content":[{"type":"image"},{"type":"text","text":"What?"}]}],"truth":"A star."}`
	spoken  = `{"id":"b 0","kind":"b","messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}],"truth":"Hello!","generated_ids":[5,4]}`
	turned  = `{"kind":"a","messages":[{"role":"assistant","content":[]}],"truth":"x"}`
	lost    = `{"kind":"a","images":["1.png"],"messages":[{"role":"user","content":[{"type":"image"}]}],"truth":"x"}`
	spare   = `{"kind":"a","images":["0.png"],"messages":[{"role":"user","content":[]}],"truth":"x"}`
	nothing = `{"kind":"a","messages":[]}`
	sound   = `{"kind":"a","messages":[{"role":"user","content":[{"type":"audio"}]}],"truth":"x"}`
	rhymed  = `{"kind":"a","messages":[{"role":"user","content":[]}],"truth":"x","form":"verse"}`
)

func TestRead(t *testing.T) {
	raw := archive(t, "digest", "cases.jsonl", asked+"\n\n"+spoken+"\n", "0.png", "PNG")
	s, err := Read(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Cases) != 2 || s.Model != "digest" || s.Cases[1].Generated[0] != 5 {
		t.Errorf("%+v", s)
	}
	if b, err := s.Image("0.png"); err != nil || string(b) != "PNG" {
		t.Errorf("%q, %v", b, err)
	}
	for _, c := range []struct{ cases, want string }{
		{"", "no questions"},
		{asked + "\n{", "line 2: unexpected end"},
		{turned, `role "assistant", want "user"`},
		{lost, `no file "1.png"`},
		{spare, "1 images for 0 places"},
		{nothing, "want kind, truth and messages"},
		{sound, `type "audio", want text or image`},
		{rhymed, `form "verse", want word, json or none`},
	} {
		raw := archive(t, "", "cases.jsonl", c.cases, "0.png", "PNG")
		if _, err := Read(bytes.NewReader(raw), int64(len(raw))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.cases, err, c.want)
		}
	}
	if _, err := Read(strings.NewReader("no archive"), 10); err == nil {
		t.Error("a text passes for an archive")
	}
}

func TestValid(t *testing.T) {
	for _, c := range []struct {
		form, text string
		want       bool
	}{
		{"", "anything at all", true},
		{"word", " red", true},
		{"word", "It is red.", false},
		{"word", "", false},
		{"json", `{"color": "red", "shape": ["star"]}`, true},
		{"json", `{"shape": "star", "color": "red"}`, false},
		{"json", `{"color": "red"}`, false},
		{"json", `{"color": "red", "shape": "star"} so`, false},
		{"json", `["color", "shape"]`, false},
		{"json", `{"color": "red", "shape":`, false},
		{"json", "", false},
	} {
		if got := (Case{Form: c.form, Keys: []string{"color", "shape"}}).Valid(c.text); got != c.want {
			t.Errorf("%s %q: %v", c.form, c.text, got)
		}
	}
}

func TestTally(t *testing.T) {
	var n Tally
	for i := range 10 {
		n.Add(Case{Kind: "shape", Truth: "A star.", Generated: []uint32{1, 2, 3, 4}}, " A star.",
			[][]uint32{{1, 2, 3, 4}, {1, 2, 9}}[i/9])
	}
	n.Add(Case{Kind: "word", Truth: "red", Form: "word"}, "dark red", nil)
	var b strings.Builder
	if err := n.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := `kind   asked  exact %  95 % interval  valid form %
shape  10     100.0    72.2 to 100.0  
word   1      0.0      0.0 to 79.3    0.0
all    11     90.9     62.3 to 98.4   0.0
as recorded: 95.00 % of 40 ids, 90.00 % of 10 answers
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// 81 of 263 is the example of Newcombe, Statistics in Medicine 17 (1998); the ends have closed forms.
func TestWilson(t *testing.T) {
	for _, c := range []struct {
		right, n  int
		low, high float64
	}{
		{0, 10, 0, 3.841459 / 13.841459}, {81, 263, 0.2553, 0.3662}, {1, 1, 1 / 4.841459, 1},
	} {
		low, high := wilson(c.right, c.n)
		if math.Abs(low-c.low) > 1e-4 || math.Abs(high-c.high) > 1e-4 {
			t.Errorf("%d of %d: %f to %f", c.right, c.n, low, high)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(archive(f, "d", "cases.jsonl", asked+"\n"+spoken, "0.png", "PNG"))
	f.Add([]byte("PK\x05\x06"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Read(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		for _, c := range s.Cases {
			c.Valid(c.Truth)
			for _, name := range c.Images {
				_, _ = s.Image(name)
			}
		}
	})
}

// The embedded set is large enough to say something.
func TestEmbeddedSetIsWhole(t *testing.T) {
	f, err := os.Open(filepath.Join("..", "..", "..", "..", "model", "tiny-vlm-questions.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Read(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Cases) < 1000 || s.Model == "" {
		t.Errorf("%d questions, ids of model %q", len(s.Cases), s.Model)
	}
}
