package vision

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	sealed "github.com/mmserve/mmserve/internal/cache"
)

// DiskCache keeps patch embeddings of images in a folder, the least recently used go first. Each is a sealed file:
// one that is damaged, cut or of another key is taken away and counts as a miss. Files are written by a goroutine of
// its own, whole or not at all; where that fails, for want of space say, the image is encoded again next time. Its
// methods may be called from any goroutine.
type DiskCache struct {
	dir    *sealed.Dir
	budget int64
	writes chan *diskWrite
	stop   chan struct{}
	ended  chan struct{}

	mu      sync.Mutex
	entries map[diskName]*list.Element // of *diskEntry
	order   *list.List                 // the most recently used is first
	used    int64
	pending map[diskName]*diskWrite
	queued  int64 // bytes that wait to be written
	closed  bool
	stats   DiskStats
}

// DiskStats counts what a DiskCache did since it was opened.
type DiskStats struct {
	Hits, Misses int64
	// Failures are files that could not be written or read, or were damaged; Dropped what came faster than it was written.
	Failures, Dropped int64
	// Bytes and Entries are what it holds now.
	Bytes   int64
	Entries int
}

// diskName is the name of an entry: the hash of tenant and file, by which it is forgotten, and that of all that its
// content follows from. Names tell neither tenants nor, to those who lack the file, images.
type diskName struct{ file, image [16]byte }

const diskSuffix = ".patches"

func (n diskName) String() string {
	return hex.EncodeToString(n.file[:]) + "-" + hex.EncodeToString(n.image[:]) + diskSuffix
}

// parseDiskName reads a file's name; it is false for files of others.
func parseDiskName(s string) (n diskName, ok bool) {
	s, ok = strings.CutSuffix(s, diskSuffix)
	if file, image, cut := strings.Cut(s, "-"); ok && cut && len(file) == 32 && len(image) == 32 {
		_, err := hex.Decode(n.file[:], []byte(file))
		_, err2 := hex.Decode(n.image[:], []byte(image))
		return n, errors.Join(err, err2) == nil && n.String() == s+diskSuffix
	}
	return n, false
}

type diskEntry struct {
	name diskName
	size int64
}

// diskWrite is a file that waits to be written.
type diskWrite struct {
	name    diskName
	content []byte
	source  [sha256.Size]byte
	unwant  bool          // it was forgotten meanwhile; guarded by DiskCache.mu
	done    chan struct{} // closed when it was written, or taken away again
}

const (
	// diskQueue and diskQueueBytes bound what waits to be written.
	diskQueue, diskQueueBytes = 256, 64 << 20
	// mostDiskFile bounds a file: far more than any image has.
	mostDiskFile = 1 << 30
	// mostDiskFiles bounds what is known of a folder: an entry takes some 200 bytes of memory.
	mostDiskFiles = 8 << 20
	// staleTemporary is how old what another process began to write has to be before it is taken for left behind.
	staleTemporary = time.Hour
)

// OpenDiskCache opens the folder, which it makes if need be, and reads what is there. Budget is the most bytes of all
// its files. Processes may share a folder, whose files then may take more for a time: each counts those that it knows
// of.
func OpenDiskCache(path string, budget int64) (*DiskCache, error) {
	dir, err := sealed.Open(path)
	if err != nil {
		return nil, err
	}
	d := &DiskCache{
		dir: dir, budget: budget, writes: make(chan *diskWrite, diskQueue), stop: make(chan struct{}),
		ended: make(chan struct{}), order: list.New(),
		entries: map[diskName]*list.Element{}, pending: map[diskName]*diskWrite{},
	}
	if err := d.list(); err != nil {
		return nil, errors.Join(fmt.Errorf("cache folder: %w", err), dir.Close())
	}
	go d.work()
	return d, nil
}

// list reads the folder: what is there, the newest first, and what goes as it is too much.
func (d *DiskCache) list() error {
	type found struct {
		diskEntry
		used time.Time
	}
	var all []found
	err := d.dir.Names(func(s string) {
		name, ok := parseDiskName(s)
		if !ok && !strings.Contains(s, diskSuffix+".tmp") {
			return
		}
		info, err := d.dir.Stat(s)
		switch {
		case err != nil: // it went meanwhile
		case !ok && time.Since(info.ModTime()) > staleTemporary:
			_ = d.dir.Remove(s)
		case ok && info.Mode().IsRegular() && len(all) < mostDiskFiles:
			all = append(all, found{diskEntry{name, info.Size()}, info.ModTime()})
		}
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(b.used.UnixNano(), a.used.UnixNano()) })
	for _, f := range all {
		d.entries[f.name] = d.order.PushBack(&f.diskEntry)
		d.used += f.size
	}
	d.evict()
	return nil
}

// diskKey tells what patch embeddings follow from: the model and what it runs in, tenant and image.
type diskKey struct {
	model, digest, file [32]byte
	tenant              string
}

// source is what the file is sealed for.
func (k diskKey) source() [sha256.Size]byte {
	h := sha256.New()
	h.Write(k.model[:])
	h.Write(k.digest[:])
	h.Write(k.file[:])
	h.Write([]byte(k.tenant))
	return [sha256.Size]byte(h.Sum(nil))
}

func (k diskKey) name() (n diskName) {
	n.file = fileName(k.tenant, k.file)
	source := k.source()
	copy(n.image[:], source[:])
	return n
}

// fileName is the part of names that a tenant's file has.
func fileName(tenant string, file [32]byte) (n [16]byte) {
	sum := sha256.Sum256(append(file[:], tenant...))
	copy(n[:], sum[:])
	return n
}

