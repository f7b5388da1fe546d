package serving_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/serving"
)

// quotas are those of a file.
func quotas(t *testing.T, file string) *serving.Quotas {
	t.Helper()
	c, err := serving.ParseQuotas([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	q, err := serving.NewQuotas(c)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// refused checks that err is a quota's refusal, and gives when to try again.
func refused(t *testing.T, err error, quota, says string) time.Duration {
	t.Helper()
	var e *serving.Error
	var why *serving.QuotaError
	if !errors.As(err, &e) || e.Kind != serving.Exhausted || !errors.As(err, &why) || why.Quota != quota ||
		why.RetryAfter != e.RetryAfter || !strings.Contains(e.Message, "quota "+quota) || !strings.Contains(e.Message, says) {
		t.Fatalf("%v, want a refusal by %s that says %q", err, quota, says)
	}
	return e.RetryAfter
}

// enter has a request taken.
func enter(t *testing.T, q *serving.Quotas, tenant, peer string) *serving.Use {
	t.Helper()
	u, err := q.Enter(tenant, peer)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A tenant's rate is its own; what is refused is taken at the very time that the refusal names, and not before.
func TestQuotaRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {requests_per_second: 3, burst: 5}\ntenants: {fast: {requests_per_second: 1000}}")
		for range 5 {
			enter(t, q, "a", "")
		}
		for range 3 { // asking costs nothing
			_, err := q.Enter("a", "")
			if wait := refused(t, err, "requests_per_second", "3 requests a second, 5 at once"); wait != 334*time.Millisecond {
				t.Fatalf("try again in %v, want 334ms", wait)
			}
		}
		enter(t, q, "b", "")
		for range 1000 {
			enter(t, q, "fast", "")
		}
		time.Sleep(333 * time.Millisecond)
		_, err := q.Enter("a", "")
		refused(t, err, "requests_per_second", "try again in 1ms")
		time.Sleep(time.Millisecond)
		enter(t, q, "a", "").End(0, false) // not taken: it counts for nothing
		enter(t, q, "a", "")
		_, err = q.Enter("a", "")
		refused(t, err, "requests_per_second", "try again")
	})
}

// Requests without a tenant count for the host that they come from, whatever its port.
func TestQuotaOfHosts(t *testing.T) {
	q := quotas(t, "default: {concurrency: 2}\ntenants: {10.0.0.1: {concurrency: 1}}")
	for i := range 2 {
		enter(t, q, "", fmt.Sprintf("10.0.0.1:%d", 4000+i))
	}
	_, err := q.Enter("", "10.0.0.1:5000")
	refused(t, err, "concurrency", "2 requests at the same time")
	enter(t, q, "", "10.0.0.2:4000")
	enter(t, q, "", "[2001:db8::1]:4000")
	enter(t, q, "", "[2001:db8::2%eth0]:4000")
	for _, same := range []string{"[2001:db8::ffff:1]:4000", "[2001:db8:0:0:8000::1]:4000"} {
		_, err = q.Enter("", same)
		refused(t, err, "concurrency", "2 requests")
	}
	for _, other := range []string{"[2001:db8:0:1::1]:4000", "[::ffff:10.9.0.1]:1", "[::ffff:10.9.0.2]:1", "@", "@"} {
		enter(t, q, "", other)
	}
	_, err = q.Enter("", "@")
	refused(t, err, "concurrency", "2 requests")
	enter(t, q, "10.0.0.1", "") // a tenant of this name is another
	_, err = q.Enter("10.0.0.1", "")
	refused(t, err, "concurrency", "1 requests")
}

func TestQuotaConcurrency(t *testing.T) {
	q := quotas(t, "default: {concurrency: 2}\ntenants: {off: {concurrency: 0}, free: {concurrency: -1}}")
	u := enter(t, q, "a", "")
	enter(t, q, "a", "")
	_, err := q.Enter("a", "")
	if wait := refused(t, err, "concurrency", "2 requests at the same time"); wait <= 0 {
		t.Error("without a time to try again")
	}
	u.End(0, true)
	u.End(0, true) // the first call counts
	enter(t, q, "a", "")
	_, err = q.Enter("a", "")
	refused(t, err, "concurrency", "")
	if _, err := q.Enter("off", ""); refused(t, err, "concurrency", "waiting does not help") != 0 {
		t.Error("a tenant without any is told to try again")
	}
	for range 100 {
		enter(t, q, "free", "")
	}
}

// A request is charged for the most that it may take and gets back what it did not use.
func TestQuotaTokensAndImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {tokens_per_minute: 600, images_per_minute: 6}")
		u := enter(t, q, "a", "")
		if err := u.Require(500, 2); err != nil {
			t.Fatal(err)
		}
		if err := u.Require(550, 2); err != nil { // in all, not on top
			t.Fatal(err)
		}
		other := enter(t, q, "a", "")
		// 51 more tokens come in 100 ms, 5 images more in 10 s.
		wait := refused(t, other.Require(51, 0), "tokens_per_minute", "600 tokens a minute")
		if wait != 100*time.Millisecond {
			t.Errorf("try again in %v", wait)
		}
		if wait = refused(t, other.Require(51, 5), "images_per_minute", "this request has 5"); wait != 10*time.Second {
			t.Errorf("try again in %v", wait)
		}
		if refused(t, other.Require(601, 0), "tokens_per_minute", "may take 601") != 0 {
			t.Error("more than a minute's tokens: told to try again")
		}
		if refused(t, other.Require(1, 7), "images_per_minute", "waiting does not help") != 0 {
			t.Error("more than a minute's images: told to try again")
		}
		u.End(10, true)
		if left := q.TokensLeft("a"); left != 590 {
			t.Errorf("%v tokens are left, want 590", left)
		}
		if err := other.Require(590, 4); err != nil {
			t.Fatal(err)
		}
		_, err := q.Enter("a", "")
		if wait := refused(t, err, "tokens_per_minute", ""); wait != 100*time.Millisecond {
			t.Errorf("with no token left: try again in %v", wait)
		}
		other.End(0, false)
		time.Sleep(time.Hour)
		if left := q.TokensLeft("a"); left != 600 {
			t.Errorf("%v tokens after a pause: it earns no more than a minute's", left)
		}
	})
}

