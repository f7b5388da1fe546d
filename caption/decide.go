package caption

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mmserve/mmserve/client"
)

// decideAll takes jobs in the order of the source, which makes the first of several copies the one that is asked about.
func (r *runner) decideAll(ctx context.Context) {
	for j := range r.ordered {
		select {
		case <-j.read:
		case <-ctx.Done():
			return
		}
		if r.stopped() {
			r.dropped = true
			r.budget.Release(j.cost)
			continue
		}
		j.open = len(j.questions)
		for _, q := range j.questions {
			if err := r.decide(ctx, j, q); err != nil {
				r.fail(err)
				return
			}
		}
	}
}

// decide finds out whether a question is answered, being asked, or to be asked; and then asks it.
func (r *runner) decide(ctx context.Context, j *job, q Question) error {
	t := r.newTask(j, q)
	had, err := r.o.Output.Row(j.item.Path, q.Name, j.item.Prompt)
	if err != nil || ctx.Err() != nil { // reading may have failed because the run ends
		return err
	}
	if j.err != nil {
		t.row.fail(j.err)
	}
	same := had != nil && had.Key == t.row.Key && had.ErrorCode == t.row.ErrorCode && had.Error == t.row.Error
	if same && j.err != nil || had != nil && j.err == nil && had.Key == t.row.Key && !r.again(had) {
		r.stats.skip(had)
		r.drop(t)
		return nil
	}
	if j.err != nil {
		return r.done(ctx, t)
	}
	if !r.o.NoDedupe {
		copied, err := r.copyOrClaim(ctx, t)
		if err != nil || copied {
			return err
		}
	}
	if err := r.lim.acquire(ctx); err != nil {
		return nil // the run ends: nothing is lost, nothing was asked
	}
	r.asks.Go(func() {
		defer r.lim.release()
		r.ask(ctx, t)
	})
	return nil
}

// copyOrClaim copies the answer of another image with the same bytes, now or when it comes. Else the task is the one
// that copies wait for.
func (r *runner) copyOrClaim(ctx context.Context, t *task) (copied bool, err error) {
	r.mu.Lock()
	waiters, ok := r.inflight[t.row.Key]
	if ok {
		r.inflight[t.row.Key] = append(waiters, t)
		r.mu.Unlock()
		r.freeData(t)
		select {
		case r.waiting <- struct{}{}:
		case <-ctx.Done():
		}
		return true, nil
	}
	first, err := r.o.Output.ByKey(t.row.Key)
	if err == nil && (first == nil || first.path() == t.row.path() || r.again(first)) {
		r.inflight[t.row.Key] = nil
		first = nil
	}
	r.mu.Unlock()
	if err != nil || first == nil {
		return false, err
	}
	t.row.copyFrom(first)
	return true, r.done(ctx, t)
}

// copyFrom takes another row's answer over.
func (r *Row) copyFrom(first *Row) {
	r.DuplicateOf = first.ID
	r.Text, r.Data, r.Choice, r.ChoiceScore = first.Text, first.Data, first.Choice, first.ChoiceScore
	r.FinishReason, r.Seed, r.Model, r.ModelDigest = first.FinishReason, first.Seed, first.Model, first.ModelDigest
	r.PromptTokens, r.ImageTokens, r.CompletionTokens = first.PromptTokens, first.ImageTokens, first.CompletionTokens
	r.ErrorCode, r.Error = first.ErrorCode, first.Error
}

// ask calls until there is an answer or an error that stays.
func (r *runner) ask(ctx context.Context, t *task) {
	started := time.Now()
	in, err := r.o.Asker.Request(ctx, t.job.data, t.prompt)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		t.row.fail(err)
		_ = r.done(ctx, t)
		return
	}
	for tries := 0; ; {
		if err := r.brk.pass(ctx); err != nil {
			r.fail(err)
			return
		}
		t.row.Attempts++
		out, err := call(ctx, r.o.Server, in)
		if ctx.Err() != nil {
			return // no row: the next run asks
		}
		if err == nil {
			if err := r.o.Config.checkModel(out); err != nil {
				r.fail(err)
				return
			}
			r.brk.success()
			r.lim.success()
			r.o.Asker.Answer(&t.row, out)
			break
		}
		switch judge(err) {
		case runFailed:
			r.fail(fmt.Errorf("%w: %w", ErrGivenUp, err))
			return
		case itemFailed:
			r.brk.success()
			if r.o.ShrinkMaxTokens && shrinkMaxTokens(in, err) {
				continue
			}
			t.row.fail(err)
		case tryLater:
			r.wait(ctx, err)
			continue
		case tryAgain:
			if !r.brk.failure(ctx, err) {
				tries++
			}
			if tries < r.o.Attempts {
				r.stats.retried.Add(1)
				_ = sleep(ctx, client.BackOff(tries))
				continue
			}
			t.row.fail(err)
		}
		break
	}
	t.row.Seconds = seconds(time.Since(started))
	_ = r.done(ctx, t)
}

// wait waits as long as a full server wants.
func (r *runner) wait(ctx context.Context, err error) {
	r.stats.refused.Add(1)
	r.lim.refused(time.Now())
	delay, _ := client.RetryDelay(err)
	_ = sleep(ctx, delay+rand.N(delay+1))
}
