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
