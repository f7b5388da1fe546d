package batching

import (
	"container/list"
	"fmt"
	"slices"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
)

// Request is one prompt to be continued.
type Request struct {
	// ID names the request in errors and traces; the engine does not need it to be unique.
	ID string
	// Input has at least one id and at most Capacity.MaxLen, and patches attached to its spans.
	Input fusion.Input
	// MaxTokens is the largest number of tokens to generate, at least 1.
	MaxTokens int
	// Stop are the ids that end the sequence; the one that did is delivered.
	Stop     []int32
	Sampling decoder.Sampling
	// PromptLogprobs asks for the log-probabilities of the prompt's tokens, with so many alternatives each; nil if they
	// are not wanted. Such a prompt is run whole: it starts from no other's KV.
	PromptLogprobs *int
	// Group, if not nil, is what requests with one and the same Input have in common: the prompt is run once, and those
	// that get a slot while one of the others is decoding start from that.
	Group *Group
	// Further says that it is not the first answer of its Group. Further answers of one tenant take turns with the first
	// answers of other calls, to which they give way.
	Further bool
	// Deadline is when its answer has to be complete; if zero, whenever. A request that is unlikely to make it is refused,
	// and one that has no token by then, or that could not make it when its turn comes, ends as Expired.
	Deadline time.Time
	// NoDrafts has its tokens generated one by one, whatever Options.Drafts; they are the same.
	NoDrafts bool
	// Priority is its class; the zero value is PriorityDefault.
	Priority Priority
	// Tenant is on whose behalf the request comes: with whom it shares a turn while it waits. Unless
	// Options.SharePrefixes, it starts from the KV of that tenant's sequences only: the time of a first token tells
	// whether others have asked the same.
	Tenant string
	// Weight is the tenant's share from now on; if 0, that of Options.TenantWeights.
	Weight float64
	// Tag comes back in the rows of Options.Observe; the engine does not look at it.
	Tag any
}

// Group is the identity of requests that are different answers to one prompt.
type Group struct{ _ byte }

func (r Request) check(maxLen int) error {
	if n := len(r.Input.IDs); n < 1 || n > maxLen {
		return fmt.Errorf("request %q: the prompt has %d tokens, allowed are 1 to %d", r.ID, n, maxLen)
	}
	if r.MaxTokens < 1 {
		return fmt.Errorf("request %q: max tokens is %d, allowed is 1 or more", r.ID, r.MaxTokens)
	}
	if err := r.Priority.check(); err != nil {
		return fmt.Errorf("request %q: %w", r.ID, err)
	}
	return nil
}

// claim is what is known of the request's deadline.
func (r Request) claim() Claim {
	return Claim{
		Priority: r.Priority, Deadline: r.Deadline, Prompt: len(r.Input.IDs), MaxTokens: r.MaxTokens,
		Endless: len(r.Stop) == 0,
	}
}

// phase is where a sequence stands; it says which of the scheduler's lists holds it.
//
//	arriving → waiting → prefilling → decoding → ended
//
// and from each to ended. The KV of one that has ended may stay for others to start from.
type phase int

const (
	arriving phase = iota // in the engine's inbox
	waiting
	prefilling
	decoding
	ended
)

// sequence is one request on its way. Submit makes it; from then on only the engine's goroutine touches it, but for
// the fields that say otherwise.
type sequence struct {
	id        string
	tenant    string
	tag       any
	spans     []fusion.Span
	maxTokens int
	stop      []int32
	weight    float64 // of its tenant; 0: as Options say
	sampler   *decoder.Sampler
	logprobs  *decoder.PromptLogprobs // nil if they are not wanted
	group     *Group
	stream    *Stream
	detach    func() // lets go of the request's context
	unwanted  bool   // a cancellation was posted; guarded by Engine.mu

	phase  phase
	ids    []int32 // prompt and generated tokens
	prompt int     // the number of ids that are the prompt
	target int     // the number of ids that prefill runs
	past   int     // the number of positions in the KV cache; in decode all but the last of ids
	slot   int     // where they lie, from prefill on
	ran    int     // ids that were run for it
	timing Timing
	missed bool // its last row gave no token: see pending
	// forgotten says that nothing of its KV may stay: see Engine.Forget.
	forgotten bool

	plain         bool    // nothing is drafted for it
	drafted       []int32 // its newest token and what may follow, as in the plan
	proposal      decoder.Proposal
	lookup, model guesses // by what was said before, and by a draft model

	priority Priority
	ticket   *Ticket // given back at the end
	probe    bool    // accepted although its deadline is unlikely to be met

	// What preemption knows, see preempt.go.
	further   bool // Request.Further
	preempted int  // how often it gave way to another
	made      int  // the number of ids when it last did
	lost      int  // positions of its KV when it was preempted, until it runs again

	deadline time.Time
	due      int // its place among the scheduler's deadlines; -1 if it has none or its first token is there

	// The queue's.
	class            int // of the queue: that of its Priority, or higher once it has aged
	since            time.Time
	share            *share
	inShare, inClass *list.Element
	charged          int // positions its tenant was charged for
}

func newSequence(r Request, now time.Time) *sequence {
	q := &sequence{
		id: r.ID, tenant: r.Tenant, tag: r.Tag, spans: r.Input.Spans, maxTokens: r.MaxTokens, stop: slices.Clone(r.Stop),
		sampler: decoder.NewSampler(r.Sampling),
		ids:     slices.Clone(r.Input.IDs), prompt: len(r.Input.IDs), target: len(r.Input.IDs),
		timing: Timing{Submitted: now}, plain: r.NoDrafts, group: r.Group,
		weight: r.Weight, class: r.Priority.class(), priority: r.Priority, further: r.Further, deadline: r.Deadline, due: -1,
	}
	q.sampler.Prompt(q.ids)
	if r.PromptLogprobs != nil {
		q.logprobs = &decoder.PromptLogprobs{IDs: slices.Clone(r.Input.IDs), Top: *r.PromptLogprobs}
	}
	return q
}

// finish says whether the sequence ends with the token that was just appended to ids.
func (q *sequence) finish(maxLen int) FinishReason {
	switch {
	case slices.Contains(q.stop, q.ids[len(q.ids)-1]):
		return Stop
	case len(q.ids)-q.prompt == q.maxTokens || q.past == maxLen: // the last token has no position left to be fed at
		return Length
	}
	return Running
}
