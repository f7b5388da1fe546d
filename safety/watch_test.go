package safety_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/safety"
)

// abusePolicy is a policy with a section abuse.
func abusePolicy(t *testing.T, text string) *safety.AbuseRules {
	t.Helper()
	p, err := safety.Parse([]byte("abuse:\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return p.Abuse
}

func key(tenant, id string) []safety.Actor {
	return []safety.Actor{{Scope: safety.AbuseKey, Tenant: tenant, Key: id}, {Scope: safety.AbuseTenant, Tenant: tenant}}
}

const watching = "  window: 1m\n  quarantine: 10m\n  longest: 30m\n  appeal: Write to us.\n"

// Each signal quarantines whom it is counted of, for the time that the rules say, and nobody else.
func TestSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := abusePolicy(t, watching+"  key: {requests: 100, refusals: 5, similar: 7}\n  tenant: {refusal_rate: 0.5}\n")
		var told []safety.Quarantine
		w := safety.NewWatch(func() *safety.AbuseRules { return rules })
		w.Tell(func(q safety.Quarantine) { told = append(told, q) })
		for i := range 100 {
			if w.Request(key("a", "1")) != nil {
				t.Fatalf("request %d is refused", i)
			}
		}
		q := w.Request(key("a", "1"))
		if q == nil || q.Signal != safety.AbuseRequests || q.Actor.Key != "1" || q.Requests != 101 ||
			time.Until(q.Until) != 10*time.Minute || q.Appeal != "Write to us." {
			t.Fatalf("the request after the last gives %+v", q)
		}
		if w.Check(key("a", "2")) != nil || w.Check(key("b", "1")) != nil || w.Check(key("a", "1")) == nil {
			t.Error("another key or tenant is quarantined, or this one is not")
		}
		for range 6 {
			q = w.Refusal(key("a", "3"))
		}
		if q == nil || q.Signal != safety.AbuseRefusals {
			t.Errorf("six refusals give %+v", q)
		}
		for i := range 8 {
			if q = w.Prompt(key("a", "4"), safety.Print{0xabcd, uint64(i)}); i < 7 && q != nil {
				t.Fatalf("prompt %d is refused", i)
			}
		}
		if q = w.Prompt(key("a", "4"), safety.Print{0xabcd, 99}); q == nil || q.Signal != safety.AbuseSimilar {
			t.Errorf("prompts that are alike give %+v", q)
		}
		for i := range 20 {
			c := key("c", fmt.Sprint(i)) // no key does much
			if q = w.Request(c); i%5 < 3 && q == nil {
				q = w.Refusal(c)
			}
		}
		c := safety.Actor{Scope: safety.AbuseTenant, Tenant: "c"}
		if q == nil || q.Signal != safety.AbuseRefusalRate || q.Actor != c {
			t.Errorf("a tenant whose requests are refused gets %+v", q)
		}
		if len(told) != 4 || len(w.List()) != 4 {
			t.Errorf("told of %d, listed %d; want 4", len(told), len(w.List()))
		}
		time.Sleep(10 * time.Minute)
		if w.Check(key("a", "1")) != nil || len(w.List()) != 0 {
			t.Error("quarantined beyond its time")
		}
	})
}

// A limit is of a window that slides: what comes evenly below it is never refused, and a burst across two windows is.
func TestWindowSlides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := abusePolicy(t, watching+"  key: {requests: 60}\n")
		w := safety.NewWatch(func() *safety.AbuseRules { return rules })
		for range 1000 {
			if q := w.Request(key("a", "even")); q != nil {
				t.Fatalf("one a second gives %+v", q)
			}
			time.Sleep(time.Second + 20*time.Millisecond)
		}
		w.Request(key("a", "burst"))
		time.Sleep(59 * time.Second)
		refused := 0
		for range 118 {
			if w.Request(key("a", "burst")) != nil {
				refused++
			}
			time.Sleep(17 * time.Millisecond)
		}
		if refused < 50 {
			t.Errorf("%d of 118 in two seconds over the end of a window are refused", refused)
		}
	})
}

