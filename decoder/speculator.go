package decoder

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mmserve/mmserve/fusion"
)

// Stepper runs steps: a Runner, or what stands in for one.
type Stepper interface {
	Capacity() Capacity
	Run(ctx context.Context, b *Batch) ([]Token, error)
}

// Proposal asks for drafts by a draft model, and says what came of it.
type Proposal struct {
	// Most is the most drafts. Known are the ids of all positions before the row's, Stop those after which nothing
	// follows.
	Most        int
	Known, Stop []int32
	// Given is the number of drafts that Run appended to the row's ids. Behind says that the draft model read what it had
	// missed of the sequence, so that the step took longer than others will.
	Given  int
	Behind bool
}

// mostRead is the most positions of all rows that the draft model reads in a step of what it has missed. A prompt is so
// read while its first tokens are generated, a part a step, instead of before them.
const mostRead = 64

// Speculator is a Stepper that drafts tokens with a smaller model and has the target check them, row by row. A draft is
// taken only where the row's own sampler picks the very token from the target's logits, so tokens do not depend on the
// draft model. It picks drafts with a copy of that sampler and the same random numbers, so that both agree more often
// than chance where they sample. Drafts form a chain. One goroutine uses it at a time.
// Reference: Leviathan et al., 2023, arXiv:2211.17192, with coupled samples instead of its rejection rule.
type Speculator struct {
	target, draft Stepper
	capacity      Capacity
	vocab         int // ids below are in both models
	patches       bool
	slots         []draftSlot

	moves    []Move // scratch
	releases []Release
	rows     []Row
	open     []*draftSlot // rows that wait for their next draft, in the order of rows
}

// draftSlot is what the draft model has of the sequence in one of the target's slots.
type draftSlot struct {
	have    int      // positions of the draft's cache that are the sequence's
	written int      // positions that have memory
	images  [][2]int // first position and end of the images that the draft does not see
	sampler Sampler  // copy of the row's, which runs ahead of it
	ids     []int32  // the row's, with its drafts
	left    int      // drafts still wanted
	row     *Row
}

// NewSpeculator returns a Speculator. vocab is the number of ids, from 0 on, that both models know. With patches the
// draft model sees the target's patch embeddings, which have to fit it; without, it sees the text alone, and images
// take no positions of its own.
func NewSpeculator(target, draft Stepper, vocab int, patches bool) (*Speculator, error) {
	t, d := target.Capacity(), draft.Capacity()
	switch {
	case !t.Exact || t.WholePrompt:
		return nil, errors.New("the model checks no drafts: that takes mmserve's own operators, and prompts that may be cut")
	case !d.Mixed:
		return nil, errors.New("the draft model cannot read sequences of different lengths in one step")
	case d.Slots < t.Slots:
		return nil, fmt.Errorf("the draft model has %d slots, the model %d", d.Slots, t.Slots)
	}
	t.Proposes = true
	return &Speculator{
		target: target, draft: draft, capacity: t, vocab: vocab, patches: patches && !d.WholeImages,
		slots: make([]draftSlot, t.Slots),
	}, nil
}

// Capacity is the target's.
func (s *Speculator) Capacity() Capacity { return s.capacity }

// Run appends drafts to the rows that have a Proposal, which it takes away, and runs the batch. An error of the draft
// model other than ErrDevice costs drafts only.
func (s *Speculator) Run(ctx context.Context, b *Batch) ([]Token, error) {
	if err := s.follow(ctx, b); err != nil {
		return nil, err
	}
	if err := s.propose(ctx, b.Rows); err != nil {
		return nil, err
	}
	for i := range b.Rows {
		b.Rows[i].Propose = nil // it takes up no more than its ids
	}
	return s.target.Run(ctx, b)
}

// follow makes the batch's moves and releases in the draft's cache, and notes which sequence is where.
func (s *Speculator) follow(ctx context.Context, b *Batch) error {
	s.moves, s.releases = s.moves[:0], s.releases[:0]
	for _, m := range b.Moves {
		s.move(m)
	}
	for _, r := range b.Releases {
		d := &s.slots[r.Slot]
		from := d.at(r.From)
		d.have = min(d.have, from)
		if d.written > from {
			s.releases = append(s.releases, Release{Slot: r.Slot, From: from, To: d.written})
			d.written = from
		}
	}
	for i := range b.Rows {
		row := &b.Rows[i]
		if row.Slot < 0 || row.Slot >= len(s.slots) {
			continue // the target refuses it
		}
		d := &s.slots[row.Slot]
		d.images = d.images[:0]
		for _, span := range row.Spans {
			if !s.patches {
				d.images = append(d.images, [2]int{span.Start, span.Start + span.Len})
			}
		}
		d.have = min(d.have, d.at(row.Past))
	}
	if len(s.moves)+len(s.releases) == 0 && !b.Wipe {
		return nil
	}
	_, err := s.draft.Run(ctx, &Batch{Moves: s.moves, Releases: s.releases, Wipe: b.Wipe})
	if err != nil {
		return fmt.Errorf("%w: draft model: %w", ErrDevice, err) // its cache is not the target's any more
	}
	return nil
}

