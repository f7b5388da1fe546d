package server

import (
	"errors"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/openai"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// What did not happen is left out of a message, and what did is in it.
func TestEventsLeaveOutWhatIsNot(t *testing.T) {
	none := timings(serving.Timings{})
	if none.Queue != nil || none.Prefill != nil || none.Decode != nil || none.Ttft != nil || none.Preprocess == nil ||
		none.Total == nil {
		t.Errorf("%v", none)
	}
	all := timings(serving.Timings{Queue: 1, Prefill: 2, Decode: 3, FirstToken: 4})
	for i, d := range []interface{ AsDuration() time.Duration }{all.Queue, all.Prefill, all.Decode, all.Ttft} {
		if d.AsDuration() != time.Duration(i+1) {
			t.Errorf("stage %d took %v", i, d.AsDuration())
		}
	}
	if ids(nil) != nil || ids([]int32{}) != nil || !slices.Equal(ids([]int32{7, 0}), []uint32{7, 0}) {
		t.Error("ids are not as they were")
	}
	five := int32(5)
	if id(nil) != nil || *id(&five) != 5 {
		t.Error("an id is not as it was")
	}
	if logprobs(nil) != nil || logprobs([]serving.Logprobs{}) != nil {
		t.Error("no log-probabilities are some")
	}
	one := serving.TokenLogprob{ID: 3, Text: []byte("a"), Logprob: -1}
	list := logprobs([]serving.Logprobs{{Token: one}, {Token: one, Top: []serving.TokenLogprob{one, one}}})
	want := &pb.TokenLogprob{Id: 3, Text: []byte("a"), Logprob: -1}
	if len(list) != 2 || list[0].Top != nil || len(list[1].Top) != 2 || !proto.Equal(list[0].Token, want) ||
		!proto.Equal(list[1].Top[1], want) {
		t.Errorf("%v", list)
	}
}

// OpenAI's priorities are a number, of which the sign counts.
func TestPrioritiesOfHTTP(t *testing.T) {
	x, _ := asked(Options{})
	for n, want := range map[int64]batching.Priority{
		-1 << 62: batching.PriorityInteractive, -1: batching.PriorityInteractive, 0: batching.PriorityDefault,
		1: batching.PriorityBatch, 1 << 62: batching.PriorityBatch,
	} {
		if got := x.request(&openai.Request{Priority: n}).Priority; got != want {
			t.Errorf("%d is %v, want %v", n, got, want)
		}
	}
	if r := x.request(&openai.Request{}); r.Constraint != nil || x.constraint != "" {
		t.Errorf("%+v", r)
	}
	r := x.request(&openai.Request{Constraint: &openai.Constraint{Kind: openai.Regex, Text: "a", Param: "guided_regex"}})
	if r.Constraint.Kind != serving.Regex || r.Constraint.Text != "a" || x.constraint != "guided_regex" {
		t.Errorf("%+v of %s", r.Constraint, x.constraint)
	}
}

// A field of the contract has its name in the API that was asked.
func TestParamsOfHTTP(t *testing.T) {
	for _, c := range []struct{ input, limit, constraint, field, openai, ollama string }{
		{"", "", "", "input", "messages", "messages"}, {"prompt", "", "", "input", "prompt", "prompt"},
		{"prompt", "", "", "top_logprobs", "logprobs", "logprobs"},
		{"", "", "", "top_logprobs", "top_logprobs", "top_logprobs"},
		{"", "", "", "max_tokens", "max_tokens", "options.num_predict"},
		{"", "max_completion_tokens", "", "max_tokens", "max_completion_tokens", "options.num_predict"},
		{"", "", "", "request_id", "x-request-id", "x-request-id"},
		{"", "", "", "prompt.parts[0].token_ids.ids", "prompt", "prompt"},
		{"", "", "response_format", "constraint.regex", "response_format", "response_format"},
		{"", "", "", "constraint.regex", "constraint.regex", "constraint.regex"},
		{"", "", "", "sampling.repetition_penalty", "repetition_penalty", "options.repeat_penalty"},
		{"", "", "", "stop", "stop", "options.stop"}, {"", "", "", "stop[1]", "stop[1]", "options.stop[1]"},
		{"", "", "", "chat.messages[1].parts[2].image.data", "messages[1].content[2].image_url.url",
			"messages[1].images[2]"},
	} {
		x, _ := asked(Options{})
		x.input, x.limit, x.constraint = c.input, c.limit, c.constraint
		if got, ollama := x.param(c.field), x.ollamaParam(c.field); got != c.openai || ollama != c.ollama {
			t.Errorf("%+v: %s and %s", c, got, ollama)
		}
	}
}

// Methods whose messages carry files may have large ones, and no others.
func TestRequestsCarryBytes(t *testing.T) {
	for method, large := range map[string]bool{
		"/mmserve.v1.InferenceService/Generate": true, "/mmserve.v1.InferenceService/UploadMedia": true,
		"/mmserve.v1.InferenceService/CountTokens": true, "/mmserve.v1.InferenceService/HasMedia": false,
		"/mmserve.v1.ModelService/ListModels": false, "/mmserve.v1.MMServe/GetServerInfo": false,
	} {
		if got, ok := requests[method]; !ok || got != large {
			t.Errorf("%s carries bytes: %t, %t", method, got, ok)
		}
	}
	d := (&pb.GenerateRequest{}).ProtoReflect().Descriptor()
	if carriesBytes(d, []protoreflect.FullName{d.FullName()}) {
		t.Error("a message within itself carries bytes")
	}
}

// Before it has a model a server is NOT_SERVING, as a whole and in each service.
func TestLoadingServesNothing(t *testing.T) {
	cores := runtime.GOMAXPROCS(0)
	s := Loading(Options{})
	if n := cap(s.decoding); n != cores || runtime.GOMAXPROCS(0) != cores {
		t.Errorf("%d messages are decoded at once on %d cores", n, cores)
	}
	for _, name := range append([]string{""}, serviceNames...) {
		r, err := s.health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
		if err != nil || r.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("%q is %v, %v", name, r, err)
		}
	}
	if err := s.Ready(); err == nil || err.Error() != "the model is loading" {
		t.Errorf("%v", err)
	}
}

