package server

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/mmserve/mmserve/internal/racetest"
)

// wireConn is a client's end that has sent bytes already.
type wireConn struct {
	net.Conn
	sent *bytes.Reader
}

func (c wireConn) Read(p []byte) (int, error) { return c.sent.Read(p) }
func (wireConn) Close() error                 { return nil }

func frameOf(kind byte, length int) []byte {
	f := make([]byte, frameHeader+length)
	f[0], f[1], f[2], f[3], f[8] = byte(length>>16), byte(length>>8), byte(length), kind, 1
	return f
}

// receive reads n frames on a new connection, in pieces of size bytes, and gives the time that took.
func receive(t *testing.T, frame []byte, n, size, calls int, holds int64) time.Duration {
	t.Helper()
	l := &listener{inflight: newInflight(1 << 30)}
	l.inflight.flood.SetLimit(rate.Inf) // one connection alone
	c := newConnection(wireConn{sent: bytes.NewReader(append(make([]byte, prefaceLen), bytes.Repeat(frame, n)...))}, l)
	c.claims, c.receiving = calls, holds
	began := time.Now()
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{framed{c.Conn, c}}, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// A connection that floods is read more slowly, in whatever pieces its frames come.
func TestPace(t *testing.T) {
	if racetest.Enabled {
		t.Skip("one goroutine at a time runs, for long; make test runs this without the race detector, too")
	}
	const huge = 1 << 14
	for name, c := range map[string]struct {
		frame   []byte
		n, size int
		holds   int64
		want    time.Duration
	}{
		"a burst of pings":    {frame: frameOf(framePing, 8), n: frameBurst, size: 1000},
		"pings without end":   {frameOf(framePing, 8), 5 * frameBurst, 1000, 0, 4 * frameBurst * time.Second / frameRate},
		"pings, byte by byte": {frameOf(framePing, 8), 2 * frameBurst, 1, 0, frameBurst * time.Second / frameRate},
		"calls taken back": {
			frameOf(frameReset, 4), 3 * frameBurst / resetCost, 32 << 10, 0, 2 * frameBurst * time.Second / frameRate,
		},
		"pings without a call": {
			frameOf(framePing, 8), 3 * frameBurst / idlePingCost, 1000, 0, 2 * frameBurst * time.Second / frameRate,
		},
		"data of one byte":        {frameOf(frameData, 1), 2 * frameBurst, 500, 0, frameBurst * time.Second / frameRate},
		"data":                    {frame: frameOf(frameData, huge), n: 2 * frameBurst, size: 32 << 10},
		"a large message's data":  {frameOf(frameData, huge), 8 * bulkBurst / huge, 32 << 10, 2 * bulkAfter, 0},
		"data of a small message": {frameOf(frameData, huge), 8 * bulkBurst / huge, 32 << 10, bulkAfter / 2, 0},
	} {
		if name == "a large message's data" {
			c.want = time.Duration(7*bulkBurst*float64(time.Second)/float64(newBulk().Limit())) + time.Millisecond
		}
		synctest.Test(t, func(t *testing.T) {
			calls := 1
			if name == "pings without a call" {
				calls = 0
			}
			if took := receive(t, c.frame, c.n, c.size, calls, c.holds); took < c.want*99/100 || took > c.want+c.want/50 {
				t.Errorf("%s: %v, want %v", name, took, c.want)
			}
		})
	}
}

// A connection that is closed is not waited for.
func TestPaceClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConnection(wireConn{}, &listener{inflight: newInflight(1 << 30)})
		time.AfterFunc(time.Second, func() { _ = c.Close() })
		began := time.Now()
		_ = c.pace(0, 100*frameBurst, false)
		if took := time.Since(began); took != time.Second {
			t.Errorf("the pause ended after %v, want %v", took, time.Second)
		}
	})
}

// Connections that flood share what is read from them, and end if they go on.
func TestPaceFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newInflight(1 << 30)
		began := time.Now()
		var took [4]time.Duration
		var all sync.WaitGroup
		for i := range took {
			all.Go(func() {
				c := newConnection(wireConn{}, &listener{inflight: shared})
				for time.Since(began) < 5*time.Minute {
					err := c.pace(0, frameBurst/2, false)
					if err == nil {
						err = c.pace(1, 0, false) // part of a frame
					}
					if err != nil {
						took[i] = time.Since(began)
						return
					}
				}
			})
		}
		all.Wait()
		for i, d := range took {
			if d < floodTime || d > 2*floodTime {
				t.Errorf("flood %d was ended after %v, want %v and what it had to wait for", i, d, floodTime)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := newConnection(wireConn{}, &listener{inflight: newInflight(1 << 30)})
		for range 100 { // a burst now and then is none
			for range 2 {
				if err := c.pace(0, frameBurst, false); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(frameBurst / frameRate * time.Second)
			if err := c.pace(0, 1, false); err != nil {
				t.Fatal(err)
			}
		}
	})
}
