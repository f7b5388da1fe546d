package server_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// inBubble has do talk to a server over connections in memory, whose time passes as do sleeps.
func inBubble(t *testing.T, r batching.Runner, o server.Options, do func(t *testing.T, dial func() net.Conn)) {
	m := tinyVLM(t)
	synctest.Test(t, func(t *testing.T) {
		o.Logger = slog.New(slog.DiscardHandler)
		web := bufconn.Listen(4 << 10)
		o.HTTP.Listener = web
		s := server.Loading(o)
		s.Attach(serving.Single(serving.Run(m, newEngine(t, r, batching.Options{}))))
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(ctx, bufconn.Listen(1<<10)) }()
		defer func() { stop(); <-done }()
		do(t, func() net.Conn {
			conn, err := web.Dial()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		})
	})
}

// lives says how long the server leaves a connection open.
func lives(conn net.Conn) time.Duration {
	began := time.Now()
	_, _ = io.Copy(io.Discard, conn)
	return time.Since(began)
}

// TestHTTPSilentClients holds how long a connection stays whose client says nothing, or never comes to an end.
func TestHTTPSilentClients(t *testing.T) {
	o := server.Options{ReceiveTimeout: 20 * time.Second}
	inBubble(t, newChain(1, 430, 4), o, func(t *testing.T, dial func() net.Conn) {
		for _, c := range []struct {
			name, sends string
			most        time.Duration
		}{
			{"nothing", "", 11 * time.Second},
			{"half a header", "POST /v1/chat/completions HTTP/1.1\r\nHost:", 11 * time.Second},
			{"half a body", rawChat("Content-Type: application/json\r\nContent-Length: 100\r\n", "{"), 21 * time.Second},
			{"half a body nobody reads", "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", 21 * time.Second},
			{"half a body of a wrong type", rawChat("Content-Length: 100\r\n", "{"), 21 * time.Second},
			{"a request", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 3 * time.Minute},
		} {
			conn := dial()
			if _, err := io.WriteString(conn, c.sends); err != nil {
				t.Fatal(err)
			}
			if took := lives(conn); took > c.most {
				t.Errorf("%s: the connection is open for %v, want at most %v", c.name, took, c.most)
			}
		}
	})
}

// TestHTTPReaderStops holds that a client that stops to read its stream is left, and its place is free again.
func TestHTTPReaderStops(t *testing.T) {
	inBubble(t, endless(1), server.Options{}, func(t *testing.T, dial func() net.Conn) {
		ask := func(conn net.Conn) {
			body := chatBody(`,"stream":true,"max_tokens":400`)
			fmt.Fprint(conn, rawChat(fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)), body))
		}
		conn := dial()
		ask(conn)
		synctest.Wait() // its buffer is full
		time.Sleep(time.Minute)
		b, err := io.ReadAll(conn)
		if text := string(b); err != nil || strings.Contains(text, "[DONE]") || !strings.Contains(text, "content") {
			t.Errorf("%v: the stream is %.100q … %.100q", err, text, text[max(0, len(text)-100):])
		}
		conn = dial()
		ask(conn)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); !strings.HasSuffix(string(b), "[DONE]\n\n") ||
			errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("afterwards: %d, %v", resp.StatusCode, err)
		}
	})
}
