package loadtest

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// Request is one request, ready to be sent.
type Request struct {
	ID        string
	Text      string
	Images    []Image
	MaxTokens int
	IgnoreEOS bool
	Tenant    string
	Priority  string // interactive, default or batch; "" is default
	// Abandon is after how long its sender stops waiting; 0: never.
	Abandon time.Duration
}

// Mix says what requests are made of. Its fields are drawn independently of each other.
type Mix struct {
	// Prompt is the length of the text in words, each of them one token in common vocabularies; Output the most tokens of
	// the answer.
	Prompt, Output Lengths
	// IgnoreEOS has an answer go on up to its Output.
	IgnoreEOS bool
	// ImageShare of the requests have images, each of them ImagesEach, taken from Images at random. If Fresh, an
	// image is never sent twice with the same bytes, not even by runs of other names.
	ImageShare float64
	ImagesEach Lengths
	Images     []Image
	Fresh      bool
	// Tenants and Priorities; none if empty.
	Tenants, Priorities []Weighted
	// AbandonShare of the requests are given up after a time that is exponential with mean AbandonAfter.
	AbandonShare float64
	AbandonAfter time.Duration
	// Name begins every request's ID.
	Name string
}

// Check says what is wrong with the mix.
func (m *Mix) Check() error {
	switch {
	case m.Prompt.draw == nil || m.Output.draw == nil:
		return fmt.Errorf("the mix has no lengths of prompts or of answers")
	case !(m.ImageShare >= 0 && m.ImageShare <= 1):
		return fmt.Errorf("share of requests with images %v: want 0 to 1", m.ImageShare)
	case m.ImageShare > 0 && (len(m.Images) == 0 || m.ImagesEach.draw == nil):
		return fmt.Errorf("share of requests with images %v, but there are no images", m.ImageShare)
	case !(m.AbandonShare >= 0 && m.AbandonShare <= 1) || m.AbandonShare > 0 && m.AbandonAfter <= 0:
		return fmt.Errorf("share of abandoned requests %v, after a mean of %v: want 0 to 1, and a time above 0", m.AbandonShare, m.AbandonAfter)
	}
	for _, p := range m.Priorities {
		if p.Value != "interactive" && p.Value != "default" && p.Value != "batch" {
			return fmt.Errorf("priority %q: want interactive, default or batch", p.Value)
		}
	}
	return nil
}

// salt tells the images of runs of different names apart.
func (m *Mix) salt() uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, m.Name)
	return h.Sum64()
}

// words are one token each in common vocabularies.
var words = strings.Fields("the file is in name of and with return code this that from when list data new time line text")

// Request makes the n-th request of a run. The same rng and arrival give the same one.
func (m *Mix) Request(rng *rand.Rand, n int, a Arrival) *Request {
	r := &Request{ID: fmt.Sprintf("%s-%d", m.Name, n), IgnoreEOS: m.IgnoreEOS, MaxTokens: a.Output,
		Tenant: pick(rng, m.Tenants), Priority: pick(rng, m.Priorities)}
	length := a.Prompt
	if length == 0 {
		length = m.Prompt.Draw(rng, 1)
	}
	if r.MaxTokens == 0 {
		r.MaxTokens = m.Output.Draw(rng, 1)
	}
	var text strings.Builder
	for i := range length {
		if i > 0 {
			text.WriteByte(' ')
		}
		text.WriteString(words[rng.IntN(len(words))])
	}
	r.Text = text.String()
	if rng.Float64() < m.ImageShare {
		for i := range m.ImagesEach.Draw(rng, 1) {
			p := m.Images[rng.IntN(len(m.Images))]
			if m.Fresh {
				p = p.stamp(m.salt() + uint64(n)<<8 + uint64(i&0xff))
			}
			r.Images = append(r.Images, p)
		}
	}
	if rng.Float64() < m.AbandonShare {
		r.Abandon = max(1, time.Duration(rng.ExpFloat64()*float64(m.AbandonAfter)))
	}
	return r
}
