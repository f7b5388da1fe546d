// Package safetensors indexes the tensors of a Hugging Face checkpoint: name → file, offset, dtype, shape.
// It maps the files and never copies weights; a graph names them in place as external data.
//
// Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
package safetensors

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"unsafe"

	"github.com/mmserve/mmserve/internal/digest"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/x448/float16"
)

// ErrNone says that a folder holds no safetensors checkpoint at all.
var ErrNone = errors.New("no model.safetensors or model.safetensors.index.json")

// maxHeader is the header limit of the reference implementation (100 MB).
const maxHeader = 100_000_000

// What an entry of the header may have; released checkpoints have names of some 100 bytes and 6 dimensions.
const (
	maxName = 1024
	maxRank = 32
)

// DType is an element type as the header spells it.
type DType string

// The element types a checkpoint may hold. Weights are F32, F16 or BF16; the others occur in files of gold values and
// in quantised checkpoints.
const (
	F32  DType = "F32"
	F16  DType = "F16"
	BF16 DType = "BF16"
	F64  DType = "F64"
	I64  DType = "I64"
	I32  DType = "I32"
	I16  DType = "I16"
	I8   DType = "I8"
	U8   DType = "U8"
	BOOL DType = "BOOL"
	U64  DType = "U64"
	U32  DType = "U32"
	U16  DType = "U16"
	E4M3 DType = "F8_E4M3"
	E5M2 DType = "F8_E5M2"
	E8M0 DType = "F8_E8M0"
)

// Size is the width of one element in bytes, 0 for an unknown type.
func (d DType) Size() int64 {
	switch d {
	case F64, I64, U64:
		return 8
	case F32, I32, U32:
		return 4
	case F16, BF16, I16, U16:
		return 2
	case I8, U8, BOOL, E4M3, E5M2, E8M0:
		return 1
	}
	return 0
}

// Tensor is one entry of the index.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	// File is the real path (links resolved) of the file that holds the data, "" when the data is in memory only.
	File string
	// Offset is where the data starts, in bytes from the start of File.
	Offset int64
	// Data is the mapped data, little-endian, row-major. It is valid until the checkpoint is closed.
	Data []byte
}

// Elems is the number of elements.
func (t Tensor) Elems() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Floats decodes the tensor to float32.
func (t Tensor) Floats() ([]float32, error) {
	out := make([]float32, t.Elems())
	if err := t.FloatsInto(out, 0); err != nil {
		return nil, err
	}
	return out, nil
}

// FloatsInto decodes len(dst) elements, starting with element from, to float32.
func (t Tensor) FloatsInto(dst []float32, from int) error {
	size := t.DType.Size()
	if lo, hi := int64(from)*size, int64(from+len(dst))*size; lo < 0 || hi > int64(len(t.Data)) {
		return fmt.Errorf("tensor %q: elements %d to %d are outside its %d", t.Name, from, from+len(dst), t.Elems())
	}
	b := t.Data[int64(from)*size:]
	switch t.DType {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		}
	case BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
		}
	case F16:
		for i := range dst {
			dst[i] = float16.Frombits(binary.LittleEndian.Uint16(b[2*i:])).Float32()
		}
	default:
		return fmt.Errorf("tensor %q is %s, want F32, F16 or BF16", t.Name, t.DType)
	}
	return nil
}

// Ints decodes an I64 or I32 tensor.
func (t Tensor) Ints() ([]int64, error) {
	out := make([]int64, t.Elems())
	for i := range out {
		switch t.DType {
		case I64:
			out[i] = int64(binary.LittleEndian.Uint64(t.Data[8*i:]))
		case I32:
			out[i] = int64(int32(binary.LittleEndian.Uint32(t.Data[4*i:])))
		default:
			return nil, fmt.Errorf("tensor %q is %s, want I64 or I32", t.Name, t.DType)
		}
	}
	return out, nil
}

// Checkpoint is an opened set of safetensors files. It is read-only and safe for concurrent use.
type Checkpoint struct {
	tensors map[string]Tensor
	names   []string
	maps    [][]byte
	stamps  []digest.Stamp // of the mapped files
	digests digest.Store
	digest  func() []byte
}

