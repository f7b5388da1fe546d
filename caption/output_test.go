package caption

import (
	"archive/tar"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// toTarget runs over a folder with an output of any kind.
func toTarget(ctx context.Context, t testing.TB, dir, out string, change func(*Begin, *Options)) (*Stats, error) {
	t.Helper()
	c := testConfig()
	b := Begin{Out: out, Config: &c, Existing: ExistingSkip}
	o := Options{Source: Folder(dir, Match{}), Config: c, InFlight: 8, Server: &hashServer{}}
	if change != nil {
		change(&b, &o)
		o.Config = *b.Config
	}
	target, err := OpenTarget(context.WithoutCancel(ctx), b)
	if err != nil {
		return nil, err
	}
	o.Output = target
	var stats Stats
	err = Run(ctx, o, &stats)
	return &stats, errors.Join(err, target.Close(err == nil))
}

func TestCSVHasTheRows(t *testing.T) {
	dir, out := imageFolder(t, 5), filepath.Join(t.TempDir(), "o.csv")
	if _, err := toTarget(t.Context(), t, dir, out, nil); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	recs, err := csv.NewReader(f).ReadAll()
	if err != nil || len(recs) != 6 || recs[0][0] != "id" || recs[0][1] != "file_name" {
		t.Fatalf("%v: %q", err, recs)
	}
	rows := rowsOf(t, out+".journal.jsonl")
	for _, r := range recs[1:] {
		if row := rows[r[0]+"\x00caption\x00"]; row.Text == "" || !slices.Contains(r, row.Text) ||
			!slices.Contains(r, row.SHA256) {
			t.Errorf("%q, want %+v", r, row)
		}
	}
}

// jsonServer answers with an object.
type jsonServer struct{ hashServer }

func (s *jsonServer) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	out, err := s.hashServer.Generate(ctx, in)
	if err == nil {
		out.Text = ` {"name": "a \"b\"", "count": 9007199254740993, "ok": true, "score": 0.5, "tags": ["x"]}`
	}
	return out, err
}

const testSchema = `{"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}, "ok": {"type": "boolean"},
	"score": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}, "none": {"type": "string"}}}`

func TestParquetHasTheRowsAndTheSchemasFields(t *testing.T) {
	dir, out := imageFolder(t, 50), filepath.Join(t.TempDir(), "o.parquet")
	_, err := toTarget(t.Context(), t, dir, out, func(b *Begin, o *Options) {
		b.Config.Schema = testSchema
		o.Server = &jsonServer{}
	})
	if err != nil {
		t.Fatal(err)
	}
	type got struct {
		ID       string   `parquet:"id"`
		Index    int64    `parquet:"index"`
		Question string   `parquet:"question"`
		Error    *string  `parquet:"error,optional"`
		Name     string   `parquet:"data.name"`
		Count    int64    `parquet:"data.count"`
		OK       bool     `parquet:"data.ok"`
		Score    float64  `parquet:"data.score"`
		Tags     string   `parquet:"data.tags"`
		None     *string  `parquet:"data.none,optional"`
		Choice   *float64 `parquet:"choice_score,optional"`
	}
	rows, err := parquet.ReadFile[got](out)
	if err != nil || len(rows) != 50 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	seen := map[int64]bool{}
	for _, r := range rows {
		seen[r.Index] = true
		if r.Name != `a "b"` || r.Count != 9007199254740993 || !r.OK || r.Score != 0.5 || r.Tags != `["x"]` ||
			r.None != nil ||
			r.Error != nil ||
			r.Question != "caption" {
			t.Fatalf("%+v", r)
		}
	}
	if len(seen) != 50 {
		t.Errorf("%d indices", len(seen))
	}
	// The file is a list that can be captioned again.
	list := paths(t, dir, open(t, out, Match{}))
	if len(list) != 50 {
		t.Errorf("%d listed: %q", len(list), list[:min(len(list), 3)])
	}
}

