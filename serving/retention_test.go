package serving_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/serving"
)

// dueStore is a store of conversations that have nothing but a time.
type dueStore struct {
	conversation.Store
	mu   sync.Mutex
	ends map[string]time.Time
}

func (s *dueStore) Pseudonym(conversation.Scope) string { return "someone" }

func (s *dueStore) Due(_ context.Context, now time.Time, limit int) (list []conversation.Due, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.ends {
		if !at.After(now) && len(list) < limit {
			list = append(list, conversation.Due{ID: id, Expires: at})
		}
	}
	return list, nil
}

func (s *dueStore) Expire(_ context.Context, _ conversation.Scope, id string, now time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.ends[id]
	delete(s.ends, id)
	return ok && !at.After(now), nil
}

func (s *dueStore) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ends)
}

// What is due goes, and nothing before its time, wherever the machine's clock jumps. Every deletion has two lines.
func TestJanitor(t *testing.T) {
	h := newHeard(t)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		jump := time.Duration(0)
		wall := func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(jump)
		}
		leap := func(d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			jump = d
		}
		store := &dueStore{ends: map[string]time.Time{
			"hour": wall().Add(time.Hour), "day": wall().Add(24 * time.Hour), "week": wall().Add(7 * 24 * time.Hour),
		}}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		j := &serving.Janitor{Store: store, Audit: h, Logger: slog.New(slog.DiscardHandler), Now: wall}
		go j.Run(ctx)
		after := func(d time.Duration, what string, want int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if n := store.left(); n != want {
				t.Errorf("%s: %d are left, want %d", what, n, want)
			}
		}
		after(59*time.Minute, "before the first is due", 3)
		leap(1000 * time.Hour)
		after(30*time.Second, "after the clock was put forward", 3)
		after(time.Minute, "after an hour", 2)
		leap(-48 * time.Hour)
		after(24*time.Hour, "a day later, by a clock that was put back by two", 2)
		leap(0)
		after(2*time.Minute, "once the clock is right again", 1)
		if len(h.events) != 4 || h.events[0].Decision != "allowed" || h.events[1].Decision != "OK" ||
			h.events[0].Object != "hour" || h.events[3].Object != "day" || h.events[0].Subject != "someone" {
			t.Errorf("events %+v", h.events)
		}
		h.setFull(true)
		after(8*24*time.Hour, "while nothing can be kept in the audit log", 1)
		stop()
		synctest.Wait()
	})
}
