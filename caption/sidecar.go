package caption

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Existing says what to do with a caption that is there already.
type Existing string

// What --existing takes.
const (
	ExistingSkip      Existing = "skip"
	ExistingOverwrite Existing = "overwrite"
	ExistingAppend    Existing = "append"
	ExistingPrepend   Existing = "prepend"
	ExistingError     Existing = "error"
)

// Sidecars writes answers into text files beside the images: photo.txt for photo.jpg.
type Sidecars struct {
	// Extension is that of the text files, with its dot.
	Extension string
	// Existing says what to do where there is a text file.
	Existing Existing
}

// Check refuses an extension that is none.
func (s Sidecars) Check() error {
	if len(s.Extension) < 2 || s.Extension[0] != '.' || strings.ContainsAny(s.Extension, "/\x00") ||
		isImageName("x"+s.Extension) {
		return fmt.Errorf("sidecar %q: want an extension such as .txt", s.Extension)
	}
	return nil
}

func (s Sidecars) path(image string) string {
	return strings.TrimSuffix(image, filepath.Ext(image)) + s.Extension
}

// Skip tells whether an image keeps the text that it has, and is not asked about.
func (s Sidecars) Skip(it Item) bool {
	if s.Existing != ExistingSkip || !it.Local {
		return false
	}
	_, err := os.Lstat(s.path(it.Path))
	return err == nil
}

// Write writes a row's answer beside its image. Done twice it changes nothing the second time, so that a run that was
// killed between this and its row can go on.
func (s Sidecars) Write(it Item, r *Row) error {
	if !it.Local || !r.OK() {
		return nil
	}
	path := s.path(it.Path)
	had, err := readSmallFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		had = nil
	case err != nil:
		return &itemError{codeWrite, fmt.Errorf("sidecar: %w", err)}
	case s.Existing == ExistingSkip, s.Existing == ExistingError:
		return nil // Skip and Run have looked; it came since
	}
	text := merge(strings.TrimRight(string(had), "\n"), r.Text, s.Existing)
	err = replaceFile(path, func(w io.Writer) error {
		_, err := io.WriteString(w, text+"\n")
		return err
	})
	if err != nil {
		return &itemError{codeWrite, fmt.Errorf("sidecar: %w", pathless(err))}
	}
	return nil
}

// merge puts an answer to a text that is there. Texts are lists of tags or sentences: a comma and a space stands
// between.
func merge(had, text string, e Existing) string {
	switch {
	case had == "" || e == ExistingOverwrite:
		return text
	case e == ExistingAppend && !strings.HasSuffix(had, ", "+text) && had != text:
		return had + ", " + text
	case e == ExistingPrepend && !strings.HasPrefix(had, text+", ") && had != text:
		return text + ", " + had
	}
	return had
}
