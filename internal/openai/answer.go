package openai

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// ChatCompletion is the answer to a ChatRequest.
type ChatCompletion struct {
	ID                string       `json:"id"`
	Object            string       `json:"object"` // ChatObject
	Created           int64        `json:"created"`
	Model             string       `json:"model"`
	SystemFingerprint string       `json:"system_fingerprint,omitempty"`
	Choices           []ChatChoice `json:"choices"`
	Usage             Usage        `json:"usage"`
	Extras
}

// Objects, as responses name what they are.
const (
	ChatObject  = "chat.completion"
	ChunkObject = "chat.completion.chunk"
	TextObject  = "text_completion" // whole and in chunks
)

// ChatPrefix begins the ids of chat completions, TextPrefix those of completions.
const ChatPrefix, TextPrefix = "chatcmpl-", "cmpl-"

// ChatChoice is one of the answers.
type ChatChoice struct {
	Index        int           `json:"index"`
	Message      AnswerMessage `json:"message"`
	Logprobs     *Logprobs     `json:"logprobs"`
	FinishReason string        `json:"finish_reason"`
	// StopReason is vLLM's; see NewStopReason.
	StopReason any `json:"stop_reason"`
}

// AnswerMessage is what the model says.
type AnswerMessage struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"`
	// Reasoning is what the model thought before, as vLLM and others give it.
	Reasoning string `json:"reasoning_content,omitempty"`
}

// NewStopReason is what ended an answer, of what its request names: a stop string or the id of a stop token; nil where
// nothing of it did.
func NewStopReason(stop *string, token *int32, named []uint32) any {
	switch {
	case stop != nil:
		return *stop
	case token != nil && slices.Contains(named, uint32(*token)):
		return *token
	}
	return nil
}

// Finish reasons.
const (
	FinishStop   = "stop"
	FinishLength = "length"
)

// Usage counts tokens.
type Usage struct {
	PromptTokens     int            `json:"prompt_tokens"`
	CompletionTokens int            `json:"completion_tokens"`
	TotalTokens      int            `json:"total_tokens"`
	PromptDetails    *PromptDetails `json:"prompt_tokens_details,omitempty"`
	// CompletionDetails are nil where the model thought nothing.
	CompletionDetails *CompletionDetails `json:"completion_tokens_details,omitempty"`
}

// CompletionDetails tell what the completion's tokens are.
type CompletionDetails struct {
	Reasoning int `json:"reasoning_tokens"`
}

// WithReasoning is u where so many of the completion's tokens were thoughts.
func (u Usage) WithReasoning(n int) Usage {
	if n > 0 {
		u.CompletionDetails = &CompletionDetails{Reasoning: n}
	}
	return u
}

// PromptDetails tell what the prompt's tokens are: cached ones were not run again.
type PromptDetails struct {
	Cached int `json:"cached_tokens"`
	Image  int `json:"image_tokens"`
	Text   int `json:"text_tokens"`
}

// NewUsage counts the tokens of a prompt, of which image are of images and cached were not run, and of its answers.
func NewUsage(prompt, image, cached, completion int) Usage {
	return Usage{
		PromptTokens: prompt, CompletionTokens: completion, TotalTokens: prompt + completion,
		PromptDetails: &PromptDetails{Cached: cached, Image: image, Text: prompt - image},
	}
}

// Logprobs are those of an answer's tokens.
type Logprobs struct {
	Content []TokenLogprob `json:"content"`
	Refusal []TokenLogprob `json:"refusal"`
}

// TokenLogprob is a token of an answer; Top are the likeliest in its place.
type TokenLogprob struct {
	TopLogprob
	Top []TopLogprob `json:"top_logprobs"`
}

// TopLogprob is a token and the natural log of its probability.
type TopLogprob struct {
	Token   string  `json:"token"`
	Logprob float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

// leastLogprob stands for all below it: JSON has no infinity.
const leastLogprob = -9999

// NewTokenLogprob is that of a token whose bytes need not be whole characters, with none in its place.
func NewTokenLogprob(text []byte, logprob float32) TokenLogprob {
	return TokenLogprob{TopLogprob: NewTopLogprob(text, logprob), Top: []TopLogprob{}}
}

// NewTopLogprob is that of a token whose bytes need not be whole characters.
func NewTopLogprob(text []byte, logprob float32) TopLogprob {
	if !(logprob > leastLogprob) { // NaN, too
		logprob = leastLogprob
	}
	t := TopLogprob{
		Token: strings.ToValidUTF8(string(text), "\uFFFD"), Logprob: logprob, Bytes: make([]int, len(text)),
	}
	for i, b := range text {
		t.Bytes[i] = int(b)
	}
	return t
}

// TextCompletion is the answer to a TextRequest.
type TextCompletion struct {
	ID                string       `json:"id"`
	Object            string       `json:"object"` // TextObject
	Created           int64        `json:"created"`
	Model             string       `json:"model"`
	SystemFingerprint string       `json:"system_fingerprint,omitempty"`
	Choices           []TextChoice `json:"choices"`
	Usage             Usage        `json:"usage"`
	Extras
}

// TextChoice is one of the answers.
type TextChoice struct {
	Index        int           `json:"index"`
	Text         string        `json:"text"`
	Logprobs     *TextLogprobs `json:"logprobs"`
	FinishReason string        `json:"finish_reason"`
	// StopReason is vLLM's; see NewStopReason.
	StopReason any `json:"stop_reason"`
}

// TextLogprobs are those of a completion's tokens, each list with one value a token. Offsets are in characters of the
// answer.
type TextLogprobs struct {
	Offsets  []int                `json:"text_offset"`
	Logprobs []float32            `json:"token_logprobs"`
	Tokens   []string             `json:"tokens"`
	Top      []map[string]float32 `json:"top_logprobs"`
}

// Add appends a token at an offset, with the likeliest in its place, and gives the next one's offset.
func (l *TextLogprobs) Add(t TokenLogprob, offset int) int {
	l.Offsets, l.Logprobs, l.Tokens = append(l.Offsets, offset), append(l.Logprobs, t.Logprob), append(l.Tokens, t.Token)
	top := make(map[string]float32, len(t.Top))
	for _, other := range t.Top {
		if had, ok := top[other.Token]; !ok || other.Logprob > had { // several tokens may be parts of characters
			top[other.Token] = other.Logprob
		}
	}
	l.Top = append(l.Top, top)
	return offset + utf8.RuneCountInString(t.Token)
}
