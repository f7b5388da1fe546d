package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// value is one metric of one peer in one round; a line of the file of -keep.
type value struct {
	Metric string  `json:"metric"`
	Peer   string  `json:"peer"`
	Family string  `json:"family"`
	Value  float64 `json:"value"`
}

type results []value

// load reads what earlier runs kept.
func load(path string) (*results, error) {
	all := &results{}
	if path == "" {
		return all, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var v value
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		*all = append(*all, v)
	}
	return all, lines.Err()
}

func (r *results) add(values []value, keep string) error {
	*r = append(*r, values...)
	if keep == "" {
		return nil
	}
	f, err := os.OpenFile(keep, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	for _, v := range values {
		if err := json.NewEncoder(f).Encode(v); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

func (r results) of(metric, peer string) (list []float64) {
	for _, v := range r {
		if v.Metric == metric && v.Peer == peer {
			list = append(list, v.Value)
		}
	}
	return list
}

// metrics in the order of the table.
var metrics = []struct {
	name  string
	lower bool // lower is better
}{
	{"image request to first token, ms", true}, {"prefill of 256, tokens/s", false}, {sharePeak, false},
	{eightPrompts, false}, {"decode, streams: 1, tokens/s", false}, {shareRead, false}, {"decode, streams: 4, tokens/s", false},
	{"decode, streams: 8, tokens/s", false}, {"decode, streams: 16, tokens/s", false}, {longDecode, false},
	{"captions/s, 8 in flight", false}, {"peak memory at 8 streams, MB", true}, {"peak memory after captions, MB", true},
	{"start to first token, s", true},
}

// families are those that were measured, mmserve first, and the peers of each.
func (r results) families() (families []string, peers map[string][]string) {
	peers = map[string][]string{}
	for _, v := range r {
		if !slices.Contains(families, v.Family) {
			families = append(families, v.Family)
		}
		if !slices.Contains(peers[v.Family], v.Peer) {
			peers[v.Family] = append(peers[v.Family], v.Peer)
		}
	}
	slices.SortStableFunc(families, func(a, b string) int {
		return strings.Compare(fmt.Sprint(a != own), fmt.Sprint(b != own))
	})
	return families, peers
}

// table prints medians with the least and the greatest value, and for each family how mmserve stands to the best of it
// in that line: how many times as fast, or for memory and time how many times as much.
func (r results) table(out io.Writer) {
	families, peers := r.families()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	columns := 1
	fmt.Fprint(w, "| \t")
	for _, f := range families {
		for _, p := range peers[f] {
			fmt.Fprintf(w, "| %s\t", p)
			columns++
		}
	}
	for _, f := range families {
		if f != own {
			fmt.Fprintf(w, "| against the best %s\t", f)
			columns++
		}
	}
	fmt.Fprintln(w, "|")
	fmt.Fprintln(w, strings.Repeat("|---\t", columns)+"|")
	for _, m := range metrics {
		best := map[string]float64{}
		cells := ""
		for _, f := range families {
			for _, p := range peers[f] {
				v := r.of(m.name, p)
				if len(v) == 0 {
					cells += "| –\t"
					continue
				}
				mid := median(v)
				cells += fmt.Sprintf("| %.4g (%.4g – %.4g)\t", mid, slices.Min(v), slices.Max(v))
				if b, ok := best[f]; !ok || m.lower && mid < b || !m.lower && mid > b {
					best[f] = mid
				}
			}
		}
		if len(best) == 0 {
			continue
		}
		for _, f := range families {
			switch b, ok := best[f]; {
			case f == own:
			case !ok || best[own] == 0:
				cells += "| –\t"
			case strings.HasPrefix(m.name, "image"): // an answer's speed
				cells += fmt.Sprintf("| %.2f×\t", b/best[own])
			default:
				cells += fmt.Sprintf("| %.2f×\t", best[own]/b)
			}
		}
		fmt.Fprintf(w, "| %s\t%s|\n", m.name, cells)
	}
	w.Flush()
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
