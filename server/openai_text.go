package server

import (
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// textCompletions answers POST /v1/completions.
func (x *exchange) textCompletions() error {
	x.input = "prompt"
	var in *openai.TextRequest
	return x.answer(completions{
		parse: func(body []byte) (_ *openai.Request, _ *serving.Request, err error) {
			if in, err = openai.ParseText(x.r.Context(), body); err != nil {
				return nil, nil, err
			}
			return &in.Request, x.textRequest(in), nil
		},
		whole: func(asked *openai.Request, c *serving.Collector) any {
			out := x.textCompletion(c)
			out.Extras = openaiExtras(asked.Timings, c.Timings, c.ChoiceScores)
			return out
		},
		chunks: func(e *serving.Start, usage bool) *openai.Chunks {
			return openai.NewTextChunks(openai.TextPrefix+e.ID, e.Model, e.Fingerprint, time.Now().Unix(), usage)
		},
		logprobs: new(textOffsets).logprobs,
	})
}

// textRequest is what a completion asks for.
func (x *exchange) textRequest(in *openai.TextRequest) *serving.Request {
	r := x.request(&in.Request)
	r.Prompt = &serving.Prompt{Parts: []serving.Part{{Text: in.Prompt, IDs: in.PromptIDs}}}
	return r
}

// textCompletion is a whole answer.
func (x *exchange) textCompletion(c *serving.Collector) *openai.TextCompletion {
	out := &openai.TextCompletion{
		ID: openai.TextPrefix + c.ID, Object: openai.TextObject, Created: time.Now().Unix(), Model: c.Model,
		SystemFingerprint: c.Fingerprint, Usage: openaiUsage(c.Usage),
	}
	var offsets textOffsets
	for i := range c.Choices {
		a := &c.Choices[i]
		choice := openai.TextChoice{Index: i, Text: a.Text, FinishReason: a.Reason.String()}
		choice.StopReason = openai.NewStopReason(a.Stop, a.StopTokenID, x.named)
		if l, ok := offsets.logprobs(i, a.Logprobs).(*openai.TextLogprobs); ok {
			choice.Logprobs = l
		}
		out.Choices = append(out.Choices, choice)
	}
	return out
}

// textOffsets has, for each answer, how many characters its tokens have had.
type textOffsets map[int]int

// logprobs are those of an answer's next tokens, as completions have them; nil for none.
func (o *textOffsets) logprobs(index int, list []serving.Logprobs) any {
	if len(list) == 0 {
		return nil
	}
	if *o == nil {
		*o = textOffsets{}
	}
	out := &openai.TextLogprobs{}
	for _, t := range chatLogprobs(list).Content {
		(*o)[index] = out.Add(t, (*o)[index])
	}
	return out
}
