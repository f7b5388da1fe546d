package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip" // registers itself, as in the command for the OTLP exporter
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/racetest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// Bounds of every attack, which come on top of what an idle server takes.
const (
	attackMemory = 256 << 20
	attackCPU    = 2 * time.Second
)

// listen serves on TCP, as the command does. dial is how its own client comes, unless in plaintext.
func listen(t *testing.T, o server.Options, dial ...grpc.DialOption) (addr string, f *fixture) {
	t.Helper()
	addr, f = listenWith(t, o, newChain(4, 430, 4), dial...)
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
		t.Fatal(err)
	}
	return addr, f
}

// listenWith is listen with a runner, of which nothing is asked yet.
func listenWith(
	t *testing.T, o server.Options, r batching.Runner, dial ...grpc.DialOption,
) (addr string, f *fixture) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f = &fixture{log: new(logtest.Buffer), served: make(chan error, 1), engine: newEngine(t, r, batching.Options{})}
	o.Logger = slog.New(slog.NewTextHandler(f.log, nil))
	var ctx context.Context
	ctx, f.stop = context.WithCancel(t.Context())
	s := server.New(tinyVLM(t), f.engine, o)
	done := make(chan struct{})
	go func() { defer close(done); f.served <- s.Serve(ctx, lis) }()
	dial = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, dial...)
	conn, err := grpc.NewClient(lis.Addr().String(), dial...)
	if err != nil {
		t.Fatal(err)
	}
	f.conn, f.Client = conn, client.New(conn, client.WithUnavailableRetries(0))
	t.Cleanup(func() {
		conn.Close()
		f.stop()
		<-done
	})
	return lis.Addr().String(), f
}

// resident is the process's memory in bytes.
func resident(t *testing.T) int64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc: memory is not bounded here")
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func processorTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// bounded runs an attack, holds it to the bounds, and holds that an honest call is answered during it. The attacker is
// in the same process: spare is what it takes itself.
func bounded(t *testing.T, f *fixture, spareMemory int64, spareCPU time.Duration, attack func()) {
	t.Helper()
	debug.FreeOSMemory()
	idle, began := resident(t), processorTime(t)
	peak := idle
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			peak = max(peak, resident(t))
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	attack()
	close(done)
	watch.Wait()
	took := processorTime(t) - began
	t.Logf("%d MB above idle, %v of CPU (both with the attacker)", (peak-idle)>>20, took)
	if peak-idle > attackMemory+spareMemory && !racetest.Enabled {
		t.Errorf("%d MB above idle, want at most %d", (peak-idle)>>20, (attackMemory+spareMemory)>>20)
	}
	if took > attackCPU+spareCPU && !racetest.Enabled {
		t.Errorf("%v of CPU, want at most %v", took, attackCPU+spareCPU)
	}
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
		t.Errorf("an honest call after the attack: %v", err)
	}
	if racetest.Enabled {
		return
	}
	eventually(t, "the attack is over", func() bool {
		runtime.GC()
		return resident(t) < idle+(64<<20)+spareMemory
	})
}

// bytesCodec sends messages that are bytes already.
type bytesCodec struct{}

