package hubtest

import (
	"net/http"
	"time"
)

// time0 has ServeContent go by ETags alone.
var time0 time.Time

// dropping is an answer whose connection breaks after so many bytes of the body.
type dropping struct {
	http.ResponseWriter
	left int
}

func (d *dropping) Write(b []byte) (int, error) {
	n, err := d.ResponseWriter.Write(b[:min(len(b), d.left)])
	if d.left -= n; err == nil && n < len(b) {
		_ = http.NewResponseController(d.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// slow is an answer that comes in pieces.
type slow struct {
	http.ResponseWriter
	pause time.Duration
}

func (s *slow) Write(b []byte) (n int, err error) {
	const piece = 4 << 10
	for n < len(b) && err == nil {
		var m int
		m, err = s.ResponseWriter.Write(b[n:min(len(b), n+piece)])
		n += m
		_ = http.NewResponseController(s.ResponseWriter).Flush()
		<-time.After(s.pause)
	}
	return n, err
}
