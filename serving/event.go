package serving

import "time"

// Sink takes what becomes of a request: one Start, then Deltas, then a Finish for each answer. One goroutine calls it
// at a time. What a call is given is valid until it returns; an error of one ends the request.
type Sink interface {
	Start(*Start) error
	Delta(*Delta) error
	Finish(*Finish) error
}

// Start says what answers. It comes right before the first Delta or Finish: a request that fails without it was
// answered nothing.
type Start struct {
	ID, Model, ModelDigest string
	// Fingerprint is the model's (Model.Fingerprint).
	Fingerprint string
	// Seed is that of the first answer; the others' follow it.
	Seed uint64
	// Answers is their number.
	Answers int
	Usage   Usage
	// PromptIDs are the prompt's tokens if they are asked for.
	PromptIDs []int32
}

// Delta is text that follows what came before of the answer Index.
type Delta struct {
	Index int
	Text  string
	// Reasoning is more of what the model thinks before it answers: of one Delta, it comes before Text.
	Reasoning string
	// Tokens is how many were generated for it.
	Tokens int
	// Logprobs are of the tokens whose text is out now, PromptLogprobs of the next tokens of the prompt.
	Logprobs, PromptLogprobs []Logprobs
	// TokenIDs are the ids of the tokens whose text is out now, if they are asked for.
	TokenIDs []int32
}

// Finish ends the answer Index.
type Finish struct {
	Index  int
	Reason FinishReason
	// Stop is the stop string that ended the answer; nil if none did.
	Stop *string
	// StopTokenID is the token that ended it: the model's or one that the request names. nil if none did.
	StopTokenID *int32
	Usage       Usage
	Timings     Timings
	// Logprobs and PromptLogprobs are those that no Delta had.
	Logprobs, PromptLogprobs []Logprobs
	// TokenIDs are the same.
	TokenIDs []int32
	// ChoiceScores are of the constraint's choices, if they are asked for.
	ChoiceScores []float32
	// Message is the number that the answer has in the request's conversation; 0 without one.
	Message uint64
}

// FinishReason says why an answer ended.
type FinishReason int

const (
	// Unfinished is that of an answer that has not ended.
	Unfinished FinishReason = iota
	// FinishStop is the model's end of an answer, a stop string or a stop token.
	FinishStop
	// FinishLength is the most tokens.
	FinishLength
)

// String is the reason as it stands in metrics and traces; empty for Unfinished.
func (r FinishReason) String() string { return [...]string{"", "stop", "length"}[r] }

// Usage counts tokens.
type Usage struct {
	Prompt, Text, Image int
	// CachedImage are those of images whose embeddings had been made before, Cached those that the prefix cache had.
	CachedImage, Cached int
	// Completion are those generated, Reasoning those of them that the model's thoughts took.
	Completion, Reasoning int
}

// Timings say where the time of a request went. Stages that did not happen are 0.
type Timings struct {
	Preprocess, Tokenize, Encode time.Duration
	Queue, Prefill, Decode       time.Duration
	// FirstToken is from the request's arrival to its first token, Total to now.
	FirstToken, Total time.Duration
}

// Logprobs are log-probabilities in one place of a text: the token's that stands there, and of the likeliest.
type Logprobs struct {
	Token TokenLogprob
	Top   []TokenLogprob
}

// bytes is about what it takes in a message.
func (l *Logprobs) bytes() int {
	n := len(l.Token.Text) + tokenOverhead
	for i := range l.Top {
		n += len(l.Top[i].Text) + tokenOverhead
	}
	return n
}

// TokenLogprob is a token and the natural log of its probability.
type TokenLogprob struct {
	ID int32
	// Text is the token's bytes, which need not be whole characters.
	Text    []byte
	Logprob float32
}
