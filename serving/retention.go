package serving

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/audit"
)

// Janitor deletes conversations whose time is over, each after a line in the audit log. One goroutine runs it; several
// processes may, over one store.
type Janitor struct {
	Store conversation.Store
	// Audit gets a line before each deletion, and one after; nil: nothing does.
	Audit  Auditor
	Logger *slog.Logger
	// Every is the time between two looks. Default: 1 min.
	Every time.Duration
	// Now is the machine's clock. Default: time.Now.
	Now func() time.Time

	began time.Time // by Now
}

// Defaults of a Janitor.
const (
	janitorEvery = time.Minute
	janitorPage  = 100 // conversations of one look into the store
)

// Run works until ctx ends.
func (j *Janitor) Run(ctx context.Context) {
	j.Every = cmp.Or(j.Every, janitorEvery)
	if j.Now == nil {
		j.Now = time.Now
	}
	started := time.Now()
	j.began = j.Now().Round(0) // without the clock that never jumps: comparing would take that one
	tick := time.NewTicker(j.Every)
	defer tick.Stop()
	for {
		if err := j.look(ctx, started); err != nil && ctx.Err() == nil {
			j.Logger.Error("retention: conversations whose time is over were not deleted", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// now is the earlier of the machine's clock and of what has passed since the start: a clock that is put forward deletes
// nothing too early, and neither does one that is put back, by which conversations got their times meanwhile.
func (j *Janitor) now(started time.Time) time.Time {
	passed := j.began.Add(time.Since(started))
	if wall := j.Now().Round(0); wall.Before(passed) {
		return wall
	}
	return passed
}

// look deletes all that is due.
func (j *Janitor) look(ctx context.Context, started time.Time) error {
	now := j.now(started)
	for {
		list, err := j.Store.Due(ctx, now, janitorPage)
		if err != nil {
			return err
		}
		gone := 0
		for _, d := range list {
			deleted, err := j.expire(ctx, d, now)
			if err != nil {
				return err
			}
			if deleted {
				gone++
			}
		}
		if gone == 0 { // what is left went on in between
			return nil
		}
	}
}

// expire deletes one conversation. What cannot be kept in the audit log is not deleted.
func (j *Janitor) expire(ctx context.Context, d conversation.Due, now time.Time) (bool, error) {
	event := audit.Event{
		Kind: audit.KindRetention, Action: "expire", Decision: "allowed", Tenant: d.Scope.Tenant, Object: d.ID,
		Subject: j.Store.Pseudonym(d.Scope),
		Details: map[string]int64{"due": d.Expires.Unix(), "kept_seconds": int64(d.Retention.For / time.Second)},
	}
	after := event
	if j.Audit != nil {
		if err := j.Audit.RecordSync(&event); err != nil {
			return false, err
		}
	}
	d.Scope.Purpose = conversation.ForOperator
	deleted, err := j.Store.Expire(ctx, d.Scope, d.ID, now)
	if err != nil {
		after.Decision = "INTERNAL"
	} else if after.Decision = "OK"; !deleted { // it went on, or is under legal hold now
		after.Decision = "FAILED_PRECONDITION"
	}
	if j.Audit != nil {
		_ = j.Audit.Record(&after) // the line before says that it was begun
	}
	return deleted, err
}
