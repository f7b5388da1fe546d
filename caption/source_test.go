package caption

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// paths lists a source: names from dir on, with the code of what is wrong with an item behind it.
func paths(t testing.TB, dir string, s Source) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out []string
	n := int64(0)
	for it, err := range s(ctx) {
		if err != nil {
			out = append(out, "error: "+strings.ReplaceAll(err.Error(), dir, ""))
			break
		}
		name := strings.TrimPrefix(strings.TrimPrefix(it.Path, dir), "/")
		var bad *itemError
		if errors.As(it.Err, &bad) {
			name += " " + bad.code
		}
		if it.Prompt != "" {
			name += " ? " + it.Prompt
		}
		out = append(out, name)
		n++
	}
	return out
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o777), os.WriteFile(path, []byte(text), 0o666)); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, in string, m Match) Source {
	t.Helper()
	s, err := Open(in, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"b.jpg", "a.PNG", "notes.txt", "sub/c.webp", "sub/deep/d.tiff", "skip/e.jpg",
		".hidden.gif"} {
		write(t, filepath.Join(dir, f), "x")
	}
	for _, err := range []error{
		os.Symlink("..", filepath.Join(dir, "sub", "loop")), os.Symlink(".", filepath.Join(dir, "self")),
		os.Symlink("nowhere", filepath.Join(dir, "broken.jpg")), os.Symlink("b.jpg", filepath.Join(dir, "link.jpg")),
		os.Symlink("circle.jpg", filepath.Join(dir, "circle.jpg")),
		syscall.Mkfifo(filepath.Join(dir, "fifo.jpg"), 0o600), syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := paths(t, dir, open(t, dir, Match{Exclude: []string{"skip"}}))
	want := []string{
		".hidden.gif",
		"a.PNG",
		"b.jpg",
		"broken.jpg NOT_FOUND",
		"circle.jpg INVALID_ARGUMENT",
		"fifo.jpg INVALID_ARGUMENT",
		"link.jpg",
		"s.png INVALID_ARGUMENT",
		"sub/c.webp",
		"sub/deep/d.tiff",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	for _, c := range []struct {
		m    Match
		want []string
	}{
		{Match{Include: []string{"*.txt", "**/deep/*"}}, []string{"notes.txt", "sub/deep/d.tiff"}},
		{Match{Include: []string{"*.jpg"}, Exclude: []string{"b*", "skip/**", "circle*", "fifo*"}}, []string{"link.jpg"}},
	} {
		if got := paths(t, dir, open(t, dir, c.m)); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.m, got, c.want)
		}
	}
	if got := paths(t, dir, open(t, filepath.Join(dir, "fifo"), Match{})); !slices.Equal(
		got,
		[]string{"fifo INVALID_ARGUMENT"},
	) {
		t.Errorf("a FIFO: %q", got)
	}
	if got := paths(t, dir, open(t, t.TempDir(), Match{})); len(got) != 0 {
		t.Errorf("an empty folder: %q", got)
	}
}

// Names that shells, JSON and terminals trip over come through whole.
func TestOddNamesRoundTrip(t *testing.T) {
	dir := t.TempDir()
	names := []string{
		"new\nline.png",
		"\U0001F600.png",
		"\xff\xfe.png",
		"\xff\xfd.png",
		"-o.png",
		strings.Repeat("x", 251) + ".png",
		"a[1].png",
		"b{0..1}.png",
		`"q".png`,
		" .png",
	}
	for i, n := range names {
		pngFile(t, filepath.Join(dir, n), i)
	}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	for range 2 {
		if _, err := captionInto(t.Context(), t, dir, out, nil); err != nil {
			t.Fatal(err)
		}
	}
	rows, ids := rowsOf(t, out), map[string]bool{}
	for _, n := range names {
		r, ok := rows[filepath.Join(dir, n)+"\x00caption\x00"]
		if !ok || !r.OK() || ids[r.ID] {
			t.Errorf("%q: %+v", n, r)
		}
		ids[r.ID] = true
		if got := paths(t, dir, open(t, filepath.Join(dir, n), Match{})); !slices.Equal(got, []string{n}) {
			t.Errorf("as an argument: %q", got)
		}
	}
	if len(rows) != len(names) {
		t.Errorf("%d rows", len(rows))
	}
	nul := strings.Join(names, "\x00")
	if err := os.Chdir(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chdir("/") })
	if got := paths(t, dir, Names(strings.NewReader(nul), 0, Match{})); !slices.Equal(got, names) {
		t.Errorf("NUL-separated: %q", got)
	}
}