func (bytesCodec) Name() string                  { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (bytesCodec) Unmarshal([]byte, any) error   { return nil }

// raw calls a method with the bytes of a message.
func raw(ctx context.Context, conn *grpc.ClientConn, method string, message []byte, o ...grpc.CallOption) error {
	var out []byte
	return conn.Invoke(ctx, method, message, &out, append(o, grpc.ForceCodec(bytesCodec{}))...)
}

const methodGenerate = "/mmserve.v1.MMServe/Generate"

// A field that says how many is no reason to make room for as many.
func TestAttackSizes(t *testing.T) {
	_, f := listen(t, server.Options{})
	bounded(t, f, 0, 0, func() {
		for _, n := range []uint32{1<<32 - 1, 100_000_000, 5_000_000, 21} {
			in := client.Prompt(client.Text("red"))
			in.N = n
			_, err := f.Generate(t.Context(), in)
			checkViolation(t, err, "n", "want at most 16")
			in.N, in.MaxTokens, in.MinTokens, in.TopLogprobs = 0, &n, n, n
			_, err = f.Generate(t.Context(), in)
			checkViolation(t, err, "top_logprobs", "want at most 20")
		}
	})
}

// Every repeated field is counted on the wire, in linear time.
func TestAttackCounts(t *testing.T) {
	_, f := listen(t, server.Options{})
	empty := func(field int, n int) []byte { // n empty values of a field
		var one []byte
		one = protowire.AppendTag(one, protowire.Number(field), protowire.BytesType)
		return bytes.Repeat(protowire.AppendBytes(one, nil), n)
	}
	in := func(field int, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, protowire.Number(field), protowire.BytesType), content)
	}
	many := racetest.Part(30_000_000 / 2)
	for name, message := range map[string][]byte{
		"stop_token_ids":           in(18, bytes.Repeat([]byte{1}, many)),
		"stop":                     empty(7, many),
		"chat.messages":            in(3, empty(1, many)),
		"chat.messages.parts":      in(3, in(1, empty(2, many))),
		"prompt.parts":             in(4, empty(1, many)),
		"sampling.logit_bias":      in(6, empty(10, many)),
		"constraint.choices.texts": in(12, in(1, empty(1, many))),
		"prompt":                   empty(4, many),
		"sampling":                 empty(6, many),
	} {
		t.Run(name, func(t *testing.T) {
			bounded(t, f, 3*int64(len(message)), time.Second, func() {
				checkViolation(t, raw(t.Context(), f.conn, methodGenerate, message), name, "are allowed")
			})
		})
	}
	t.Run("unknown fields", func(t *testing.T) {
		message := empty(4000, many/2)
		bounded(t, f, 3*int64(len(message)), time.Second, func() {
			checkViolation(t, raw(t.Context(), f.conn, methodGenerate, message), "message", "known and unknown")
		})
	})
	t.Run("text", func(t *testing.T) {
		message := in(4, in(1, in(1, bytes.Repeat([]byte("x"), racetest.Part(60<<20)))))
		bounded(t, f, 3*int64(len(message)), time.Second, func() {
			checkViolation(t, raw(t.Context(), f.conn, methodGenerate, message), "prompt.parts.text", "too many bytes")
		})
	})
	t.Run("gzip", func(t *testing.T) {
		message := in(3, in(1, empty(2, many)))
		bounded(t, f, 3*int64(len(message)), 2*time.Second, func() {
			err := raw(t.Context(), f.conn, methodGenerate, message, grpc.UseCompressor(gzip.Name))
			if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "compressed") {
				t.Errorf("got %v, want UNIMPLEMENTED", err)
			}
		})
	})
}

// Garbage is the client's mistake, on every method.
func TestAttackGarbage(t *testing.T) {
	_, f := listen(t, server.Options{})
	for _, method := range []string{
		methodGenerate, "/mmserve.v1.MMServe/GenerateStream", "/mmserve.v1.MMServe/GetServerInfo",
		"/mmserve.v1.InferenceService/Generate", "/mmserve.v1.InferenceService/CountTokens",
		"/mmserve.v1.InferenceService/EmbedImage", "/mmserve.v1.ModelService/GetModel",
		"/inference.GRPCInferenceService/ModelReady", "/grpc.health.v1.Health/Check",
	} {
		for _, message := range [][]byte{{0xff}, {0x0a, 0x05, 'x'}, bytes.Repeat([]byte{0x0b}, 50_000), {0x0a, 1, 0xff}} {
			err := raw(t.Context(), f.conn, method, message)
			if method == "/mmserve.v1.MMServe/GetServerInfo" && len(message) == 3 && err == nil {
				continue // a field that it does not know
			}
			if c := status.Code(err); c != codes.InvalidArgument {
				t.Errorf("%s %x: %v, want INVALID_ARGUMENT", method, message[:1], err)
			}
		}
		err := raw(t.Context(), f.conn, method, make([]byte, racetest.Part(60<<20)))
		if c := status.Code(err); c != codes.ResourceExhausted && c != codes.InvalidArgument {
			t.Errorf("%s: 60 MB: %v", method, err)
		}
	}
	err := raw(t.Context(), f.conn, "/no.such.Service/secret", nil)
	if status.Code(err) != codes.Unimplemented || strings.Contains(err.Error(), "secret") {
		t.Errorf("an unknown method: %v", err)
	}
}

