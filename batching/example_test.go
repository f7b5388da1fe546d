package batching_test

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
)

// An engine over a runner without a model: two requests run together, and each gives what it would give alone.
func Example() {
	runner := decodertest.NewHash(2, 64, 100) // 2 KV slots of 64 positions, tokens in [0, 100)
	engine := batching.New(runner, batching.Options{MaxWaiting: 8, PrefillChunk: 16})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	defer func() {
		stop()
		<-ended
	}()

	var streams []*batching.Stream
	for _, prompt := range [][]int32{{1, 2, 3}, {4, 5, 6, 7}} {
		ticket, err := engine.Acquire() // before any work is done for the request
		if err != nil {
			fmt.Println("the server is full:", err)
			return
		}
		s, err := engine.Submit(ctx, ticket, batching.Request{Input: fusion.Input{IDs: prompt}, MaxTokens: 5})
		if err != nil {
			fmt.Println(err)
			return
		}
		streams = append(streams, s)
	}
	for i, s := range streams {
		tokens, finish := 0, batching.Running
		for {
			event, err := s.Next(ctx)
			if errors.Is(err, io.EOF) {
				break
			}
			if event.HasToken {
				tokens++
			}
			finish = event.Finish
		}
		fmt.Printf("request %d: %d tokens, ended by %v\n", i, tokens, finish)
	}
	// Output:
	// request 0: 5 tokens, ended by length
	// request 1: 5 tokens, ended by length
}
