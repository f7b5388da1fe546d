package server

import (
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// openaiExtras are those of an answer; its timings if they are asked for.
func openaiExtras(asked bool, t serving.Timings, scores []float32) openai.Extras {
	e := openai.Extras{ChoiceScores: scores}
	if asked {
		e.Timings = &openai.Timings{
			Preprocess: millis(t.Preprocess), Tokenize: millis(t.Tokenize), Encode: millis(t.Encode), Queue: millis(t.Queue),
			Prefill: millis(t.Prefill), Decode: millis(t.Decode), FirstToken: millis(t.FirstToken), Total: millis(t.Total),
		}
	}
	return e
}

// millis are a time's milliseconds, to the microsecond.
func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
