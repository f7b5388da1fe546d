package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxRedirects = 8
	maxHeader    = 64 << 10
	tries        = 6
	quickTries   = 2 // where the cache has an answer, too
	maxPause     = 30 * time.Second
	maxPatience  = 2 * time.Minute // that a hub may ask for
)

// newHTTP follows no redirects: what is sent to whom is decided for each hop.
func newHTTP(stall time.Duration) *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true // sizes and digests are those of files
	t.ResponseHeaderTimeout = stall
	t.MaxResponseHeaderBytes = maxHeader
	t.MaxIdleConnsPerHost = atOnce
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// parseEndpoint reads a hub's address.
func parseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(text, "/"))
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("--hub-endpoint: want the address of a model hub, as https://hub.example.com")
	case u.User != nil:
		return nil, errors.New("--hub-endpoint: want no user and password in it: HF_TOKEN has the credential")
	}
	return u, nil
}

// own says whether an address is of the endpoint's own scheme, host and port.
func (c *Client) own(u *url.URL) bool {
	return u.Scheme == c.endpoint.Scheme && port(u) == port(c.endpoint) &&
		strings.EqualFold(u.Hostname(), c.endpoint.Hostname())
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// mayCarry says whether the token may go to an address: to the endpoint alone, and in plaintext on this machine only.
func (c *Client) mayCarry(u *url.URL) bool {
	return c.options.Token.value != "" && c.own(u) && (u.Scheme == "https" || isLoopback(u.Hostname()))
}

func isLoopback(name string) bool {
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// statusError is an answer that is none. It has no text of the hub's, who may write anything there.
type statusError struct {
	status int
	code   string // X-Error-Code, if it is one of errorCodes
	host   string
	after  time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s answers %d %s", e.host, e.status, http.StatusText(e.status))
	if e.code != "" {
		text += ", " + e.code
	}
	return text
}

// errorCodes are those that the hub gives.
var errorCodes = map[string]bool{
	"RepoNotFound": true, "RevisionNotFound": true, "EntryNotFound": true, "GatedRepo": true, "DisabledRepo": true,
}

// transientError is worth another try.
type transientError struct{ error }

func (e transientError) Unwrap() error { return e.error }

// unreachable says that the hub did not answer, or could not.
func unreachable(err error) bool {
	var t transientError
	return errors.As(err, &t)
}

// answer is what came of a request and its redirects.
type answer struct {
	*http.Response
	// about is the header that tells of the file: of the endpoint's answer, where that redirects elsewhere.
	about http.Header
	// redirected says that about is of a redirect, whose length is not the file's.
	redirected bool
	// elsewhere says that the content comes from another place than about.
	elsewhere bool
	watch     *watchdog
}

// headers adds some to a request; elsewhere says that a redirect led there.
type headers func(h http.Header, elsewhere bool)

// do asks, and follows redirects. The token goes to the endpoint's own host only. Answers of other statuses than 200
// and 206 are errors.
func (c *Client) do(ctx context.Context, method string, at *url.URL, set headers) (*answer, error) {
	w := newWatchdog(ctx, c.options.Stall)
	a := &answer{watch: w}
	for range maxRedirects {
		req, err := http.NewRequestWithContext(w.ctx, method, at.String(), nil)
		if err != nil {
			w.stop()
			return nil, fmt.Errorf("%s: not an address", at.Host)
		}
		req.Header.Set("User-Agent", "mmserve/"+c.options.Version)
		req.Header.Set("Accept-Encoding", "identity")
		if set != nil {
			set(req.Header, a.elsewhere)
		}
		if c.mayCarry(at) {
			req.Header.Set("Authorization", "Bearer "+c.options.Token.value)
		}
		a.Response, err = c.http.Do(req)
		if err != nil {
			w.stop()
			return nil, c.failed(ctx, at, err)
		}
		if a.about == nil {
			a.about = a.Header
		}
		next, err := c.redirect(at, a.Response)
		if err == nil && next == nil {
			err = c.status(at, a.Response)
		}
		if err != nil {
			a.close()
			return nil, err
		}
		if next == nil {
			return a, nil
		}
		if relative(a.Header.Get("Location")) && !a.elsewhere && a.Header.Get("X-Linked-Etag") == "" {
			a.about = nil // the repository has another name: what the hub says of the file comes with the next answer
		} else {
			a.elsewhere = true
			if method == http.MethodHead { // the redirect itself tells
				a.redirected = true
				return a, nil
			}
		}
		_ = a.Body.Close()
		at = next
	}
	w.stop()
	return nil, fmt.Errorf("%s redirects more than %d times", c.endpoint.Host, maxRedirects)
}

func relative(location string) bool {
	u, err := url.Parse(location)
	return err == nil && u.Host == ""
}

// redirect is where an answer leads; nil if it is final.
func (c *Client) redirect(from *url.URL, r *http.Response) (*url.URL, error) {
	switch r.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	to, err := from.Parse(r.Header.Get("Location"))
	if err != nil || to.Host == "" || to.Scheme != "https" && to.Scheme != "http" {
		return nil, fmt.Errorf("%s redirects to no address", from.Host)
	}
	if from.Scheme == "https" && to.Scheme == "http" {
		return nil, fmt.Errorf("%s redirects to %s in plaintext, which is not followed", from.Host, to.Host)
	}
	to.User = nil
	return to, nil
}

// status is the error of an answer that is none.
func (c *Client) status(at *url.URL, r *http.Response) error {
	if r.StatusCode == http.StatusOK || r.StatusCode == http.StatusPartialContent {
		return nil
	}
	e := &statusError{status: r.StatusCode, host: at.Host, after: retryAfter(r.Header.Get("Retry-After"))}
	if code := r.Header.Get("X-Error-Code"); errorCodes[code] {
		e.code = code
	}
	switch {
	case r.StatusCode == http.StatusTooManyRequests || r.StatusCode == http.StatusRequestTimeout || r.StatusCode >= 500 &&
		r.StatusCode != http.StatusNotImplemented:
		return transientError{e}
	case !c.own(at) && (r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized):
		return transientError{e} // a signed address that has expired; the hub gives another one
	}
	return e
}

// failed is the error of a request without an answer. It has nothing of the address but its host: what follows may be a
// signature.
func (c *Client) failed(ctx context.Context, at *url.URL, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, context.Canceled) {
		err = errStalled
	}
	err = fmt.Errorf("%s: %w", at.Host, err)
	if errors.As(err, new(*tls.CertificateVerificationError)) {
		return err
	}
	return transientError{err}
}

// retryAfter reads seconds or a date; 0 if there is neither.
func retryAfter(v string) time.Duration {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// retry does something until it succeeds, fails for good, or has failed too often.
func (c *Client) retry(ctx context.Context, what string, do func(context.Context) error) error {
	for try := 1; ; try++ {
		err := do(ctx)
		if err == nil || !unreachable(err) || ctx.Err() != nil {
			return err
		}
		if err := c.pause(ctx, try, what, err); err != nil {
			return err
		}
	}
}

// pause waits after a failed try, or gives the error where there is to be no other.
func (c *Client) pause(ctx context.Context, try int, what string, err error) error {
	if try >= c.tries {
		return fmt.Errorf("%w (tried %d times)", err, try)
	}
	wait := min(c.options.Pause<<(try-1), maxPause)
	wait += rand.N(wait/4 + 1)
	var s *statusError
	if errors.As(err, &s) && s.after > 0 {
		if s.after > maxPatience {
			return fmt.Errorf("%w: it asks to come back in %v", err, s.after)
		}
		wait = s.after
	}
	c.log.Warn("the hub is tried again", "what", what, "error", err, "in", wait.Round(time.Millisecond), "try", try)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(wait):
		return nil
	}
}

// explain says what an answer means for who asked.
func (c *Client) explain(err error, r Repo) error {
	var s *statusError
	if !errors.As(err, &s) || s.host != c.endpoint.Host {
		return err
	}
	page := c.at(r.ID)
	token := c.options.Token
	switch {
	case s.code == "GatedRepo" && token.value == "":
		return fmt.Errorf("%w: the model is gated: accept its licence at %s, and set HF_TOKEN to a token of the account "+
			"that did (%w)", ErrDenied, page, err)
	case s.code == "GatedRepo":
		return fmt.Errorf("%w: the model is gated, and the account of %s has no access: accept its licence at %s (%w)",
			ErrDenied, token, page, err)
	case s.code == "RevisionNotFound":
		return fmt.Errorf("%w: the hub has the model, and no revision %q of it (%w)", ErrNotFound, r.Revision, err)
	case s.code == "EntryNotFound":
		return fmt.Errorf("%w: the hub lists the file and does not have it (%w)", ErrNotFound, err)
	case s.code == "DisabledRepo":
		return fmt.Errorf("%w: the hub has taken the model down (%w)", ErrDenied, err)
	case s.code == "RepoNotFound" || s.status == http.StatusNotFound:
		hint := "if it is private, HF_TOKEN has to have a token that may read it"
		if token.value != "" {
			hint = fmt.Sprintf("if it is private, %s may not read it", token)
		}
		return fmt.Errorf("%w: %s has no such model; %s (%w)", ErrNotFound, c.endpoint.Host, hint, err)
	case s.status == http.StatusUnauthorized || s.status == http.StatusForbidden:
		return fmt.Errorf("%w: %s; %s (%w)", ErrDenied, c.denied(), "see "+page.String(), err)
	}
	return err
}

// denied says what may be wrong with the token.
func (c *Client) denied() string {
	switch {
	case c.options.Token.value == "":
		return "there is no such model, or it wants a token: set HF_TOKEN"
	case !c.mayCarry(c.endpoint):
		return fmt.Sprintf("%s is not sent to %s in plaintext", c.options.Token, c.endpoint.Host)
	}
	return fmt.Sprintf("%s is not accepted, or may not read the model", c.options.Token)
}

// errStalled says that nothing came for too long.
var errStalled = errors.New("silent for too long")

// watchdog ends a request during which nothing comes.
type watchdog struct {
	parent, ctx context.Context
	stop        context.CancelFunc
	timer       *time.Timer
	limit       time.Duration
}

func newWatchdog(ctx context.Context, limit time.Duration) *watchdog {
	parent := ctx
	ctx, cancel := context.WithCancel(ctx)
	w := &watchdog{parent: parent, ctx: ctx, limit: limit, timer: time.AfterFunc(limit, cancel)}
	w.stop = func() { w.timer.Stop(); cancel() }
	return w
}

// came says that something did.
func (w *watchdog) came() { w.timer.Reset(w.limit) }

func (a *answer) close() {
	_ = a.Body.Close()
	a.watch.stop()
}

// Read reads the body, for as long as something comes.
func (a *answer) Read(b []byte) (int, error) {
	n, err := a.Body.Read(b)
	if n > 0 {
		a.watch.came()
	}
	return n, err
}

// readAll reads a whole body of at most so many bytes.
func (a *answer) readAll(most int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(a, most+1))
	if err != nil {
		return nil, transientError{fmt.Errorf("the answer breaks off: %w", plainRead(err))}
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%w: an answer of more than %d bytes", ErrTooLarge, most)
	}
	return raw, nil
}

