package batching

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
)

// lateMasks allows every other id, and takes its time with each mask after the first.
type lateMasks struct {
	delay   time.Duration
	fail    error // instead of the third mask
	masks   int
	pending atomic.Bool
	err     atomic.Pointer[error]
	notify  func()
}

func (l *lateMasks) Mask() []uint64 { return []uint64{0x5555555555555555 << (l.masks % 2)} }

func (l *lateMasks) Accept(int32) {
	l.masks++
	l.pending.Store(true)
	time.AfterFunc(l.delay, func() {
		if l.masks == 2 && l.fail != nil {
			l.err.Store(&l.fail)
		}
		l.pending.Store(false)
		if l.notify != nil {
			l.notify()
		}
	})
}

func (l *lateMasks) Ready() bool     { return !l.pending.Load() && l.err.Load() == nil }
func (l *lateMasks) Notify(f func()) { l.notify = f }
func (l *lateMasks) Err() error {
	if err := l.err.Load(); err != nil {
		return *err
	}
	return nil
}

// slowMasks allows about half of the ids, which depend on all tokens before. A mask is ready so many ticks after the
// token before it.
type slowMasks struct {
	start, sum   uint64
	delay, fails int // instead of mask number fails, if not 0, it gives up
	ticks        *int
	masks, due   int
}

// again is the same constraint anew, for another sequence; it does not fail.
func (m *slowMasks) again(delay int) *slowMasks {
	return &slowMasks{start: m.start, delay: delay, ticks: m.ticks}
}

func (m *slowMasks) Mask() []uint64 {
	x := (m.start ^ m.sum) * 0x9e3779b97f4a7c15
	return []uint64{x>>20 | 1<<(x>>58%40)}
}

func (m *slowMasks) Accept(id int32) {
	m.masks++
	m.sum = m.sum*31 + uint64(id) + 1
	m.due = *m.ticks + m.delay
}

func (m *slowMasks) Ready() bool   { return m.Err() == nil && *m.ticks >= m.due }
func (m *slowMasks) Notify(func()) {}

func (m *slowMasks) Err() error {
	if m.fails > 0 && m.masks >= m.fails && *m.ticks >= m.due {
		return errMasks
	}
	return nil
}

var errMasks = errors.New("no more masks")

// TestLateMasks holds that a sequence whose masks come late keeps no other waiting, gets the tokens that it has alone,
// and that the engine neither steps nor sleeps on while there is nothing else to run.
func TestLateMasks(t *testing.T) {
	for _, options := range []Options{{}, {Drafts: 4}, {PrefillChunk: 2, KVTokens: 60}} {
		synctest.Test(t, func(t *testing.T) {
			h := decodertest.NewHash(4, 60, 40)
			h.Loop = 2
			e, _ := newChecked(decodertest.NewPaced(h, time.Millisecond, 10*time.Millisecond), options)
			stop := start(e)
			var late []*Stream
			var requests []Request
			for i, delay := range []time.Duration{0, 95 * time.Millisecond, 3 * time.Millisecond} {
				r := request(fmt.Sprint("r", i), 3, 12)
				r.Sampling = decoder.Sampling{Temperature: 1, Seed: uint64(i)}
				if i > 0 {
					r.Sampling.Constraint = &lateMasks{delay: delay}
				}
				requests = append(requests, r)
				late = append(late, mustSubmit(t, t.Context(), e, r))
			}
			began := time.Now()
			tokens := make([][]decoder.Token, len(late))
			for i, s := range late {
				tokens[i], _ = read(t, s)
				if took := time.Since(began); i == 0 && options.KVTokens == 0 && took > 250*time.Millisecond {
					t.Errorf("a sequence beside late masks took %v", took)
				}
			}
			for i, r := range requests {
				if r.Sampling.Constraint != nil {
					r.Sampling.Constraint = &lateMasks{}
				}
				want, err := h.Alone(r.Input, r.Sampling, r.MaxTokens)
				if err != nil || !slices.EqualFunc(tokens[i], want, func(a, b decoder.Token) bool { return a.ID == b.ID }) {
					t.Errorf("sequence %d has %v, alone %v (%v)", i, tokens[i], want, err)
				}
			}
			if steps := e.Stats().Steps; steps > 60 {
				t.Errorf("%d steps for three answers of 12 tokens", steps)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMasksFail holds that a constraint that gives up ends its own sequence only.
func TestMasksFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := decodertest.NewHash(3, 60, 40)
		e, _ := newChecked(decodertest.NewPaced(h, time.Millisecond, 10*time.Millisecond), Options{})
		stop := start(e)
		bad, good := request("bad", 3, 12), request("good", 3, 12)
		cause := errors.New("too much work")
		bad.Sampling.Constraint = &lateMasks{delay: time.Millisecond, fail: cause}
		a, b := mustSubmit(t, context.Background(), e, bad), mustSubmit(t, context.Background(), e, good)
		if tokens, last := read(t, a); len(tokens) != 2 || last.Finish != Error || !errors.Is(last.Err, cause) {
			t.Errorf("%d tokens, then %v %v", len(tokens), last.Finish, last.Err)
		}
		if tokens, last := read(t, b); len(tokens) != 12 || last.Finish != Length {
			t.Errorf("beside it: %d tokens, then %v %v", len(tokens), last.Finish, last.Err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