// h2 is a client that sends what it likes.
type h2 struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	mu     sync.Mutex
	ended  map[uint32]string // grpc-status of streams, or "reset"
	next   uint32
}

func dialH2(t *testing.T, addr string) *h2 {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return speakH2(t, conn)
}

// speakH2 greets a server, and reads what it answers.
func speakH2(t *testing.T, conn net.Conn) *h2 {
	t.Helper()
	c := &h2{t: t, conn: conn, framer: http2.NewFramer(conn, conn), ended: map[uint32]string{}, next: 1}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		for {
			f, err := c.framer.ReadFrame()
			if err != nil {
				return
			}
			c.mu.Lock()
			switch f := f.(type) {
			case *http2.MetaHeadersFrame:
				for _, h := range f.Fields {
					if h.Name == "grpc-status" {
						c.ended[f.StreamID] = h.Value
					}
				}
			case *http2.RSTStreamFrame:
				if c.ended[f.StreamID] == "" {
					c.ended[f.StreamID] = "reset"
				}
			case *http2.SettingsFrame:
				if !f.IsAck() {
					_ = c.framer.WriteSettingsAck()
				}
			case *http2.PingFrame:
				if !f.IsAck() {
					_ = c.framer.WritePing(true, f.Data)
				}
			}
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() { conn.Close(); <-reader })
	return c
}

// open begins a call, with further headers: names and values in turn.
func (c *h2) open(path string, more ...string) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	for i := 0; i < len(more); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: more[i], Value: more[i+1]})
	}
	id := c.next
	c.next += 2
	_ = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	return id
}

// send writes DATA without regard for windows in pieces of a size; it stops when the stream or
// the connection has ended.
func (c *h2) send(id uint32, data []byte, piece int) error {
	for len(data) > 0 {
		n := min(piece, len(data))
		c.mu.Lock()
		status := c.ended[id]
		var err error
		if status == "" {
			err = c.framer.WriteData(id, false, data[:n])
		}
		c.mu.Unlock()
		if status != "" {
			return fmt.Errorf("ended: %s", status)
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (c *h2) count(status string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.ended {
		if s == status {
			n++
		}
	}
	return n
}

func head(length int) []byte {
	return binary.BigEndian.AppendUint32([]byte{0}, uint32(length))
}

// TestStreamID holds that a call finds the number that its stream has on the wire, by which its bytes are counted.
func TestStreamID(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan uint32, 1)
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		found <- server.StreamID(stream.Context())
		return nil
	}))
	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	defer func() { g.Stop(); <-served }()
	c := dialH2(t, lis.Addr().String())
	for _, id := range []uint32{1, 3, 101, 70001, 1<<31 - 1} {
		c.next = id
		c.open(pb.MMServe_GetServerInfo_FullMethodName)
		select {
		case got := <-found:
			if got != id {
				t.Errorf("a call on stream %d finds %d", id, got)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no call on stream %d", id)
		}
	}
}

