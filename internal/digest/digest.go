// Package digest remembers digests of large files between processes, so that a start does not read gigabytes again to
// learn what they are.
package digest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/mmserve/mmserve/internal/cache"
)

// Stamp stands for the content that an open file has: another content has another stamp. "" is that of a file of which
// this cannot be said.
type Stamp string

// Store is a folder of remembered digests; "" remembers nothing, nor does a folder that others may write. Processes may
// share it.
type Store string

// Digest is the SHA-256 that compute gives for files with these stamps, remembered. Another way to compute over the
// same files needs another name. A digest that cannot be kept is computed again next time.
func (s Store) Digest(name string, stamps []Stamp, compute func() ([]byte, error)) ([]byte, error) {
	h := sha256.New()
	for _, stamp := range stamps {
		if stamp == "" {
			return compute()
		}
		fmt.Fprintln(h, stamp)
	}
	if s == "" || len(stamps) == 0 {
		return compute()
	}
	name = fmt.Sprintf("digest-%s-%x", name, h.Sum(nil)[:16])
	dir, err := cache.Open(string(s))
	if err != nil {
		return compute()
	}
	defer dir.Close()
	if sum, err := read(dir, name); err == nil {
		return sum, nil
	}
	sum, err := compute()
	if err == nil {
		_ = dir.Write(name, func(f *os.File) error {
			_, err := f.Write(entry(name, sum))
			return err
		})
	}
	return sum, err
}

// entry is a file's content: a digest, sealed under the file's name, so that neither damage nor another's file passes
// for it.
func entry(name string, sum []byte) []byte {
	return fmt.Appendf(nil, "%x\n%x\n", sum, cache.Seal(sum, sha256.Sum256([]byte(name))))
}

func read(dir *cache.Dir, name string) ([]byte, error) {
	f, err := dir.File(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := make([]byte, sha256.Size)
	size := len(entry(name, sum))
	text, err := io.ReadAll(io.LimitReader(f, int64(size)+1))
	if err != nil {
		return nil, err
	}
	if len(text) != size {
		return nil, fmt.Errorf("%s: %d bytes, want %d", name, len(text), size)
	}
	if _, err := hex.Decode(sum, text[:2*sha256.Size]); err != nil {
		return nil, err
	}
	if !bytes.Equal(text, entry(name, sum)) {
		return nil, cache.ErrSeal
	}
	return sum, nil
}
