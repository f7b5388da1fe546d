// Package audit keeps a log of who did what, when and how it was decided: JSON lines that are only ever added, each
// with a hash over itself and the hash of the line before, and signed heads that say how far the log reached. Whoever
// edits, removes, reorders or cuts lines is found by Verify. Content is never in it: of requests and answers it has
// keyed digests, by which Replay knows them again.
package audit

import (
	"cmp"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say where a log is and how it is kept. A zero field takes its default.
type Options struct {
	// Path is the file that lines are added to. Older files have its name and the number of their first line.
	Path string
	// Heads is the file of signed heads. Default: Path and ".heads".
	Heads string
	// Keys sign heads. Their public key is kept in Path and ".pub".
	Keys *Keys
	// MaxBytes is the size of a file, after which another one is begun. Default: 256 MiB.
	MaxBytes int64
	// Keep is how long files are kept after their last line. Default: for good.
	Keep time.Duration
	// HeadLines and HeadTime are after how many lines, and how long after a line, a head is signed. Defaults: 1000, 1 min.
	HeadLines int
	HeadTime  time.Duration
	// Program is what writes, for the first line of each file.
	Program string
	// Logger is told of what was repaired or could not be written, and of each head. Default: slog.Default.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Heads = cmp.Or(o.Heads, o.Path+".heads")
	o.MaxBytes = cmp.Or(o.MaxBytes, 256<<20)
	o.HeadLines = cmp.Or(o.HeadLines, 1000)
	o.HeadTime = cmp.Or(o.HeadTime, time.Minute)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return o
}

// ErrNotWritten says that an event is not in the log.
var ErrNotWritten = errors.New("the audit log cannot be written")

// Log adds events to the log. Its methods may be called concurrently. One process has a log open.
type Log struct {
	options Options
	keys    *Keys

	mu     sync.Mutex
	file   output
	size   int64 // of the file's whole lines
	first  uint64
	seq    uint64 // of the last line
	hash   sum    // of the last line
	torn   bool   // the file has bytes after its last line
	lost   uint64 // events since the last line
	total  uint64 // events that were lost, ever
	closed bool

	syncing sync.Mutex // before mu
	synced  uint64     // guarded by syncing
	heads   *headFile  // guarded by syncing

	due  chan struct{} // has room for one note: a head is due
	stop chan struct{}
	done chan struct{}
}

// output is the file of a log.
type output interface {
	Write(p []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// Open opens a log to add to it, and makes it where there is none. What a killed process left of a last line is cut
// off, and a line says so. A log that ends before its last signed head is refused: it was cut.
func Open(o Options) (_ *Log, err error) {
	o = o.withDefaults()
	if err := o.Keys.keepPublic(o.Path + ".pub"); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	l := &Log{
		options: o, keys: o.Keys, due: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	torn, err := l.open()
	if err != nil {
		return nil, fmt.Errorf("audit log %s: %w", o.Path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.file.Close())
		}
	}()
	if l.heads, err = openHeads(o.Heads); err != nil {
		return nil, err
	}
	if h := l.heads.last; h != nil && h.Seq > l.seq {
		return nil, fmt.Errorf("audit log %s: it ends at line %d, and a head was signed of line %d: lines were cut off; "+
			"keep both files for whoever looks into it, and begin another log", o.Path, l.seq, h.Seq)
	}
	if torn > 0 {
		o.Logger.Warn("audit: the last line was torn and is cut off", "file", o.Path, "bytes", torn)
		err = l.Record(&Event{Kind: kindRepair, Details: map[string]int64{"bytes": torn}})
	}
	if err == nil {
		err = l.Record(&Event{Kind: kindStart, Object: o.Program})
	}
	if err == nil {
		err = l.SignHead()
	}
	if err != nil {
		return nil, errors.Join(err, l.heads.file.Close())
	}
	go l.sign()
	return l, nil
}

// open opens the newest file, or begins the first, and finds where the chain is. torn is what was cut off.
func (l *Log) open() (torn int64, err error) {
	path := l.options.Path
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := lock(f); err != nil {
		return 0, err
	}
	l.file = f
	last, torn, err := repairEnd(f, maxLine)
	if err != nil {
		return 0, err
	}
	if last == nil { // new, or its process was killed between two files
		old, err := olderFiles(path)
		if err != nil {
			return 0, err
		}
		if len(old) > 0 {
			last, err = lastLine(old[len(old)-1].path)
			if err != nil {
				return 0, err
			}
			if err := l.resume(last); err != nil {
				return 0, err
			}
		}
		return torn, l.begin()
	}
	if err := l.resume(last); err != nil {
		return 0, err
	}
	if l.first, err = firstSeq(path); err != nil {
		return 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	l.size = st.Size()
	return torn, nil
}

// resume has the chain go on after a line.
func (l *Log) resume(line []byte) error {
	_, seq, s, ok := split(line)
	if !ok {
		return errors.New("its last line is none of an audit log; keep it for whoever looks into it, and begin another log")
	}
	l.seq, l.hash = seq, s
	return nil
}

// lock keeps other processes from the file until it is closed.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("another process has it open")
	}
	return err
}

// begin writes the first line of the file, which is empty.
func (l *Log) begin() error {
	l.size, l.first = 0, l.seq+1
	return l.write(&Event{Kind: kindFile, file: &fileHeader{
		Version: version, Prev: l.hash.String(), Key: l.keys.Public(), Program: l.options.Program,
	}})
}

// Record adds an event, which is then safe from the end of the process, but not from that of the machine. An error is
// ErrNotWritten; the next event that is written says how many were lost.
func (l *Log) Record(e *Event) error {
	_, err := l.record(e)
	return err
}

// RecordSync is Record, and has the event on disk.
func (l *Log) RecordSync(e *Event) error {
	seq, err := l.record(e)
	if err != nil {
		return err
	}
	l.syncing.Lock()
	defer l.syncing.Unlock()
	return l.sync(seq)
}

func (l *Log) record(e *Event) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := errors.New("it is closed")
	if !l.closed {
		err = l.add(e)
	}
	if err != nil {
		if l.lost == 0 {
			l.options.Logger.Error("audit: events are not written", "file", l.options.Path, "error", err)
		}
		l.lost++
		l.total++
		return 0, fmt.Errorf("%w: %w", ErrNotWritten, err)
	}
	return l.seq, nil
}

// add writes an event into the file that it belongs in. l.mu is held.
func (l *Log) add(e *Event) error {
	if l.size >= l.options.MaxBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.lost > 0 {
		e.Lost = l.lost
	}
	if err := l.write(e); err != nil {
		return err
	}
	if l.lost > 0 {
		l.options.Logger.Warn("audit: events are written again", "file", l.options.Path, "lost", l.lost)
		l.lost = 0
	}
	return nil
}

// write adds a line. What a failed write leaves is cut off, at the latest before the next line. l.mu is held.
func (l *Log) write(e *Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	line, s, err := e.marshal(l.seq+1, l.hash)
	if err != nil {
		return err
	}
	if l.torn {
		if err := l.file.Truncate(l.size); err != nil {
			return err
		}
		l.torn = false
	}
	if _, err := l.file.Write(line); err != nil {
		l.torn = l.file.Truncate(l.size) != nil
		return err
	}
	l.size += int64(len(line))
	l.seq, l.hash = l.seq+1, s
	if l.seq%uint64(l.options.HeadLines) == 0 {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
	return nil
}

// rotate has the file keep its lines under another name, and begins a new one. l.mu is held.
func (l *Log) rotate() error {
	if err := l.file.Sync(); err != nil {
		return err
	}
	path := l.options.Path
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	old := olderName(path, l.first)
	err = lock(f)
	if err == nil {
		err = os.Rename(path, old)
	}
	if err == nil {
		if err = os.Rename(f.Name(), path); err != nil {
			err = errors.Join(err, os.Rename(old, path))
		}
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	before, size, first := l.file, l.size, l.first
	l.file = appending{f}
	if err := l.begin(); err != nil { // there is no room: the old file goes on
		l.file, l.size, l.first = before, size, first
		return errors.Join(err, os.Rename(old, path), f.Close())
	}
	return errors.Join(before.Close(), syncDir(filepath.Dir(path)), l.expire())
}

// appending writes at a file's end wherever it was cut, as files do that are opened for that.
type appending struct{ *os.File }

func (a appending) Truncate(size int64) error {
	if err := a.File.Truncate(size); err != nil {
		return err
	}
	_, err := a.Seek(size, 0)
	return err
}

// expire removes files whose time is over, each after a line that says so. l.mu is held.
func (l *Log) expire() error {
	if l.options.Keep <= 0 {
		return nil
	}
	old, err := olderFiles(l.options.Path)
	if err != nil {
		return err
	}
	for i, f := range old {
		line, err := lastLine(f.path)
		if err != nil {
			return err
		}
		parsed, err := ParseLine(line)
		if err != nil {
			return err
		}
		if time.Since(parsed.Time) < l.options.Keep {
			return nil
		}
		through := l.first - 1
		if i+1 < len(old) {
			through = old[i+1].first - 1
		}
		if err := l.write(&Event{Kind: kindExpire, Object: filepath.Base(f.path), Details: map[string]int64{
			"first": int64(f.first), "last": int64(through),
		}}); err != nil {
			return err
		}
		if err := errors.Join(l.file.Sync(), os.Remove(f.path)); err != nil {
			return err
		}
	}
	return nil
}

// sync has all lines up to seq on disk. l.syncing is held.
func (l *Log) sync(seq uint64) error {
	if l.synced >= seq {
		return nil
	}
	l.mu.Lock()
	file, upTo := l.file, l.seq
	l.mu.Unlock()
	if err := file.Sync(); err != nil && !errors.Is(err, fs.ErrClosed) { // rotate has synced what it closed
		return fmt.Errorf("%w: %w", ErrNotWritten, err)
	}
	l.synced = upTo
	return nil
}

// SignHead signs how far the log reaches, unless a head says so.
func (l *Log) SignHead() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	seq, hash := l.seq, l.hash
	l.mu.Unlock()
	if l.heads.last != nil && l.heads.last.Seq >= seq {
		return nil
	}
	if err := l.sync(seq); err != nil {
		return err
	}
	head := l.keys.sign(seq, hash, time.Now())
	if err := l.heads.add(head); err != nil {
		return fmt.Errorf("audit heads %s: %w", l.options.Heads, err)
	}
	l.options.Logger.Info("audit head", "seq", head.Seq, "hash", head.Hash, "key", head.Key)
	return nil
}

// sign signs heads when they are due, until the log is closed.
func (l *Log) sign() {
	defer close(l.done)
	tick := time.NewTicker(l.options.HeadTime)
	defer tick.Stop()
	for {
		select {
		case <-l.due:
		case <-tick.C:
		case <-l.stop:
			return
		}
		if err := l.SignHead(); err != nil {
			l.options.Logger.Error("audit: no head is signed", "error", err)
		}
	}
}

// Lost is how many events could not be written since the log was opened.
func (l *Log) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Digest is that of the log's keys.
func (l *Log) Digest(id string) hash.Hash { return l.keys.Digest(id) }

// Keys are those that the log signs with.
func (l *Log) Keys() *Keys { return l.keys }

// Close writes a last line, signs it, and lets go of the files.
func (l *Log) Close() error {
	close(l.stop)
	<-l.done
	err := l.Record(&Event{Kind: kindStop})
	err = errors.Join(err, l.SignHead())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return errors.Join(err, l.file.Close(), l.heads.file.Close())
}

// olderFile is a file that is not written any more.
type olderFile struct {
	path  string
	first uint64
}

// olderDigits is how many digits the number of a first line has in a file's name.
const olderDigits = 20

func olderName(path string, first uint64) string {
	return fmt.Sprintf("%s.%0*d", path, olderDigits, first)
}

// olderFiles are the files of a log before the newest, in order.
func olderFiles(path string) (list []olderFile, err error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if !ok || len(digits) != olderDigits {
			continue
		}
		if first, err := strconv.ParseUint(digits, 10, 64); err == nil {
			list = append(list, olderFile{filepath.Join(filepath.Dir(path), e.Name()), first})
		}
	}
	slices.SortFunc(list, func(a, b olderFile) int { return cmp.Compare(a.first, b.first) })
	return list, nil
}

// lastLine is the last line of a file that is not written any more.
func lastLine(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	line, torn, err := endOf(f, maxLine)
	if err == nil && (line == nil || torn > 0) {
		err = fmt.Errorf("%s ends amid a line", path)
	}
	return line, err
}

// firstSeq is the number of a file's first line.
func firstSeq(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := newLineReader(f, maxLine).next()
	if err != nil {
		return 0, err
	}
	_, seq, _, ok := split(line)
	if !ok {
		return 0, errors.New("its first line is none of an audit log")
	}
	return seq, nil
}