func TestGlobsAndRanges(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"a1.jpg", "a2.jpg", "b.jpg", "x/a3.jpg", "x/y/a4.jpg", "s-08.jpg", "s-09.jpg", "s-11.jpg"} {
		write(t, filepath.Join(dir, f), "x")
	}
	for in, want := range map[string][]string{
		"a?.jpg":           {"a1.jpg", "a2.jpg"},
		"**/a*.jpg":        {"a1.jpg", "a2.jpg", "x/a3.jpg", "x/y/a4.jpg"},
		"{a1,b}.jpg":       {"a1.jpg", "b.jpg"},
		"*/y":              {"x/y/a4.jpg"},
		"s-{08..10}.jpg":   {"s-08.jpg", "s-09.jpg", "s-10.jpg NOT_FOUND"},
		"none*":            {`error: "/none*": no such file, and nothing matches it as a pattern`},
		"none.jpg":         {"none.jpg NOT_FOUND"},
		"a1.jpg/below.jpg": {"a1.jpg/below.jpg NOT_FOUND"},
	} {
		if got := paths(t, dir, open(t, filepath.Join(dir, in), Match{})); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"a{5..1}.tar", "a{0..999999999}b{0..999999999}.tar", ""} {
		if _, err := Open(in, Match{}); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestLists(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"a.jpg", "sub/b.jpg"} {
		write(t, filepath.Join(dir, f), "x")
	}
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"l.jsonl", "{\"file_name\": \"a.jpg\", \"prompt\": \"why?\"}\n\n{\"path\":\"sub\"}\n\"none.jpg\"", []string{"a.jpg ? why?", "sub/b.jpg", "none.jpg NOT_FOUND"}},
		{"m.jsonl", "{\"id\": 1}\n", []string{"m.jsonl#1 INVALID_ARGUMENT"}},
		{"n.jsonl", "{\"path\": \"a.jpg\"}\nnonsense\n\"sub/b.jpg\"", []string{"a.jpg", "n.jsonl#2 INVALID_ARGUMENT", "sub/b.jpg"}},
		{"l.csv", "\uFEFFPrompt,Image\n\"a, \"\"b\"\"\nc\",a.jpg\n,sub/b.jpg\n", []string{"a.jpg ? a, \"b\"\nc", "sub/b.jpg"}},
		{"m.csv", "name\na.jpg\n", []string{"error: /m.csv: the first row has none of the columns path, image, file_name"}},
		{"e.csv", "", nil},
		{"q.csv", "image\n\"" + strings.Repeat("y", maxListLine+70_000), []string{"error: /q.csv: a line longer than 1048576 bytes"}},
		{"q.jsonl", strings.Repeat("y", maxListLine+70_000) + "\n\"a.jpg\"", []string{"q.jsonl#1 INVALID_ARGUMENT", "a.jpg"}},
		{"f.csv", "image\na.jpg\na,b,c\nsub/b.jpg\n", []string{"a.jpg", "f.csv#2 INVALID_ARGUMENT", "sub/b.jpg"}},
		{"x.parquet", "PAR1 no PAR1", []string{"error"}},
	} {
		path := filepath.Join(dir, c.name)
		write(t, path, c.text)
		got := paths(t, dir, open(t, path, Match{}))
		if c.name == "x.parquet" && len(got) == 1 && strings.HasPrefix(got[0], "error: /x.parquet: ") {
			continue
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	got := paths(t, dir, Names(strings.NewReader(dir+"/a.jpg\r\n"+dir+"/sub\n"), '\n', Match{}))
	if !slices.Equal(got, []string{"a.jpg", "sub/b.jpg"}) {
		t.Errorf("names: %q", got)
	}
}

// A listing that waits for standard input ends when the run does.
func TestNamesEndWithTheContext(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for _, err := range Names(r, '\n', Match{})(ctx) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
	if ctx.Err() == nil {
		t.Error("it ended by itself")
	}
}

func tarFile(t testing.TB, path string, zip bool, members map[string]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var w io.Writer = f
	var z *gzip.Writer
	if zip {
		z = gzip.NewWriter(f)
		w = z
	}
	a := tar.NewWriter(w)
	for _, name := range slices.Sorted(mapsKeys(members)) {
		if err := a.WriteHeader(&tar.Header{Name: name, Size: int64(len(members[name])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(a, members[name]); err != nil {
			t.Fatal(err)
		}
	}
	err = a.Close()
	if z != nil {
		err = errors.Join(err, z.Close())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func mapsKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func TestArchives(t *testing.T) {
	dir := t.TempDir()
	members := map[string]string{"000.json": "{}", "000.jpg": "first", "001.jpg": "second", "sub/002.png": "third"}
	for _, name := range []string{"s.tar", "s.tar.gz", "s.tgz"} {
		path := filepath.Join(dir, name)
		tarFile(t, path, strings.HasSuffix(name, "gz"), members)
		got := map[string]string{}
		for it, err := range open(t, path, Match{})(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			b, err := Read(t.Context(), it, 100)
			if err != nil {
				t.Fatal(err)
			}
			got[strings.TrimPrefix(it.Path, path+"/")] = string(b)
		}
		if len(got) != 3 || got["000.jpg"] != "first" || got["001.jpg"] != "second" || got["sub/002.png"] != "third" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "s.tar"), 1536+512); err != nil { // in the second header
		t.Fatal(err)
	}
	if got := paths(t, dir, open(t, filepath.Join(dir, "s.tar"), Match{})); !slices.Equal(
		got,
		[]string{"s.tar/000.jpg", "s.tar READ_FAILED"},
	) &&
		!slices.Equal(got, []string{"s.tar/000.jpg"}) {
		t.Errorf("cut off: %q", got)
	}
}

// A file that is written to while it is read is read again, and is an error if that does not end.
func TestFileThatGrowsWhileItIsRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "grows.png")
	pngFile(t, path, 1)
	it := fileItem(path)
	opened := it.Open
	grow := func() {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = f.WriteString("more")
		f.Close()
	}
	times := 1
	it.Open = func(ctx context.Context) (io.ReadCloser, error) {
		f, err := opened(ctx)
		return growing{f.(*os.File), func() {
			if times--; times >= 0 {
				grow()
			}
		}}, err
	}
	j := &job{item: it}
	if err := j.load(t.Context(), imageAsker{}); err != nil || len(j.data) == 0 {
		t.Errorf("grew once: %v", err)
	}
	times = 100
	var bad *itemError
	if err := j.load(t.Context(), imageAsker{}); !errors.As(err, &bad) || bad.code != codeChanged {
		t.Errorf("grows on: %v", err)
	}
}

// growing is a file that grows after it was opened.
type growing struct {
	*os.File
	grow func()
}

func (g growing) Read(b []byte) (int, error) {
	n, err := g.File.Read(b)
	if n > 0 {
		g.grow()
	}
	return n, err
}

func TestShardsTakeEveryItemOnce(t *testing.T) {
	dir := imageFolder(t, 50)
	var all []string
	for i := range 3 {
		got := paths(t, dir, Shard(Folder(dir, Match{}), i, 3))
		if len(got) < 5 {
			t.Errorf("shard %d has %d", i, len(got))
		}
		all = append(all, got...)
	}
	slices.Sort(all)
	if !slices.Equal(all, paths(t, dir, Folder(dir, Match{}))) {
		t.Errorf("%d in three shards", len(all))
	}
	if got := paths(t, dir, Limit(Folder(dir, Match{}), 7)); len(got) != 7 {
		t.Errorf("limit: %d", len(got))
	}
}

func FuzzListJSONL(f *testing.F) {
	f.Add([]byte(`{"path":"a"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_ = jsonlEntries(strings.NewReader(string(b)), int64(len(b)), func(entry) error { n++; return nil })
		if n > len(b) {
			t.Error(n)
		}
	})
}

func FuzzListCSV(f *testing.F) {
	f.Add([]byte("path,prompt\na,b\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = csvEntries(strings.NewReader(string(b)), int64(len(b)), func(entry) error { return nil })
	})
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"id":"a","question":"q","text":""}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "j.jsonl")
		write(t, path, string(b))
		j, err := OpenJournal(path, false)
		if err != nil {
			return
		}
		r := Row{ID: "new", Question: "q"}
		if err := errors.Join(j.Append(&r, nil), j.Close()); err != nil {
			t.Fatal(err)
		}
		if j, err = OpenJournal(path, false); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if row, err := j.Row("new", "q", ""); err != nil || row == nil {
			t.Errorf("the row is lost: %v", err)
		}
		j.Close()
	})
}
