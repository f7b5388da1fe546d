package attack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// httpAttacks are those of the HTTP listener.
func httpAttacks() []Attack {
	chat := func(content string) string { return `{"messages":[{"role":"user","content":` + content + `}]` }
	image := func(url string) string { return chat(`[{"type":"image_url","image_url":{"url":"`+url+`"}}]`) + "}" }
	return []Attack{
		{Name: "http deep JSON", Once: post("", func() string { return `{"a":` + strings.Repeat("[", 60<<20) })},
		{Name: "http many values", Once: post("", func() string { return `{"a":[` + strings.Repeat("1,", 30<<20) })},
		{Name: "http empty messages", Once: post("", func() string {
			return `{"messages":[` + strings.Repeat(`{},`, 20<<20) + `{}]}`
		})},
		{Name: "http unknown fields", Once: post("", func() string {
			var b strings.Builder
			b.WriteString(chat(`"red"`))
			for i := range 2_000_000 {
				fmt.Fprintf(&b, `,"field %d":1`, i)
			}
			return b.String() + "}"
		})},
		{Name: "http no image", Once: post("", func() string {
			return image("data:image/png;base64," + base64.StdEncoding.EncodeToString(make([]byte, 45<<20)))
		})},
		{Name: "http schema", Once: post("", func() string {
			return chat(`"red"`) + `,"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":` +
				explodingSchema(3, 150) + `}}}`
		})},
		{Name: "http gzip", Once: post("Content-Encoding: gzip\r\n", func() string {
			return string(gzipped(bytes.Repeat([]byte(" "), 1<<28)))
		})},
		{Name: "http headers", Once: again(func(ctx context.Context, addr string) string {
			flood := strings.Repeat("X-A: "+strings.Repeat("a", 8000)+"\r\n", 1000)
			return exchange(ctx, addr, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"+flood)
		})},
		{Name: "http slow bodies", Once: connections(200, slowBody)},
		{Name: "http silent connections", Once: connections(400, func(ctx context.Context, conn net.Conn) { <-ctx.Done() })},
	}
}

// HTTPAddr is the HTTP listener of a server that listens on addr for gRPC: the next port.
func HTTPAddr(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	n, wrong := strconv.Atoi(port)
	if err != nil || wrong != nil {
		panic("-listen: want host:port")
	}
	return net.JoinHostPort(host, strconv.Itoa(n+1))
}

// requestText is a request for a chat with header and body.
func requestText(header, body string) string {
	return "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + header +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// post sends one request. It is made once: what the attackers spend must not be what is measured.
func post(header string, body func() string) func(context.Context, string) string {
	text := sync.OnceValue(func() string { return requestText(header, body()) })
	return func(ctx context.Context, addr string) string { return exchange(ctx, addr, text()) }
}

// exchange sends text on a connection of its own, and gives what comes first.
func exchange(ctx context.Context, addr, text string) string {
	conn, err := connectHTTP(ctx, addr)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	go func() { _, _ = io.WriteString(conn, text) }() // the answer may come first
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "none (" + err.Error() + ")"
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<10)) // what is cut off is no answer
	return r.Status + " " + string(b)
}

func connectHTTP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", HTTPAddr(addr))
}

// again does the same until ctx ends.
func again(once func(context.Context, string) string) func(context.Context, string) string {
	return func(ctx context.Context, addr string) (answer string) {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if a := once(ctx, addr); ctx.Err() == nil {
				answer = a
			}
		}
		return fmt.Sprintf("%d times: %s", n, answer)
	}
}

// connections does something on n connections at once until ctx ends.
func connections(n int, one func(context.Context, net.Conn)) func(context.Context, string) string {
	return func(ctx context.Context, addr string) string {
		var group sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range n {
			group.Go(func() {
				conn, err := connectHTTP(ctx, addr)
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					refused++
					return
				}
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				one(ctx, conn)
			})
		}
		group.Wait()
		return fmt.Sprintf("%d of %d connections were refused", refused, n)
	}
}

// slowBody sends a body of 60 MB by the byte.
func slowBody(ctx context.Context, conn net.Conn) {
	_, err := io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+
		"Content-Length: 60000000\r\n\r\n{")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for err == nil {
		select {
		case <-tick.C:
			_, err = io.WriteString(conn, " ")
		case <-ctx.Done():
			return
		}
	}
}
