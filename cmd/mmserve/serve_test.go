package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/logtest"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// TestMain lets the test binary be mmserve, for tests that need a process.
func TestMain(m *testing.M) {
	if os.Getenv("MMSERVE_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// What a flag or its variable cannot mean is refused, and the error says what is allowed.
func TestServeRefuses(t *testing.T) {
	for i, c := range []struct {
		env, arg, want string
	}{
		{"MMSERVE_LISTEN=", "", "MMSERVE_LISTEN is empty"},
		{"MMSERVE_SLOTS=", "", "MMSERVE_SLOTS"}, {"MMSERVE_CACHE_DIR=", "", "MMSERVE_CACHE_DIR is empty"},
		{"MMSERVE_GRACE=-1s", "", "--grace -1s: want"},
		{"", "--listen=", "want host:port"},
		{"", "--listen=localhost", "want host:port"},
		{"", "--listen=127.0.0.1:99999", "want host:port"},
		{"", "--admin-address=9464", "--admin-address"},
		{"", "--listen=unix:", "--listen \"unix:\": want a file's path"},
		{"", "--listen=unix://run/s", "want three slashes"},
		{"", "--listen=unix:@abstract", "abstract sockets have no permissions"},
		{"", "--admin-address=unix-abstract:a", "--admin-address \"unix-abstract:a\": abstract"},
		{"", "--socket-mode=0777", "want 0600 to 0666"}, {"", "--socket-mode=0060", "want 0600 to 0666"},
		{"", "--socket-mode=rw", "want 0600"},
		{"", "--max-connection-age=-1s", "--max-connection-age -1s: want"}, {"", "--max-connection-age-grace=25h", "--max-connection-age-grace 25h0m0s: want"},
		{"", "--grace=-1s", "--grace -1s: want"},
		{"", "--grace=0s", "--grace 0s: want"},
		{"", "--drain-delay=-1s", "--drain-delay -1s: want 0s"},
		{"", "--receive-timeout=-1s", "--receive-timeout"},
		{"", "--max-decode-time=0s", "--max-decode-time"},
		{"", "--media-bytes=100", "--media-bytes 100: want 0, or"},
		{"", "--media-tenant-share=1.5", "--media-tenant-share"},
		{"", "--media-tenant-share=NaN", "--media-tenant-share"},
		{"", "--media-tenant-share=1e-9", "--media-tenant-share 1e-09: 0 bytes"},
		{"", "--media-tenant-share=1e-6", "want at least 65536"},
		{"", "--media-ttl=0s", "--media-ttl"},
		{"", "--media-fetch-timeout=1h", "--media-fetch-timeout"},
		{"", "--media-allow-urls=*", "--media-allow-urls"},
		{"", "--media-allow-urls=example.com,ftp://example.com", "--media-allow-urls"},
		{"MMSERVE_MEDIA_BYTES=0", "--media-allow-urls=example.com", "--media-allow-urls: images that are fetched"},
		{"", "--max-tiles=-1", "--max-tiles"},
		{"", "--max-image-tokens=-1", "--max-image-tokens"},
		{"", "--oversized-images=crop", "--oversized-images"},
		{"", "--max-len=16384", "--max-len 16384: want at most 512"},
		{"", "--max-len=-1", "--max-len -1: want"},
		{"", "--prefill-share=NaN", "--prefill-share NaN: want"},
		{"", "--tenant-weight=a=NaN", "--tenant-weight a=NaN: want"},
		{"", "--tenant-weight=a=+Inf", "--tenant-weight a=+Inf: want"},
		{"", "--tenant-weight=a=-1", "--tenant-weight a=-1: want"},
		{"", "--slots=1000000000", "--slots 1000000000: want"},
		{"", "--encoder-cache-mib=9223372036854775807", "--encoder-cache-mib"},
		{"", "--max-message-bytes=0", "--max-message-bytes 0: want 1"},
		{"", "--max-message-bytes=9223372036854775807", "--max-message-bytes"},
		{"", "--max-inflight-bytes=1", "--max-inflight-bytes 1: want at least"},
		{"", "--max-images=-1", "--max-images -1: want"},
		{"", "--age-after=-1s", "--age-after -1s: want"},
		{"", "--batch-places=0", "--batch-places 0: want"}, {"", "--tenant-places=1.5", "--tenant-places 1.5: want"},
		{"", "--tenant-places=NaN", "--tenant-places NaN: want"},
		{"", "--quotas=testdata/none.yaml", "--quotas: open testdata/none.yaml"},
		{"", "--quotas=testdata/flags.txt", "--quotas: testdata/flags.txt: line 1: want names with values"},
		{"", "--pace=-1ms,1ms", "--pace"},
		{"", "--log-level=loud", "must be one of"},
	} {
		t.Run(c.env+c.arg, func(t *testing.T) {
			racetest.Sample(t, i)
			if name, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(name, value)
			}
			args := []string{"serve", "--pace=1ms,1ms", "--admin-address="}
			if !strings.HasPrefix(c.env, "MMSERVE_LISTEN") {
				args = append(args, "--listen=127.0.0.1:0")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if c.arg != "" {
				args = append(args, c.arg)
			}
			var out, errs bytes.Buffer
			if code := run(ctx, args, &out, &errs); code == 0 || !strings.Contains(errs.String(), c.want) {
				t.Errorf("status %d: %s; want %q", code, errs.String(), c.want)
			}
		})
	}
}

// served is `mmserve serve` in a process of its own.
type served struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	log  *logtest.Buffer
	done chan error
}

func startServe(t *testing.T, addr string, env []string, args ...string) *served {
	t.Helper()
	p := &served{t: t, addr: addr, log: new(logtest.Buffer), done: make(chan error, 1)}
	p.cmd = exec.Command(os.Args[0], append([]string{"serve", "--listen", addr, "--admin-address="}, args...)...)
	p.cmd.Env = append(append(os.Environ(), "MMSERVE_TEST_MAIN=1"), env...)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// wait gives the exit status and how long it took.
func (p *served) wait(most time.Duration) (status int, took time.Duration) {
	p.t.Helper()
	began := time.Now()
	select {
	case err := <-p.done:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode(), time.Since(began)
		}
		return 0, time.Since(began)
	case <-time.After(most):
		p.t.Fatalf("the process goes on after %v:\n%s", most, p.log)
		return 0, 0
	}
}

func (p *served) logged(text string) {
	p.t.Helper()
	for began := time.Now(); !strings.Contains(p.log.String(), text); time.Sleep(time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			p.t.Fatalf("no %q in\n%s", text, p.log)
		}
	}
}

