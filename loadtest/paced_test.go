package loadtest_test

import (
	"context"
	"errors"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
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
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/loadtest"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// The model is tiny-vlm's tokenizer and chat template over a decoder that only takes its time.
const (
	modelDir   = "../model/tiny-vlm"
	contextLen = 512
	vocab      = 768
	words      = 8 // that the decoder gives; its work grows with them
)

func tinyText(t testing.TB) serving.Model {
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
	template, err := chat.Parse(string(read("chat_template.jinja")),
		chat.Options{BOS: "<|im_start|>", EOS: "<end_of_utterance>", Guarded: guarded, Placeholder: "<image>"})
	if err != nil {
		t.Fatal(err)
	}
	return serving.Model{
		Name: "tiny-vlm", Digest: "sha256:test", MaxLen: contextLen, Vocab: vocab, EOS: []int32{4, 0},
		Prompter: &fusion.Prompter{
			Tokenizer: tok, Template: template, Guarded: guarded,
			Layout: fusion.Layout{
				Placeholder: "<image>", ImageTokenID: 7, PatchTokens: 16,
				Expand: func(vision.Grid) string { return "" },
			},
		},
	}
}

// spelled is a Paced whose every token is a word, so that each one is text as soon as it is there.
type spelled struct{ *decodertest.Paced }

func (s spelled) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	tokens, err := s.Paced.Run(ctx, b)
	for i := range tokens {
		tokens[i].ID += 430
	}
	return tokens, err
}

// pacedServer is a server over a decoder with a pace, and what its test looks at.
type pacedServer struct {
	target *loadtest.GRPC
	engine *batching.Engine
	hash   *decodertest.Hash
	log    *logtest.Buffer
	stop   context.CancelFunc // as SIGTERM does
	served chan error         // what Serve returned
	stall  atomic.Int64       // nanoseconds that the next step takes longer
}

// newPaced serves on a connection in memory until the test ends.
func newPaced(t testing.TB, slots int, perToken, perStep time.Duration, o batching.Options,
	so server.Options) *pacedServer {
	t.Helper()
	f := &pacedServer{hash: decodertest.NewHash(slots, contextLen, words), log: new(logtest.Buffer),
		served: make(chan error, 1)}
	f.hash.Fail = func(*decoder.Batch) error {
		time.Sleep(time.Duration(f.stall.Swap(0)))
		return nil
	}
	f.engine = batching.New(spelled{decodertest.NewPaced(f.hash, perToken, perStep)}, o)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.engine.Run(ctx) }()
	lis := bufconn.Listen(1 << 20)
	var serving context.Context
	serving, f.stop = context.WithCancel(context.Background())
	so.Logger = jsonLog(f.log)
	s := server.New(tinyText(t), f.engine, so)
	go func() { f.served <- s.Serve(serving, lis) }()
	var err error
	if f.target, err = loadtest.DialGRPC("passthrough:memory", false,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn,
			error) {
			return lis.DialContext(ctx)
		})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.target.Close()
		f.stop()
		if err := <-f.served; err != nil {
			t.Errorf("server: %v", err)
		}
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("engine: %v", err)
		}
	})
	return f
}

// TestPace has the load generator measure, through a whole server, a decoder whose times are known. Time is that of a
// synctest bubble, so that the machine's noise has no part in it.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perToken, perStep = 2 * time.Millisecond, 25 * time.Millisecond
		target := newPaced(t, 4, perToken, perStep, batching.Options{NoPrefixCache: true}, server.Options{}).target
		mix := &loadtest.Mix{Prompt: lengths(t, "uniform:20,60"), Output: lengths(t, "uniform:10,40"), IgnoreEOS: true,
			Name: "pace"}
		if err := target.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		// One at a time: nobody waits for another's prefill.
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 0.25, 400*time.Second),
			Mix: mix})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, 400*time.Second, loadtest.SLO{})
		if s.OK != 100 || s.Tokens.Mismatches != 0 || s.Tokens.Output == 0 {
			t.Fatalf("%+v", s)
		}
		wantTTFT := ms(perToken) * float64(s.Tokens.Prompt) / float64(s.OK)
		for _, c := range []struct {
			name      string
			got, want float64
		}{
			{"TTFT", s.TTFT.Mean, wantTTFT}, {"TPOT", s.TPOT.Mean, ms(perStep)}, {"ITL", s.ITL.Mean, ms(perStep)},
			{"TPOT p99", s.TPOT.P99, ms(perStep)},
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
