package main

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/imaging"
)

// Bounds of what one /read takes: bytes of all files together, and files.
const maxRead, maxReadFiles = 1 << 20, 64

// readTexts begins the next message with the text of files: one by its path, or all that a pattern matches, as
// notes/*.md. Of several each is under its name.
func (s *chatSession) readTexts(arg string) error {
	if arg == "" {
		return errors.New("/read: want the path of a text file, or a pattern, as /read notes.txt or /read notes/*.md")
	}
	path := s.files.Expand(transcript.Unquote(arg))
	paths := []string{path}
	if !s.files.Exists(path) {
		found, err := filepath.Glob(path)
		if err != nil || len(found) == 0 {
			return fmt.Errorf("/read: there is no file %s", printable(arg))
		}
		if len(found) > maxReadFiles {
			return fmt.Errorf("/read: %d files match; want at most %d", len(found), maxReadFiles)
		}
		paths = found
	}
	var all []string
	room := int64(maxRead)
	for _, p := range paths {
		data, err := folder.ReadFile(p, room)
		if err != nil {
			return fmt.Errorf("/read: %w", reason(err))
		}
		room -= int64(len(data))
		name := printable(p)
		if _, ok := imaging.Sniff(data); ok {
			return fmt.Errorf("/read: %s is an image: /image adds it", name)
		}
		if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
			return fmt.Errorf("/read: %s is no text in UTF-8", name)
		}
		text := strings.TrimSpace(strings.TrimPrefix(string(data), "\ufeff"))
		if len(paths) > 1 {
			text = filepath.Base(p) + ":\n" + text
		}
		all = append(all, text)
		s.note(fmt.Sprintf("read %s: %d bytes", name, len(data)))
	}
	s.next = strings.Join(all, "\n\n") + "\n"
	return nil
}
