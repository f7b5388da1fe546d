package server

import (
	"net/http"
	"time"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// sse writes server-sent events (https://html.spec.whatwg.org/#server-sent-events). The engine does not wait for it:
// what a client has not read yet is held by its stream of tokens, and one that reads nothing for writeTime is left.
type sse struct {
	x   *exchange
	buf []byte
}

// begin sends the headers; from here on errors are events.
func (s *sse) begin() { s.beginAs("text/event-stream") }

// beginAs is begin for a media type.
func (s *sse) beginAs(mediaType string) {
	h := s.x.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	s.x.began, s.x.streams = true, true
	s.x.w.WriteHeader(http.StatusOK)
}

// add appends an event of one line to those that flush sends.
func (s *sse) add(data []byte) {
	s.buf = append(append(append(s.buf, "data: "...), data...), "\n\n"...)
}

// flush sends the events.
func (s *sse) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	err := s.x.rc.SetWriteDeadline(time.Now().Add(writeTime))
	if err == nil {
		_, err = s.x.w.Write(s.buf)
	}
	if err == nil {
		err = s.x.rc.Flush()
	}
	s.buf = s.buf[:0]
	if err != nil {
		return &serving.Error{Kind: serving.Canceled, Message: "the client does not read"}
	}
	return nil
}

// sendLast ends a stream that breaks, with a value that says why.
func (x *exchange) sendLast(v any) {
	s := sse{x: x}
	s.add(openai.Marshal(v))
	_ = s.flush() // who left does not read it
}
