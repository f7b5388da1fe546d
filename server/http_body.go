package server

import (
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"strings"
	"time"

	"github.com/mmserve/mmserve/serving"
)

// passed is a deadline that ends reads at once.
var passed = time.Unix(1, 0)

// bodyPiece is how much of a body is read at once, at first.
const bodyPiece = 32 << 10

// readJSON reads a body within the byte budget and has parse read it. As many bodies as there are cores are parsed at
// once: each takes its size again meanwhile. The body counts until its images have been decoded, or the exchange ends.
func (x *exchange) readJSON(parse func([]byte) error) error {
	if err := x.checkBody(); err != nil {
		return err
	}
	body, err := x.readBody()
	if err != nil {
		return err
	}
	select {
	case x.decoding <- struct{}{}:
		defer func() { <-x.decoding }()
	case <-x.r.Context().Done():
		return context.Cause(x.r.Context())
	}
	return parse(body)
}

// checkBody refuses by the headers alone.
func (x *exchange) checkBody() error {
	if e := x.r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return errEncoded()
	}
	t, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if ollama := strings.HasPrefix(x.r.URL.Path, ollamaPrefix); !ollama && (err != nil || t != "application/json") {
		return errMediaType() // Ollama's clients send none, or curl's
	}
	if most := min(x.options.MaxMessageBytes, int(x.inflight.limit)-streamCost); x.r.ContentLength > int64(most) {
		return errBodyTooLarge(most)
	}
	return nil
}

// claim has the request count as open, and its body against the byte budget, until the function it gives is called.
func (x *exchange) claim() (end func()) {
	x.open.Add(1)
	conn, _ := x.r.Context().Value(connectionKey{}).(*connection)
	in := x.inflight.claimBody(conn, int64(x.options.MaxMessageBytes))
	x.r = x.r.WithContext(context.WithValue(x.r.Context(), inboundKey{}, in))
	return func() {
		x.inflight.end(in)
		x.requestOver()
	}
}

// readBody reads a body of a claim. It is counted before there is memory for it.
func (x *exchange) readBody() ([]byte, error) {
	in := x.r.Context().Value(inboundKey{}).(*inbound)
	if err := x.rc.SetReadDeadline(time.Now().Add(x.options.ReceiveTimeout)); err != nil {
		return nil, err
	}
	over, watched := make(chan struct{}), make(chan struct{})
	go func() { // the budget may take the place of this body for others
		defer close(watched)
		select {
		case <-in.refused:
			_ = x.rc.SetReadDeadline(passed)
		case <-over:
		}
	}()
	body, err := x.receive(in)
	close(over)
	<-watched
	if refused := x.inflight.complete(in, 0); refused != nil {
		err = refused
	}
	var late net.Error
	switch {
	case err == nil:
		x.spent = true
		return body, x.rc.SetReadDeadline(time.Time{}) // net/http watches for the client's end from now on
	case errors.As(err, &late) && late.Timeout():
		x.spent, err = true, errSlowBody(x.options.ReceiveTimeout)
	case !errors.As(err, new(*httpError)) && !errors.As(err, new(*serving.Error)):
		x.spent, err = true, errBrokenBody() // its text is the network's
	}
	x.w.Header().Set("Connection", "close") // what is left of the body is not read
	return nil, err
}

// receive reads up to the end of the body. What counts is the memory there is for it, which grows with what comes: a
// promise of a large body takes none of the budget.
func (x *exchange) receive(in *inbound) ([]byte, error) {
	var body []byte
	for {
		if len(body) == cap(body) {
			size := max(bodyPiece, 2*cap(body))
			if x.r.ContentLength >= 0 {
				size = min(size, max(1, cap(body), int(x.r.ContentLength)))
			}
			x.inflight.grow(in, int64(size-cap(body)))
			body = append(make([]byte, 0, size), body...)
		}
		n, err := x.r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case err == io.EOF:
			return body, nil
		case err != nil:
			return nil, err
		case len(body) > x.options.MaxMessageBytes:
			return nil, errBodyTooLarge(x.options.MaxMessageBytes)
		}
		if err := x.pace(in, n); err != nil {
			return nil, err
		}
	}
}

// pace waits as long as the connection has to before it is read on: large bodies share a rate with large messages.
func (x *exchange) pace(in *inbound, n int) error {
	if in.conn == nil || !x.inflight.bulky(in.conn) {
		return nil
	}
	return in.conn.pace(n, 0, true)
}

const (
	// consumed is how much of a body net/http reads itself after a handler that did not, in bytes.
	consumed = 256 << 10
	// lingerBytes and lingerTime bound what is read of a body after its answer, strangerBytes and strangerTime where that
	// refused the request before a handler saw it: for who asks, say.
	lingerBytes, lingerTime     = 32 << 20, 5 * time.Second
	strangerBytes, strangerTime = 256 << 10, time.Second
)

// lingers says whether the rest of the body has to be read after an answer: a client that is still sending when its
// connection is closed loses the answer, and with it when to come again.
func (x *exchange) lingers() bool {
	n := x.r.ContentLength
	closes := n != 0 && x.w.Header().Get("Connection") == "close" // net/http reads nothing then
	waits := x.r.Header.Get("Expect") != ""                       // for leave to send the body
	return !x.spent && !waits && (closes || n < 0 || n > consumed) && n <= lingerBytes
}

// linger sends the answer and reads what is left of the body, which is thrown away. What it reads takes nothing of the
// rate of bodies that are put to use.
func (x *exchange) linger() {
	left, within := lingerBytes, lingerTime
	if !x.admitted {
		left, within = strangerBytes, strangerTime
	}
	until := time.Now().Add(within)
	_ = x.rc.Flush()
	_ = x.rc.SetReadDeadline(until)
	conn, _ := x.r.Context().Value(connectionKey{}).(*connection)
	if conn == nil {
		return
	}
	ctx, cancel := context.WithDeadline(conn.closed, until)
	defer cancel()
	for piece := make([]byte, bodyPiece); left > 0; {
		n, err := x.r.Body.Read(piece)
		if left -= n; err != nil || x.inflight.waste.WaitN(ctx, n) != nil {
			break
		}
	}
	_ = x.rc.SetReadDeadline(passed) // net/http would read on
}

// requireModel refuses while there is no model.
func (x *exchange) requireModel() error {
	if !x.attached.Load() {
		return serving.Loading()
	}
	return nil
}