// A caller that makes names up takes no memory, and neither frees itself from a quota nor has others forgotten.
func TestQuotaTenantsAreBounded(t *testing.T) {
	q := quotas(t, "default: {requests_per_second: 0.001, burst: 1}\ntenants: {named: {burst: 1}}")
	enter(t, q, "named", "").End(0, true)
	held := enter(t, q, "held", "")
	for i := range 3 * serving.IdleTenants {
		enter(t, q, fmt.Sprint("made-up-", i), "").End(0, true)
		if i%1000 == 0 {
			u, err := q.Enter("used-again", "")
			if i > 0 {
				refused(t, err, "requests_per_second", "")
			}
			u.End(0, true)
		}
	}
	if n := q.Tenants(); n != serving.IdleTenants+2 {
		t.Errorf("%d tenants are remembered, want %d, the named and the one with an open request", n, serving.IdleTenants+2)
	}
	for _, tenant := range []string{"named", "held"} {
		_, err := q.Enter(tenant, "")
		refused(t, err, "requests_per_second", "")
	}
	held.End(0, true)
	if n := q.Tenants(); n != serving.IdleTenants+1 {
		t.Errorf("%d tenants are remembered", n)
	}
}

// What a request names is not repeated, and the metrics' label is the name of a tenant of the file only.
func TestQuotaErrorsNameNobody(t *testing.T) {
	q := quotas(t, "default: {concurrency: 0}\ntenants: {acme: {concurrency: 0}}")
	for tenant, label := range map[string]string{"acme": "acme", "hunter2": "", "": ""} {
		_, err := q.Enter(tenant, "203.0.113.7:99")
		var why *serving.QuotaError
		if !errors.As(err, &why) || why.Tenant != label {
			t.Errorf("%q has the label %q", tenant, why.Tenant)
		}
		text := err.Error()
		if strings.Contains(text, "hunter2") || strings.Contains(text, "acme") || strings.Contains(text, "203") {
			t.Errorf("the refusal says who: %s", text)
		}
	}
}

// Whatever goes on at once, no more is open than allowed, and in the end nothing is left charged.
func TestQuotaAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quotas(t, "default: {concurrency: 3, tokens_per_minute: 1000}")
		var group sync.WaitGroup
		var mu sync.Mutex
		open, most, got := 0, 0, 0
		for i := range 50 {
			group.Go(func() {
				for range 20 {
					u, err := q.Enter("a", "")
					if err == nil {
						mu.Lock()
						open, got = open+1, got+1
						most = max(most, open)
						mu.Unlock()
						_ = u.Require(10*i, 0)
						time.Sleep(time.Duration(i) * time.Millisecond)
						mu.Lock()
						open--
						mu.Unlock()
						u.End(i/10, i%3 > 0)
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		group.Wait()
		if most != 3 || got < 10 {
			t.Errorf("%d were open at once, want 3; %d in all, want 10 or more", most, got)
		}
		time.Sleep(time.Minute)
		if left := q.TokensLeft("a"); left != 1000 {
			t.Errorf("%v tokens are left, want all 1000", left)
		}
	})
}

func TestQuotaReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "quotas.yaml")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("default: {requests_per_second: 1, burst: 3}")
		q, again, err := serving.OpenQuotas(file, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go again.Run(ctx)
		synctest.Wait()
		for range 3 {
			enter(t, q, "a", "")
		}
		write("tenants: {a: {requests_per_second: 2, concurrency: 4, burst: 3}}")
		time.Sleep(1001 * time.Millisecond) // a second at the rate of before, which counts
		if err := again.Reload(); err != nil {
			t.Fatal(err)
		}
		enter(t, q, "a", "")
		_, err = q.Enter("a", "")
		refused(t, err, "requests_per_second", "2 requests a second, 3 at once")
		time.Sleep(time.Second)
		_, err = q.Enter("a", "")
		refused(t, err, "concurrency", "4 requests") // those from before count
		write("default: {concurency: 1}")
		err = again.Reload()
		if err == nil || !strings.Contains(err.Error(), "concurency") || !strings.Contains(err.Error(), file) {
			t.Errorf("a field that does not exist: %v", err)
		}
		time.Sleep(2 * time.Second)
		_, err = q.Enter("a", "")
		refused(t, err, "concurrency", "4 requests")
		enter(t, q, "b", "")
		write("{}")
		time.Sleep(2 * time.Second)
		for range 100 {
			enter(t, q, "a", "")
		}
		cancel()
		synctest.Wait()
	})
}

