package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/auth/authtest"
	"github.com/mmserve/mmserve/server"
)

// A host's handshakes beyond its rate come one after the other, at a rate of all such hosts. Others' come at once.
func TestHandshakeRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, began := server.NewHandshakes(), time.Now()
		begin := func(peer string) error { return h.Wait(t.Context(), peer) }
		taken := func(peer string) (n int) {
			for range 10_000 {
				before := time.Now()
				if begin(peer) != nil || time.Since(before) > 0 {
					break
				}
				n++
			}
			return n
		}
		if n := taken("192.0.2.1:1"); n < server.HandshakeBurst || n > server.HandshakeBurst+2 {
			t.Errorf("%d at once, want %d", n, server.HandshakeBurst)
		}
		for range 2 * server.MoreHandshakes * runtime.GOMAXPROCS(0) { // they get what is left over, and their own rate
			if err := begin("192.0.2.1:2"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < time.Second || took > 2*time.Second {
			t.Errorf("more than a host's take %v", took)
		}
		before := time.Now()
		if err := begin("198.51.100.1:1"); err != nil || time.Since(before) > 0 {
			t.Errorf("another host waits for %v, %v", time.Since(before), err)
		}
		for i := range server.HandshakeHosts + 100 { // hosts without end are not remembered
			if err := begin(fmt.Sprintf("[2001:db8:%x::1]:1", i)); err != nil || h.Hosts() > server.HandshakeHosts {
				t.Fatalf("%v; %d hosts are remembered", err, h.Hosts())
			}
		}
		time.Sleep(time.Minute)
		if n := taken("[2001:db8:ffff:ffff::1]:1"); n < server.HandshakeBurst {
			t.Errorf("%d at once of a host that came when all others had rested for a minute", n)
		}
		gone, leave := context.WithCancel(t.Context())
		for range 2000 { // the queue is full: those beyond it are refused at once
			go h.Wait(t.Context(), "[2001:db8:ffff:ffff::1]:1")
		}
		synctest.Wait()
		leave()
		if err := h.Wait(gone, "[2001:db8:ffff:ffff::1]:1"); err == nil {
			t.Error("a connection that is closed goes on")
		}
		time.Sleep(time.Minute)
	})
}

// A host that begins handshakes without end has few of them answered. Connections that are there, and those that other
// hosts begin, do not wait for them.
func TestAttackHandshakes(t *testing.T) {
	m := newMutual(t)
	k := newKeyFile(t, entries...)
	o := server.Options{Auth: k.auth, Credentials: credentials.NewTLS(m.tls.Config("h2"))}
	addr, f := listen(t, o, m.dial(t, m.ca, authtest.Leaf{CommonName: "x"}), withKey(k.key["acme"], true))
	here := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	if conn, err := here.Dial("tcp", addr); err != nil {
		t.Skip("127.0.0.2 is not this machine: ", err)
	} else {
		conn.Close()
	}
	own := &tls.Config{
		RootCAs: m.ca.Pool(), NextProtos: []string{"h2"}, ServerName: "localhost",
		Certificates: []tls.Certificate{m.ca.Pair(t, authtest.Leaf{CommonName: "x"})},
	}
	var done atomic.Int64
	over := make(chan struct{}) // the host's own handshakes are
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var attackers sync.WaitGroup
	began := time.Now()
	for range 8 {
		attackers.Go(func() {
			for ctx.Err() == nil {
				conn, err := (&tls.Dialer{NetDialer: &here, Config: own}).DialContext(ctx, "tcp", addr)
				if err == nil {
					if done.Add(1) == server.HandshakeBurst+20 {
						close(over)
					}
					conn.(*tls.Conn).NetConn().Close()
				}
			}
		})
	}
	select {
	case <-over:
	case <-time.After(5 * time.Second): // on a machine that is slower than the rate
	}
	for range 5 {
		conn, err := tls.Dial("tcp", addr, own)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if _, err := f.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
			t.Error(err)
		}
	}
	stop()
	attackers.Wait()
	perSecond := server.HandshakeRate + server.MoreHandshakes*runtime.GOMAXPROCS(0)
	most := server.HandshakeBurst + 10 + int64(time.Since(began).Seconds()*float64(perSecond))
	if n := done.Load(); n > most {
		t.Errorf("%d handshakes of one host in %v, want at most %d", n, time.Since(began), most)
	}
}

// Pings are read as slowly behind TLS as in plaintext.
func TestAttackPingsThroughTLS(t *testing.T) {
	m := newMutual(t)
	k := newKeyFile(t, entries...)
	o := server.Options{Auth: k.auth, Credentials: credentials.NewTLS(m.tls.Config("h2"))}
	addr, _ := listen(t, o, m.dial(t, m.ca, authtest.Leaf{CommonName: "x"}), withKey(k.key["acme"], true))
	conn, err := tls.Dial("tcp", addr, &tls.Config{
		RootCAs: m.ca.Pool(), NextProtos: []string{"h2"}, ServerName: "localhost",
		Certificates: []tls.Certificate{m.ca.Pair(t, authtest.Leaf{CommonName: "x"})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.NetConn().Close()
	const seconds = 1
	_ = conn.SetDeadline(time.Now().Add(seconds * time.Second))
	framer := http2.NewFramer(conn, conn)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var sent sync.WaitGroup
	sent.Go(func() {
		for framer.WritePing(false, [8]byte{}) == nil {
			continue
		}
	})
	answered := 0
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			break
		}
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() {
			answered++
		}
	}
	sent.Wait()
	// A burst of 4,000 and 2,000 a second, of which each ping of a connection without a call takes 20.
	if most := 2 * (4000 + 2000*seconds) / 20; answered > most {
		t.Errorf("%d pings were answered in %d s, want at most %d", answered, seconds, most)
	}
}