// get reads the patch embeddings of an image; nil if they are not there.
func (d *DiskCache) get(k diskKey) []float32 {
	name := k.name()
	d.mu.Lock()
	at, ok := d.entries[name]
	if ok {
		d.order.MoveToFront(at)
	} else {
		d.stats.Misses++
	}
	d.mu.Unlock()
	if !ok {
		return nil
	}
	patches, err := d.read(name, k.source())
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.stats.Misses++
		if !errors.Is(err, os.ErrNotExist) {
			d.stats.Failures++
		}
		d.remove(name) // another may come in its place
		return nil
	}
	if d.entries[name] == nil { // it was forgotten while it was read
		clear(patches)
		d.stats.Misses++
		return nil
	}
	d.stats.Hits++
	return patches
}

func (d *DiskCache) read(name diskName, source [sha256.Size]byte) ([]float32, error) {
	f, err := d.dir.File(name.String())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := st.Size() - int64(sealed.SealSize)
	if n < 4 || n%4 != 0 || n > min(mostDiskFile, d.budget) {
		return nil, sealed.ErrSeal
	}
	raw := make([]byte, st.Size())
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, err
	}
	seal, content := raw[:sealed.SealSize], raw[sealed.SealSize:]
	if err := sealed.Check(seal, content, source); err != nil {
		return nil, err
	}
	_ = d.dir.Touch(name.String()) // the order of use outlives the process where it can
	patches := make([]float32, len(content)/4)
	for i := range patches {
		patches[i] = math.Float32frombits(binary.LittleEndian.Uint32(content[4*i:]))
	}
	clear(raw)
	return patches, nil
}

// put has patch embeddings written some time. It copies them.
func (d *DiskCache) put(k diskKey, patches []float32) {
	size := int64(len(patches))*4 + int64(sealed.SealSize)
	w := &diskWrite{name: k.name(), source: k.source(), done: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed || len(patches) == 0 || size > min(mostDiskFile, d.budget):
		return
	case d.entries[w.name] != nil || d.pending[w.name] != nil:
		return
	case d.queued+size > diskQueueBytes || len(d.pending) >= diskQueue:
		d.stats.Dropped++
		return
	}
	w.content = make([]byte, 0, len(patches)*4)
	for _, x := range patches {
		w.content = binary.LittleEndian.AppendUint32(w.content, math.Float32bits(x))
	}
	d.queued += size
	d.pending[w.name] = w
	d.writes <- w // there is room: no more are pending
}

// work writes files until the cache is closed and all are written.
func (d *DiskCache) work() {
	defer close(d.ended)
	for {
		select {
		case w := <-d.writes:
			d.write(w)
		case <-d.stop:
			for len(d.writes) > 0 {
				d.write(<-d.writes)
			}
			return
		}
	}
}

func (d *DiskCache) write(w *diskWrite) {
	size := int64(len(w.content) + sealed.SealSize)
	d.mu.Lock()
	unwanted := w.unwant
	d.mu.Unlock()
	var err error
	if !unwanted {
		err = d.dir.Write(w.name.String(), func(f *os.File) error {
			_, err := f.Write(sealed.Seal(w.content, w.source))
			if err == nil {
				_, err = f.Write(w.content)
			}
			return err
		})
	}
	clear(w.content)
	defer close(w.done)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pending, w.name)
	d.queued -= size
	switch {
	case err != nil:
		d.stats.Failures++
	case unwanted:
	default:
		d.entries[w.name] = d.order.PushFront(&diskEntry{w.name, size})
		d.used += size
		if w.unwant { // it was forgotten while it was written
			d.erase(w.name)
		}
		d.evict()
	}
}

// evict removes the least recently used until the rest fits. d.mu is held.
func (d *DiskCache) evict() {
	for d.used > d.budget {
		d.remove(d.order.Back().Value.(*diskEntry).name)
	}
}

// remove takes an entry out, and its file away. d.mu is held.
func (d *DiskCache) remove(name diskName) {
	if at := d.entries[name]; at != nil {
		d.used -= at.Value.(*diskEntry).size
		d.order.Remove(at)
		delete(d.entries, name)
	}
	if err := d.dir.Remove(name.String()); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.stats.Failures++
	}
}

// erase is remove after the file was overwritten. d.mu is held.
func (d *DiskCache) erase(name diskName) {
	if err := d.dir.Overwrite(name.String()); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.stats.Failures++
	}
	d.remove(name)
}

// discard is Forget for one image.
func (d *DiskCache) discard(k diskKey) {
	name := k.name()
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.pending[name]; w != nil {
		w.unwant = true
	}
	if d.entries[name] != nil {
		d.erase(name)
	}
}

// Forget overwrites and removes what there is of a tenant's file, of whatever model, those that other processes wrote
// included. It reads the whole folder, and waits for what is being written.
func (d *DiskCache) Forget(tenant string, file [32]byte) {
	want := fileName(tenant, file)
	var writes []*diskWrite
	d.mu.Lock()
	for name, w := range d.pending {
		if name.file == want {
			w.unwant = true
			writes = append(writes, w)
		}
	}
	d.mu.Unlock()
	for _, w := range writes {
		<-w.done
	}
	var there []diskName
	err := d.dir.Names(func(s string) {
		if name, ok := parseDiskName(s); ok && name.file == want {
			there = append(there, name)
		}
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.stats.Failures++
	}
	for _, name := range there {
		d.erase(name)
	}
}

// Stats is safe to call at any time.
func (d *DiskCache) Stats() DiskStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.Bytes, s.Entries = d.used, len(d.entries)
	return s
}

// Close writes what waits, and lets go of the folder. It is called once; what comes later is not kept.
func (d *DiskCache) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	close(d.stop)
	<-d.ended
	return d.dir.Close()
}