func TestQuotaFiles(t *testing.T) {
	for file, want := range map[string]string{
		"":   "",
		"{}": "",
		`{"default":{"burst":2},"tenants":{"a":{"weight":2.5,"tokens_per_minute":-1}}}`: "",
		"default: {requests_per_second: 0}":                                             "",
		"default: {priority: batch}":                                                    "",
		"default: {priority: urgent}":                                                   "want batch, default or interactive",
		"default: {priority: [batch]}":                                                  "want batch, default or interactive",
		"default: 3":                                                                    "line 1: want names with values",
		"defaults: {}":                                                                  `line 1: "defaults" is not known here; there are default and tenants`,
		"default: {rate: 1}":                                                            `line 1: "rate" is no quota; there are requests_per_second, burst, concurrency`,
		"default: {weight: {a: b}}":                                                     "line 1: want a number",
		"tenants: [a]":                                                                  "line 1: want names with values",
		"default: {burst: 1.5}":                                                         "want a whole number",
		"default: {burst: 0}":                                                           "default.burst: 0; want 1 to",
		"default: {concurrency: -2}":                                                    "default.concurrency: -2; want -1 to",
		"default: {images_per_minute: 9999999999}":                                      "default.images_per_minute",
		"default: {requests_per_second: .nan}":                                          "requests_per_second: NaN",
		"default: {requests_per_second: 1e-9}":                                          "requests_per_second: 1e-09",
		"default: {requests_per_second: .inf}":                                          "requests_per_second: +Inf",
		"tenants: {a: {weight: 0}}":                                                     "tenants.a.weight: 0; want",
		"tenants: {a: {weight: -1}}":                                                    "tenants.a.weight: -1",
		"tenants: {a: {weight: 1e-7}}":                                                  "weight: 1e-07; want 1e-06 to 1e+06",
		"tenants: {a: {weight: 1e+6}}":                                                  "",
		"tenants: {a: {weight: 1e-6}}":                                                  "",
		"tenants: {a: {weight: 1000001}}":                                               "weight",
		"default: {requests_per_second: 1e-4, burst: 1, concurrency: -1}":               "",
		"default: {requests_per_second: 1e+6, tokens_per_minute: 1073741824}":           "",
		"default: {requests_per_second: 1000001}":                                       "requests_per_second: 1.000001e+06; want 0.0001 to 1e+06, 0 for none",
		"default: {tokens_per_minute: 1073741825}":                                      "tokens_per_minute: 1073741825; want -1 to 1073741824",
		"default: {requests_per_second: -2}":                                            "requests_per_second: -2",
		"default: {requests_per_second: -1}":                                            "",
		"tenants: {'': {}}":                                                             "a name of 0 bytes",
		"tenants: {'a b': {}}":                                                          "a name of 3 bytes",
		"tenants: {" + strings.Repeat("a", 129) + ": {}}":                               "a name of 129 bytes",
		"tenants: {a: {}, a: {}}":                                                       "already defined",
		"{}\n---\n{}":                                                                   "more than one document",
		"\x00":                                                                          "control characters",
		"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]":                 `line 2: "b" is not known here`,
	} {
		_, err := serving.ParseQuotas([]byte(file))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", file, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "serving.") {
			t.Errorf("%q: %v names a type of Go's", file, err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	if _, _, err := serving.OpenQuotas(filepath.Join(t.TempDir(), "none"), log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#", 2<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := serving.OpenQuotas(big, log); err == nil || !strings.Contains(err.Error(), "at most 1048576 bytes") {
		t.Errorf("a file of 2 MiB: %v", err)
	}
}

// Whatever a file says, it is refused or it can be held to.
func FuzzQuotas(f *testing.F) {
	f.Add("default: {requests_per_second: 5, burst: 10, concurrency: 8}\ntenants: {a: {tokens_per_minute: 60, weight: 2}}")
	f.Add(`{"tenants":{"a":{"images_per_minute":0}}}`)
	f.Fuzz(func(t *testing.T, file string) {
		c, err := serving.ParseQuotas([]byte(file))
		if err != nil {
			return
		}
		q, err := serving.NewQuotas(c)
		if err != nil {
			t.Fatalf("read, but refused: %v", err)
		}
		for _, tenant := range []string{"a", "b", ""} {
			u, err := q.Enter(tenant, "host:1")
			if err == nil {
				err = u.Require(100, 1)
				u.End(1, err == nil)
			}
			if err != nil && serving.KindOf(err) != serving.Exhausted {
				t.Fatal(err)
			}
		}
	})
}
