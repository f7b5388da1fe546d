package caption

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/memblob"
)

func toStore(
	ctx context.Context,
	t *testing.T,
	source Source,
	out string,
	shard, shards int,
	change func(*Options),
) error {
	t.Helper()
	c := testConfig()
	target, err := OpenTarget(context.WithoutCancel(ctx), Begin{Out: out, Config: &c, Shard: shard, Shards: shards})
	if err != nil {
		return err
	}
	o := Options{Source: source, Config: c, Server: &hashServer{}, Output: target, InFlight: 4}
	if change != nil {
		change(&o)
	}
	err = Run(ctx, o, &Stats{})
	return errors.Join(err, target.Close(err == nil))
}

// committed reads what manifests name; a row that stands twice is an error.
func committed(t *testing.T, dir string) map[string]Row {
	t.Helper()
	var all bytes.Buffer
	manifests, _ := filepath.Glob(filepath.Join(dir, "shard-*", "part-*.json"))
	for _, m := range manifests {
		text, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(string(text), `"object":"`)
		name, _, _ = strings.Cut(name, `"`)
		rows, err := os.ReadFile(filepath.Join(filepath.Dir(m), name))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(rows)
	}
	path := filepath.Join(t.TempDir(), "all.jsonl")
	if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return rowsOf(t, path)
}

func TestStoreAcrossWorkersAndCuts(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	for i := range 60 {
		pngFile(t, filepath.Join(in, fmt.Sprintf("i%03d.png", i)), i)
	}
	tarred := map[string]string{}
	for i := range 5 {
		pngFile(t, filepath.Join(in, "x.png"), 1000+i)
		b, err := os.ReadFile(filepath.Join(in, "x.png"))
		if err != nil {
			t.Fatal(err)
		}
		tarred[fmt.Sprintf("m%d.png", i)] = string(b)
	}
	os.Remove(filepath.Join(in, "x.png"))
	tarFile(t, filepath.Join(in, "s.tar"), false, tarred)
	write(t, filepath.Join(in, "notes.txt"), "x")
	source, prefix := open(t, "file://"+in+"/", Match{}), "file://"+out+"/"
	for shard := range 3 {
		for cut := 1; ; cut++ {
			ctx, cancel := context.WithCancel(t.Context())
			n := 4
			err := toStore(ctx, t, Shard(source, shard, 3), prefix, shard, 3, func(o *Options) {
				o.Written = func(*Row, []byte) {
					if n--; n == 0 {
						cancel()
					}
				}
			})
			cancel()
			if err == nil {
				break
			}
			if cut > 20 {
				t.Fatal(err)
			}
		}
	}
	rows := committed(t, out)
	if len(rows) != 65 {
		t.Errorf("%d rows", len(rows))
	}
	for _, r := range rows {
		if !r.OK() || !strings.HasPrefix(r.ID, "file://"+in+"/") {
			t.Errorf("%+v", r)
		}
	}
	c := testConfig()
	c.MaxTokens = 99
	var differ *ConfigError
	if _, err := OpenTarget(t.Context(), Begin{Out: prefix, Config: &c, Shards: 3}); !errors.As(err, &differ) {
		t.Errorf("another configuration: %v", err)
	}
	if err := CheckTarget("s3://bucket/name?x=/"); err == nil {
		t.Error("no prefix, and taken")
	}
}

// Of two workers with one shard, only one commits a part; the other stops, and its next run goes on.
func TestStorePartIsCommittedOnce(t *testing.T) {
	dir, out := imageFolder(t, 10), t.TempDir()
	prefix := "file://" + out + "/"
	inner := error(nil)
	once := false
	err := toStore(t.Context(), t, Folder(dir, Match{}), prefix, 0, 1, func(o *Options) {
		o.Written = func(*Row, []byte) {
			if !once { // while this worker is at work, another one does all of it
				once = true
				inner = toStore(t.Context(), t, Folder(dir, Match{}), prefix, 0, 1, nil)
			}
		}
		o.Server = &hashServer{delay: 20 * time.Millisecond} // seconds differ, so that the parts do
	})
	if inner != nil || !errors.Is(err, ErrOvertaken) {
		t.Errorf("the other: %v, this: %v", inner, err)
	}
	if err := toStore(t.Context(), t, Folder(dir, Match{}), prefix, 0, 1, nil); err != nil {
		t.Error(err)
	}
	if rows := committed(t, out); len(rows) != 10 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestPutOnce(t *testing.T) {
	l := &Location{Bucket: memblob.OpenBucket(nil)}
	defer l.Close()
	for i, c := range []struct {
		data string
		want error
	}{{"a", nil}, {"a", nil}, {"b", errThere}} {
		if err := putOnce(t.Context(), l, "k", []byte(c.data)); !errors.Is(err, c.want) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// Of many that put the same name in a folder at once, one succeeds.
func TestLinkOnceAmongMany(t *testing.T) {
	dir := t.TempDir()
	for round := range 20 {
		var won atomic.Int64
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				err := linkOnce(filepath.Join(dir, fmt.Sprint(round)), fmt.Appendf(nil, "%d", i))
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, os.ErrExist) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Errorf("%d succeeded", won.Load())
		}
	}
}

func TestObjectReader(t *testing.T) {
	l := &Location{Bucket: memblob.OpenBucket(nil), Name: "mem://"}
	defer l.Close()
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	if err := l.WriteAll(t.Context(), "k.png", data, nil); err != nil {
		t.Fatal(err)
	}
	// A connection that breaks off is taken up where it broke.
	r := l.open(t.Context(), "k.png", 1<<20).(*objectReader)
	var got []byte
	buf := make([]byte, 777)
	for {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
		if r.r != nil && len(got)%5 == 0 {
			r.r.Close()
			r.r = nil
		}
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d", len(got), len(data))
	}
	var bad *itemError
	if _, err := readLimited(l.open(t.Context(), "k.png", 100), nil, 100); !errors.Is(err, errTooLong) {
		t.Errorf("too long: %v", err)
	}
	if _, err := readLimited(l.open(t.Context(), "none", 100), nil, 100); !errors.As(err, &bad) ||
		bad.code != codeNotFound {
		t.Errorf("none: %v", err)
	}
	if err := l.WriteAll(t.Context(), "empty", nil, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := readLimited(l.open(t.Context(), "empty", 100), nil, 100); len(b) != 0 || err != nil {
		t.Errorf("empty: %q, %v", b, err)
	}
}

func TestStoreNames(t *testing.T) {
	in := t.TempDir()
	pngFile(t, filepath.Join(in, "a b.png"), 1)
	if got := paths(t, "file://"+in, Store("file://"+in+"/a b.png", Match{})); !slices.Equal(got, []string{"a b.png"}) {
		t.Errorf("one: %q", got)
	}
	if got := paths(t, "file://"+in, Store("file://"+in+"/none.png", Match{})); !slices.Equal(
		got,
		[]string{"none.png NOT_FOUND"},
	) {
		t.Errorf("none: %q", got)
	}
	if got := paths(t, "", Store("s3://b/x/", Match{})); len(got) != 1 || !strings.HasPrefix(got[0], "error: ") {
		t.Errorf("a scheme without a driver: %q", got)
	}
}
