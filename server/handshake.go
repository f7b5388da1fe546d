package server

import (
	"context"
	"crypto/tls"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mmserve/mmserve/internal/socket"
)

// Handshakes cost a server far more than the client that begins them: a signature, of RSA about a millisecond. What a
// host begins beyond its own rate waits for a rate that all such hosts share. It waits after the ClientHello, as a
// silent connection, and gives way to new ones as those do.
const (
	// handshakeRate is how many a host may begin in a second, and handshakeBurst how many at once: all connections of a
	// proxy, when it starts anew.
	handshakeRate, handshakeBurst = 50, 200
	// moreHandshakes is how many are begun in a second for each processor beyond that, by all hosts together.
	moreHandshakes = 50
	// handshakeHosts is how many hosts are remembered. Others share the rate of those that exceed theirs.
	handshakeHosts = 4096
)

// handshakes bounds the TLS handshakes of the listeners that share a certificate.
type handshakes struct {
	more *rate.Limiter

	mu    sync.Mutex
	hosts map[string]*rate.Limiter
	swept time.Time
}

func newHandshakes() *handshakes {
	return &handshakes{
		more:  rate.NewLimiter(rate.Limit(moreHandshakes*runtime.GOMAXPROCS(0)), 1),
		hosts: map[string]*rate.Limiter{},
	}
}

// begin returns when the handshake of a client that has greeted may go on. It fails if its connection is closed
// meanwhile, or if it would come too late.
func (h *handshakes) begin(hello *tls.ClientHelloInfo) error {
	ctx := hello.Context()
	if c, ok := hello.Conn.(*connection); ok {
		ctx = c.closed
	}
	return h.wait(ctx, hello.Conn.RemoteAddr().String())
}

// wait is begin for a peer, until ctx ends.
func (h *handshakes) wait(ctx context.Context, peer string) error {
	if own := h.of(socket.Host(peer), time.Now()); own != nil && own.Allow() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime/2)
	defer cancel()
	return h.more.Wait(ctx)
}

// of gives a host's own limiter; nil if there is no room for one.
func (h *handshakes) of(host string, now time.Time) *rate.Limiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.hosts[host]
	if l != nil {
		return l
	}
	if len(h.hosts) >= handshakeHosts {
		h.sweep(now)
	}
	if len(h.hosts) >= handshakeHosts {
		return nil
	}
	l = rate.NewLimiter(handshakeRate, handshakeBurst)
	h.hosts[host] = l
	return l
}

// sweep forgets the hosts whose limiters are full again, once a second at most. h.mu is held.
func (h *handshakes) sweep(now time.Time) {
	if now.Sub(h.swept) < time.Second {
		return
	}
	h.swept = now
	for host, l := range h.hosts {
		if l.TokensAt(now) >= handshakeBurst {
			delete(h.hosts, host)
		}
	}
}
