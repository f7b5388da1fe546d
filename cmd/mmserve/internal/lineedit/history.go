package lineedit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
)

const (
	maxEntries    = 1000
	maxEntryBytes = 16 << 10
	maxHistory    = 4 << 20 // bytes of the file that are read
)

// History is what was typed, kept in a file that its owner alone reads: a JSON string a line, the oldest first. The
// zero value keeps nothing.
type History struct {
	path    string
	entries []string
}

// OpenHistory reads a file, which need not be there, and makes it short again if it has grown long.
func OpenHistory(path string) (*History, error) {
	h := &History{path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	data, err := readTail(path)
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return nil, err
	}
	lines := 0
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); lines++ {
		var text string
		if json.Unmarshal(s.Bytes(), &text) == nil && text != "" {
			h.entries = append(h.entries, text)
		}
	}
	h.entries = h.entries[max(0, len(h.entries)-maxEntries):]
	if lines > 2*maxEntries || len(data) == maxHistory {
		return h, h.rewrite()
	}
	return h, os.Chmod(path, 0o600)
}

// readTail reads a regular file's last bytes.
func readTail(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New(path + " is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st.Size() > maxHistory {
		if _, err := f.Seek(-maxHistory, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxHistory))
}

// Add keeps a text, unless it is the same as the last or long.
func (h *History) Add(text string) error {
	n := len(h.entries)
	if h.path == "" || text == "" || len(text) > maxEntryBytes || n > 0 && h.entries[n-1] == text {
		return nil
	}
	h.entries = append(h.entries, text)
	line, err := json.Marshal(text)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(h.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// rewrite keeps the newest entries alone.
func (h *History) rewrite() error {
	f, err := os.CreateTemp(filepath.Dir(h.path), ".history-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	w := bufio.NewWriter(f)
	for _, text := range h.entries {
		line, err := json.Marshal(text)
		if err != nil {
			continue
		}
		_, _ = w.Write(append(line, '\n'))
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), h.path)
}