// Open indexes the checkpoint in dir: model.safetensors, or model.safetensors.index.json with its shards.
// Symbolic links (a Hugging Face cache snapshot) are followed.
func Open(dir string) (*Checkpoint, error) {
	c := &Checkpoint{tensors: map[string]Tensor{}}
	files, owner, err := shards(folder.Dir(dir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	for _, name := range files {
		if err := c.openFile(filepath.Join(dir, filepath.FromSlash(name)), name); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c.finish(owner)
}

// OpenFile indexes one safetensors file.
func OpenFile(file string) (*Checkpoint, error) {
	c := &Checkpoint{tensors: map[string]Tensor{}}
	if err := c.openFile(file, filepath.Base(file)); err != nil {
		c.Close()
		return nil, err
	}
	return c.finish(nil)
}

// OpenHandle indexes the safetensors file that is open, whose name is its absolute path. It maps the file and leaves f
// open.
func OpenHandle(f *os.File) (*Checkpoint, error) {
	c := &Checkpoint{tensors: map[string]Tensor{}}
	data, stamp, err := mapHandle(f)
	if err == nil {
		c.maps, c.stamps = append(c.maps, data), append(c.stamps, stamp)
		err = c.add(filepath.Base(f.Name()), f.Name(), data)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c.finish(nil)
}

// Before is all that lies before a tensor's data in a checkpoint of one file, the header included. ok is false where
// anything lies behind it.
func (c *Checkpoint) Before(t Tensor) (content []byte, ok bool) {
	if len(c.maps) != 1 || t.Offset+int64(len(t.Data)) != int64(len(c.maps[0])) {
		return nil, false
	}
	return c.maps[0][:t.Offset:t.Offset], true
}

// OpenFS indexes the checkpoint at the root of fsys, reading the files into memory. It is for embedded models.
func OpenFS(fsys fs.FS) (*Checkpoint, error) {
	c := &Checkpoint{tensors: map[string]Tensor{}}
	files, owner, err := shards(fsys)
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		if err := c.add(name, "", data); err != nil {
			return nil, err
		}
	}
	return c.finish(owner)
}

func (c *Checkpoint) openFile(file, shown string) error {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	if real, err = filepath.Abs(real); err != nil {
		return err
	}
	data, stamp, err := mapFile(real)
	if err != nil {
		return err
	}
	c.maps, c.stamps = append(c.maps, data), append(c.stamps, stamp)
	return c.add(shown, real, data)
}

// Close unmaps the files. Every Tensor's Data is invalid from then on.
func (c *Checkpoint) Close() error {
	var err error
	for _, m := range c.maps {
		err = errors.Join(err, unmap(m))
	}
	c.maps, c.tensors, c.names = nil, nil, nil
	return err
}

// Tensor looks a tensor up by its full name.
func (c *Checkpoint) Tensor(name string) (Tensor, bool) {
	t, ok := c.tensors[name]
	return t, ok
}

// Names lists all tensors, sorted.
func (c *Checkpoint) Names() []string { return c.names }

// Bytes is the size of all tensor data.
func (c *Checkpoint) Bytes() int64 {
	var n int64
	for _, t := range c.tensors {
		n += int64(len(t.Data))
	}
	return n
}

// Remember has Digest take what an earlier process left in the store for the same files. It must come before the first
// Digest.
func (c *Checkpoint) Remember(s digest.Store) { c.digests = s }

// Digest identifies the checkpoint's content: the SHA-256 of every tensor's name, type, shape and data, in order of
// their names. It reads all data, once.
func (c *Checkpoint) Digest() []byte { return c.digest() }

func (c *Checkpoint) hash() []byte {
	sums := make([][32]byte, len(c.names))
	var wg sync.WaitGroup
	limit := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, name := range c.names {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			t := c.tensors[name]
			h := sha256.New()
			fmt.Fprintf(h, "%s %s %v\n", t.Name, t.DType, t.Shape)
			h.Write(t.Data)
			h.Sum(sums[i][:0])
			t.Forget()
		})
	}
	wg.Wait()
	h := sha256.New()
	for _, s := range sums {
		h.Write(s[:])
	}
	return h.Sum(nil)
}

// The names of a checkpoint's files. Where both are there the first is read and the other is not.
const (
	Single = "model.safetensors"
	Index  = "model.safetensors.index.json"
)

// shards lists the files to read and, when they come from an index, which file each tensor must be in.
// Reference: transformers 5.12.1 _get_resolved_checkpoint_files.
func shards(fsys fs.FS) (files []string, owner map[string]string, err error) {
	const index = Index
	if _, err := fs.Stat(fsys, Single); err == nil {
		return []string{Single}, nil, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	raw, err := folder.Read(fsys, index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, ErrNone
	}
	if err != nil {
		return nil, nil, err
	}
	var ix struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &ix); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", index, err)
	}
	if len(ix.WeightMap) == 0 {
		return nil, nil, fmt.Errorf("%s: weight_map is missing or empty", index)
	}
	for name, f := range ix.WeightMap {
		if !fs.ValidPath(f) || path.Base(f) != f {
			return nil, nil, fmt.Errorf("%s: tensor %q names the file %q, want a plain file name", index, name, f)
		}
		files = append(files, f)
	}
	slices.Sort(files)
	files = slices.Compact(files)
	var missing []string
	for _, f := range files {
		if _, err := fs.Stat(fsys, f); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		const most = 5
		list := strings.Join(missing[:min(len(missing), most)], ", ")
		if n := len(missing) - most; n > 0 {
			list += fmt.Sprintf(" and %d more", n)
		}
		return nil, nil, fmt.Errorf("%s names files that are missing: %s; download the rest of the model", index, list)
	}
	return files, ix.WeightMap, nil
}

