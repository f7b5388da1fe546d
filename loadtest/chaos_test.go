package loadtest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/loadtest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// TestChaos runs a server for forty seconds of a synctest bubble's time, with everything going on that clients do,
// steps that fail and a clock that jumps, then drains it under load; and accounts for every request: one line in the
// log for each that was sent, with the end its sender saw, and nothing left in the engine. That no goroutine is left is
// held by the bubble and by goleak.
func TestChaos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var jump atomic.Int64 // what the engine's clock is off by
		rng := rand.New(rand.NewPCG(3, 3))
		const slots = 4
		f := newPaced(t, slots, 200*time.Microsecond, 10*time.Millisecond, batching.Options{
			MaxWaiting: 12, PrefillChunk: 64, Clock: func() time.Time { return time.Now().Add(time.Duration(jump.Load())) },
		}, server.Options{Grace: time.Minute})
		f.hash.Fail = func(*decoder.Batch) error {
			if rng.IntN(500) == 0 {
				return errors.New("a step failed on purpose")
			}
			return nil
		}

		const d = 40 * time.Second
		mix := &loadtest.Mix{
			Prompt: lengths(t, "lognormal:20,0.8"), Output: lengths(t, "uniform:1,60"), IgnoreEOS: true, AbandonShare: 0.2,
			AbandonAfter: 300 * time.Millisecond,
			Tenants:      []loadtest.Weighted{{Value: "a", Weight: 2}, {Value: "b", Weight: 1}},
			Priorities:   []loadtest.Weighted{{Value: "interactive", Weight: 1}, {Value: "batch", Weight: 1}}, Name: "load",
		}
		chaos, calm := context.WithTimeout(t.Context(), d+time.Second)
		defer calm()
		var all []loadtest.Sample
		var mu sync.Mutex
		keep := func(id string, err error, tokens int) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, loadtest.Sample{ID: id, Code: loadtest.CodeOf(err), Answer: loadtest.Answer{Completion: tokens}})
		}
		var group sync.WaitGroup
		every := func(gap time.Duration, do func(n int)) {
			group.Go(func() {
				for n := 0; ; n++ {
					if sleep(chaos, gap) != nil {
						return
					}
					do(n)
				}
			})
		}
		c := client.New(f.target.Conn())
		every(700*time.Millisecond, func(n int) { // a slow reader
			in := client.Chat(client.User(client.Text("slow")))
			limit := uint32(20)
			in.RequestId, in.MaxTokens, in.IgnoreEos = fmt.Sprintf("slow-%d", n), &limit, true
			tokens := 0
			var last error
			for e, err := range c.Stream(context.Background(), in) {
				last, tokens = err, int(e.GetFinish().GetUsage().GetCompletionTokens())
				time.Sleep(150 * time.Millisecond)
			}
			keep(in.RequestId, last, tokens)
		})
		bad := []func(*pb.GenerateRequest){
			func(in *pb.GenerateRequest) { in.Input = nil },
			func(in *pb.GenerateRequest) { *in.MaxTokens = 100_000 },
			func(in *pb.GenerateRequest) { in.Stop = make([]string, 99) },
			func(in *pb.GenerateRequest) {
				in.Input = client.Chat(client.User(client.ImageBytes([]byte("x")))).Input
			},
			func(in *pb.GenerateRequest) {
				in.Input = client.Prompt(client.Text(strings.Repeat("word ", 3000))).Input
			},
			func(in *pb.GenerateRequest) { in.Model = "none" },
		}
		every(230*time.Millisecond, func(n int) {
			in := client.Chat(client.User(client.Text("bad")))
			limit := uint32(1)
			in.RequestId, in.MaxTokens = fmt.Sprintf("bad-%d", n), &limit
			bad[n%len(bad)](in)
			out, err := c.Generate(context.Background(), in)
			if err == nil {
				t.Errorf("bad request %d was answered", n%len(bad))
			}
			keep(in.RequestId, err, int(out.GetUsage().GetCompletionTokens()))
		})
		every(4*time.Second, func(n int) { jump.Store([]int64{int64(time.Hour), -int64(time.Hour), 0}[n%3]) })

		r, err := loadtest.Run(t.Context(), loadtest.Config{
			Target: f.target, Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: 10, Duration: d}},
				Process: process(t, "gamma:0.5")}, Mix: mix, Seed: 9,
		})
		if err != nil {
			t.Fatal(err)
		}
		calm()
		group.Wait()
		all = append(all, r.Samples...)

		// SIGTERM with requests open: those that run finish, the others are refused.
		mix.Name, mix.AbandonShare = "drain", 0
		draining := make(chan struct{})
		go func() { defer close(draining); time.Sleep(2 * time.Second); f.stop() }()
		if r, err = loadtest.Run(t.Context(), loadtest.Config{Target: f.target, Schedule: constant(t, 10, 4*time.Second),
			Mix: mix, Seed: 10}); err != nil {
			t.Fatal(err)
		}
		<-draining
		all = append(all, r.Samples...)
		if err := <-f.served; err != nil {
			t.Errorf("drained: %v", err)
		}
		f.served <- nil

		log, err := loadtest.ReadLog(strings.NewReader(f.log.String()))
		if err != nil {
			t.Fatal(err)
		}
		a := loadtest.Reconcile(all, log)
		counts := map[string]int{}
		for _, s := range all {
			counts[s.Code]++
		}
		t.Logf("%d sent, %d logged, %d matched, %d unheard, %d tokens in answers, %d in their log lines; %v", a.Sent,
			a.Logged, a.Matched, a.Unheard, a.AnsweredTokens, a.LoggedTokens, counts)
		for _, p := range a.Problems[:min(len(a.Problems), 10)] {
			t.Error(p)
		}
		if a.Sent < 500 || a.Matched+a.Unheard != a.Sent || a.AnsweredTokens != a.LoggedTokens || counts["OK"] < 200 {
			t.Errorf("the books do not balance: %+v", a)
		}
		for _, code := range []string{"ABANDONED", "INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND", "RESOURCE_EXHAUSTED",
			"UNAVAILABLE"} {
			if counts[code] == 0 {
				t.Errorf("nothing ended as %s: that was not tried", code)
			}
		}
		if st := f.engine.Stats(); st.Running != 0 || st.Waiting != 0 || st.Accepted != 0 || st.KVTokens != 0 ||
			st.FailedSteps == 0 {
			t.Errorf("left in the engine: %+v", st)
		}
	})
}

