package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
)

// harmless is what a server, a model or a file said, as a line for people may show it: it cannot command the terminal.
func harmless(said any) string { return markdown.Clean(fmt.Sprint(said)) }

// harmlessWriter makes all that passes harmless.
type harmlessWriter struct {
	w     io.Writer
	clean markdown.Cleaner
}

func (h *harmlessWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(h.w, h.clean.Clean(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// harmlessJSON escapes what a terminal obeys and encoding/json leaves as it is. The value stays the same.
func harmlessJSON(text []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(text) {
		if s := string(r); r >= ' ' && markdown.Clean(s) != s { // below are JSON's own spaces: others came escaped
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteString(s)
		}
	}
	return b.Bytes()
}
