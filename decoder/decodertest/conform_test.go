package decodertest_test

import (
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/decoder/runnertest"
)

// The fakes keep the contract that they stand in for.
func TestFakesConform(t *testing.T) {
	chunked := decodertest.NewHash(3, 64, 1000)
	chunked.Chunk = 8
	loop := decodertest.NewHash(5, 80, 1000)
	loop.Loop = 4
	mixed := decodertest.NewHash(4, 64, 1000)
	mixed.Mixed = true
	draft := decodertest.NewHash(4, 64, 1000)
	draft.Mixed, draft.Differs = true, 3
	speculator, err := decoder.NewSpeculator(decodertest.NewHash(4, 64, 1000), draft, 1000, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]runnertest.Runner{
		"hash": decodertest.NewHash(4, 64, 1000), "not exact": chunked, "repeats itself": loop,
		"mixed": mixed, "with a draft model": speculator,
		"paced": decodertest.NewPaced(decodertest.NewHash(3, 64, 1000), time.Nanosecond, time.Nanosecond),
	} {
		t.Run(name, func(t *testing.T) { runnertest.Conform(t, r, 10, 900) })
	}
}