// TestEveryTokenIsCounted holds that without cancellations the engine's count of tokens is the clients', exactly.
func TestEveryTokenIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newPaced(t, 4, 100*time.Microsecond, 5*time.Millisecond, batching.Options{MaxWaiting: 8}, server.Options{})
		mix := &loadtest.Mix{Prompt: lengths(t, "uniform:5,30"), Output: lengths(t, "uniform:1,30"), IgnoreEOS: true,
			Name: "count"}
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: f.target,
			Schedule: loadtest.Schedule{Stages: []loadtest.Stage{{Rate: 50, Duration: 4 * time.Second}},
				Process: process(t, "poisson")}, Mix: mix})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, 4*time.Second, loadtest.SLO{})
		st := f.engine.Stats()
		if s.OK == 0 || s.Errors["RESOURCE_EXHAUSTED"] == 0 || s.OK+s.Errors["RESOURCE_EXHAUSTED"] != s.Due {
			t.Fatalf("%+v", s)
		}
		if st.GeneratedTokens != int64(s.Tokens.Output) || s.Tokens.OutputReceived != s.Tokens.Output ||
			st.PromptTokens+st.CachedTokens != int64(s.Tokens.Prompt) || st.CachedTokens != int64(s.Tokens.Cached) ||
			st.WastedTokens != 0 {
			t.Errorf("the engine counts %+v, the clients %+v", st, s.Tokens)
		}
	})
}

func TestReconcile(t *testing.T) {
	log := strings.Join([]string{
		"not JSON", `{"msg":"serving","address":"x"}`,
		`{"msg":"request","id":"a","code":"OK","completion_tokens":3}`, `{"msg":"request","id":"b","code":"Canceled"}`,
		`{"msg":"request","id":"c","code":"OK","completion_tokens":4}`, `{"msg":"request","id":"d","code":"Internal"}`,
		`{"msg":"request","id":"e","code":"OK"}`, `{"msg":"request","id":"e","code":"OK"}`,
		`{"msg":"request","id":"z","code":"OK"}`,
	}, "\n")
	entries, err := loadtest.ReadLog(strings.NewReader(log))
	if err != nil || len(entries) != 7 {
		t.Fatalf("%v, %v", entries, err)
	}
	a := loadtest.Reconcile([]loadtest.Sample{
		{ID: "a", Code: "OK", Answer: loadtest.Answer{Completion: 3}}, {ID: "b", Code: "ABANDONED"},
		{ID: "c", Code: "OK", Answer: loadtest.Answer{Completion: 5}},
		{ID: "d", Code: "OK"}, {ID: "e", Code: "OK"}, {ID: "f", Code: "OK"}, {ID: "g", Code: "UNAVAILABLE"},
		{ID: "h", Code: "NOT_SENT"},
	}, entries)
	want := []string{
		"c has 5 tokens, in the log 4", "d ended as OK, in the log as Internal", "f ended as OK, but the log has no line of it",
		"the log has z (OK), which nobody sent", "two log lines for e",
	}
	if fmt.Sprint(a.Problems) != fmt.Sprint(want) || a.Sent != 7 || a.Unheard != 1 || a.Matched != 4 {
		t.Errorf("%+v, want %q", a, want)
	}
}

func jsonLog(w *logtest.Buffer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }
