package serving

import (
	"slices"
	"strings"
	"testing"
)

func TestStopStage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		stops  []string
		pieces []string
		want   []string // what each push gives out, then flush
		stop   string
	}{
		{"no stop strings", nil, []string{"ab", "c"}, []string{"ab", "c", ""}, ""},
		{"inside a piece", []string{"\n"}, []string{"one\ntwo"}, []string{"one"}, "\n"},
		{"across pieces", []string{"END"}, []string{"a E", "N", "D b"}, []string{"a ", "", ""}, "END"},
		{"held, then given out", []string{"END"}, []string{"a E", "N", "x"}, []string{"a ", "", "ENx", ""}, ""},
		{"held at the end", []string{"END"}, []string{"a EN"}, []string{"a ", "EN"}, ""},
		{"starts again inside itself", []string{"aab"}, []string{"a", "a", "a", "b"}, []string{"", "", "a", ""}, "aab"},
		{"complete first wins", []string{"bcd", "c"}, []string{"abcd"}, []string{"ab"}, "c"},
		{"longest of those complete together", []string{"c", "bc"}, []string{"ab", "c"}, []string{"a", ""}, "bc"},
		{"at the very start", []string{"no"}, []string{"no"}, []string{""}, "no"},
		{"several bytes a character", []string{"é!"}, []string{"caf", "é", "?"}, []string{"caf", "", "é?", ""}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := stopStage{stops: tt.stops}
			var got []string
			var stop string
			for _, p := range tt.pieces {
				out, s, found := pushed(&m, p)
				got = append(got, out)
				if found {
					stop = s
					break
				}
			}
			if stop == "" {
				got = append(got, flushed(&m))
			}
			if !slices.Equal(got, tt.want) || stop != tt.stop {
				t.Errorf("gave %q and stop %q, want %q and %q", got, stop, tt.want, tt.stop)
			}
		})
	}
}

// pushed gives a stage text, and returns what it lets through, and the stop string if it found one.
func pushed(s Stage, text string) (out, stop string, found bool) {
	if end := s.Push(text, func(p Piece) { out += p.Text }); end != nil {
		return out, *end.Stop, true
	}
	return out, "", false
}

func flushed(s Stage) (out string) {
	s.Flush(func(p Piece) { out += p.Text })
	return out
}

// FuzzStopStage holds the stage against a search of the whole text, however the text is cut.
func FuzzStopStage(f *testing.F) {
	f.Add("some text END more", "END", "ext E", uint64(0b1010010))
	f.Add("aaaabaaab", "aab", "ab", uint64(3))
	f.Add("a\nb\n\nc", "\n\n", "", uint64(1<<63-1))
	f.Fuzz(func(t *testing.T, text, stop1, stop2 string, cuts uint64) {
		stops := slices.DeleteFunc([]string{stop1, stop2}, func(s string) bool { return s == "" })
		wantText, wantStop := firstComplete(text, stops)

		m := stopStage{stops: stops}
		var got strings.Builder
		var stop string
		for piece := range pieces(text, cuts) {
			out, s, found := pushed(&m, piece)
			got.WriteString(out)
			if rest := text[got.Len():]; !found && !startsOne(rest[:min(len(rest), len(m.held))], stops) && m.held != "" {
				t.Fatalf("holds %q back, which starts no stop string of %q", m.held, stops)
			}
			if !strings.HasPrefix(wantText, got.String()) {
				t.Fatalf("gave out %q of %q: part of stop string %q", got.String(), text, wantStop)
			}
			if found {
				stop = s
				break
			}
		}
		if stop == "" {
			got.WriteString(flushed(&m))
		}
		if got.String() != wantText || stop != wantStop {
			t.Errorf("text %q, stops %q, cuts %b: got %q and %q, want %q and %q", text, stops, cuts, got.String(), stop, wantText, wantStop)
		}
	})
}

// firstComplete looks at every end position in turn, longest stop string first.
func firstComplete(text string, stops []string) (before, stop string) {
	for end := range len(text) + 1 {
		for _, s := range stops {
			if strings.HasSuffix(text[:end], s) && len(s) > len(stop) {
				stop = s
			}
		}
		if stop != "" {
			return text[:end-len(stop)], stop
		}
	}
	return text, ""
}

func startsOne(s string, stops []string) bool {
	return slices.ContainsFunc(stops, func(stop string) bool { return strings.HasPrefix(stop, s) && s != stop })
}

// pieces cuts text after byte i where bit i mod 64 of cuts is set.
func pieces(text string, cuts uint64) func(func(string) bool) {
	return func(yield func(string) bool) {
		from := 0
		for i := range len(text) {
			if cuts>>(i%64)&1 == 1 {
				if !yield(text[from : i+1]) {
					return
				}
				from = i + 1
			}
		}
		yield(text[from:])
	}
}
