// Package runnertest tries implementations of the engine's Runner: host, device, ready-made graphs and fakes alike.
package runnertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/decoder"
)

// Runner is what Conform tries: the engine's batching.Runner.
type Runner interface {
	Capacity() decoder.Capacity
	Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error)
}

// conformSteps is how many tokens each sequence is decoded for.
const conformSteps = 5

// Conform holds a runner to the contract of decoder.Batch and decoder.Capacity, by the ids that greedy rows give. It
// wants three slots or more of 64 positions or more, none of them in use. Ids of prompts are in [low, high); any has to
// be one of the model's, and none an image's.
func Conform(t *testing.T, r Runner, low, high int32) {
	t.Helper()
	if c := r.Capacity(); c.Slots < 3 || c.MaxLen < 64 {
		t.Fatalf("%d slots of %d positions, want 3 of 64", c.Slots, c.MaxLen)
	}
	c := &conformer{t: t, r: r, rng: rand.New(rand.NewPCG(7, 8)), low: low, high: high}
	for _, n := range []int{17, 5, 30} {
		p := c.prompt(n)
		c.prompts = append(c.prompts, p)
		c.alone = append(c.alone, c.answer(2, p))
	}
	for _, s := range []struct {
		name string
		try  func()
	}{
		{"rows without a sampler give nothing", c.silent},
		{"an answer does not depend on its slot or on what was there", c.again},
		{"an answer is the same beside others", c.together},
		{"a prompt may come in chunks", c.chunks},
		{"moved sequences go on", c.moves},
		{"released memory can be used again", c.releases},
		{"right drafts are taken, wrong ones are not", c.drafts},
		{"rows of any lengths share a step, in any slots", c.mixed},
		{"what cannot be run is refused, and the rest goes on", c.refusals},
	} {
		t.Run(s.name, func(t *testing.T) {
			outer := c.t
			defer func() { c.t = outer }()
			c.t = t
			s.try()
		})
	}
}

type conformer struct {
	t         *testing.T
	r         Runner
	rng       *rand.Rand
	low, high int32

	prompts [][]int32
	alone   [][]int32 // what each prompt's sequence gives by itself
}

func (c *conformer) prompt(n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = c.low + c.rng.Int32N(c.high-c.low)
	}
	return ids
}

func greedy(slot, past int, ids ...int32) decoder.Row {
	return decoder.Row{Slot: slot, Past: past, IDs: ids, Sampler: decoder.NewSampler(decoder.Sampling{})}
}

func (c *conformer) run(b decoder.Batch) []int32 {
	c.t.Helper()
	tokens, err := c.r.Run(c.t.Context(), &b)
	if err != nil {
		c.t.Fatal(err)
	}
	ids := make([]int32, len(tokens))
	for i, token := range tokens {
		ids[i] = token.ID
	}
	return ids
}

func (c *conformer) rows(rows ...decoder.Row) []int32 {
	c.t.Helper()
	return c.run(decoder.Batch{Rows: rows})
}

// one is the only token that rows give.
func (c *conformer) one(b decoder.Batch) int32 {
	c.t.Helper()
	ids := c.run(b)
	if len(ids) != 1 {
		c.t.Fatalf("%d tokens of one row", len(ids))
	}
	return ids[0]
}

// answer runs a prompt in a slot and decodes it by itself.
func (c *conformer) answer(slot int, prompt []int32) []int32 {
	c.t.Helper()
	ids := []int32{c.one(decoder.Batch{Rows: []decoder.Row{greedy(slot, 0, prompt...)}})}
	return c.goOn(slot, len(prompt), ids)
}

// goOn decodes a sequence of one token and past positions before it.
func (c *conformer) goOn(slot, past int, ids []int32) []int32 {
	c.t.Helper()
	for len(ids) < conformSteps {
		last := ids[len(ids)-1]
		ids = append(ids, c.one(decoder.Batch{Rows: []decoder.Row{greedy(slot, past+len(ids)-1, last)}}))
	}
	return ids
}

func (c *conformer) want(what string, got, want []int32) {
	c.t.Helper()
	if !slices.Equal(got, want) {
		c.t.Errorf("%s: ids %v, alone %v", what, got, want)
	}
}

func (c *conformer) silent() {
	row := greedy(0, 0, c.prompts[0]...)
	row.Sampler = nil
	if ids := c.rows(row); len(ids) != 0 {
		c.t.Errorf("a prompt without a sampler gave %v", ids)
	}
	if ids := c.run(decoder.Batch{}); len(ids) != 0 {
		c.t.Errorf("an empty batch gave %v", ids)
	}
	// The first of two rows is silent: the token is the second's.
	c.rows(greedy(0, 0, c.prompts[0]...))
	c.rows(greedy(1, 0, c.prompts[1]...))
	first := greedy(0, len(c.prompts[0]), c.alone[0][0])
	first.Sampler = nil
	c.want("beside a silent row", c.rows(first, greedy(1, len(c.prompts[1]), c.alone[1][0])), c.alone[1][1:2])
}

func (c *conformer) again() {
	c.answer(0, c.prompts[2])
	for _, slot := range []int{0, 1, c.r.Capacity().Slots - 1} {
		c.want(fmt.Sprintf("in slot %d", slot), c.answer(slot, c.prompts[1]), c.alone[1])
	}
}

