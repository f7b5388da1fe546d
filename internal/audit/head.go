package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mmserve/mmserve/internal/folder"
)

// Head is a signed statement of how far the log reached: whoever cuts or rewrites lines up to Seq contradicts it. Heads
// are kept in a file of their own, one a line, and belong on another machine, too.
type Head struct {
	Seq  uint64    `json:"seq"`
	Hash string    `json:"hash"`
	Time time.Time `json:"time"`
	// Key is the id of the key that signed it.
	Key       string `json:"key"`
	Signature []byte `json:"signature"`
}

const headPurpose = "audit head"

// text is what is signed.
func (h *Head) text() []byte {
	return fmt.Appendf(nil, "%d\n%s\n%s\n", h.Seq, h.Hash, h.Time.Format(time.RFC3339Nano))
}

func (k *Keys) sign(seq uint64, s sum, at time.Time) *Head {
	h := &Head{Seq: seq, Hash: s.String(), Time: at.UTC(), Key: k.ID()}
	h.Signature = k.Sign(headPurpose, h.text())
	return h
}

// check says what is wrong with a head.
func (h *Head) check(keys map[string]ed25519.PublicKey) error {
	switch key := keys[h.Key]; {
	case key == nil:
		return errors.New("signed with a key that is not among the public keys")
	case !CheckSignature(key, headPurpose, h.text(), h.Signature):
		return errors.New("the signature is wrong")
	}
	return nil
}

// maxHead bounds a line of a file of heads, and maxHeads the file, in bytes: ten years of a head a minute.
const maxHead, maxHeads = 1 << 10, 4 << 30

// readHeads gives the heads of a file to each, with their lines' numbers. An end without a newline is left out: torn
// says how many bytes it has.
func readHeads(path string, each func(line int, h *Head, err error)) (torn int64, err error) {
	f, err := folder.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := newLineReader(io.LimitReader(f, maxHeads), maxHead)
	for n := 1; ; n++ {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return int64(len(line)), nil
		case errors.Is(err, errLongLine):
			each(n, nil, err)
			continue
		case err != nil:
			return 0, err
		}
		h := new(Head)
		if json.Unmarshal(line, h) != nil || !bytes.Equal(h.line(), line) { // what is signed has one form
			each(n, nil, errors.New("not a head"))
			continue
		}
		each(n, h, nil)
	}
}

// headFile is the file of heads that a log writes. One goroutine uses it at a time.
type headFile struct {
	file *os.File
	last *Head // nil if there is none
}

// openHeads opens a file of heads to add to it, and cuts off a torn end.
func openHeads(path string) (*headFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	h := &headFile{file: f}
	last, _, err := repairEnd(f, maxHead)
	if err == nil && last != nil {
		h.last = new(Head)
		if err = json.Unmarshal(last, h.last); err != nil {
			err = errors.New("its last line is no head")
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit heads %s: %w", path, err), f.Close())
	}
	return h, nil
}

// line is the head as its file has it; nil if it cannot be written.
func (h *Head) line() []byte {
	line, err := json.Marshal(h)
	if err != nil {
		return nil // a time that has no text
	}
	return append(line, '\n')
}

// add writes a head and has it on disk.
func (h *headFile) add(head *Head) error {
	st, err := h.file.Stat()
	if err != nil {
		return err
	}
	if _, err := h.file.Write(head.line()); err != nil {
		return errors.Join(err, h.file.Truncate(st.Size()))
	}
	if err := h.file.Sync(); err != nil {
		return err
	}
	h.last = head
	return nil
}
