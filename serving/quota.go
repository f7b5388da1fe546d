package serving

import (
	"container/list"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/socket"
)

// The names of quotas, as files, errors and metrics write them.
const (
	quotaRequests    = "requests_per_second"
	quotaConcurrency = "concurrency"
	quotaTokens      = "tokens_per_minute"
	quotaImages      = "images_per_minute"
)

var quotaNames = []string{quotaRequests, quotaConcurrency, quotaTokens, quotaImages}

// idleTenants is the most tenants without an open request that are remembered, beside those that the file names.
const idleTenants = 8192

// Quotas holds each tenant to what it may use, over all edges and models. Requests without a tenant count for the host
// that they come from. A request that is refused before any work counts for nothing. Its methods may be called
// concurrently; those of nil set no bounds.
type Quotas struct {
	mu       sync.Mutex
	config   QuotaConfig
	accounts map[holder]*account
	idle     list.List // accounts that may be forgotten, the least recently used first
}

// holder is a tenant, or, for requests without one, a host.
type holder struct{ tenant, host string }

// account is what a holder has used. Its fields are guarded by Quotas.mu.
type account struct {
	holder
	quota                    Quota
	requests, tokens, images *rate.Limiter // nil if there is no bound
	open                     int
	idle                     *list.Element // its place in Quotas.idle; nil if it is in use or named
}

// NewQuotas holds tenants to a checked configuration.
func NewQuotas(c QuotaConfig) (*Quotas, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Quotas{config: c, accounts: map[holder]*account{}}, nil
}

// Tenants is the number of tenants and hosts that are remembered.
func (q *Quotas) Tenants() int {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.accounts)
}

// QuotaError is why a quota refuses a request; it is the cause of an Exhausted *Error.
type QuotaError struct {
	// Quota is the field of Quota, Tenant the tenant's name if the file has it, else empty.
	Quota, Tenant string
	// RetryAfter is when the same request is taken if no other comes; 0 if it never is.
	RetryAfter time.Duration
	message    string
}

func (e *QuotaError) Error() string { return e.message }

// usage is what one request uses of its tenant's quota, from its admission to its end. The goroutine that answers the
// request has it; nil uses nothing.
type usage struct {
	quotas         *Quotas
	account        *account
	tokens, images int // charged so far
	adopted, ended bool
	worked         bool // a refusal from now on gives neither the request nor its images back
}

