package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/internal/process"
	"github.com/mmserve/mmserve/loadtest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// trouble is a life of the server: the steady load, and what goes wrong meanwhile.
type trouble struct {
	addr string
	mix  *loadtest.Mix
	rate float64
	life int

	fdsBefore, fdsAfter, goroutines int

	mu      sync.Mutex
	samples []loadtest.Sample
}

// live loads s for d. The first life ends idle, so that what is left can be counted; the others end by SIGTERM under
// load. It returns what became of every request.
func (t *trouble) live(ctx context.Context, s *process.Server, d time.Duration) ([]loadtest.Sample, error) {
	before, err := s.Look()
	if err != nil {
		return nil, err
	}
	t.fdsBefore = before.FDs
	target, err := loadtest.DialGRPC(t.addr, false)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	conn, err := grpc.NewClient(t.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	go s.Watch(watching, 500*time.Millisecond)
	chaos, calm := context.WithTimeout(ctx, d)
	defer calm()
	var group sync.WaitGroup
	t.goWrong(chaos, &group, client.New(conn, client.WithUnavailableRetries(0)))

	end := d
	if t.life > 1 {
		end += 2 * time.Second // requests go on coming while the server drains
		group.Go(func() { <-chaos.Done(); s.Terminate() })
	}
	r, err := t.load(ctx, target, end)
	if err != nil {
		return nil, err
	}
	calm()
	group.Wait()
	if t.life == 1 {
		if err := errors.Join(target.Close(), conn.Close()); err != nil {
			return nil, err
		}
		select { // for the server to see that they are closed
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
	if after, err := s.Look(); err == nil {
		t.fdsAfter = after.FDs
	}
	unwatch()
	if t.life == 1 {
		if t.goroutines, err = s.Goroutines(ctx); err != nil {
			return nil, err
		}
	}
	return append(t.samples, r.Samples...), nil
}

// load sends the steady load for d.
func (t *trouble) load(ctx context.Context, target loadtest.Target, d time.Duration) (*loadtest.Result, error) {
	arrivals, err := loadtest.ParseProcess("gamma:0.5")
	if err != nil {
		return nil, err
	}
	mix := *t.mix
	mix.Name = fmt.Sprintf("life%d", t.life)
	return loadtest.Run(ctx, loadtest.Config{
		Target: target, Mix: &mix, Seed: uint64(100 + t.life), Deadline: 20 * time.Second,
		Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: t.rate, Duration: d}}, Process: arrivals},
	})
}

