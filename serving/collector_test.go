package serving

import (
	"fmt"
	"testing"
	"time"
)

// A collector puts two answers together that come in turn.
func TestCollector(t *testing.T) {
	lp := func(ids ...int32) (list []Logprobs) {
		for _, id := range ids {
			list = append(list, Logprobs{Token: TokenLogprob{ID: id}})
		}
		return list
	}
	var c Collector
	s := c.Sink()
	stop := "x"
	for _, err := range []error{
		s.Start(&Start{ID: "r", Model: "m", Seed: 7, Answers: 2}),
		s.Delta(&Delta{PromptLogprobs: lp(1)}),
		s.Delta(&Delta{Text: "a", Logprobs: lp(2)}),
		s.Delta(&Delta{Index: 1, Text: "c", Logprobs: lp(3)}),
		s.Delta(&Delta{Text: "b"}),
		s.Finish(&Finish{Index: 1, Reason: FinishLength, Usage: Usage{Prompt: 9, Cached: 8, Completion: 1}, Logprobs: lp(4)}),
		s.Finish(&Finish{
			Reason: FinishStop, Stop: &stop, Usage: Usage{Prompt: 9, Completion: 2}, Timings: Timings{Total: time.Second},
			PromptLogprobs: lp(5), ChoiceScores: []float32{0.5},
		}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []Choice{
		{Seed: 7, Text: "ab", Reason: FinishStop, Stop: &stop, CompletionTokens: 2, Logprobs: lp(2)},
		{Seed: 8, Text: "c", Reason: FinishLength, CompletionTokens: 1, Logprobs: lp(3, 4)},
	}
	if fmt.Sprint(c.Choices) != fmt.Sprint(want) || fmt.Sprint(c.PromptLogprobs) != fmt.Sprint(lp(1, 5)) ||
		c.Usage != (Usage{Prompt: 9, Completion: 3}) || c.Timings.Total != time.Second || c.ID != "r" ||
		len(c.ChoiceScores) != 1 {
		t.Errorf("%+v", c)
	}
}