// A call's caller has the address that it comes from, beside what its credential says.
func TestCallersHavePeers(t *testing.T) {
	ctx := serving.WithCaller(t.Context(), serving.Caller{Tenant: "acme"})
	if c := serving.CallerOf(withPeer(ctx)); c.Peer != "" || c.Tenant != "acme" {
		t.Errorf("%+v without an address", c)
	}
	at := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 5}
	if c := serving.CallerOf(withPeer(peer.NewContext(ctx, &peer.Peer{Addr: at}))); c.Peer != "10.0.0.1:5" ||
		c.Tenant != "acme" {
		t.Errorf("%+v at %v", c, at)
	}
}

// A message that is refused for itself is told as it is: the log has a line of those alone that no place was left for.
func TestRefusedForItself(t *testing.T) {
	mine, other := errors.New("mine"), errors.New("other")
	for _, unadmitted := range []error{nil, other} {
		if err := (&guarded{unadmitted: unadmitted}).refused(mine); err != mine {
			t.Errorf("%v, want what was wrong with the message", err)
		}
	}
}

// knocks are connections that come one after the other, or errors.
type knocks struct {
	net.Listener
	list []any
}

func (k *knocks) Accept() (net.Conn, error) {
	if len(k.list) == 0 {
		return nil, net.ErrClosed
	}
	next := k.list[0]
	k.list = k.list[1:]
	if err, ok := next.(error); ok {
		return nil, err
	}
	return next.(net.Conn), nil
}

// knocked is a connection that notes its end.
type knocked struct {
	wireConn
	closed *bool
}

func (k knocked) Close() error { *k.closed = true; return nil }

// One connection more than there may be takes the place of a silent one; where the process has no file left, too. What
// comes before the server is ready is closed.
func TestAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logtest.Buffer
		ready, closed := false, make([]bool, 6)
		k := &knocks{}
		l := &listener{
			Listener: k, inflight: newInflight(1 << 30), most: 2, ready: func() bool { return ready },
			log: slog.New(slog.NewTextHandler(&log, nil)),
		}
		accept := func(i int, first ...any) (*connection, error) {
			k.list = append(first, knocked{closed: &closed[i]})
			conn, err := l.Accept()
			c, _ := conn.(*connection)
			return c, err
		}
		if _, err := accept(0); !errors.Is(err, net.ErrClosed) || !closed[0] || l.count() != 0 {
			t.Errorf("before it is ready: %v, closed %v", err, closed)
		}
		ready = true
		for i := 1; i <= 2; i++ {
			if c, err := accept(i); err != nil || c == nil || l.count() != i || log.String() != "" {
				t.Fatalf("connection %d: %v, the log has %s", i, err, log.String())
			}
			time.Sleep(time.Second)
		}
		c, err := accept(3)
		if err != nil || !closed[1] || closed[2] || l.count() != 2 || !strings.Contains(log.String(), "connections=2 found=true") {
			t.Errorf("one more: %v, closed %v, the log has %s", err, closed, log.String())
		}
		if _, err := accept(4, syscall.EMFILE); err != nil || !closed[2] || l.count() != 2 {
			t.Errorf("without a file left: %v, closed %v, %d connections", err, closed, l.count())
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines within a second", n)
		}
		for conn := range l.inflight.conns {
			conn.claims = 1
		}
		time.Sleep(11 * time.Second)
		if _, err := accept(5); !errors.Is(err, net.ErrClosed) || !closed[5] || l.count() != 2 || c.closed.Err() != nil {
			t.Errorf("while all have calls: %v, closed %v", err, closed)
		}
		if _, err := accept(5, syscall.ENFILE); !errors.Is(err, syscall.ENFILE) {
			t.Errorf("without a file left while all have calls: %v", err)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "found=false") {
			t.Errorf("the log has %s", log.String())
		}
	})
}
