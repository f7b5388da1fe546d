// Package digest remembers digests of large files between processes, so that a start does not read gigabytes again to
// learn what they are.
package digest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Stamp stands for the content that an open file has: another content has another stamp. "" is that of a file of which
// this cannot be said.
type Stamp string

// Store is a folder of remembered digests; "" remembers nothing. Processes may share it.
type Store string

// Digest is the SHA-256 that compute gives for files with these stamps, remembered. Another way to compute over the same
// files needs another name. A digest that cannot be kept is computed again next time.
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
	path := filepath.Join(string(s), fmt.Sprintf("digest-%s-%x", name, h.Sum(nil)[:16]))
	if sum, err := read(path); err == nil {
		return sum, nil
	}
	sum, err := compute()
	if err == nil {
		_ = write(path, sum)
	}
	return sum, err
}

func read(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum := make([]byte, sha256.Size)
	if n, err := hex.Decode(sum, bytes.TrimSpace(text[:min(len(text), 2*sha256.Size+1)])); err != nil || n != sha256.Size {
		return nil, fmt.Errorf("%s holds no SHA-256", path)
	}
	return sum, nil
}

// write makes the file appear whole or not at all.
func write(path string, sum []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%x\n", sum)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
