package safety_test

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/safety"
)

// BenchmarkStream is what all text detectors take for a token of an answer, of about four bytes.
func BenchmarkStream(b *testing.B) {
	r := rules(b, leaking+"  spam: {output: flag}\n  health: {output: flag}\n")
	text := strings.Repeat("The picture shows a red house beside a lake, with 12 boats and their owners waiting for the ferry. ", 20)
	b.SetBytes(4)
	b.ReportAllocs()
	s, at := r.NewStream(safety.Output), 0
	for b.Loop() {
		if at+4 > len(text) {
			s, at = r.NewStream(safety.Output), 0
		}
		s.Push(text[at:at+4], func(safety.Piece) {})
		at += 4
	}
}