func (p *served) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Error(err)
	}
}

func longAnswer(tokens uint32) *pb.GenerateRequest {
	in := client.Prompt(client.Text("red"))
	in.MaxTokens, in.IgnoreEos = proto.Uint32(tokens), true
	return in
}

// Signals do what those who run servers expect of them.
func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		name      string
		args      []string
		signals   []syscall.Signal
		status    int
		most      time.Duration
		code      codes.Code
		logged    string
		completes bool
	}{
		{"hangup, then a drain", nil, []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM}, 0, 10 * time.Second, codes.OK,
			"SIGHUP", true},
		{"cut", []string{"--grace=200ms"}, []syscall.Signal{syscall.SIGINT}, 1, 5 * time.Second, codes.Unavailable,
			"open_requests=1", false},
		{"twice", nil, []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}, 143, time.Second, codes.Unavailable,
			"second signal", false},
		{"both", nil, []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, 130, time.Second, codes.Unavailable, "second signal",
			false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startServe(t, sockettest.FreeAddress(t), nil, append(tt.args, "--pace=1ms,10ms")...)
			p.logged("msg=serving")
			c, err := client.Dial(p.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var end error
			finished, sent := false, false
			for e, err := range c.Stream(t.Context(), longAnswer(150)) {
				if end = err; err != nil {
					break
				}
				if e.GetDelta() != nil && !sent {
					sent = true
					for _, s := range tt.signals {
						p.signal(s)
						time.Sleep(50 * time.Millisecond)
					}
				}
				finished = finished || e.GetFinish() != nil
			}
			status0, took := p.wait(10 * time.Second)
			if status0 != tt.status || took > tt.most || status.Code(end) != tt.code || finished != tt.completes {
				t.Errorf("exit %d after %v, the answer ended with %v, whole %v; want exit %d", status0, took, end, finished, tt.status)
			}
			p.logged(tt.logged)
		})
	}
}

