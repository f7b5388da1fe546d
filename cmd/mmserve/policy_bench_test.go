package main

import (
	"log/slog"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// everyStage has each detector of texts act, on requests and answers, and abuse watched.
const everyStage = `
default:
  personal_data: {input: redact, output: redact}
  hate: {input: block, output: block}
  sexual: {input: block, output: block}
  violence: {input: block, output: block}
  self_harm: {input: flag, output: flag}
  spam: {input: flag, output: flag}
  prompt_injection: {input: block, output: flag}
  health: {input: flag, output: flag}
  health_notice: This is general information.
abuse:
  tenant: {requests: 1000000, refusals: 1000000, refusal_rate: 1, similar: 1000000}
  host: {requests: 1000000, refusals: 1000000, refusal_rate: 1, similar: 1000000}
`

// BenchmarkPolicy decodes eight streams under a policy whose every stage of text is on, and without one, in turn: a
// 1 - on/off of 0.02 is two of a hundred tokens. The embedded model's steps are shorter than those of any larger one,
// so that the share is the largest that there is.
func BenchmarkPolicy(b *testing.B) {
	serve := func(policed bool) *client.Client {
		log := slog.New(slog.DiscardHandler)
		o := server.Options{Logger: log}
		if policed {
			p, err := safety.Parse([]byte(everyStage))
			if err != nil {
				b.Fatal(err)
			}
			o.Policy = &serving.Policy{
				Now:   func() *safety.Policy { return p },
				Watch: safety.NewWatch(func() *safety.AbuseRules { return p.Abuse }),
			}
		}
		return serveEmbedded(b, serving.Config{
			Slots: 8, Batching: batching.Options{MaxWaiting: 8}, EncoderCacheBytes: 16 << 20, NoSelfTest: true, Logger: log,
		}, o)
	}
	interleave(b, [3]*client.Client{serve(false), serve(true), serve(false)},
		"Hello! Please tell me, in a few short words, what you can do: can you count the shapes of a picture, say which is "+
			"the largest, and where each of them stands?")
}