// enter counts a request against the rate and the concurrency of its holder.
func (q *Quotas) enter(tenant, peer string) (*usage, error) {
	if q == nil {
		return nil, nil
	}
	h := holder{tenant: tenant}
	if tenant == "" {
		h.host = socket.Host(peer)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	a, now := q.account(h), time.Now()
	if err := q.admits(a, now); err != nil {
		q.rest(a)
		return nil, err
	}
	take(a.requests, 1, now)
	a.open++
	return &usage{quotas: q, account: a}, nil
}

// adopt says whether a request may use u, which Admit made: one may.
func (u *usage) adopt() bool {
	if u == nil {
		return false
	}
	u.quotas.mu.Lock()
	defer u.quotas.mu.Unlock()
	ok := !u.adopted && !u.ended
	u.adopted = true
	return ok
}

// admits says whether one more request may start. The token quota has to have something left, as every request needs
// that.
func (q *Quotas) admits(a *account, now time.Time) error {
	if wait := delay(a.requests, 1, now); wait != 0 {
		return q.refuse(a, quotaRequests, wait, fmt.Sprintf("%v requests a second, %d at once",
			*a.quota.RequestsPerSecond, a.requests.Burst()))
	}
	if most, bounded := bound(a.quota.Concurrency); bounded && a.open >= most {
		wait := retryDelay
		if most == 0 {
			wait = never
		}
		return q.refuse(a, quotaConcurrency, wait, fmt.Sprintf("%d requests at the same time", most))
	}
	if wait := delay(a.tokens, 1, now); wait != 0 {
		return q.refuse(a, quotaTokens, wait, fmt.Sprintf("%d tokens a minute", *a.quota.TokensPerMinute))
	}
	return nil
}

// work says that work for the request begins, which its tenant pays for even if a later look refuses it.
func (u *usage) work() {
	if u == nil {
		return
	}
	u.quotas.mu.Lock()
	defer u.quotas.mu.Unlock()
	u.worked = true
}

// require charges a request for so many tokens and images in all, or leaves it as it was charged before and says which
// quota it goes beyond: the one that takes longest.
func (u *usage) require(tokens, images int) error {
	if u == nil {
		return nil
	}
	q, a := u.quotas, u.account
	q.mu.Lock()
	defer q.mu.Unlock()
	now, before := time.Now(), [2]int{u.tokens, u.images}
	q.refund(u, now)
	ofTokens, ofImages := delay(a.tokens, tokens, now), delay(a.images, images, now)
	if ofTokens == 0 && ofImages == 0 {
		take(a.tokens, tokens, now)
		take(a.images, images, now)
		u.tokens, u.images = tokens, images
		return nil
	}
	u.tokens, u.images = before[0], before[1]
	take(a.tokens, u.tokens, now)
	take(a.images, u.images, now)
	again := time.Duration(0)
	if u.worked { // it pays for the work, and for itself and its images again when it comes again
		again = max(delay(a.requests, 1, now), delay(a.images, images, now))
	}
	if ofTokens >= ofImages {
		return q.refuse(a, quotaTokens, max(ofTokens, again), fmt.Sprintf("%d tokens a minute; this "+
			"request may take %d, prompt and answers together", *a.quota.TokensPerMinute, tokens))
	}
	return q.refuse(a, quotaImages, max(ofImages, again),
		fmt.Sprintf("%d images a minute; this request has %d", *a.quota.ImagesPerMinute, images))
}

// end gives back what the request was charged but did not use. One that was not taken, and for which nothing was done,
// counts for nothing at all. The first call counts.
func (u *usage) end(tokens int, taken bool) {
	if u == nil {
		return
	}
	q, a := u.quotas, u.account
	q.mu.Lock()
	defer q.mu.Unlock()
	if u.ended {
		return
	}
	u.ended = true
	now := time.Now()
	if taken || u.worked {
		give(a.tokens, u.tokens-tokens, now)
	} else {
		q.refund(u, now)
		give(a.requests, 1, now)
	}
	a.open--
	q.rest(a)
}

// weight is the holder's share of the engine; 0 if the quotas do not say.
func (u *usage) weight() float64 {
	if u == nil {
		return 0
	}
	u.quotas.mu.Lock()
	defer u.quotas.mu.Unlock()
	if w := u.account.quota.Weight; w != nil {
		return *w
	}
	return 0
}

// allows adds a violation if the holder's requests may not have the priority.
func (u *usage) allows(v *Violations, p batching.Priority) {
	if u == nil {
		return
	}
	u.quotas.mu.Lock()
	most := u.account.quota.Priority
	u.quotas.mu.Unlock()
	if most != nil && p > batching.Priority(*most) {
		v.Add("priority", "%v; want at most %v, which is this tenant's highest", Priority(p), *most)
	}
}

func (q *Quotas) refund(u *usage, now time.Time) {
	give(u.account.tokens, u.tokens, now)
	give(u.account.images, u.images, now)
	u.tokens, u.images = 0, 0
}

// account is h's, in use from now on.
func (q *Quotas) account(h holder) *account {
	a := q.accounts[h]
	if a == nil {
		a = &account{holder: h}
		a.bind(q.config.of(h.tenant), time.Now())
		q.accounts[h] = a
	}
	if a.idle != nil {
		q.idle.Remove(a.idle)
		a.idle = nil
	}
	return a
}

// rest notes that a is not in use, if it has no open request. Callers may make names up, so only the latest are kept.
func (q *Quotas) rest(a *account) {
	if _, named := q.config.Tenants[a.tenant]; a.open > 0 || named || a.idle != nil {
		return
	}
	a.idle = q.idle.PushBack(a)
	for q.idle.Len() > idleTenants {
		oldest := q.idle.Remove(q.idle.Front()).(*account)
		delete(q.accounts, oldest.holder)
	}
}

// never is the delay of what no waiting helps.
const never = time.Duration(math.MaxInt64)

// refuse is the error of a request of a that goes beyond a quota; limit is the quota in words.
func (q *Quotas) refuse(a *account, quota string, wait time.Duration, limit string) error {
	e := &QuotaError{Quota: quota}
	if _, named := q.config.Tenants[a.tenant]; named {
		e.Tenant = a.tenant
	}
	advice := "waiting does not help"
	if wait != never {
		e.RetryAfter = wait
		advice = fmt.Sprintf("try again in %v", wait)
	}
	e.message = fmt.Sprintf("quota %s: at most %s; %s", quota, limit, advice)
	return &Error{Kind: Exhausted, Message: e.message, RetryAfter: e.RetryAfter, cause: e}
}

// bind gives the account its quota and keeps what it has used.
func (a *account) bind(quota Quota, now time.Time) {
	a.quota = quota
	perSecond := math.Inf(1)
	if r := quota.RequestsPerSecond; r != nil && *r >= 0 {
		perSecond = *r
	}
	a.requests = limiter(a.requests, perSecond, quota.burst(), now)
	for _, b := range []struct {
		of        **rate.Limiter
		perMinute *Count
	}{{&a.tokens, quota.TokensPerMinute}, {&a.images, quota.ImagesPerMinute}} {
		most, bounded := bound(b.perMinute)
		perSecond := math.Inf(1)
		if bounded {
			perSecond = float64(most) / 60
		}
		*b.of = limiter(*b.of, perSecond, most, now)
	}
}

// limiter is l with another rate and burst: new and full if there is none, nil if the rate is infinite.
func limiter(l *rate.Limiter, perSecond float64, burst int, now time.Time) *rate.Limiter {
	if math.IsInf(perSecond, 1) {
		return nil
	}
	if l == nil {
		return rate.NewLimiter(rate.Limit(perSecond), burst)
	}
	l.SetLimitAt(now, rate.Limit(perSecond))
	l.SetBurstAt(now, burst)
	return l
}

// delay is how long until l has n; 0 if it has them now, never if it will not.
func delay(l *rate.Limiter, n int, now time.Time) time.Duration {
	if l == nil || n <= 0 {
		return 0
	}
	missing := float64(n) - l.TokensAt(now)
	switch {
	case missing <= roundingError:
		return 0
	case n > l.Burst() || l.Limit() <= 0:
		return never
	}
	// In whole milliseconds, upwards: by then they are there.
	return time.Duration(math.Ceil(missing/float64(l.Limit())*1000)) * time.Millisecond
}

// roundingError is what a sum of refills may lack of a whole number.
const roundingError = 1e-6

// take has l give n, which it has.
func take(l *rate.Limiter, n int, now time.Time) {
	if l != nil && n > 0 {
		l.ReserveN(now, n)
	}
}

// give returns n to l. A reservation cannot be cancelled once its time has come, so it is one of a negative number.
func give(l *rate.Limiter, n int, now time.Time) {
	if l != nil && n > 0 {
		l.ReserveN(now, -n)
	}
}

// bound is a quota's number, and whether it sets a bound.
func bound(n *Count) (int, bool) {
	if n == nil || *n < 0 {
		return 0, false
	}
	return int(*n), true
}
