package server

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"

	"github.com/mmserve/mmserve/internal/socket"
)

// What mmserve reads of HTTP/2 (RFC 9113): frame headers, to know how much of which stream came.
const (
	prefaceLen  = 24
	frameHeader = 9

	frameData    = 0
	frameHeaders = 1
	frameReset   = 3
	framePing    = 6
)

// connection is a client's. Those from streams on are guarded by inflight.mu.
type connection struct {
	net.Conn
	listener *listener
	close    sync.Once
	closed   context.Context // is done once the connection is closed
	end      context.CancelFunc

	// The reading goroutine's: where in the frames it is.
	header  [frameHeader]byte
	have    int
	skip    int64
	streams map[uint32]*inbound
	last    uint32 // the newest stream
	frames  *rate.Limiter

	flooding time.Time // since when it sends more than it may; zero: it does not
	clock    time.Time // of frames: it stands still while the connection waits for others
	resumed  time.Time // when the clock was set

	receiving int64 // bytes of messages that are not whole yet
	claims    int   // calls that run
	watches   int   // of claims, those that carry nothing and may last: watchers
	greeted   bool  // it speaks HTTP/2
	born      time.Time
	served    bool // it made a call
	asked     bool // over HTTP/1.1: the headers of a request came
	silent    time.Time
}

func newConnection(conn net.Conn, l *listener) *connection {
	c := &connection{
		Conn: socket.Named(conn), listener: l, skip: prefaceLen, streams: map[uint32]*inbound{}, silent: time.Now(),
		frames: rate.NewLimiter(frameRate, frameBurst), clock: time.Now(), resumed: time.Now(),
		greeted: l.http, born: time.Now(),
	}
	c.closed, c.end = context.WithCancel(context.Background())
	return c
}

// maxUnclaimed bounds the streams of a connection that no handler has: those that gRPC refused.
const maxUnclaimed = 1024

// prune forgets the oldest streams that no handler came for, many at a time: all are looked at.
func (c *connection) prune() {
	if len(c.streams)-c.claims <= 2*maxUnclaimed {
		return
	}
	for id, s := range c.streams {
		if !s.claimed && id+2*maxUnclaimed < c.last {
			delete(c.streams, id)
		}
	}
}

// observe reads the frames in p and gives the number of those that count.
func (c *connection) observe(p []byte) (frames int) {
	for len(p) > 0 {
		if c.skip > 0 {
			n := min(c.skip, int64(len(p)))
			c.skip -= n
			p = p[n:]
			continue
		}
		n := copy(c.header[c.have:], p)
		c.have += n
		p = p[n:]
		if c.have < frameHeader {
			return frames
		}
		c.have = 0
		c.skip = int64(binary.BigEndian.Uint32(c.header[:4]) >> 8)
		frames += c.listener.inflight.frame(c, c.header[3], binary.BigEndian.Uint32(c.header[5:])&^(1<<31), c.skip)
	}
	return frames
}

// connectionAddr is a client's address, by which a call finds its connection.
type connectionAddr struct {
	net.Addr
	connection *connection
}

func (c *connection) RemoteAddr() net.Addr { return connectionAddr{c.Conn.RemoteAddr(), c} }

func (c *connection) Close() error {
	c.close.Do(func() {
		c.end()
		c.listener.forget(c)
	})
	return c.Conn.Close()
}

// framed is a connection as gRPC reads it, past TLS.
type framed struct {
	net.Conn
	connection *connection
}

func (f framed) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	c := f.connection
	frames := c.observe(p[:n])
	if flood := c.pace(n, frames, c.listener.inflight.bulky(c)); flood != nil {
		return 0, flood
	}
	return n, err
}

// framedCredentials have what they let through observed.
type framedCredentials struct {
	credentials.TransportCredentials
}

func (f framedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := f.TransportCredentials.ServerHandshake(raw)
	if c, ok := raw.(*connection); ok && err == nil {
		conn = framed{conn, c}
	}
	return conn, info, err
}

func (f framedCredentials) Clone() credentials.TransportCredentials {
	return framedCredentials{f.TransportCredentials.Clone()}
}

// listener accepts up to most connections. One more takes the place of one that is silent: of those that never made a
// call the oldest, or else the one whose last call is longest ago. While all have calls, it is closed. Before the
// server is ready the system refuses connections, or where it cannot they are closed: calls are UNAVAILABLE at once,
// and balancers without health checks send theirs to other servers.
type listener struct {
	net.Listener
	loaded   <-chan struct{} // unless nil, Accept waits for it, and then resumes
	resume   func() error
	once     sync.Once
	closed   chan struct{} // by Close; nil: Accept waits for nothing
	inflight *inflight
	most     int
	ready    func() bool
	http     bool // its connections speak HTTP/1.1: nothing is read of their frames
	log      *slog.Logger
	told     time.Time // of the last log line; of the accepting goroutine
}

// pause has connections refused until loaded is closed, where the system can.
func (l *listener) pause(loaded <-chan struct{}) {
	if resume, ok := socket.Pause(l.Listener); ok {
		l.loaded, l.resume = loaded, resume
	}
}

// Close closes the listener; connections stay.
func (l *listener) Close() error {
	l.once.Do(func() {
		if l.closed != nil {
			close(l.closed)
		}
	})
	return l.Listener.Close()
}

// Accept gives the next connection.
func (l *listener) Accept() (net.Conn, error) {
	if l.loaded != nil {
		select {
		case <-l.loaded:
			l.loaded = nil
			if err := l.resume(); err != nil {
				return nil, err
			}
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			if (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && l.makeRoom() {
				continue
			}
			return nil, err
		}
		if !l.ready() {
			_ = conn.Close()
			continue
		}
		full := l.count() >= l.most
		if full && !l.makeRoom() {
			_ = conn.Close()
			continue
		}
		c := newConnection(conn, l)
		l.inflight.mu.Lock()
		l.inflight.conns[c] = struct{}{}
		l.inflight.mu.Unlock()
		return c, nil
	}
}

func (l *listener) count() int {
	l.inflight.mu.Lock()
	defer l.inflight.mu.Unlock()
	return len(l.inflight.conns)
}

// makeRoom closes a silent connection, and is false if there is none.
func (l *listener) makeRoom() bool {
	c := l.silent()
	if now := time.Now(); now.Sub(l.told) > 10*time.Second {
		l.told = now
		l.log.LogAttrs(context.Background(), slog.LevelWarn, "connections are at their limit: silent ones are closed for new ones",
			slog.Int("connections", l.count()), slog.Bool("found", c != nil))
	}
	if c == nil {
		return false
	}
	_ = c.Close()
	return true
}

func (l *listener) silent() (found *connection) {
	l.inflight.mu.Lock()
	defer l.inflight.mu.Unlock()
	for c := range l.inflight.conns {
		if c.claims > c.watches {
			continue
		}
		if found == nil || c.served == found.served && c.silent.Before(found.silent) || !c.served && found.served {
			found = c
		}
	}
	return found
}

// closeMute closes the connections that have not said a word of HTTP/2, or no whole request line and headers over
// HTTP/1.1: a graceful stop waits for them.
func (l *listener) closeMute() {
	var mute []*connection
	l.inflight.mu.Lock()
	for c := range l.inflight.conns {
		if c.listener == l && (!c.greeted || l.http && !c.asked) {
			mute = append(mute, c)
		}
	}
	l.inflight.mu.Unlock()
	for _, c := range mute {
		_ = c.Close()
	}
}

func (l *listener) forget(c *connection) {
	l.inflight.mu.Lock()
	defer l.inflight.mu.Unlock()
	delete(l.inflight.conns, c)
}