func (c *conformer) together() {
	got := make([][]int32, len(c.prompts))
	for i, p := range c.prompts {
		got[i] = c.rows(greedy(i, 0, p...))
	}
	for step := range conformSteps - 1 {
		var rows []decoder.Row
		for i, p := range c.prompts {
			rows = append(rows, greedy(i, len(p)+step, got[i][step]))
		}
		ids := c.rows(rows...)
		if len(ids) != len(rows) {
			c.t.Fatalf("%d tokens of %d rows", len(ids), len(rows))
		}
		for i, id := range ids {
			got[i] = append(got[i], id)
		}
	}
	for i := range got {
		c.want(fmt.Sprintf("row %d of three", i), got[i], c.alone[i])
	}
}

func (c *conformer) chunks() {
	if k := c.r.Capacity(); k.WholePrompt || !k.Exact {
		c.t.Skip("the runner does not say that it can")
	}
	p := c.prompts[2]
	for _, size := range []int{1, 7, 16} {
		for past := 0; past < len(p); past += size {
			end := min(past+size, len(p))
			row := greedy(1, past, p[past:end]...)
			if end < len(p) {
				row.Sampler = nil
				c.rows(row)
				continue
			}
			c.want(fmt.Sprintf("in chunks of %d", size), c.goOn(1, len(p), c.rows(row)), c.alone[2])
		}
	}
}

func (c *conformer) moves() {
	a, b := c.prompts[0], c.prompts[2]
	c.answer(0, c.prompts[1]) // is written over
	c.rows(greedy(2, 0, a...))
	id := c.one(decoder.Batch{Moves: []decoder.Move{{From: 2, To: 0, Len: len(a)}},
		Rows: []decoder.Row{greedy(0, len(a), c.alone[0][0])}})
	c.want("copied", c.goOn(0, len(a), []int32{c.alone[0][0], id}), c.alone[0])
	c.want("what it was copied from", c.goOn(2, len(a), c.alone[0][:1:1]), c.alone[0])

	c.rows(greedy(0, 0, a...))
	c.rows(greedy(1, 0, b...))
	c.run(decoder.Batch{Moves: []decoder.Move{{From: 0, To: 1, Len: len(a), Back: len(b)}}})
	c.want("exchanged", c.goOn(1, len(a), c.alone[0][:1:1]), c.alone[0])
	c.want("exchanged, the other", c.goOn(0, len(b), c.alone[2][:1:1]), c.alone[2])
}

func (c *conformer) releases() {
	a, b := c.prompts[0], c.prompts[2]
	c.rows(greedy(0, 0, a...))
	c.answer(1, b)
	c.run(decoder.Batch{Releases: []decoder.Release{{Slot: 1, From: 0, To: c.r.Capacity().MaxLen}}})
	c.want("beside what was released", c.goOn(0, len(a), c.alone[0][:1:1]), c.alone[0])
	c.want("where it was released", c.answer(1, b), c.alone[2])
}

func (c *conformer) drafts() {
	if k := c.r.Capacity(); k.WholePrompt || !k.Exact {
		c.t.Skip("the runner does not say that it can")
	}
	p, want := c.prompts[1], c.alone[1]
	c.rows(greedy(0, 0, p...))
	row := greedy(0, len(p), want[:3]...)
	row.Drafts = 2
	c.want("two right drafts", c.rows(row), want[1:4])

	c.rows(greedy(0, 0, p...))
	wrong := c.low
	if wrong == want[2] {
		wrong++
	}
	row = greedy(0, len(p), want[0], want[1], wrong, c.low)
	row.Drafts = 3
	c.want("one right draft of three", c.rows(row), want[1:3])
	c.want("after a wrong draft", c.goOn(0, len(p), slices.Clone(want[:3])), want)
}

func (c *conformer) mixed() {
	if !c.r.Capacity().Mixed {
		c.t.Skip("the runner does not say that it can")
	}
	// The first decodes beside the others' prompts, of which one comes in two parts.
	prompts, alone := c.prompts, c.alone
	got := [][]int32{c.rows(greedy(0, 0, prompts[0]...)), nil, nil}
	part := greedy(2, 0, prompts[2][:11]...)
	part.Sampler = nil
	ids := c.rows(greedy(0, len(prompts[0]), got[0][0]), greedy(1, 0, prompts[1]...), part)
	got[0], got[1] = append(got[0], ids[0]), ids[1:2:2]
	ids = c.rows(greedy(0, len(prompts[0])+1, got[0][1]), greedy(2, 11, prompts[2][11:]...)) // the second sits out
	got[0], got[2] = append(got[0], ids[0]), ids[1:2:2]
	for i := range got {
		c.want(fmt.Sprintf("row %d of a mixed step", i), c.goOn(i, len(prompts[i]), got[i]), alone[i])
	}
}

func (c *conformer) refusals() {
	k := c.r.Capacity()
	cases := map[string][]decoder.Row{
		"no ids":            {greedy(0, 0)},
		"no such slot":      {greedy(k.Slots, 0, c.prompts[0]...)},
		"a negative slot":   {greedy(-1, 0, c.prompts[0]...)},
		"past the end":      {greedy(0, k.MaxLen-2, c.low, c.low, c.low)},
		"rows out of order": {greedy(1, 3, c.low), greedy(0, 3, c.low)},
	}
	if !k.Mixed {
		cases["a prompt beside a step"] = []decoder.Row{greedy(0, 3, c.low, c.low, c.low), greedy(1, 3, c.low)}
	}
	for what, rows := range cases {
		if tokens, err := c.r.Run(c.t.Context(), &decoder.Batch{Rows: rows}); err == nil {
			c.t.Errorf("%s: taken, with %d tokens", what, len(tokens))
		}
	}
	c.want("after refusals", c.answer(0, c.prompts[0]), c.alone[0])
}