// move is a Move of the target's.
func (s *Speculator) move(m Move) {
	from, to := &s.slots[m.From], &s.slots[m.To]
	n, back := min(from.have, from.at(m.Len)), min(to.have, to.at(m.Back))
	switch {
	case n > 0:
		s.moves = append(s.moves, Move{From: m.From, To: m.To, Len: n, Back: back})
	case back > 0:
		s.moves = append(s.moves, Move{From: m.To, To: m.From, Len: back})
	}
	to.written, from.written = max(to.written, n), max(from.written, back)
	if m.Back > 0 {
		from.images, to.images = to.images, from.images
		from.have = back
	} else {
		to.images = append(to.images[:0], from.images...)
	}
	to.have = n
}

// propose drafts tokens for the rows that want some.
func (s *Speculator) propose(ctx context.Context, rows []Row) error {
	s.rows, s.open = s.rows[:0], s.open[:0]
	room, vocab := mostRead, int32(s.vocab)
	for i := range rows {
		row := &rows[i]
		p := row.Propose
		if p == nil || row.Drafts > 0 || row.Sampler == nil || len(row.IDs) != 1 || len(p.Known) != row.Past {
			continue
		}
		d := &s.slots[row.Slot]
		at := d.at(row.Past)
		missed := at - d.have
		d.left = min(p.Most, s.draft.Capacity().MaxLen-at)
		if d.left < 1 {
			continue
		}
		n := missed + 1
		if missed > room {
			n = room
		}
		next := Row{Slot: row.Slot, Past: d.have}
		next.IDs = d.unread(p.Known, row.IDs[0], n)
		if n == 0 || slices.Max(next.IDs) >= vocab {
			continue
		}
		next.Spans = s.spans(row)
		room -= min(missed, n)
		p.Behind = missed > 1
		if n > missed {
			d.sampler.shadow(row.Sampler)
			next.Sampler, d.row = &d.sampler, row
			s.open = append(s.open, d)
		}
		s.rows = append(s.rows, next)
	}
	for len(s.rows) > 0 {
		tokens, err := s.draft.Run(ctx, &Batch{Rows: s.rows})
		if err != nil {
			return s.failed(rows, err)
		}
		s.extend(tokens)
	}
	return nil
}

// extend notes what a run of the draft model gave, and makes the rows of the next.
func (s *Speculator) extend(tokens []Token) {
	for _, row := range s.rows {
		d := &s.slots[row.Slot]
		d.have = row.Past + len(row.IDs)
		d.written = max(d.written, d.have)
	}
	s.rows = s.rows[:0]
	open := s.open[:0]
	for i, d := range s.open {
		p, id := d.row.Propose, tokens[i].ID
		if id < 0 || int(id) >= s.vocab || slices.Contains(p.Stop, id) {
			continue
		}
		if p.Given == 0 {
			d.ids = append(d.ids[:0], d.row.IDs...)
		}
		d.ids = append(d.ids, id)
		p.Given++
		d.row.IDs, d.row.Drafts = d.ids, p.Given
		if d.left--; d.left > 0 {
			open = append(open, d)
			s.rows = append(s.rows, Row{Slot: d.row.Slot, Past: d.have, IDs: d.ids[p.Given:], Sampler: &d.sampler,
				Spans: s.spans(d.row)})
		}
	}
	s.open = open
}

// spans are those of a row that the draft model sees.
func (s *Speculator) spans(row *Row) []fusion.Span {
	if s.patches {
		return row.Spans
	}
	return nil
}

// failed takes back the drafts of rows that the draft model could not run; the rows stay as they were without.
func (s *Speculator) failed(rows []Row, err error) error {
	for _, row := range s.rows {
		s.slots[row.Slot].have = 0
	}
	for i := range rows {
		if p := rows[i].Propose; p != nil && p.Given > 0 {
			rows[i].IDs, rows[i].Drafts, p.Given = rows[i].IDs[:1], 0, 0
		}
	}
	if errors.Is(err, ErrDevice) {
		return fmt.Errorf("draft model: %w", err)
	}
	return nil
}

// at is how many positions the draft has of a sequence's first n.
func (d *draftSlot) at(n int) int {
	skipped := 0
	for _, image := range d.images {
		if image[0] >= n {
			break
		}
		skipped += min(image[1], n) - image[0]
	}
	return n - skipped
}

// unread are the first n ids, of those before the newest and that one, that the draft does not have.
func (d *draftSlot) unread(known []int32, newest int32, n int) []int32 {
	at, images := d.have, d.images
	d.ids = d.ids[:0]
	for len(d.ids) < n {
		for len(images) > 0 && images[0][0] <= at {
			at, images = at+images[0][1]-images[0][0], images[1:]
		}
		if at == len(known) {
			return append(d.ids, newest)
		}
		d.ids = append(d.ids, known[at])
		at++
	}
	return d.ids
}
