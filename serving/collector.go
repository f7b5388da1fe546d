package serving

import (
	"strings"

	"github.com/mmserve/mmserve/safety"
)

// Collector is a Sink that puts a whole answer together, for edges that send it as one.
type Collector struct {
	Start
	Choices        []Choice
	PromptLogprobs []Logprobs
	ChoiceScores   []float32
	Usage          Usage
	Timings        Timings // of the answer that ended last
	Message        uint64  // the answer's number in the request's conversation

	texts, thoughts []strings.Builder
}

// Choice is one of the answers.
type Choice struct {
	Seed             uint64
	Text             string
	Reasoning        string
	Reason           FinishReason
	Stop             *string
	CompletionTokens int
	Logprobs         []Logprobs
	TokenIDs         []int32
	StopTokenID      *int32
	Findings         []safety.Count
}

// collecting hides that Start is a field.
type collecting struct{ *Collector }

// Sink is where the collector takes an answer.
func (c *Collector) Sink() Sink { return collecting{c} }

func (c collecting) Start(s *Start) error {
	c.Collector.Start = *s
	c.Choices, c.texts = make([]Choice, s.Answers), make([]strings.Builder, s.Answers)
	c.thoughts = make([]strings.Builder, s.Answers)
	return nil
}

func (c collecting) Delta(d *Delta) error {
	c.texts[d.Index].WriteString(d.Text)
	c.thoughts[d.Index].WriteString(d.Reasoning)
	to := &c.Choices[d.Index]
	to.Logprobs = append(to.Logprobs, d.Logprobs...)
	to.TokenIDs = append(to.TokenIDs, d.TokenIDs...)
	c.PromptLogprobs = append(c.PromptLogprobs, d.PromptLogprobs...)
	return nil
}

func (c collecting) Finish(f *Finish) error {
	to := &c.Choices[f.Index]
	to.Seed, to.Text = c.Seed+uint64(f.Index), c.texts[f.Index].String()
	to.Reasoning = c.thoughts[f.Index].String()
	to.Reason, to.Stop, to.CompletionTokens = f.Reason, f.Stop, f.Usage.Completion
	to.Logprobs = append(to.Logprobs, f.Logprobs...)
	to.Findings = f.Findings
	to.TokenIDs, to.StopTokenID = append(to.TokenIDs, f.TokenIDs...), f.StopTokenID
	c.PromptLogprobs = append(c.PromptLogprobs, f.PromptLogprobs...)
	c.ChoiceScores = append(c.ChoiceScores, f.ChoiceScores...)
	c.Timings, c.Message = f.Timings, f.Message
	completion, reasoning := c.Usage.Completion+f.Usage.Completion, c.Usage.Reasoning+f.Usage.Reasoning
	if f.Index == 0 {
		c.Usage = f.Usage
	}
	c.Usage.Completion, c.Usage.Reasoning = completion, reasoning
	return nil
}
