package loadtest_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

const fairStep = 20 * time.Millisecond

// crowd is a paced server of 16 slots and 64 waiting places, and calls that others make of it.
type crowd struct {
	*pacedServer
	t *testing.T
	c *client.Client
}

// crowded runs f in a synctest bubble, whose time is exact.
func crowded(t *testing.T, f func(crowd)) {
	synctest.Test(t, func(t *testing.T) {
		s := newPaced(t, 16, time.Millisecond, fairStep, batching.Options{MaxWaiting: 64}, server.Options{})
		f(crowd{s, t, client.New(s.target.Conn())})
	})
}

func ask(p pb.Priority, tenant string, words, tokens int) *pb.GenerateRequest {
	in := client.Prompt(client.Text(strings.Repeat("red ", words)))
	in.Priority, in.Tenant, in.MaxTokens, in.IgnoreEos = p, tenant, proto.Uint32(uint32(tokens)), true
	return in
}

// flood sends so many of in at once and lets the server work at them for a while. The returned function ends them and
// says how many were refused.
func (c crowd) flood(n int, in *pb.GenerateRequest) (end func() int) {
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, n)
	for range n {
		go func() {
			_, err := c.c.Generate(ctx, proto.CloneOf(in))
			ended <- err
		}()
	}
	time.Sleep(1500 * time.Millisecond)
	return func() (refused int) {
		cancel()
		for range n {
			if status.Code(<-ended) == codes.ResourceExhausted {
				refused++
			}
		}
		time.Sleep(time.Second) // the step under way ends
		return refused
	}
}

// ttft is the time to the first token of a call, -1 if it is refused.
func (c crowd) ttft(in *pb.GenerateRequest) time.Duration {
	out, err := c.c.Generate(c.t.Context(), in)
	if status.Code(err) == codes.ResourceExhausted {
		return -1
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return out.GetTimings().GetTtft().AsDuration()
}

// TestInteractiveAmongOthers holds that a call does not wait for work that ranks below it: its first token comes two
// steps after it would alone, or, where prompt and decode steps take turns, in three times the time.
func TestInteractiveAmongOthers(t *testing.T) {
	for _, words := range []int{4, 40, 200} {
		me := ask(pb.Priority_PRIORITY_INTERACTIVE, "human", words, 5)
		var alone time.Duration
		crowded(t, func(c crowd) { alone = c.ttft(me) })
		for _, tt := range []struct {
			name  string
			n     int
			in    *pb.GenerateRequest
			most  time.Duration
			leave int // of n, how many are refused
		}{
			{"16 batch answers run", 16, ask(pb.Priority_PRIORITY_BATCH, "batch", 4, 480), alone + 2*fairStep, 0},
			{"80 batch calls are open", 80, ask(pb.Priority_PRIORITY_BATCH, "batch", 4, 480), alone + 2*fairStep, 21},
			{"80 batch calls of long prompts are open", 80, ask(pb.Priority_PRIORITY_BATCH, "batch", 400, 40),
				alone + 2*fairStep + 256*time.Millisecond, 21},
			{"16 default answers run", 16, ask(pb.Priority_PRIORITY_DEFAULT, "other", 4, 480), 3*alone + 2*fairStep, 0},
		} {
			crowded(t, func(c crowd) {
				end := c.flood(tt.n, tt.in)
				got := c.ttft(me)
				t.Logf("%d words, %s: first token after %v, alone %v", words, tt.name, got, alone)
				if got < 0 || got > tt.most {
					t.Errorf("%d words, %s: first token after %v, alone after %v, want at most %v", words, tt.name, got, alone, tt.most)
				}
				if refused := end(); refused != tt.leave {
					t.Errorf("%s: %d calls were refused, want %d", tt.name, refused, tt.leave)
				}
				if st := c.engine.Stats(); st.Accepted != 0 || st.Running != 0 {
					t.Errorf("%s: afterwards %+v", tt.name, st)
				}
			})
		}
	}
}

// TestFurtherAnswersLeaveRoom holds that calls for 16 answers each leave places, and slots, to calls for one.
func TestFurtherAnswersLeaveRoom(t *testing.T) {
	crowded(t, func(c crowd) {
		hog := ask(pb.Priority_PRIORITY_DEFAULT, "", 4, 480)
		hog.N = 16
		end := c.flood(5, hog)
		through, worst := 0, time.Duration(0)
		for range 21 {
			if d := c.ttft(ask(pb.Priority_PRIORITY_DEFAULT, "", 4, 5)); d >= 0 {
				through++
				worst = max(worst, d)
			}
		}
		t.Logf("%d of 21 got through, the slowest first token came after %v; %d of 5 were refused", through, worst, end())
		if through != 21 || worst > time.Second {
			t.Errorf("%d of 21 got through, the slowest first token came after %v", through, worst)
		}
	})
}

// TestFloodLeavesRoom holds that a caller who floods a class leaves places in it to others.
func TestFloodLeavesRoom(t *testing.T) {
	for _, p := range []pb.Priority{pb.Priority_PRIORITY_BATCH, pb.Priority_PRIORITY_DEFAULT,
		pb.Priority_PRIORITY_INTERACTIVE} {
		crowded(t, func(c crowd) {
			end := c.flood(200, ask(p, "flood", 4, 480))
			if d := c.ttft(ask(p, "other", 4, 5)); d < 0 {
				t.Errorf("%v: another tenant's call was refused", p)
			}
			refused := end()
			t.Logf("%v: %d of 200 were refused", p, refused)
		})
	}
}

// TestDeadlinesAfterTrouble holds that short calls with a deadline are taken, whatever was before: a long answer, an
// overload, a process that stood still.
func TestDeadlinesAfterTrouble(t *testing.T) {
	trouble := map[string]func(c crowd){
		"one long answer": func(c crowd) { c.ttft(ask(pb.Priority_PRIORITY_DEFAULT, "", 1, 480)) },
		"an overload": func(c crowd) {
			c.flood(500, ask(pb.Priority_PRIORITY_DEFAULT, "", 100, 300))()
		},
		"a process that stood still": func(c crowd) {
			c.stall.Store(int64(20 * time.Second))
			c.ttft(ask(pb.Priority_PRIORITY_DEFAULT, "", 1, 3))
		},
	}
	for name, before := range trouble {
		for _, background := range []bool{false, true} {
			crowded(t, func(c crowd) {
				if background {
					defer c.flood(1, ask(pb.Priority_PRIORITY_DEFAULT, "background", 1, 480))()
				}
				before(c)
				answered := 0
				for range 20 {
					ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
					if _, err := c.c.Generate(ctx, ask(pb.Priority_PRIORITY_DEFAULT, "", 1, 3)); err == nil {
						answered++
					}
					cancel()
				}
				if answered != 20 {
					t.Errorf("after %s, others running %v: %d of 20 were answered", name, background, answered)
				}
			})
		}
	}
}