// SIGTERM ends a server whose model still loads, at once.
func TestSignalWhileLoading(t *testing.T) {
	p := startServe(t, sockettest.FreeAddress(t), nil, "--load-format=dummy",
		"--model="+filepath.Join("..", "..", "testdata", "granite-docling", "config.json"))
	p.logged("msg=listening")
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(10 * time.Second); code != 0 || took > 2*time.Second {
		t.Errorf("exit %d after %v:\n%s", code, took, p.log)
	}
}

// Telemetry that cannot be sent changes neither how a drain ends nor for how long.
func TestDeadTelemetry(t *testing.T) {
	t.Parallel() // it runs in processes of its own
	p := startServe(t, sockettest.FreeAddress(t),
		[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + sockettest.FreeAddress(t), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "--pace=1ms,1ms")
	p.logged("msg=serving")
	c, err := client.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Generate(t.Context(), longAnswer(3)); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(15 * time.Second); code != 0 || took > 5*time.Second {
		t.Errorf("exit %d after %v:\n%s", code, took, p.log)
	}
}

// TestRollingRestart restarts three servers in turn behind gRPC's round robin, without retries or health checks: no
// request is lost. MMSERVE_TEST_ROLLING says how many streams there are, 15 each second.
func TestRollingRestart(t *testing.T) {
	streams := 90
	if n, err := strconv.Atoi(os.Getenv("MMSERVE_TEST_ROLLING")); err == nil {
		streams = n
	}
	const rate = 15
	var replicas []*served
	var state resolver.State
	for range 3 {
		p := startServe(t, sockettest.FreeAddress(t), nil, "--pace=1ms,5ms")
		replicas = append(replicas, p)
		state.Addresses = append(state.Addresses, resolver.Address{Addr: p.addr})
	}
	for _, p := range replicas {
		p.logged("msg=serving")
	}
	r := manual.NewBuilderWithScheme("replicas")
	r.InitialState(state)
	c, err := client.Dial("replicas:///", client.WithUnavailableRetries(0),
		client.WithDialOptions(grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`), grpc.WithDisableRetry()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var lost, whole atomic.Int32
	var clients sync.WaitGroup
	call := func() {
		for e, err := range c.Stream(context.Background(), longAnswer(60)) {
			if err != nil {
				lost.Add(1)
				t.Log(err)
			} else if e.GetFinish() != nil {
				whole.Add(1)
			}
		}
	}
	call() // connects
	clients.Go(func() {
		for i := range replicas {
			time.Sleep(time.Duration(streams) * time.Second / rate / 4)
			old := replicas[i]
			old.signal(syscall.SIGTERM)
			if code, _ := old.wait(30 * time.Second); code != 0 {
				t.Errorf("replica %d ended with status %d:\n%s", i, code, old.log)
			}
			replicas[i] = startServe(t, old.addr, nil, "--pace=1ms,5ms")
			replicas[i].logged("msg=serving")
		}
	})
	for range streams {
		clients.Go(call)
		time.Sleep(time.Second / rate)
	}
	clients.Wait()
	if lost.Load() > 0 || int(whole.Load()) != streams+1 {
		t.Errorf("%d of %d were lost, %d answered", lost.Load(), streams, whole.Load())
	}
}