func (c *Checkpoint) finish(owner map[string]string) (*Checkpoint, error) {
	for name, f := range owner {
		if _, ok := c.tensors[name]; !ok {
			c.Close()
			return nil, fmt.Errorf("model.safetensors.index.json: tensor %q should be in %s but is not there", name, f)
		}
	}
	for name := range c.tensors {
		c.names = append(c.names, name)
	}
	sort.Strings(c.names)
	c.digest = sync.OnceValue(func() []byte {
		sum, _ := c.digests.Digest("checkpoint", c.stamps, func() ([]byte, error) { return c.hash(), nil })
		return sum
	})
	return c, nil
}

// add parses the header of one file and indexes its tensors.
func (c *Checkpoint) add(shown, real string, data []byte) error {
	list, err := parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", shown, err)
	}
	for _, t := range list {
		if _, dup := c.tensors[t.Name]; dup {
			return fmt.Errorf("%s: tensor %q is in two files", shown, t.Name)
		}
		t.File = real
		c.tensors[t.Name] = t
	}
	return nil
}

// parse checks a whole file image: the header must describe the data area exactly, without gaps or overlaps.
func parse(data []byte) ([]Tensor, error) {
	if err := folder.CheckContent(data); err != nil {
		return nil, err
	}
	if len(data) < 8 {
		return nil, fmt.Errorf("truncated: %d bytes, want at least the 8 of the header length", len(data))
	}
	n := binary.LittleEndian.Uint64(data)
	if n > maxHeader {
		return nil, fmt.Errorf("header length %d exceeds the limit of %d", n, maxHeader)
	}
	if n > uint64(len(data)-8) {
		return nil, fmt.Errorf("truncated: the header says it is %d bytes long, the file holds %d after the length", n, len(data)-8)
	}
	base := 8 + int64(n)
	body := data[base:]
	dec := json.NewDecoder(bytes.NewReader(data[8:base]))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("the header is not a JSON object")
	}
	var list []Tensor
	seen := map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		name := key.(string)
		if len(name) > maxName {
			return nil, fmt.Errorf("header: a tensor's name has %d bytes, want at most %d", len(name), maxName)
		}
		if seen[name] {
			return nil, fmt.Errorf("header: tensor %q is listed twice", name)
		}
		seen[name] = true
		if name == "__metadata__" {
			var meta map[string]string
			if err := dec.Decode(&meta); err != nil {
				return nil, fmt.Errorf("header: __metadata__: %w", err)
			}
			continue
		}
		var e struct {
			DType   DType   `json:"dtype"`
			Shape   []int64 `json:"shape"`
			Offsets []int64 `json:"data_offsets"`
		}
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("header: tensor %q: %w", name, err)
		}
		t, err := checkEntry(name, e.DType, e.Shape, e.Offsets, body)
		if err != nil {
			return nil, err
		}
		t.Offset = base + e.Offsets[0]
		list = append(list, t)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("header: there is more behind the JSON object")
	}
	return list, checkLayout(list, base, int64(len(data)))
}

