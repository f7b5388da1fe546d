package client

import (
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The back-off of WithUnavailableRetries: 200 ms, doubled each time up to 10 s, of which half at random.
const (
	firstBackOff = 200 * time.Millisecond
	longBackOff  = 10 * time.Second
)

// WithUnavailableRetries makes a call that got UNAVAILABLE before the first token try again, up to n times with
// exponential back-off, on another server where there are several. Nothing was answered by then, so that no answer is
// given twice. Default: no retries.
func WithUnavailableRetries(n int) Option { return func(o *options) { o.unavailable = n } }

// delay says how long to wait before try number try+1 after err, and whether to try at all.
func (c *Client) delay(err error, try int) (time.Duration, bool) {
	if d, ok := RetryDelay(err); ok {
		return d + rand.N(d+1), try < c.retries // at random, so that callers refused together do not come back together
	}
	if status.Code(err) == codes.Unavailable && try < c.unavailable {
		return BackOff(try), true
	}
	return 0, false
}

// BackOff is how long to wait before trying again what failed try+1 times: exponential, half of it at random.
func BackOff(try int) time.Duration {
	d := min(firstBackOff<<min(max(try, 0), 16), longBackOff)
	return d/2 + rand.N(d/2+1)
}
