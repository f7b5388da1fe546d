package batching

import (
	"slices"

	"github.com/mmserve/mmserve/fusion"
)

// forgetting is an image, or a tenant, whose traces go. The scheduler has it, but for done.
type forgetting struct {
	tenant string
	file   [32]byte
	all    bool          // prompts without the image, too
	left   []*sequence   // those with the image that were open when it came
	done   chan struct{} // closed once there is nothing of it
}

// Forget has the engine let go of what it keeps of an image file (fusion.Span.File) of a tenant's: cached prefixes
// with it go at once, their memory is overwritten, and sequences that are open go on and leave nothing behind. The
// channel is closed when nothing is left of those that were there.
func (e *Engine) Forget(tenant string, file [32]byte) <-chan struct{} {
	return e.letGo(&forgetting{tenant: tenant, file: file, done: make(chan struct{})})
}

// ForgetTenant is Forget of all prompts of a tenant's; where tenants share prefixes, of all prompts.
func (e *Engine) ForgetTenant(tenant string) <-chan struct{} {
	return e.letGo(&forgetting{tenant: tenant, all: true, done: make(chan struct{})})
}

func (e *Engine) letGo(f *forgetting) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped { // what it had went with it, or goes when its runner is closed
		close(f.done)
		return f.done
	}
	e.post(message{forget: f})
	return f.done
}

// has says whether q is one of those that leave nothing behind.
func (s *scheduler) has(f *forgetting, q *sequence) bool {
	return (q.tenant == f.tenant || s.sharePrefixes) && (f.all ||
		slices.ContainsFunc(q.spans, func(p fusion.Span) bool { return p.File == f.file }))
}

// forget evicts what is cached of an image, and marks the open sequences that have it. The next step wipes the memory.
func (s *scheduler) forget(f *forgetting) {
	for _, q := range slices.Clone(s.slots.cached) {
		if s.has(f, q) {
			s.slots.forget(q)
			s.slots.at[q.slot] = nil
		}
	}
	open := slices.AppendSeq(slices.Clone(s.slots.decoding), s.queue.all())
	open = append(open, s.slots.prefilling...)
	for _, q := range open {
		if s.has(f, q) {
			q.forgotten = true
			f.left = append(f.left, q)
		}
	}
	s.forgets = append(s.forgets, f)
	s.slots.wipe = true
}

// wiped ends what is forgotten: a step that wiped has run, and no sequence is left that may write again.
func (s *scheduler) wiped() {
	s.forgets = slices.DeleteFunc(s.forgets, func(f *forgetting) bool {
		f.left = slices.DeleteFunc(f.left, func(q *sequence) bool { return q.phase == ended })
		if len(f.left) > 0 {
			return false
		}
		close(f.done)
		return true
	})
}
