package server_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/vision"
)

func TestOverload(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 430, 4), server.Options{})
	release := holdAll(t, f)
	for range 5 {
		_, err := f.Generate(t.Context(), question())
		if delay, ok := client.RetryDelay(err); !ok || delay <= 0 {
			t.Errorf("got %v, want RESOURCE_EXHAUSTED with a RetryInfo", err)
		}
		_, _, _, err = collect(t.Context(), f.Client, question())
		if _, ok := client.RetryDelay(err); !ok {
			t.Errorf("stream: got %v, want RESOURCE_EXHAUSTED with a RetryInfo", err)
		}
	}
	release()
	if _, err := f.Generate(t.Context(), question()); err != nil {
		t.Errorf("after the slots were given back: %v", err)
	}
}

func TestRetryWaitsForASlot(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{})
	release := holdAll(t, f)
	answered := make(chan error, 1)
	go func() {
		_, err := client.New(f.conn, client.WithRetries(100)).Generate(t.Context(), question())
		answered <- err
	}()
	eventually(t, "a refusal", func() bool { return strings.Contains(f.log.String(), "code=ResourceExhausted") })
	release()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// TestClientGone holds that a call that ends early gives its slot back, wherever it ends.
func TestClientGone(t *testing.T) {
	t.Parallel() // it waits
	runner := endless(1)
	runner.step = make(chan struct{}, 1000)
	for range cap(runner.step) {
		runner.step <- struct{}{}
	}
	f := start(t, tinyVLM(t), runner, server.Options{})
	in := question()
	in.MaxTokens = proto.Uint32(480)
	slotIsFree := func() bool {
		ticket, err := f.engine.Acquire()
		if err != nil {
			return false
		}
		ticket.Release()
		return true
	}

	for e, err := range f.Stream(t.Context(), in) { // leaves while tokens come
		if err != nil {
			t.Fatal(err)
		}
		if e.GetDelta() != nil {
			break
		}
	}
	eventually(t, "the slot is free after the client left", slotIsFree)

	for hangs := false; !hangs; { // from now on the decoder does
		select {
		case <-runner.step:
		default:
			hangs = true
		}
	}
	// Long enough for the engine to think that the answer can be there in time: it would refuse it otherwise.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := f.Generate(ctx, in); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DEADLINE_EXCEEDED", err)
	}
	close(runner.step)
	eventually(t, "the slot is free after the deadline", slotIsFree)
}

func TestDrain(t *testing.T) {
	g := readGolden(t)
	runner := newChain(2, g.GeneratedIDs...)
	runner.step = make(chan struct{}, 100)
	f := start(t, tinyVLM(t), runner, server.Options{
		Grace: time.Hour, DrainDelay: 100 * time.Millisecond, // nothing may need the hour
	})
	wantHealth(t, f, healthpb.HealthCheckResponse_SERVING)
	watch, err := healthpb.NewHealthClient(f.conn).Watch(t.Context(),
		&healthpb.HealthCheckRequest{Service: "mmserve.v1.MMServe"})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := watch.Recv(); err != nil || st.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("watch: %v, %v", st, err)
	}

	runner.step <- struct{}{} // the prefill, and no more
	text, stopped := "", false
	for e, err := range f.Stream(t.Context(), question()) {
		if err != nil {
			t.Fatal(err)
		}
		text += e.GetDelta().GetText()
		if e.GetDelta() != nil && !stopped {
			stopped = true
			f.stop()
			if st, err := watch.Recv(); err != nil || st.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
				t.Errorf("watch after the signal: %v, %v", st, err)
			}
			eventually(t, "new requests are refused", func() bool {
				// Between NOT_SERVING and GOAWAY a call is taken, and waits for a step that comes after this loop only.
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, err := f.Generate(ctx, question())
				return status.Code(err) == codes.Unavailable
			})
			close(runner.step) // the decoder goes on
		}
	}
	if text != g.Text {
		t.Errorf("the running answer became %q, want %q", text, g.Text)
	}
	if err := <-f.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestDrainDelay holds that requests are served until load balancers had the time to see NOT_SERVING.
func TestDrainDelay(t *testing.T) {
	m := tinyVLM(t)
	synctest.Test(t, func(t *testing.T) {
		f := start(t, m, newChain(1, 430, 4), server.Options{DrainDelay: time.Hour})
		wantHealth(t, f, healthpb.HealthCheckResponse_SERVING)
		f.stop()
		synctest.Wait()
		wantHealth(t, f, healthpb.HealthCheckResponse_NOT_SERVING)
		if _, err := f.Generate(t.Context(), question()); err != nil {
			t.Errorf("before the delay is over: %v", err)
		}
		time.Sleep(time.Hour)
		if err := <-f.served; err != nil {
			t.Error(err)
		}
		if _, err := f.Generate(t.Context(), question()); status.Code(err) != codes.Unavailable {
			t.Errorf("after the delay: got %v, want UNAVAILABLE", err)
		}
	})
}

