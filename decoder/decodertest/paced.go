package decodertest

import (
	"context"
	"time"

	"github.com/mmserve/mmserve/decoder"
)

// Paced is a Hash that takes a model's time: a server over it can be load-tested without one.
type Paced struct {
	*Hash
	ttftPerToken, tpot time.Duration
}

// NewPaced gives h a pace: ttftPerToken for each prompt token of a prefill chunk, tpot for a decode step of any number
// of rows.
func NewPaced(h *Hash, ttftPerToken, tpot time.Duration) *Paced {
	return &Paced{h, ttftPerToken, tpot}
}

// Run is Hash's, after the time it would take. It ends early, without a result, when ctx does.
func (p *Paced) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	if len(b.Rows) == 0 {
		return p.Hash.Run(ctx, b)
	}
	took := p.tpot
	if len(b.Rows) == 1 && (len(b.Rows[0].IDs) > 1+b.Rows[0].Drafts || b.Rows[0].Past == 0) {
		took = time.Duration(len(b.Rows[0].IDs)) * p.ttftPerToken
	}
	timer := time.NewTimer(took)
	defer timer.Stop()
	select {
	case <-timer.C:
		return p.Hash.Run(ctx, b)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
