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
	// unavailableRetries is how often a call is tried again unless WithUnavailableRetries says otherwise.
	unavailableRetries = 3
	// longestSuggestion bounds what of a server's RetryInfo a call that got UNAVAILABLE heeds.
	longestSuggestion = time.Minute
)

// WithUnavailableRetries makes a call that got UNAVAILABLE before the first token try again, up to n times with
// exponential back-off and at least the server's RetryInfo, on another server where there are several. Nothing was
// answered by then, so that no answer is given twice. No call is ever made twice at once (hedged). Default: 3.
func WithUnavailableRetries(n int) Option { return func(o *options) { o.unavailable = n } }

// delay says how long to wait before try number try+1 after err, and whether to try at all.
func (c *Client) delay(err error, try int) (time.Duration, bool) {
	if d, ok := RetryDelay(err); ok {
		return d + rand.N(d+1), try < c.retries // at random, so that callers refused together do not come back together
	}
	if status.Code(err) == codes.Unavailable && try < c.unavailable {
		suggested, _ := retryInfo(status.Convert(err))
		return max(BackOff(try), min(suggested, longestSuggestion)), true
	}
	return 0, false
}

// BackOff is how long to wait before trying again what failed try+1 times: exponential, half of it at random.
func BackOff(try int) time.Duration {
	d := min(firstBackOff<<min(max(try, 0), 16), longBackOff)
	return d/2 + rand.N(d/2+1)
}
