package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mmserve/mmserve/internal/folder"
)

// VerifyOptions say what a log is held against. A zero field takes its default.
type VerifyOptions struct {
	// Heads is the file of signed heads. Default: the log's path and ".heads". Public is the file of public keys. Default:
	// the path and ".pub".
	Heads, Public string
	// KeyID, unless empty, is the one key that counts: whoever can write all three files could have put another there.
	KeyID string
	// Expect, unless nil, is a head that was kept elsewhere.
	Expect *Head
}

// Problem is what is wrong with a log, and where.
type Problem struct {
	File string `json:"file"`
	// Line counts from 1; 0 is the file as a whole.
	Line int    `json:"line,omitempty"`
	What string `json:"what"`
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.What
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.What)
}

// Report is what Verify found.
type Report struct {
	Files int    `json:"files"`
	Lines uint64 `json:"lines"`
	// First and Last are the numbers of the first and the last line, Hash is that of the last.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Hash  string `json:"hash"`
	// Heads is the number of heads, and Signed the last line that one is signed of. Lines after it are chained, but could
	// have been written or cut off by whoever can write the file.
	Heads  int    `json:"heads"`
	Signed uint64 `json:"signed"`
	// Lost is the number of events that the log says could not be written.
	Lost uint64 `json:"lost"`
	// Torn is the length of an end without a newline, which the next start cuts off.
	Torn int64 `json:"torn,omitempty"`
	// Problems are what is wrong, the first maxProblems.
	Problems []Problem `json:"problems"`
}

// maxProblems bounds a report: one edit may be found in many places.
const maxProblems = 20

// verifier reads a log from its first line to its last.
type verifier struct {
	Report
	keys    map[string]ed25519.PublicKey
	heads   map[uint64]sum // by line, those whose signature is right
	seq     uint64
	hash    sum
	expired uint64 // last line that a line says was removed, in order
}

