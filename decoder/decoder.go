// Package decoder runs one forward pass of the text decoder: embeddings in, sampled ids out. It owns the
// decoder graph, the KV cache and the sampler; it does not know what a request is.
package decoder

import (
	"errors"

	"github.com/mmserve/mmserve/fusion"
)

// ErrDevice marks a failure after which no further Run can be trusted: the process has to drain and exit.
// Every other error of Run concerns the rows of that batch only.
var ErrDevice = errors.New("device lost")

// Capacity is what a Runner can hold at once.
type Capacity struct {
	// Slots is the number of sequences whose KV can be resident; MaxLen the positions of one sequence.
	Slots, MaxLen int
	// Exact says that the keys, values and logits of a position are the same to the last bit whichever run computes
	// them: alone or in a chunk of any length. Where it is false, as with ONNX Runtime's own operators, which sum up
	// otherwise when there is a single row, chunks have to be cut alike for results to be alike.
	Exact bool
	// WholePrompt says that a prompt has to be run in one chunk, and that no other prompt may start from a part of it.
	WholePrompt bool
	// MaxDrafts, unless 0, is the most drafts of a row.
	MaxDrafts int
	// PrefixStep, unless 0, is what the number of positions has to be a multiple of that a sequence starts with from
	// another's.
	PrefixStep int
	// Mixed says that the rows of a step may have any number of ids each, with a past or without: see Batch.
	Mixed bool
	// Proposes says that there is a draft model: see Row.Propose.
	Proposes bool
	// WholeImages says that the positions of a span have to be run in one chunk, and that no other prompt may start from a
	// part of them.
	WholeImages bool
}

// Move copies the first Len positions of KV slot From over slot To. If Back is not 0 it exchanges: the first Back
// positions of To come to From.
type Move struct {
	From, To, Len, Back int
}

// Release says that positions [From, To) of a KV slot hold nothing that is needed: their memory is wiped, and may be
// given back.
type Release struct {
	Slot, From, To int
}

// Row is one sequence's part of a step.
type Row struct {
	// Slot is the sequence's KV slot; Past the number of its positions already there.
	Slot, Past int
	// IDs are the tokens of positions [Past, Past+len(IDs)).
	IDs []int32
	// Drafts is the number of IDs, the last ones, that are guesses of what Sampler will pick. Only in a decode step, and
	// only if the runner is exact and prompts need not be run whole.
	Drafts int
	// Propose, unless nil, asks a runner with a draft model for drafts: Run appends them to IDs, counts them in Drafts,
	// and sets Propose to nil. Only with one id and a Sampler.
	Propose *Proposal
	// Spans are the image spans of the whole sequence (absolute positions); nil for text.
	Spans []fusion.Span
	// Prompt, if not nil, is given the logits of all positions of the row.
	Prompt *PromptLogprobs
	// Sampler picks the token after the last of IDs; nil when no logits are wanted. With drafts it picks the token after
	// the last that is none, and as long as that is the draft in its place, the next.
	Sampler *Sampler
}

// Right is the number of the row's drafts that were right: those that lead the tokens which the row gave.
func (row *Row) Right(tokens []Token) (n int) {
	drafts := row.IDs[len(row.IDs)-row.Drafts:]
	for n < min(len(drafts), len(tokens)) && tokens[n].ID == drafts[n] {
		n++
	}
	return n
}

// Batch is one step. It is either a decode step, with Rows[i].Slot == i and one id and its drafts a row, or a prefill
// chunk: exactly one row in any slot with any number of ids. Moves are made first, in order, then releases. A batch
// without rows makes its moves and releases only.
//
// A decode step is Width positions wide: all rows have room for so many, and what lies past a row's ids in its slot
// afterwards is not to be read.
//
// Where Capacity.Mixed, rows may be of both kinds in one step: any number of them in slots of ascending numbers, each
// with any number of ids and drafts.
type Batch struct {
	Moves    []Move
	Releases []Release
	Rows     []Row
	// Wipe has the runner put zeros over what it keeps of earlier steps beside its KV cache.
	Wipe bool
}

// Width is the number of positions that each row of the batch takes up: the ids of the longest, with the drafts that it
// asks for.
func (b *Batch) Width() int {
	width := 0
	for i := range b.Rows {
		width = max(width, b.Rows[i].Width())
	}
	return width
}

// Width is the number of positions that the row takes up, with the drafts that it asks for.
func (row *Row) Width() int {
	if row.Propose != nil {
		return len(row.IDs) + row.Propose.Most
	}
	return len(row.IDs)
}

// Token is what a row with a sampler gives, with drafts one for each that was right and one more.
type Token struct {
	// ID is NotReady where the row's constraint has no mask yet: the row is run again, from the same past.
	ID int32
	// Logprobs is nil unless Sampling.Logprobs.
	Logprobs *Logprobs
}
