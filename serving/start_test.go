package serving

import (
	"errors"
	"slices"
	"testing"
)

// noted is a sink that notes the kinds of its events, and fails at one of them.
type noted struct {
	events []string
	fail   string
}

func (n *noted) note(event string) error {
	n.events = append(n.events, event)
	if event == n.fail {
		return errGone
	}
	return nil
}

func (n *noted) Start(*Start) error   { return n.note("start") }
func (n *noted) Delta(*Delta) error   { return n.note("delta") }
func (n *noted) Finish(*Finish) error { return n.note("finish") }

// A start goes out once, with what comes first after it, and not at all where nothing does.
func TestHeldStart(t *testing.T) {
	start := func(s Sink) error { return s.Start(&Start{}) }
	delta := func(s Sink) error { return s.Delta(&Delta{}) }
	finish := func(s Sink) error { return s.Finish(&Finish{}) }
	for _, c := range []struct {
		fail  string
		calls []func(Sink) error
		want  []string
		err   error
	}{
		{"", []func(Sink) error{start}, nil, nil},
		{"", []func(Sink) error{start, delta, delta, finish}, []string{"start", "delta", "delta", "finish"}, nil},
		{"", []func(Sink) error{start, finish, finish}, []string{"start", "finish", "finish"}, nil},
		{"start", []func(Sink) error{start, delta}, []string{"start"}, errGone},
		{"start", []func(Sink) error{start, finish}, []string{"start"}, errGone},
		{"delta", []func(Sink) error{start, delta}, []string{"start", "delta"}, errGone},
	} {
		n := &noted{fail: c.fail}
		h := &heldStart{to: n}
		var err error
		for _, call := range c.calls {
			if err == nil {
				err = call(h)
			}
		}
		if !slices.Equal(n.events, c.want) || !errors.Is(err, c.err) && (err != nil || c.err != nil) {
			t.Errorf("%v, failing at %q: %v, %v", c.want, c.fail, n.events, err)
		}
	}
}