// goWrong does what goes wrong, each at its own pace, until ctx is done.
func (t *trouble) goWrong(ctx context.Context, group *sync.WaitGroup, c *client.Client) {
	every := func(gap time.Duration, do func(n int)) {
		group.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-time.After(gap/2 + rand.N(gap)):
					do(n)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	every(2*time.Second, func(n int) { t.slow(c, n) })
	every(300*time.Millisecond, func(n int) { t.bad(c, n) })
	every(3*time.Second, t.garbage)
	every(7*time.Second, func(n int) { t.kill(ctx, n) })
}

// keep notes what became of a request.
func (t *trouble) keep(id string, err error, tokens int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.samples = append(t.samples, loadtest.Sample{ID: id, Code: loadtest.CodeOf(err),
		Answer: loadtest.Answer{Completion: tokens}})
}

func (t *trouble) request(kind string, n int, maxTokens uint32) *pb.GenerateRequest {
	in := client.Chat(client.User(client.Text("What is in the picture?")))
	in.RequestId, in.MaxTokens, in.IgnoreEos = fmt.Sprintf("life%d-%s-%d", t.life, kind, n), &maxTokens, true
	return in
}

// slow reads an answer slower than it comes.
func (t *trouble) slow(c *client.Client, n int) {
	in := t.request("slow", n, 60)
	var last error
	tokens := 0
	for e, err := range c.Stream(context.Background(), in) {
		last, tokens = err, int(e.GetFinish().GetUsage().GetCompletionTokens())
		time.Sleep(30 * time.Millisecond)
	}
	t.keep(in.GetRequestId(), last, tokens)
}

// nonsense are requests that have to be refused.
var nonsense = []func(*pb.GenerateRequest){
	func(in *pb.GenerateRequest) { in.Input = nil },
	func(in *pb.GenerateRequest) { *in.MaxTokens = 1 << 30 },
	func(in *pb.GenerateRequest) { in.Stop = make([]string, 99) },
	func(in *pb.GenerateRequest) { in.Model = "another" },
	func(in *pb.GenerateRequest) { in.GetChat().Messages[0].Role = 99 },
	func(in *pb.GenerateRequest) {
		in.GetChat().Messages[0].Parts[0] = client.ImageBytes([]byte("\x89PNG\r\n\x1a\n, or not"))
	},
	func(in *pb.GenerateRequest) {
		in.GetChat().Messages[0].Parts[0] = client.Text(strings.Repeat("word ", 20_000))
	},
	func(in *pb.GenerateRequest) {
		in.GetChat().Messages[0].Parts[0] = client.Text(strings.Repeat("x", 2<<20))
	},
}

func (t *trouble) bad(c *client.Client, n int) {
	in := t.request("bad", n, 4)
	nonsense[n%len(nonsense)](in)
	out, err := c.Generate(context.Background(), in)
	t.keep(in.GetRequestId(), err, int(out.GetUsage().GetCompletionTokens()))
}

// garbage is a connection that is no HTTP/2, or one that says nothing and goes away.
func (t *trouble) garbage(n int) {
	conn, err := net.DialTimeout("tcp", t.addr, time.Second)
	if err != nil {
		return // the server is about to end
	}
	defer conn.Close()
	if n%2 == 0 {
		noise := make([]byte, 4096)
		for i := range noise {
			noise[i] = byte(rand.Uint32())
		}
		_, _ = conn.Write(noise) // the server may have hung up: that is its right
	}
	time.Sleep(200 * time.Millisecond)
}

// victimArg makes this program a sender that is to be killed.
const victimArg = "victim"

// victim sends requests without end, four at a time, and writes each one's name before it is sent and its end after.
func victim(addr, name string) {
	c, err := client.Dial(addr, client.WithUnavailableRetries(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format, args...)
	}
	for worker := range 4 {
		go func() {
			for n := 0; ; n++ {
				in := client.Chat(client.User(client.Text("Who are you?")))
				limit := uint32(40)
				in.RequestId, in.MaxTokens, in.IgnoreEos = fmt.Sprintf("%s-%d-%d", name, worker, n), &limit, true
				say("sent %s\n", in.GetRequestId())
				answer, err := c.Generate(context.Background(), in)
				say("ended %s %s %d\n", in.GetRequestId(), loadtest.CodeOf(err), answer.GetUsage().GetCompletionTokens())
				if err != nil {
					time.Sleep(50 * time.Millisecond)
				}
			}
		}()
	}
	select {}
}

// kill starts a sender and kills it in the middle. What it had sent and not heard of counts as given up.
func (t *trouble) kill(ctx context.Context, n int) {
	self, err := os.Executable()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond+rand.N(time.Second))
	defer cancel()
	// the context's end is SIGKILL
	cmd := exec.CommandContext(ctx, self, victimArg, t.addr, fmt.Sprintf("life%d-victim%d", t.life, n))
	pipe, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	open := map[string]bool{}
	scan := bufio.NewScanner(pipe)
	for scan.Scan() {
		f := strings.Fields(scan.Text())
		switch {
		case len(f) == 2 && f[0] == "sent":
			open[f[1]] = true
		case len(f) == 4 && f[0] == "ended":
			delete(open, f[1])
			tokens := 0
			_, _ = fmt.Sscan(f[3], &tokens) // this program wrote it
			t.mu.Lock()
			t.samples = append(t.samples, loadtest.Sample{ID: f[1], Code: f[2], Answer: loadtest.Answer{Completion: tokens}})
			t.mu.Unlock()
		}
	}
	_ = cmd.Wait() // killed
	for id := range open {
		t.keep(id, context.Canceled, 0)
	}
}
