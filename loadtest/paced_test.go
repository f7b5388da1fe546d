package loadtest_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/loadtest"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/vision"
)

// The model is tiny-vlm's tokenizer and chat template over a decoder that only takes its time.
const (
	modelDir   = "../model/tiny-vlm"
	contextLen = 512
	vocab      = 768
)

func tinyText(t testing.TB) server.Model {
	t.Helper()
	read := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(modelDir, name))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	tok, err := tokenizer.Parse(read("tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	var guarded []string
	for _, a := range tok.AddedTokens() {
		guarded = append(guarded, a.Content)
	}
	template, err := chat.Parse(string(read("chat_template.jinja")), chat.Options{BOS: "<|im_start|>", EOS: "<end_of_utterance>", Guarded: guarded, Placeholder: "<image>"})
	if err != nil {
		t.Fatal(err)
	}
	return server.Model{
		Name: "tiny-vlm", Digest: "sha256:test", MaxLen: contextLen, Vocab: vocab, EOS: []int32{4, 0}, Tokenizer: tok, Template: template, Guarded: guarded,
		Layout: fusion.Layout{Placeholder: "<image>", ImageTokenID: 7, PatchTokens: 16, Expand: func(vision.Grid) string { return "" }},
	}
}

// spelled is a Paced whose every token is a word, so that each one is text as soon as it is there.
type spelled struct{ *decodertest.Paced }

func (s spelled) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	tokens, err := s.Paced.Run(ctx, b)
	for i := range tokens {
		tokens[i].ID = 430 + tokens[i].ID%8
	}
	return tokens, err
}

// startPaced serves a decoder with a pace on a connection in memory, until the test ends.
func startPaced(t testing.TB, slots int, perToken, perStep time.Duration, o batching.Options) (*loadtest.GRPC, *batching.Engine) {
	t.Helper()
	runner := spelled{decodertest.NewPaced(decodertest.NewHash(slots, contextLen, vocab), perToken, perStep)}
	e := batching.New(runner, o)
	ctx, stop := context.WithCancel(context.Background())
	ended, served := make(chan error, 1), make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	lis := bufconn.Listen(1 << 20)
	serving, stopServing := context.WithCancel(context.Background())
	s := server.New(tinyText(t), e, server.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	go func() { served <- s.Serve(serving, lis) }()
	target, err := loadtest.DialGRPC("passthrough:memory", false,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		target.Close()
		stopServing()
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("engine: %v", err)
		}
	})
	return target, e
}

// TestPace has the load generator measure, through a whole server, a decoder whose times are known. Time is that of a
// synctest bubble, so that the machine's noise has no part in it.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perToken, perStep = 2 * time.Millisecond, 25 * time.Millisecond
		target, _ := startPaced(t, 4, perToken, perStep, batching.Options{NoPrefixCache: true})
		mix := &loadtest.Mix{Prompt: lengths(t, "uniform:20,60"), Output: lengths(t, "uniform:10,40"), IgnoreEOS: true, Name: "pace"}
		if err := target.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		// One at a time: nobody waits for another's prefill.
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 0.25, 400*time.Second), Mix: mix})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, 400*time.Second, loadtest.SLO{})
		if s.OK != 99 || s.Tokens.Mismatches != 0 || s.Tokens.Output == 0 {
			t.Fatalf("%+v", s)
		}
		wantTTFT := ms(perToken) * float64(s.Tokens.Prompt) / float64(s.OK)
		for _, c := range []struct {
			name      string
			got, want float64
		}{
			{"TTFT", s.TTFT.Mean, wantTTFT}, {"TPOT", s.TPOT.Mean, ms(perStep)}, {"ITL", s.ITL.Mean, ms(perStep)}, {"TPOT p99", s.TPOT.P99, ms(perStep)},
			{"E2E", s.E2E.Mean, wantTTFT + ms(perStep)*float64(s.Tokens.Output-s.OK)/float64(s.OK)},
			{"the server's TTFT", s.Server["ttft"].Mean, wantTTFT}, {"TTFT from send", s.FromSend.TTFT.Mean, wantTTFT},
		} {
			t.Logf("%s %.3f ms, known %.3f ms", c.name, c.got, c.want)
			if math.Abs(c.got/c.want-1) > 0.05 {
				t.Errorf("%s: %.3f ms, want %.3f ms within 5 %%", c.name, c.got, c.want)
			}
		}
	})
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