func checkEntry(name string, dt DType, shape, off []int64, body []byte) (Tensor, error) {
	if dt.Size() == 0 {
		return Tensor{}, fmt.Errorf("header: tensor %q has the unknown dtype %.40q", name, dt)
	}
	if len(shape) > maxRank || len(off) > 2 {
		return Tensor{}, fmt.Errorf("header: tensor %q has %d dimensions and %d data_offsets, want at most %d and 2", name, len(shape), len(off), maxRank)
	}
	if len(off) != 2 || off[0] < 0 || off[1] < off[0] {
		return Tensor{}, fmt.Errorf("header: tensor %q has data_offsets %v, want [begin, end] with 0 ≤ begin ≤ end", name, off)
	}
	if off[1] > int64(len(body)) {
		return Tensor{}, fmt.Errorf("truncated: tensor %q ends at byte %d of the data, the file holds %d", name, off[1], len(body))
	}
	t := Tensor{Name: name, DType: dt, Shape: make([]int, len(shape))}
	want := dt.Size()
	for i, d := range shape {
		if d < 0 || d > math.MaxInt32 || (d > 0 && want > math.MaxInt64/d) {
			return Tensor{}, fmt.Errorf("header: tensor %q has the impossible shape %v", name, shape)
		}
		t.Shape[i] = int(d)
		want *= d
	}
	if got := off[1] - off[0]; got != want {
		return Tensor{}, fmt.Errorf("header: tensor %q of shape %v %s needs %d bytes, its data_offsets give %d", name, shape, dt, want, got)
	}
	t.Data = body[off[0]:off[1]:off[1]]
	return t, nil
}

// checkLayout refuses overlaps and gaps, as the reference implementation does.
func checkLayout(list []Tensor, base, end int64) error {
	byOffset := slices.Clone(list)
	slices.SortFunc(byOffset, func(a, b Tensor) int {
		if a.Offset != b.Offset {
			return int(min(1, max(-1, a.Offset-b.Offset)))
		}
		return len(a.Data) - len(b.Data)
	})
	at := base
	for _, t := range byOffset {
		switch {
		case t.Offset < at:
			return fmt.Errorf("header: tensor %q overlaps the one before it", t.Name)
		case t.Offset > at:
			return fmt.Errorf("header: %d bytes before tensor %q belong to no tensor", t.Offset-at, t.Name)
		}
		at = t.Offset + int64(len(t.Data))
	}
	if at != end {
		return fmt.Errorf("header: %d bytes at the end of the file belong to no tensor", end-at)
	}
	return nil
}

// Forget lets the kernel take back the pages of a mapped tensor: they no longer count as this process's memory, and
// come back from the file when they are read again. It is for data that was read once.
func (t Tensor) Forget() {
	if t.File != "" {
		forget(t.Data)
	}
}

// Float32View returns the data of an F32 tensor without a copy, or nil when it is misaligned or of another type.
func (t Tensor) Float32View() []float32 {
	if t.DType != F32 || len(t.Data) == 0 || uintptr(unsafe.Pointer(&t.Data[0]))%4 != 0 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&t.Data[0])), t.Elems())
}

// alignment is where Write puts the first tensor's data, in bytes: a cache line, for those who map the file.
const alignment = 64

// Write writes tensors as one safetensors file, in the order given. Offset and File are ignored.
func Write(w io.Writer, tensors []Tensor) error {
	header := []byte{'{'}
	var at int64
	for i, t := range tensors {
		entry, err := json.Marshal(struct {
			DType   DType    `json:"dtype"`
			Shape   []int    `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}{t.DType, append([]int{}, t.Shape...), [2]int64{at, at + int64(len(t.Data))}})
		if err != nil {
			return err
		}
		name, err := json.Marshal(t.Name)
		if err != nil {
			return err
		}
		if i > 0 {
			header = append(header, ',')
		}
		header = append(append(append(header, name...), ':'), entry...)
		at += int64(len(t.Data))
	}
	header = append(header, '}')
	for (8+len(header))%alignment != 0 {
		header = append(header, ' ')
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))); err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, t := range tensors {
		if _, err := w.Write(t.Data); err != nil {
			return err
		}
	}
	return nil
}
