package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// Ratios are against the best of a family, speeds as times as fast, memory and time as times as much; values outlive a
// run.
func TestTable(t *testing.T) {
	keep := filepath.Join(t.TempDir(), "values")
	for round, list := range [][]value{
		{
			{"image request to first token, ms", "mmserve int8", own, 100},
			{"image request to first token, ms", "peer a", "peer", 300},
			{"prefill of 256, tokens/s", "mmserve int8", own, 40}, {"prefill of 256, tokens/s", "peer a", "peer", 10},
			{"prefill of 256, tokens/s", "peer b", "peer", 20},
		},
		{
			{"prefill of 256, tokens/s", "mmserve int8", own, 60}, {"start to first token, s", "mmserve int8", own, 1},
			{"start to first token, s", "peer b", "peer", 4},
		},
	} {
		all, err := load(keep)
		if err != nil {
			t.Fatal(err)
		}
		if err := all.add(list, keep); err != nil {
			t.Fatal(round, err)
		}
	}
	all, err := load(keep)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	all.table(&out)
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"| | mmserve int8 | peer a | peer b | against the best peer |",
		"|--- |--- |--- |--- |--- |",
		"| image request to first token, ms | 100 (100 – 100) | 300 (300 – 300) | – | 3.00× |",
		"| prefill of 256, tokens/s | 50 (40 – 60) | 10 (10 – 10) | 20 (20 – 20) | 2.50× |",
		"| start to first token, s | 1 (1 – 1) | – | 4 (4 – 4) | 0.25× |",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