// Messages that are sent but for their last byte are refused as soon as they take more than the budget together, while
// an honest large one comes through.
func TestAttackHeldMessages(t *testing.T) {
	addr, f := listen(t, server.Options{MaxInflightBytes: int64(racetest.Part(128 << 20))})
	size, streams := racetest.Part(60_000_000), 12
	piece := make([]byte, 16<<10)
	bounded(t, f, 32<<20, 4*time.Second, func() {
		c := dialH2(t, addr)
		var ids []uint32
		for range streams {
			ids = append(ids, c.open(methodGenerate))
		}
		for _, id := range ids {
			_ = c.send(id, head(size), 16<<10)
		}
		// gRPC opens a stream's window to the message's size when it has read the header.
		time.Sleep(100 * time.Millisecond)
		for range size / streams / len(piece) * 10 {
			for _, id := range ids {
				_ = c.send(id, piece, len(piece))
			}
		}
		eventually(t, "some are refused", func() bool { return c.count("8") > 0 })
		large := append(pngFile(64), make([]byte, 2<<20)...)
		in := client.Chat(client.User(client.ImageBytes(large), client.Text("Describe the picture.")))
		if _, err := f.Generate(t.Context(), in); err != nil {
			t.Errorf("an honest message meanwhile: %v", err)
		}
		if n := c.count("8"); n < streams-3 {
			t.Errorf("%d of %d held messages were refused", n, streams)
		}
		c.conn.Close()
	})
}

// A message of tiny frames costs far more than its bytes.
func TestAttackTinyFrames(t *testing.T) {
	addr, f := listen(t, server.Options{})
	bounded(t, f, 32<<20, 2*time.Second, func() {
		c := dialH2(t, addr)
		id := c.open(methodGenerate)
		_ = c.send(id, head(50_000_000), 16<<10)
		time.Sleep(50 * time.Millisecond)
		_ = c.send(id, make([]byte, 200_000), 1)
		eventually(t, "refused", func() bool { return c.count("8") == 1 })
	})
}

// A message that does not come whole ends its call.
func TestReceiveTimeout(t *testing.T) {
	t.Parallel() // it waits
	addr, _ := listen(t, server.Options{ReceiveTimeout: 100 * time.Millisecond})
	for _, method := range []string{
		methodGenerate, "/mmserve.v1.MMServe/GenerateStream", "/mmserve.v1.MMServe/GetServerInfo",
		"/mmserve.v1.InferenceService/CountTokens", "/mmserve.v1.InferenceService/EmbedImage",
		"/inference.GRPCInferenceService/ModelMetadata", "/grpc.health.v1.Health/Watch",
	} {
		c := dialH2(t, addr)
		_ = c.send(c.open(method), append(head(100), 1, 2, 3), 16<<10)
		c.open(method) // not even a header
		eventually(t, method+" times out", func() bool { return c.count("4") == 2 })
	}
}

// Silent connections, and those that only shook hands, give way to new callers.
func TestAttackSilentConnections(t *testing.T) {
	addr, f := listen(t, server.Options{MaxConnections: 20})
	for i := range 60 {
		if i%2 == 0 {
			dialH2(t, addr)
			continue
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	for range 30 {
		began := time.Now()
		c, err := client.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Generate(t.Context(), client.Prompt(client.Text("red")))
		c.Close()
		if err != nil || time.Since(began) > 5*time.Second {
			t.Fatalf("a new caller: %v after %v", err, time.Since(began))
		}
	}
	eventually(t, "it is logged", func() bool { return strings.Contains(f.log.String(), "connections are at their limit") })
}

// Metadata is bounded.
func TestAttackHeaders(t *testing.T) {
	_, f := listen(t, server.Options{})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("y", 1<<20))
	if _, err := f.Generate(ctx, client.Prompt(client.Text("red"))); err == nil {
		t.Error("1 MB of metadata was taken")
	}
	if _, err := f.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
		t.Error(err)
	}
}

// Every repeated or map field that a request can hold has a limit of its own on the wire.
func TestWireCountsAreComplete(t *testing.T) {
	for _, name := range server.UncountedFields() {
		t.Errorf("%s has no limit on the wire", name)
	}
}
