package evaluation

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// Tally counts answers. Its zero value is ready for use, by one goroutine at a time.
type Tally struct {
	kinds  []string // as they came first
	counts map[string]*count
	all    count

	ids, sameIDs         int
	answers, sameAnswers int
}

type count struct{ asked, right, formed, valid int }

// Add counts an answer, text and ids; ids, unless nil, are compared with the recorded ones.
func (t *Tally) Add(c Case, text string, ids []uint32) {
	k := t.counts[c.Kind]
	if k == nil {
		if t.counts == nil {
			t.counts = map[string]*count{}
		}
		k = &count{}
		t.counts[c.Kind], t.kinds = k, append(t.kinds, c.Kind)
	}
	for _, n := range []*count{k, &t.all} {
		n.asked++
		n.right += one(c.Right(text))
		if c.Form != "" {
			n.formed++
			n.valid += one(c.Valid(text))
		}
	}
	if ids == nil || c.Generated == nil {
		return
	}
	t.answers++
	t.ids += max(len(ids), len(c.Generated))
	same := 0
	for i := range min(len(ids), len(c.Generated)) {
		same += one(ids[i] == c.Generated[i])
	}
	t.sameIDs += same
	t.sameAnswers += one(same == max(len(ids), len(c.Generated)))
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Write writes a line for each kind and one for all: how many were asked, the part that was answered in exactly the
// right words with its interval of 95 % by Wilson, and the part that had the form asked for.
func (t *Tally) Write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "kind\tasked\texact %\t95 % interval\tvalid form %")
	line := func(kind string, n count) {
		low, high := wilson(n.right, n.asked)
		valid := ""
		if n.formed > 0 {
			valid = fmt.Sprintf("%.1f", percent(n.valid, n.formed))
		}
		fmt.Fprintf(table, "%s\t%d\t%.1f\t%.1f to %.1f\t%s\n", kind, n.asked, percent(n.right, n.asked), 100*low, 100*high, valid)
	}
	for _, k := range t.kinds {
		line(k, *t.counts[k])
	}
	line("all", t.all)
	if err := table.Flush(); err != nil {
		return err
	}
	if t.answers == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "as recorded: %.2f %% of %d ids, %.2f %% of %d answers\n",
		percent(t.sameIDs, t.ids), t.ids, percent(t.sameAnswers, t.answers), t.answers)
	return err
}

func percent(part, whole int) float64 { return 100 * float64(part) / float64(whole) }

// wilson is the score interval of 95 % for the share behind right of n, n > 0.
func wilson(right, n int) (low, high float64) {
	const z = 1.959964
	p, m := float64(right)/float64(n), float64(n)
	middle := p + z*z/(2*m)
	half := z * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return max(0, middle-half) / (1 + z*z/m), (middle + half) / (1 + z*z/m)
}
