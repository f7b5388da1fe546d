package batching

import "time"

// Step is a batch that was run. It is valid until the observer returns.
type Step struct {
	Began, Ended time.Time
	// Prefill says that it ran chunks of prompts, Decode that sequences decoded in it.
	Prefill, Decode bool
	Rows            []StepRow
	// Err is what the runner gave; the rows then have no tokens.
	Err error
}

// StepRow is one sequence's part of a step.
type StepRow struct {
	// Tag is its Request's.
	Tag any
	// Prefill says that the row is a chunk of a prompt.
	Prefill bool
	// Slot is where its KV lies, Past the number of positions that were there before, Tokens how many were run.
	Slot, Past, Tokens int
}

// observe tells the observer of p before anything of it is delivered, so that who has read the end of a stream finds
// all its steps told.
func (e *Engine) observe(p plan, began time.Time, err error) {
	if e.observer == nil || len(p.seqs) == 0 {
		return
	}
	s := Step{Began: began, Ended: e.clock(), Rows: e.rows[:0], Err: err}
	s.Prefill, s.Decode = p.decodes < len(p.seqs), p.decodes > 0
	for i, q := range p.seqs {
		row := p.batch.Rows[i]
		s.Rows = append(s.Rows,
			StepRow{Tag: q.tag, Prefill: i >= p.decodes, Slot: row.Slot, Past: row.Past, Tokens: len(row.IDs)})
	}
	e.rows = s.Rows
	e.observer(s)
}

// Stalled is how long the engine has had requests to run and no step has ended; 0 if it has none.
func (e *Engine) Stalled() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stats.Running+e.stats.Waiting == 0 || e.stopped {
		return 0
	}
	return e.clock().Sub(e.stepped)
}

// mark notes when a step ended, or when there was something to run again; before are the stats up to now. The caller
// holds mu.
func (e *Engine) mark(before Stats) {
	rows := func(s Stats) int64 { return s.PrefillSteps + s.DecodeRows }
	if rows(e.stats) != rows(before) || before.Running+before.Waiting == 0 {
		e.stepped = e.clock()
	}
}
