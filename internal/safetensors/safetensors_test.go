package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/mmserve/mmserve/internal/digest"
)

// file makes a safetensors image from a header and data.
func file(header string, data ...byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

func TestRefusals(t *testing.T) {
	huge := binary.LittleEndian.AppendUint64(nil, 1<<40)
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "truncated"},
		{"length only", binary.LittleEndian.AppendUint64(nil, 10), "truncated: the header says"},
		{"oversized header", huge, "exceeds the limit"},
		{"not json", file("nonsense!"), "not a JSON object"},
		{"array", file(`[1,2]`), "not a JSON object"},
		{"unclosed", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}`, 1), "header"},
		{"unknown dtype", file(`{"a":{"dtype":"F13","shape":[1],"data_offsets":[0,1]}}`, 1), `unknown dtype "F13"`},
		{"truncated data", file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 1, 2, 3, 4), "truncated: tensor \"a\""},
		{"size lies", file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 1, 2, 3, 4), "needs 8 bytes"},
		{"negative shape", file(`{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}`, 1), "impossible shape"},
		{"overflowing shape", file(`{"a":{"dtype":"U8","shape":[2147483647,2147483647,2147483647],"data_offsets":[0,1]}}`, 1), "impossible shape"},
		{"backward offsets", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}`, 1), "data_offsets"},
		{"three offsets", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}`, 1), "data_offsets"},
		{"offsets beyond 63 bits", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551615]}}`, 1), "header"},
		{"offset at the end of 63 bits", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,9223372036854775807]}}`, 1), "truncated"},
		{"negative offsets", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}`, 1), "data_offsets"},
		{"negative length", binary.LittleEndian.AppendUint64(nil, 1<<63), "exceeds the limit"},
		{"same place twice", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "overlaps"},
		{"wraps to its size", file(`{"a":{"dtype":"F32","shape":[1073741825,2147483647,2],"data_offsets":[0,4]}}`, 1, 2, 3, 4), "impossible shape"},
		{"many dimensions", file(`{"a":{"dtype":"U8","shape":[1`+strings.Repeat(",1", 100_000)+`],"data_offsets":[0,1]}}`, 1),
			"100001 dimensions"},
		{"many offsets", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0`+strings.Repeat(",1", 100_000)+`]}}`, 1),
			"100001 data_offsets"},
		{"long name", file(`{"`+strings.Repeat("a", 1_000_000)+`":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "1000000 bytes"},
		{"deep", file(`{"a":`+strings.Repeat(`[`, 100_000)+strings.Repeat(`]`, 100_000)+`}`, 1), "depth"},
		{"two objects", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}{}`, 1), "more behind"},
		{"overlap", file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 1, 2, 3), "overlaps"},
		{"gap", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 1, 2), "belong to no tensor"},
		{"tail", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, 2), "at the end"},
		{"listed twice", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "twice"},
	} {
		if _, err := parse(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestDecode(t *testing.T) {
	bits := func(v ...uint16) (b []byte) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint16(b, x)
		}
		return b
	}
	// IEEE 754 binary16 examples: 1, -2, largest, smallest normal, smallest and largest subnormal, infinity, -0.
	half := Tensor{DType: F16, Shape: []int{8}, Data: bits(0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x03ff, 0x7c00, 0x8000)}
	got, err := half.Floats()
	want := []float32{1, -2, 65504, 6.103515625e-05, 5.9604644775390625e-08, 6.097555160522461e-05, float32(math.Inf(1)),
		0}
	if err != nil || !slices.Equal(got, want) || !math.Signbit(float64(got[7])) {
		t.Errorf("F16: %v %v, want %v", got, err, want)
	}
	bf := Tensor{DType: BF16, Shape: []int{2}, Data: bits(0x3f80, 0xc049)}
	if got, err := bf.Floats(); err != nil || !slices.Equal(got, []float32{1, -3.140625}) {
		t.Errorf("BF16: %v %v", got, err)
	}
	if _, err := (Tensor{DType: I64, Shape: []int{1}, Data: make([]byte, 8)}).Floats(); err == nil {
		t.Error("I64 decoded as floats")
	}
	if err := bf.FloatsInto(make([]float32, 2), 1); err == nil {
		t.Error("read past the end of a tensor")
	}
}

func write(t *testing.T, path string, tensors ...Tensor) {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, tensors); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A sharded checkpoint behind the symbolic links of a Hugging Face cache snapshot.
func TestShardsBehindLinks(t *testing.T) {
	root := t.TempDir()
	blobs, snap := filepath.Join(root, "blobs"), filepath.Join(root, "snapshots", "abc")
	for _, d := range []string{blobs, snap} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a := Tensor{Name: "a", DType: U8, Shape: []int{3}, Data: []byte{1, 2, 3}}
	b := Tensor{Name: "b", DType: F32, Shape: []int{1}, Data: []byte{0, 0, 128, 63}}
	write(t, filepath.Join(blobs, "1"), a)
	write(t, filepath.Join(blobs, "2"), b)
	for name, to := range map[string]string{"model-1.safetensors": "1", "model-2.safetensors": "2"} {
		if err := os.Symlink(filepath.Join("..", "..", "blobs", to), filepath.Join(snap, name)); err != nil {
			t.Fatal(err)
		}
	}
	index := filepath.Join(snap, "model.safetensors.index.json")
	os.WriteFile(index, []byte(`{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}`), 0o600)
	c, err := Open(snap)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("names %v", got)
	}
	tb, _ := c.Tensor("b")
	if tb.File != filepath.Join(blobs, "2") {
		t.Errorf("b lies in %s, want the real file behind the link", tb.File)
	}
	if raw, _ := os.ReadFile(tb.File); !bytes.Equal(raw[tb.Offset:tb.Offset+4], b.Data) {
		t.Error("b's offset does not point at its data")
	}
	if v := tb.Float32View(); v != nil && v[0] != 1 {
		t.Errorf("view %v", v)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	os.WriteFile(index, []byte(`{"weight_map":{"a":"model-1.safetensors","c":"model-2.safetensors"}}`), 0o600)
	if _, err := Open(snap); err == nil || !strings.Contains(err.Error(), `tensor "c" should be in model-2.safetensors`) {
		t.Errorf("index that lies: %v", err)
	}
	os.WriteFile(index, []byte(`{"weight_map":{"a":"../../blobs/1"}}`), 0o600)
	if _, err := Open(snap); err == nil || !strings.Contains(err.Error(), "plain file name") {
		t.Errorf("index that leaves the folder: %v", err)
	}
}

func TestOpenMissing(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNone) {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := OpenFS(fstest.MapFS{"model.safetensors": {Data: []byte{1}}}); err == nil ||
		!strings.Contains(err.Error(), "model.safetensors: truncated") {
		t.Errorf("truncated embedded file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"format":"pt"}}`, 1))
	f.Add(file(`{}`))
	f.Add(file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if err != nil {
			return
		}
		total := 0
		for _, x := range list {
			if int64(len(x.Data)) != int64(x.Elems())*x.DType.Size() {
				t.Errorf("%q: %d bytes for %v %s", x.Name, len(x.Data), x.Shape, x.DType)
			}
			total += len(x.Data)
		}
		// What is accepted and written again must be accepted again with the same content.
		var out bytes.Buffer
		if err := Write(&out, list); err != nil {
			t.Fatal(err)
		}
		again, err := parse(out.Bytes())
		if err != nil || len(again) != len(list) {
			t.Errorf("rewritten file: %d tensors, %v; want %d", len(again), err, len(list))
		}
	})
}

// A digest that an earlier process left is taken, and one is left for the next.
func TestRemember(t *testing.T) {
	store := t.TempDir()
	sum := func() []byte {
		c, err := OpenFile("../../model/tiny-vlm/model.safetensors") // a file that has not just been written
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Remember(digest.Store(store))
		return c.Digest()
	}
	first := sum()
	kept, err := filepath.Glob(filepath.Join(store, "*"))
	if err != nil || len(kept) != 1 {
		t.Fatal(kept, err)
	}
	left := bytes.Repeat([]byte{7}, len(first))
	if err := os.WriteFile(kept[0], []byte(hex.EncodeToString(left)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sum(); !bytes.Equal(got, first) {
		t.Errorf("got %x by an entry that no store wrote, want %x", got, first)
	}
	if err := os.Remove(kept[0]); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("../../model/tiny-vlm/model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stamps := []digest.Stamp{digest.Of(f)}
	if _, err := digest.Store(store).Digest("checkpoint", stamps,
		func() ([]byte, error) { return left, nil }); err != nil {
		t.Fatal(err)
	}
	if got := sum(); !bytes.Equal(got, left) {
		t.Errorf("got %x, left was %x", got, left)
	}
}