// Each next quarantine is twice as long, up to the longest; a lifted one does not count, and a calm caller begins anew.
func TestQuarantineGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := abusePolicy(t, watching+"  key: {requests: 1}\n")
		w := safety.NewWatch(func() *safety.AbuseRules { return rules })
		offend := func() *safety.Quarantine {
			w.Request(key("a", "1"))
			return w.Request(key("a", "1"))
		}
		for _, want := range []time.Duration{10, 20, 30, 30} {
			q := offend()
			if q == nil || q.Until.Sub(q.Since) != want*time.Minute {
				t.Fatalf("quarantined %+v, want %d minutes", q, want)
			}
			time.Sleep(q.Until.Sub(q.Since) + time.Second)
		}
		time.Sleep(31 * time.Minute)
		q := offend()
		if q.Until.Sub(q.Since) != 10*time.Minute {
			t.Errorf("after a calm time %v", q.Until.Sub(q.Since))
		}
		if _, ok := w.Lift("another"); ok {
			t.Error("a quarantine that is none was lifted")
		}
		if was, ok := w.Lift(q.Reference); !ok || was != *q || w.Check(key("a", "1")) != nil || len(w.List()) != 0 {
			t.Errorf("lifted %+v, %v", was, ok)
		}
		if _, ok := w.Lift(q.Reference); ok {
			t.Error("lifted twice")
		}
		if q = offend(); q.Until.Sub(q.Since) != 10*time.Minute {
			t.Errorf("after one that was lifted %v", q.Until.Sub(q.Since))
		}
	})
}

// Rules that change hold at once; a quarantine survives that, unless they are gone or exempt the tenant.
func TestWatchFollowsRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := abusePolicy(t, watching+"  key: {requests: 1}\n")
		w := safety.NewWatch(func() *safety.AbuseRules { return rules })
		told := 0
		w.Tell(func(safety.Quarantine) { told++ })
		w.Request(key("a", "1"))
		w.Request(key("a", "1"))
		for text, want := range map[string]bool{
			"  key: {requests: 1000}\n": true, "  host: {requests: 5}\n  window: 1h\n": true,
			"  key: {requests: 1}\n  exempt: [a]\n": false, "  key: {requests: 1}\n  action: flag\n": false,
		} {
			rules = abusePolicy(t, text)
			if got := w.Check(key("a", "1")) != nil; got != want {
				t.Errorf("under %q quarantined is %v", text, got)
			}
		}
		if rules = nil; w.Check(key("a", "1")) != nil || w.Request(key("a", "1")) != nil || w.Prints() {
			t.Error("without rules something is refused")
		}
		rules = abusePolicy(t, "  key: {requests: 1}\n  action: flag\n")
		for range 4 {
			if w.Request(key("b", "1")) != nil {
				t.Error("what is only flagged is refused")
			}
		}
		if told != 3 {
			t.Errorf("told of %d, want one quarantine and two flags", told)
		}
	})
}

// Callers make names up: memory stays bounded, and nobody gets out of quarantine by it.
func TestWatchIsBounded(t *testing.T) {
	rules := abusePolicy(t, "  key: {requests: 1, similar: 1000}\n  host: {requests: 1000000, similar: 1000000}\n")
	w := safety.NewWatch(func() *safety.AbuseRules { return rules })
	w.Request(key("a", "1"))
	w.Request(key("a", "1"))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var g sync.WaitGroup
	for i := range 4 {
		g.Go(func() {
			for n := range 2300 {
				c := []safety.Actor{{Scope: safety.AbuseHost, Host: fmt.Sprintf("%d-%d", i, n)}}
				w.Request(c)
				for k := range 65 {
					w.Prompt(c, safety.Print{uint64(k) * 0x9e3779b97f4a7c15, uint64(k) * 0x9e3779b97f4a7c15})
				}
			}
		})
	}
	g.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := w.Actors(); n > 8193 {
		t.Errorf("%d callers are remembered", n)
	}
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 32<<20 {
		t.Errorf("9,200 callers take %d bytes", grew)
	}
	if w.Check(key("a", "1")) == nil {
		t.Error("made-up names end a quarantine")
	}
	for i := range 5000 { // each goes into quarantine
		w.Request(key("b", fmt.Sprint(i)))
		w.Request(key("b", fmt.Sprint(i)))
	}
	if n := w.Actors(); n > 8192+4096+1 {
		t.Errorf("%d callers are remembered", n)
	}
	if n := len(w.List()); n != 4096 {
		t.Errorf("%d quarantines, want 4096", n)
	}
}