// Verify reads a log and says what is wrong with it: any line that was edited, removed, put elsewhere or cut off, up to
// the last signed head. Its error says what could not be read.
func Verify(path string, o VerifyOptions) (*Report, error) {
	if o.Heads == "" {
		o.Heads = path + ".heads"
	}
	if o.Public == "" {
		o.Public = path + ".pub"
	}
	files, err := olderFiles(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil && len(files) == 0 {
		return nil, fmt.Errorf("the audit log: %w", err)
	}
	keys, err := ReadPublic(o.Public)
	if err != nil {
		return nil, err
	}
	v := &verifier{keys: keys, heads: map[uint64]sum{}}
	if o.KeyID != "" {
		v.keys = map[string]ed25519.PublicKey{o.KeyID: keys[o.KeyID]}
	}
	if err := v.readHeads(o.Heads); err != nil {
		return nil, err
	}
	if o.Expect != nil {
		s, err := parseSum(o.Expect.Hash)
		if err != nil {
			return nil, fmt.Errorf("the expected hash: %w", err)
		}
		v.expect(o.Heads, 0, o.Expect.Seq, s)
	}
	for i, f := range append(files, olderFile{path: path}) {
		if err := v.file(f.path, i == len(files)); err != nil {
			return nil, err
		}
	}
	v.finish(path)
	return &v.Report, nil
}

func (v *verifier) problem(file string, line int, format string, args ...any) {
	if len(v.Problems) < maxProblems {
		v.Problems = append(v.Problems, Problem{filepath.Base(file), line, fmt.Sprintf(format, args...)})
	}
}

// expect notes what the hash of a line has to be.
func (v *verifier) expect(file string, at int, seq uint64, s sum) {
	if other, ok := v.heads[seq]; ok && other != s {
		v.problem(file, at, "line %d is signed with two hashes: two logs had one key, or lines were written again", seq)
		return
	}
	v.heads[seq] = s
	v.Signed = max(v.Signed, seq)
}

// readHeads notes what is signed.
func (v *verifier) readHeads(path string) error {
	torn, err := readHeads(path, func(n int, h *Head, err error) {
		v.Heads++
		if err == nil {
			err = h.check(v.keys)
		}
		var s sum
		if err == nil {
			s, err = parseSum(h.Hash)
		}
		if err != nil {
			v.problem(path, n, "%v", err)
			return
		}
		v.expect(path, n, h.Seq, s)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.problem(path, 0, "it is not there: nothing says where the log ended")
	case err != nil:
		return err
	case torn > 0:
		v.problem(path, v.Heads+1, "the line has no end; the next start cuts it off")
	case v.Heads == 0:
		v.problem(path, 0, "it has no heads: nothing says where the log ended")
	}
	return nil
}

// file reads a file of the log. The newest may be torn, or new and empty.
func (v *verifier) file(path string, newest bool) error {
	f, err := folder.Open(path)
	if errors.Is(err, fs.ErrNotExist) && newest {
		v.problem(path, 0, "it is not there")
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	v.Files++
	lines := newLineReader(f, maxLine)
	for n := 1; ; n++ {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			if len(line) > 0 {
				v.Torn = int64(len(line))
				v.problem(path, n, "the line has no end: its writer was killed, or it was cut off; the next start removes it")
			}
			return nil
		case errors.Is(err, errLongLine):
			v.problem(path, n, "%v", err)
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		}
		v.line(path, n, line)
	}
}

// line holds a line against the one before.
func (v *verifier) line(path string, n int, line []byte) {
	body, seq, stated, ok := split(line)
	if !ok {
		v.problem(path, n, "not a line of an audit log: it was edited or put here")
		return
	}
	start := v.Lines == 0
	if n == 1 || start {
		v.header(path, n, line, start)
	}
	v.Lines++
	switch is := v.hash.next(body); {
	case !start && seq != v.seq+1:
		v.problem(path, n, "it is line %d, want %d: lines were removed, put elsewhere or put here", seq, v.seq+1)
	case is != stated:
		v.problem(path, n, "the hash is wrong: this line or the one before was edited, removed or put elsewhere")
	}
	v.seq, v.hash = seq, stated
	if start {
		v.First = seq
	}
	if want, ok := v.heads[seq]; ok {
		if want != stated {
			v.problem(path, n, "it is not the line %d that a head was signed of: the log was written again", seq)
		}
		delete(v.heads, seq)
	}
	v.special(path, n, body, line)
}

// header takes the chain from the first line of a file.
func (v *verifier) header(path string, n int, line []byte, start bool) {
	l, err := ParseLine(line)
	if err != nil || l.File == nil || l.File.Version != version {
		v.problem(path, n, "want the first line of a file: lines before it were removed")
		return
	}
	prev, err := parseSum(l.File.Prev)
	switch {
	case err != nil:
		v.problem(path, n, "prev: %v", err)
	case start:
		v.hash = prev
	case prev != v.hash:
		v.problem(path, n, "it does not follow the line before: lines at the end of the file before were removed or edited")
	}
	if id := KeyID(l.File.Key); v.keys[id] == nil {
		v.problem(path, n, "the file names key %s, which is not among the public keys", id)
	}
}

// special reads the lines that say something of the log itself. Only these are parsed.
func (v *verifier) special(path string, n int, body, line []byte) {
	lost, expired := bytes.Contains(body, []byte(`"lost":`)), bytes.Contains(body, []byte(`"kind":"`+kindExpire+`"`))
	if !lost && !expired {
		return
	}
	var l Line
	if err := json.Unmarshal(line, &l); err != nil {
		v.problem(path, n, "not JSON")
		return
	}
	v.Lost += l.Lost
	if l.Kind == kindExpire {
		v.expired = max(v.expired, uint64(max(0, l.Details["last"])))
	}
}

// finish says what is missing at both ends.
func (v *verifier) finish(path string) {
	v.Last, v.Hash = v.seq, v.hash.String()
	if v.Lines == 0 {
		v.problem(path, 0, "it has no lines")
		return
	}
	if v.First > 1 && v.expired+1 < v.First {
		v.problem(path, 0, "it begins at line %d, and no line says that those before were removed in time", v.First)
	}
	for seq := range v.heads {
		if seq > v.Last {
			v.problem(path, 0, "it ends at line %d, and heads are signed up to line %d: lines were cut off", v.Last, v.Signed)
			break
		}
		if seq >= v.First {
			v.problem(path, 0, "line %d, of which a head was signed, is not there", seq)
		}
	}
}

// FindLine gives the last line of a request with an id.
func FindLine(path, id string) (*Line, error) {
	files, err := olderFiles(path)
	if err != nil {
		return nil, err
	}
	quoted, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	want := `"id":` + string(quoted)
	var found *Line
	for _, f := range append(files, olderFile{path: path}) {
		if err := eachLine(f.path, func(line []byte) error {
			if !bytes.Contains(line, []byte(want)) {
				return nil
			}
			if l, err := ParseLine(line); err == nil && l.ID == id && l.Kind == KindRequest {
				found = l
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s has no request with that id", path)
	}
	return found, nil
}

// eachLine calls do for each whole line of a file, until one fails.
func eachLine(path string, do func(line []byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := newLineReader(f, maxLine); ; {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err == nil:
			if err := do(line); err != nil {
				return err
			}
		case !errors.Is(err, errLongLine):
			return err
		}
	}
}

// EachOf calls do for each line about a subject, oldest first, until ctx ends or one fails. It holds no lock: the log
// goes on.
func (l *Log) EachOf(ctx context.Context, subject string, do func(line []byte) error) error {
	files, err := olderFiles(l.options.Path)
	if err != nil {
		return err
	}
	quoted, err := json.Marshal(subject)
	if err != nil {
		return err
	}
	want := []byte(`"subject":` + string(quoted))
	for _, f := range append(files, olderFile{path: l.options.Path}) {
		var failed error
		err := eachLine(f.path, func(line []byte) error {
			if failed = ctx.Err(); failed == nil && bytes.Contains(line, want) {
				failed = do(line)
			}
			return failed
		})
		if failed != nil {
			return failed
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // its time may have been over in between
			return err
		}
	}
	return ctx.Err()
}
