package caption

import (
	"context"
	"fmt"
	"time"
)

// done hands a row to the writer.
func (r *runner) done(ctx context.Context, t *task) error {
	select {
	case r.rows <- t:
	case <-ctx.Done():
	}
	return nil
}

// writeAll writes rows until there are no more. Rows that wait for the one that was written follow it.
func (r *runner) writeAll(ctx context.Context) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := r.o.Output.Sync(); err != nil {
				r.fail(err)
			}
		case t, ok := <-r.rows:
			if !ok {
				return
			}
			if err := r.write(ctx, t); err != nil {
				r.fail(err)
			}
		}
	}
}

func (r *runner) write(ctx context.Context, t *task) error {
	err := r.append(t)
	if t.row.Key == "" || t.row.DuplicateOf != "" || r.o.NoDedupe {
		return err
	}
	r.mu.Lock()
	copies, claimed := r.inflight[t.row.Key]
	if claimed {
		delete(r.inflight, t.row.Key)
	}
	r.mu.Unlock()
	for _, c := range copies {
		select {
		case <-r.waiting:
		case <-ctx.Done():
			return err
		}
		if err == nil {
			err = r.appendCopy(c, &t.row)
		}
	}
	return err
}

// appendCopy writes the row of a copy, unless it is a second mention of a path that has one.
func (r *runner) appendCopy(c *task, first *Row) error {
	had, err := r.o.Output.Row(c.row.path(), c.row.Question, c.row.Prompt)
	if err != nil {
		return err
	}
	if had != nil && had.Key == c.row.Key {
		r.stats.skip(had)
		r.drop(c)
		return nil
	}
	c.row.copyFrom(first)
	return r.append(c)
}

// append writes one row and counts it.
func (r *runner) append(t *task) error {
	defer r.drop(t)
	image := t.job.image()
	if r.o.Writing != nil {
		if err := r.o.Writing(t.job.item, &t.row); err != nil {
			t.row.fail(err)
		}
	}
	if err := r.o.Output.Append(&t.row, image); err != nil {
		return err
	}
	if r.o.Written != nil {
		r.o.Written(&t.row, image)
	}
	r.stats.imageBytes.Add(int64(len(image)))
	r.stats.wrote(&t.row)
	failed, all := r.stats.failed.Load(), r.stats.written.Load()
	if r.o.MaxErrors > 0 && failed > r.o.MaxErrors ||
		r.o.MaxErrorShare > 0 && all >= leastForRate && float64(failed) > r.o.MaxErrorShare*float64(all) {
		return fmt.Errorf("%w: %d of %d", ErrTooManyErrors, failed, all)
	}
	return nil
}

// image gives the bytes; nil for a copy, whose bytes another job has.
func (j *job) image() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.data
}

// drop gives the image's memory back when no question needs it any more.
func (r *runner) drop(t *task) {
	t.job.mu.Lock()
	defer t.job.mu.Unlock()
	if t.job.open--; t.job.open == 0 {
		t.job.data = nil
		r.budget.Release(t.job.cost)
	}
}

// freeData gives the memory of a copy back before its row is written.
func (r *runner) freeData(t *task) {
	t.job.mu.Lock()
	defer t.job.mu.Unlock()
	if t.job.open == 1 {
		t.job.data = nil
		r.budget.Release(t.job.cost)
		t.job.cost = 0
	}
}
