package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/telemetry"
	"github.com/mmserve/mmserve/internal/tokenizer"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The model is tiny-vlm with its own tokenizer, template and prompt layout. Only its two networks are replaced: the
// tower by zeros, the decoder by chain.
const (
	modelDir    = "../model/tiny-vlm"
	imageTokens = 16
	hidden      = 4
	contextLen  = 512
	vocab       = 768
)

// The first case of the golden answers that Hugging Face transformers gave for tiny-vlm.
type golden struct {
	PromptIDs    []int32 `json:"prompt_ids"`
	GeneratedIDs []int32 `json:"generated_ids"`
	Text         string  `json:"text"`
}

func readGolden(t *testing.T) golden {
	t.Helper()
	raw, err := os.ReadFile("../testdata/tiny-vlm-gold/gold.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	var g golden
	if err := json.Unmarshal(line, &g); err != nil {
		t.Fatal(err)
	}
	g.Text = strings.TrimPrefix(g.Text, " ") // its template leaves the space before the text to the answer
	return g
}

// question is the prompt of the golden case.
func question() *pb.GenerateRequest {
	return client.Chat(client.User(client.ImageBytes(pngFile(64)), client.Text("Describe the picture.")))
}

// chain is a decoder that gives one fixed answer to everything: after its n-th token the next, after anything else
// the first, after the last again the last. No token may be in it twice. It fails where the real one would: on
// image positions without patches. If step is not nil, each run takes one value from it first.
type chain struct {
	next  map[int32]int32
	first int32
	slots int
	step  chan struct{}

	mu      sync.Mutex
	prompts [][]int32
}

func newChain(slots int, ids ...int32) *chain {
	c := &chain{next: map[int32]int32{ids[len(ids)-1]: ids[len(ids)-1]}, first: ids[0], slots: slots}
	for i, id := range ids[1:] {
		c.next[ids[i]] = id
	}
	return c
}

func (c *chain) Capacity() decoder.Capacity {
	return decoder.Capacity{Slots: c.slots, MaxLen: contextLen}
}

func (c *chain) Run(ctx context.Context, b *decoder.Batch) ([]decoder.Token, error) {
	if c.step != nil && len(b.Rows) > 0 {
		select {
		case <-c.step:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var out []decoder.Token
	for _, row := range b.Rows {
		for _, s := range row.Spans {
			if len(s.Patches) != s.Len*hidden {
				return nil, fmt.Errorf("span of %d positions has %d patch values", s.Len, len(s.Patches))
			}
		}
		if row.Past == 0 {
			c.mu.Lock()
			c.prompts = append(c.prompts, slices.Clone(row.IDs))
			c.mu.Unlock()
		}
		if row.Sampler == nil {
			continue
		}
		id, ok := c.next[row.IDs[len(row.IDs)-1]]
		if !ok {
			id = c.first
		}
		out = append(out, decoder.Token{ID: id})
	}
	return out, nil
}

// endless never ends by itself: two tokens in turn.
func endless(slots int) *chain {
	c := newChain(slots, 430, 529)
	c.next[529] = 430
	return c
}

// prepares is a preprocessor of which only Prepare and Measure are called.
type prepares struct {
	vision.Preprocessor
	prepare prepareFunc
}

type prepareFunc func(ctx context.Context, data []byte, l vision.Limits, split bool) (*vision.Image, error)

func (p prepares) Prepare(ctx context.Context, data []byte, l vision.Limits, split bool) (*vision.Image, error) {
	return p.prepare(ctx, data, l, split)
}

func (p prepares) Measure(int, int, bool) (vision.Measured, error) {
	return vision.Measured{ScaledWidth: 64, ScaledHeight: 64}, nil
}

func tinyVLM(t testing.TB) serving.Model {
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
	template, err := chat.Parse(string(read("chat_template.jinja")), chat.Options{
		BOS: "<|im_start|>", EOS: "<end_of_utterance>", Guarded: guarded, Placeholder: "<image>",
	})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	return serving.Model{
		Name: "tiny-vlm", Digest: "sha256:test", MaxLen: contextLen, Vocab: vocab, EOS: []int32{4, 0},
		Hidden: hidden,
		Prompter: &fusion.Prompter{
			Tokenizer: tok, Template: template, Guarded: guarded,
			Layout: fusion.Layout{
				Placeholder: "<image>", ImageTokenID: 7, PatchTokens: imageTokens,
				Expand: func(vision.Grid) string {
					return "<fake_token_around_image><global-img>" + strings.Repeat("<image>", imageTokens) + "<fake_token_around_image>"
				},
			},
			Preprocessor: prepares{prepare: func(_ context.Context, data []byte, _ vision.Limits,
				_ bool) (*vision.Image, error) {
				c, err := png.DecodeConfig(bytes.NewReader(data))
				if err != nil {
					return nil, fmt.Errorf("%w: not a PNG", vision.ErrImage)
				}
				return &vision.Image{Digest: sha256.Sum256(data), Width: c.Width, Height: c.Height, Size: 64}, nil
			}},
		},
		Encode: func(_ context.Context, img *vision.Image) ([]float32, bool, error) {
			mu.Lock()
			defer mu.Unlock()
			key := img.Tenant + string(img.Digest[:])
			cached := seen[key]
			seen[key] = true
			return make([]float32, img.Grid.Tiles()*imageTokens*hidden), cached, nil
		},
	}
}

func pngFile(side int) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewRGBA(image.Rect(0, 0, side, side))); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// fixture is a server on a connection in memory, with what its test looks at.
type fixture struct {
	*client.Client
	conn   *grpc.ClientConn
	engine *batching.Engine
	log    *logtest.Buffer
	stop   context.CancelFunc // as SIGTERM does
	served chan error         // what Serve returned
}

// start serves model m over runner r until the test ends.
func start(t testing.TB, m serving.Model, r batching.Runner, o server.Options) *fixture {
	t.Helper()
	var engine batching.Options
	if o.Telemetry != nil {
		engine.Observe = o.Telemetry.Steps(m.Name)
	}
	return serve(t, m, newEngine(t, r, engine), o)
}

// serve is start over an engine.
func serve(t testing.TB, m serving.Model, e *batching.Engine, o server.Options) *fixture {
	t.Helper()
	f := &fixture{log: new(logtest.Buffer), served: make(chan error, 1), engine: e}
	o.Logger = slog.New(telemetry.TraceIDs(slog.NewTextHandler(f.log, nil)))
	lis := bufconn.Listen(1 << 20)
	var ctx context.Context
	ctx, f.stop = context.WithCancel(t.Context())
	s := server.New(m, f.engine, o)
	done := make(chan struct{})
	go func() { defer close(done); f.served <- s.Serve(ctx, lis) }()
	conn, err := grpc.NewClient("passthrough:///memory",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(1<<18), grpc.WithInitialConnWindowSize(1<<18)) // or they grow while nobody reads
	if err != nil {
		t.Fatal(err)
	}
	f.conn, f.Client = conn, client.New(conn, client.WithUnavailableRetries(0))
	t.Cleanup(func() {
		conn.Close()
		f.stop()
		<-done
	})
	return f
}

// collect reads a stream to its end.
func collect(ctx context.Context, c *client.Client, in *pb.GenerateRequest) (start *pb.StreamStart,
	deltas []*pb.StreamDelta, finish *pb.StreamFinish, err error) {
	for e, err := range c.Stream(ctx, in) {
		if err != nil {
			return start, deltas, finish, err
		}
		switch {
		case e.GetStart() != nil:
			start = e.GetStart()
		case e.GetDelta() != nil:
			deltas = append(deltas, e.GetDelta())
		case e.GetFinish() != nil:
			finish = e.GetFinish()
		}
	}
	return start, deltas, finish, nil
}

// eventually waits for what another goroutine is about to do and nothing tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 10 s: " + what)
		}
	}
}

// newEngine runs an engine until the test ends; steps, unless nil, is told of its steps.
func newEngine(t testing.TB, r batching.Runner, o batching.Options) *batching.Engine {
	t.Helper()
	e := batching.New(r, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("engine: %v", err)
		}
	})
	return e
}