func TestDrainCutsWhatIsLeft(t *testing.T) {
	t.Parallel() // it waits
	runner := endless(1)
	runner.step = make(chan struct{}, 100)
	f := start(t, tinyVLM(t), runner, server.Options{Grace: 50 * time.Millisecond})
	runner.step <- struct{}{}
	var end error
	for e, err := range f.Stream(t.Context(), question()) {
		if err != nil {
			end = err
			break
		}
		if e.GetDelta() != nil {
			f.stop()
		}
		if e.GetFinish() != nil {
			t.Errorf("finish %v of an answer that was cut", e.GetFinish().GetFinishReason())
		}
	}
	if status.Code(end) != codes.Unavailable {
		t.Errorf("the cut answer ended with %v, want UNAVAILABLE", end)
	}
	if log := f.log.String(); !strings.Contains(log, "msg=stopping open_requests=1 running=1 waiting=0 drain_delay=0s grace=50ms") {
		t.Errorf("the log does not tell what is open:\n%s", log)
	}
	var cut *server.CutError
	if err := <-f.served; !errors.As(err, &cut) || cut.Requests != 1 {
		t.Errorf("Serve: %v, want one request cut", err)
	}
	close(runner.step)
}

func TestDrainCutsPreparation(t *testing.T) {
	m := tinyVLM(t)
	encoding := make(chan struct{})
	m.Encode = func(ctx context.Context, _ *vision.Image) ([]float32, bool, error) {
		close(encoding)
		<-ctx.Done()
		return nil, false, ctx.Err()
	}
	f := start(t, m, newChain(1, 430, 4), server.Options{Grace: 50 * time.Millisecond})
	go func() {
		<-encoding
		f.stop()
	}()
	if _, err := f.Generate(t.Context(), question()); status.Code(err) != codes.Unavailable ||
		!strings.Contains(err.Error(), "shutting down") {
		t.Errorf("got %v, want UNAVAILABLE: shutting down", err)
	}
	var cut *server.CutError
	if err := <-f.served; !errors.As(err, &cut) || cut.Requests != 1 {
		t.Errorf("Serve: %v, want one request cut", err)
	}
}

// Answers that nobody waits for wait for an image that is being encoded.
func TestBatchGathers(t *testing.T) {
	m, runner := tinyVLM(t), endless(2)
	runner.step = make(chan struct{}, 100)
	encoding, encoded := make(chan struct{}), make(chan struct{})
	m.Encode = func(context.Context, *vision.Image) ([]float32, bool, error) {
		close(encoding)
		<-encoded
		return make([]float32, imageTokens*hidden), false, nil
	}
	f := start(t, m, runner, server.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	patient, withImage := client.Prompt(client.Text("on and on")), question()
	patient.Priority, withImage.Priority = pb.Priority_PRIORITY_BATCH, pb.Priority_PRIORITY_BATCH
	began := make(chan struct{})
	var clients sync.WaitGroup
	defer clients.Wait()
	clients.Go(func() {
		first := true
		for e := range f.Stream(ctx, patient) {
			if e.GetDelta() != nil && first {
				first = false
				close(began)
			}
		}
	})
	runner.step <- struct{}{}
	<-began
	clients.Go(func() { f.Generate(ctx, withImage) })
	<-encoding
	for range 50 {
		runner.step <- struct{}{}
	}
	time.Sleep(300 * time.Millisecond)
	if left := len(runner.step); left < 47 {
		t.Errorf("%d steps while an image was encoded", 50-left)
	}
	close(encoded)
	eventually(t, "all steps are taken once the image is encoded", func() bool { return len(runner.step) == 0 })
	cancel()
	close(runner.step)
}

func TestMessageTooLarge(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{MaxMessageBytes: 1000})
	in := client.Chat(client.User(client.ImageBytes(make([]byte, 2000))))
	_, unary := f.Generate(t.Context(), in)
	_, _, _, stream := collect(t.Context(), f.Client, in)
	for _, err := range []error{unary, stream} {
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "1000") {
			t.Errorf("got %v, want RESOURCE_EXHAUSTED with the limit", err)
		}
		if _, again := client.RetryDelay(err); again {
			t.Error("a message that is too large is to be tried again")
		}
	}
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("short"))); err != nil {
		t.Error(err)
	}
}

func TestReflection(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionpb.NewServerReflectionClient(f.conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	list := &reflectionpb.ServerReflectionRequest_ListServices{}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: list}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{
		"mmserve.v1.InferenceService", "mmserve.v1.ModelService", "mmserve.v1.MMServe",
		"inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
		"grpc.reflection.v1alpha.ServerReflection",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
}

func wantHealth(t *testing.T, f *fixture, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	for _, service := range []string{"", "mmserve.v1.InferenceService", "mmserve.v1.MMServe"} {
		st, err := healthpb.NewHealthClient(f.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || st.GetStatus() != want {
			t.Errorf("health of %q: %v, %v; want %v", service, st, err, want)
		}
	}
}

// holdAll takes every slot; the function it returns gives them back.
func holdAll(t *testing.T, f *fixture) (release func()) {
	t.Helper()
	var list []func()
	for {
		ticket, err := f.engine.Acquire()
		if err != nil {
			break
		}
		list = append(list, ticket.Release)
	}
	if len(list) == 0 {
		t.Fatal("no slot to take")
	}
	return func() {
		for _, f := range list {
			f()
		}
	}
}
