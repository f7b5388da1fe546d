package main

import (
	"fmt"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/model"
)

// kvPlan says how much KV cache there is: slots are reserved, maxLen positions each, and at most tokens of them have
// memory at once.
type kvPlan struct {
	slots, maxLen, tokens int
	bytes                 int64
}

// planKV divides a budget of bytes, 0 for a quarter of the usable memory. A model whose context is too long for that is
// cut to what fits, unless maxLen or the budget was asked for.
func planKV(m *model.Model, slots, maxLen int, budget int64) (p kvPlan, err error) {
	p = kvPlan{slots: slots, maxLen: maxLen, bytes: budget}
	if slots < 1 {
		return p, fmt.Errorf("--slots %d: want 1 or more", slots)
	}
	asked := maxLen > 0 || budget > 0
	if p.maxLen, err = contextLen(m, maxLen); err != nil {
		return p, err
	}
	if p.bytes == 0 {
		p.bytes = int64(host.ReadMemory().Limit) / 4
	}
	p.tokens = m.KVTokens(p.bytes, slots)
	if full := p.slots * p.maxLen; p.tokens > full {
		p.tokens, p.bytes = full, m.KVBytes(full, slots)
	}
	if p.tokens >= p.maxLen {
		return p, nil
	}
	if asked || p.tokens < 64 {
		return p, fmt.Errorf("the KV cache of one sequence of %d tokens and %d slots takes %s, there are %s; give --kv-cache-bytes more, or --max-len or --slots less",
			p.maxLen, slots, bytesText(m.KVBytes(p.maxLen, slots)), bytesText(p.bytes))
	}
	p.maxLen = p.tokens
	return p, nil
}

// contextLen is the context that --max-len asks for, the model's own where it is 0.
func contextLen(m *model.Model, maxLen int) (int, error) {
	if maxLen > m.Decoder.MaxLen {
		return 0, fmt.Errorf("--max-len %d: want at most %d, the context that %s was made for", maxLen, m.Decoder.MaxLen, m.Name)
	}
	if maxLen == 0 {
		return m.Decoder.MaxLen, nil
	}
	return maxLen, nil
}

func (p kvPlan) String() string {
	return fmt.Sprintf("%s for %d tokens, of up to %d sequences with up to %d each", bytesText(p.bytes), p.tokens, p.slots, p.maxLen)
}