// samples reads tar archives: key → the extensions of its members, with the text.
func samples(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	names, _ := filepath.Glob(filepath.Join(dir, "*.tar"))
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		stats, err := os.ReadFile(strings.TrimSuffix(name, ".tar") + "_stats.json")
		var s shardStats
		if err != nil || json.Unmarshal(stats, &s) != nil {
			t.Errorf("%s: %v", stats, err)
		}
		n := 0
		a := tar.NewReader(f)
		for {
			h, err := a.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			b, err := io.ReadAll(a)
			if err != nil {
				t.Fatal(err)
			}
			key, ext, _ := strings.Cut(h.Name, ".")
			if _, twice := got[key+"."+ext]; twice {
				t.Errorf("%s twice", h.Name)
			}
			got[key+"."+ext] = string(b)
			n++
		}
		f.Close()
		if n != 3*s.Count {
			t.Errorf("%s: %d members, stats say %d samples", name, n, s.Count)
		}
	}
	return got
}

func TestShardsAcrossInterruptions(t *testing.T) {
	dir, tmp := imageFolder(t, 100), t.TempDir()
	pngFile(t, filepath.Join(dir, "z.png"), 3)
	want, got := filepath.Join(tmp, "want")+"/", filepath.Join(tmp, "got")+"/"
	if _, err := toTarget(t.Context(), t, dir, want, nil); err != nil {
		t.Fatal(err)
	}
	small := func(b *Begin, o *Options) {}
	for cut := 1; cut < 40; cut++ {
		ctx, cancel := context.WithCancel(t.Context())
		n := cut % 13
		_, err := toTarget(ctx, t, dir, got, func(b *Begin, o *Options) {
			small(b, o)
			o.Written = func(*Row, []byte) {
				if n--; n < 0 {
					cancel()
				}
			}
		})
		cancel()
		if err == nil {
			break
		}
		tmpFile := filepath.Join(got, ".00000.tar.tmp")
		info, err := os.Stat(tmpFile)
		if err != nil {
			continue
		}
		switch cut % 4 {
		case 1: // a crash of the machine lost the end of the archive
			err = os.Truncate(tmpFile, info.Size()/2)
		case 2: // a kill between the archive and the journal
			err = os.Truncate(tmpFile, info.Size()+777)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := toTarget(t.Context(), t, dir, got, nil); err != nil {
		t.Fatal(err)
	}
	g, w := samples(t, got), samples(t, want)
	if len(w) != 300 || !slices.Equal(slices.Sorted(maps.Keys(g)), slices.Sorted(maps.Keys(w))) {
		t.Fatalf("%d members, want %d", len(g), len(w))
	}
	for k, v := range w {
		if !strings.HasSuffix(k, ".json") && g[k] != v {
			t.Errorf("%s differs", k)
		}
	}
	if rows := rowsOf(t, strings.TrimSuffix(got, "/")+".journal.jsonl"); len(rows) != 101 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestShardsEndAtTheirLimits(t *testing.T) {
	dir, out := imageFolder(t, 25), filepath.Join(t.TempDir(), "out")
	j, err := OpenJournal(out+".journal.jsonl", false)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenShards(out, j)
	if err != nil {
		t.Fatal(err)
	}
	s.MaxSamples = 10
	err = Run(
		t.Context(),
		Options{Source: Folder(dir, Match{}), Config: testConfig(), InFlight: 4, Server: &hashServer{}, Output: s},
		&Stats{},
	)
	if err := errors.Join(err, s.Close(true)); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(out, "*"))
	if len(names) != 6 || len(samples(t, out)) != 75 {
		t.Errorf("%q", names)
	}
}

func TestSidecars(t *testing.T) {
	for _, c := range []struct {
		existing Existing
		want     string
		asked    int
	}{
		{ExistingSkip, "by hand\n", 2},
		{ExistingOverwrite, "NEW\n", 3},
		{ExistingAppend, "by hand, NEW\n", 3},
		{ExistingPrepend, "NEW, by hand\n", 3},
	} {
		dir, out := imageFolder(t, 3), filepath.Join(t.TempDir(), "o.jsonl")
		write(t, filepath.Join(dir, "i00001.txt"), "by hand\n")
		side := Sidecars{".txt", c.existing}
		server := &hashServer{}
		run := func() {
			t.Helper()
			_, err := toTarget(t.Context(), t, dir, out, func(b *Begin, o *Options) {
				b.Existing, b.Sidecars = c.existing, true
				o.Server, o.Before, o.Writing = server, side.Skip, side.Write
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		run()
		if err := os.Remove(out); err != nil { // as if killed between sidecar and row
			t.Fatal(err)
		}
		run()
		b, err := os.ReadFile(filepath.Join(dir, "i00001.txt"))
		sum := strings.TrimSpace(string(b))
		for _, word := range strings.Split(sum, ", ") {
			if len(word) == 64 {
				sum = strings.Replace(sum, word, "NEW", 1)
			}
		}
		if err != nil || sum+"\n" != c.want || len(server.asked) != c.asked {
			t.Errorf("%s: %q, %v, %d asked; want %q", c.existing, b, err, len(server.asked), c.want)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "i00000.txt")); err != nil || len(b) != 65 {
			t.Errorf("%s: new sidecar %q, %v", c.existing, b, err)
		}
	}
	for _, ext := range []string{"", ".", "txt", ".a/b", ".jpg"} {
		if (Sidecars{Extension: ext}).Check() == nil {
			t.Errorf("%q is taken", ext)
		}
	}
}

func TestExistingModes(t *testing.T) {
	dir, out := imageFolder(t, 6), filepath.Join(t.TempDir(), "o.jsonl")
	run := func(e Existing, maxTokens uint32, stopAt int) (int, error) {
		s := &hashServer{delay: 5 * time.Millisecond}
		stop := make(chan struct{})
		_, err := toTarget(t.Context(), t, dir, out, func(b *Begin, o *Options) {
			b.Existing, b.Config.MaxTokens = e, maxTokens
			o.Server, o.Stop, o.InFlight = s, stop, 1
			o.Written = func(*Row, []byte) {
				if stopAt--; stopAt == 0 {
					close(stop)
				}
			}
		})
		return int(s.calls.Load()), err
	}
	if _, err := run(ExistingSkip, 8, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := run(ExistingError, 8, 0); !errors.Is(err, ErrExists) {
		t.Errorf("error: %v", err)
	}
	var differ *ConfigError
	if _, err := run(ExistingSkip, 9, 0); !errors.As(err, &differ) {
		t.Errorf("skip with another configuration: %v", err)
	}
	n, err := run(ExistingOverwrite, 9, 2)
	if !errors.Is(err, ErrInterrupted) {
		t.Errorf("interrupted: %v", err)
	}
	m, err := run(ExistingOverwrite, 9, 0)
	if err != nil || n+m != 6 {
		t.Errorf("overwrite that was interrupted: %d and %d calls, %v", n, m, err)
	}
	if n, err := run(ExistingOverwrite, 9, 0); err != nil || n != 6 {
		t.Errorf("overwrite of a complete one: %d calls, %v", n, err)
	}
}

func TestStreamFindsCopies(t *testing.T) {
	dir := imageFolder(t, 4)
	pngFile(t, filepath.Join(dir, "z.png"), 2)
	var b strings.Builder
	target, err := OpenStream(&b)
	if err != nil {
		t.Fatal(err)
	}
	err = Run(
		t.Context(),
		Options{Source: Folder(dir, Match{}), Config: testConfig(), Server: &hashServer{}, Output: target, InFlight: 1},
		&Stats{},
	)
	if err := errors.Join(err, target.Close(true)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n != 5 || strings.Count(b.String(), "duplicate_of") != 1 {
		t.Errorf("%s", b.String())
	}
}

func TestQuestionsAndItemPrompts(t *testing.T) {
	dir, out := imageFolder(t, 3), filepath.Join(t.TempDir(), "o.jsonl")
	list := filepath.Join(dir, "l.jsonl")
	write(
		t,
		list,
		`{"path":"i00000.png","prompt":"own"}`+"\n"+`{"path":"i00000.png","prompt":"other"}`+"\n"+`{"path":"i00000.png"}`+"\n"+`{"path":"i00000.png"}`,
	)
	s := &hashServer{}
	run := func() map[string]Row {
		t.Helper()
		_, err := toTarget(t.Context(), t, dir, out, func(b *Begin, o *Options) {
			b.Config.Questions = []Question{{"what", "what is it?"}, {"color", "which color?"}}
			o.Source, o.Server = Concat(Folder(dir, Match{}), open(t, list, Match{})), s
		})
		if err != nil {
			t.Fatal(err)
		}
		return rowsOf(t, out)
	}
	rows := run()
	// Three images, two questions each; a prompt of an item's own replaces both texts.
	if len(rows) != 3*2+2*2 || len(s.asked) != 3*2+2 {
		t.Errorf("%d rows, %d asked", len(rows), len(s.asked))
	}
	calls := s.calls.Load()
	if again := run(); len(again) != len(rows) || s.calls.Load() != calls {
		t.Errorf("again: %d rows, %d calls", len(again), s.calls.Load()-calls)
	}
}

func TestPreviewEscapes(t *testing.T) {
	p := NewPreview()
	data, err := greyImage()
	if err != nil {
		t.Fatal(err)
	}
	for range previewImages + 50 {
		p.Add(
			&Row{ID: `<script>alert("id")</script>`, Question: DefaultQuestion, Text: `<img src=x onerror=alert(1)>`},
			data,
		)
	}
	p.Add(&Row{ID: "bad", Question: "q", ErrorCode: codeInvalid, Error: "no"}, nil)
	var b strings.Builder
	if err := p.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	html := b.String()
	if strings.Contains(html, "<script") || strings.Contains(html, "<img src=x") ||
		strings.Count(html, "data:image/jpeg") < previewImages-1 ||
		strings.Contains(html, "http") && !strings.Contains(html, "http-equiv") {
		t.Errorf("%.2000s", html)
	}
}

func TestNearDupes(t *testing.T) {
	var b strings.Builder
	n := NewNearDupes(&b)
	n.add("a", 0)
	n.add("b", ^uint64(0))
	n.add("c", 0b111)
	n.add("d", 0b1111<<20)
	n.add("e", ^uint64(0)>>1)
	if got := b.String(); got != `{"id":"c","near":"a","distance":3}`+"\n"+`{"id":"e","near":"b","distance":1}`+"\n" {
		t.Errorf("%s", got)
	}
	data, _ := greyImage()
	n.Add("f", data)
	n.Add("g", data)
	if found, err := n.Found(); found < 3 || err != nil {
		t.Errorf("%d, %v", found, err)
	}
}

// TestChoiceScore holds that a row has the score of its choice, and that a server is asked for scores where it tells
// them.
func TestChoiceScore(t *testing.T) {
	c := testConfig()
	c.Choices = []string{"red", " blue"}
	if in := c.request(nil, "which?", 0); !in.GetConstraint().GetChoices().GetScores() {
		t.Error("no scores are asked for")
	}
	out := &pb.GenerateResponse{Text: " blue", FinishReason: pb.FinishReason_FINISH_REASON_STOP,
		ChoiceScores: []float32{0.25, 0.75}}
	var r Row
	if c.answer(&r, out); r.Choice != "blue" || r.ChoiceScore == nil || *r.ChoiceScore != 0.75 {
		t.Errorf("%q with score %v", r.Choice, r.ChoiceScore)
	}
	out.ChoiceScores, r = nil, Row{} // of an older server
	if c.answer(&r, out); r.Choice != "blue" || r.ChoiceScore != nil {
		t.Errorf("%q with score %v", r.Choice, r.ChoiceScore)
	}
	for _, choices := range [][]string{slices.Repeat([]string{"x"}, 2), strings.Split(strings.Repeat("x,", 64), ","),
		{strings.Repeat("long", 128)}} {
		if scored(choices) {
			t.Errorf("scores of %d choices are asked for, which servers refuse", len(choices))
		}
	}
}