func plainRead(err error) error {
	if errors.Is(err, context.Canceled) {
		return errStalled
	}
	return err
}

// etag is the hub's of the file.
func (a *answer) etag() string {
	for _, name := range []string{"X-Linked-Etag", "Etag"} {
		if v := a.about.Get(name); v != "" {
			return strings.Trim(strings.TrimPrefix(v, "W/"), `"`)
		}
	}
	return ""
}

// size is the hub's of the file; -1 if it does not say.
func (a *answer) size() int64 {
	text := a.about.Get("X-Linked-Size")
	if text == "" && !a.elsewhere && a.StatusCode == http.StatusOK && a.Header.Get("Content-Encoding") == "" {
		text = a.about.Get("Content-Length")
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		return n
	}
	return -1
}

// check refuses an answer about another file than f at the commit.
func (a *answer) check(commit string, f file) error {
	if c := a.about.Get("X-Repo-Commit"); c != "" && c != commit {
		return fmt.Errorf("%w: it is of another commit, %.48q", ErrDigest, c)
	}
	if tag := a.etag(); f.digest != "" && tag != f.digest && (sha256Text.MatchString(tag) || sha1Text.MatchString(tag)) {
		return fmt.Errorf("%w: it has the digest %s by the hub's listing and %s now", ErrDigest, f.digest, tag)
	}
	if n := a.size(); f.size >= 0 && n >= 0 && n != f.size {
		return fmt.Errorf("%w: it has %d bytes by the hub's listing and %d now", ErrDigest, f.size, n)
	}
	return nil
}