// Prints of a text with a few words changed are near, of others are not, and tell images apart.
func TestPrints(t *testing.T) {
	p := safety.NewPrints()
	const text = "Please write a letter to my landlord that the heating has been broken for two weeks, and that I expect a repair."
	rules := abusePolicy(t, "  key: {similar: 1}\n")
	similar := func(a, b string, image ...[]byte) bool {
		w := safety.NewWatch(func() *safety.AbuseRules { return rules })
		first, ok1 := p.Of(a, nil)
		second, ok2 := p.Of(b, image)
		w.Prompt(key("a", "1"), first)
		w.Prompt(key("a", "1"), second)
		return ok1 && ok2 && w.Prompt(key("a", "1"), second) != nil && safety.Near(first, second)
	}
	for _, near := range []string{
		text, strings.ToUpper(text), strings.ReplaceAll(text, " ", "\n\n "), text + " Thanks!",
		strings.Replace(text, "two weeks", "three weeks", 1),
	} {
		if !similar(text, near) {
			t.Errorf("%q is not near", near)
		}
	}
	for _, far := range []string{
		"What are the three largest rivers of South America, and through which countries do they flow to the sea?",
		"Describe the picture in two sentences, and count the people who wear a hat.", "Yes, please.",
	} {
		if similar(text, far) {
			t.Errorf("%q is near", far)
		}
	}
	if similar(text, text, []byte("an image")) {
		t.Error("the same text about another image is near")
	}
	if a, _ := safety.NewPrints().Of(text, nil); safety.Near(a, first(p.Of(text, nil))) {
		t.Error("two processes' prints are the same")
	}
	if n := testing.AllocsPerRun(10, func() { p.Of(strings.Repeat(text, 1<<14), nil) }); n > 40 {
		t.Errorf("%v allocations for a long text", n)
	}
}

func first(print safety.Print, _ bool) safety.Print { return print }

// What a policy file says wrongly about abuse is refused by its line and field.
func TestAbuseFile(t *testing.T) {
	for text, want := range map[string]string{
		"abuse: {}":                                                             "want key, tenant or host",
		"abuse: {key: {}}":                                                      "abuse.key: want limits",
		"abuse: {key: {requests: 0}}":                                           "abuse.key.requests",
		"abuse: {key: {requests: 1e99}}":                                        "abuse.key.requests",
		"abuse: {key: {refusal_rate: 2}}":                                       "abuse.key.refusal_rate",
		"abuse: {key: {refusal_rate: 0}}":                                       "abuse.key.refusal_rate",
		"abuse: {key: {similar: -1}}":                                           "abuse.key.similar",
		"abuse: {user: {similar: 1}}":                                           "abuse.user: not known",
		"abuse: {window: 0s, key: {similar: 1}}":                                "abuse.window",
		"abuse: {window: 10, key: {similar: 1}}":                                "abuse.window",
		"abuse: {action: block, key: {similar: 1}}":                             "abuse.action",
		"abuse: {exempt: [''], key: {similar: 1}}":                              "abuse.exempt[0]",
		"abuse: {appeal: " + strings.Repeat("x", 1000) + ", key: {similar: 1}}": "abuse.appeal",
		"abuse: {quarantine: 2h, longest: 1h, key: {similar: 1}}":               "longest",
		"abuse: [1]": "abuse",
	} {
		if _, err := safety.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v; want %q", text, err, want)
		}
	}
	a := abusePolicy(t, "  quarantine: 48h\n  key: {requests: 1}\n")
	if a.Longest != 48*time.Hour {
		t.Errorf("the longest is %v", a.Longest)
	}
}
