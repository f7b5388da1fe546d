package server

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/test/bufconn"
)

// TestHTTPLinger holds how much of a body is read after its refusal, and for how long: little where the headers alone
// were refused, at a rate that bodies in use have no part in, and never past the deadline.
func TestHTTPLinger(t *testing.T) {
	const slack = 64 << 10 // buffers
	for name, c := range map[string]struct {
		headers string
		rate    rate.Limit // of what is thrown away; 0: as it is
		bytes   int
		most    time.Duration
	}{
		"a page that may not ask":      {headers: "Origin: https://x.example\r\n", bytes: strangerBytes, most: strangerTime},
		"such a page, while many do":   {"Origin: https://x.example\r\n", 1, bodyPiece, strangerTime},
		"no such path":                 {headers: "", bytes: lingerBytes, most: lingerTime},
		"no such path, while many ask": {"", 1, bodyPiece, lingerTime},
	} {
		synctest.Test(t, func(t *testing.T) {
			lis := bufconn.Listen(4 << 10)
			s := Loading(Options{Logger: slog.New(slog.DiscardHandler), HTTP: HTTPOptions{Listener: lis}})
			s.attached.Store(true)
			h := s.newHTTPServer()
			h.start()
			defer h.wait()
			defer h.close()
			if c.rate > 0 {
				s.inflight.waste.SetLimit(c.rate)
				s.inflight.waste.AllowN(time.Now(), wasteBurst)
			}
			conn, err := lis.Dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			sent, took := upload(conn, c.headers)
			if sent > c.bytes+slack || took > c.most+time.Second {
				t.Errorf("%s: %d bytes were read in %v, want at most %d in %v", name, sent, took, c.bytes, c.most)
			}
			if s.inflight.bulk.Tokens() < bulkBurst {
				t.Errorf("%s: it took of the rate that bodies in use share", name)
			}
		})
	}
}

// upload sends a body of 32 MiB until it is not taken any more, and says how much was.
func upload(conn net.Conn, headers string) (sent int, took time.Duration) {
	began := time.Now()
	go io.Copy(io.Discard, conn)
	fmt.Fprintf(conn, "POST /v1/none HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n", lingerBytes, headers)
	for piece := make([]byte, 4<<10); sent < lingerBytes; {
		n, err := conn.Write(piece)
		if sent += n; err != nil {
			break
		}
	}
	return sent, time.Since(began)
}
