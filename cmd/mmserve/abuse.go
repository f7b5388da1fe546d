package main

import (
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/serving"
)

// abuseAdmin is what the admin listener ends quarantines by, and what watches for them.
type abuseAdmin struct {
	watch *safety.Watch
	file  atomic.Pointer[safety.File] // nil until the policy is read
	audit *audit.Log                  // nil: there is none
}

// newAbuse watches by the rules of a policy file, once it is read.
func newAbuse(l *audit.Log) *abuseAdmin {
	a := &abuseAdmin{audit: l}
	a.watch = safety.NewWatch(func() *safety.AbuseRules {
		if f := a.file.Load(); f != nil {
			return f.Policy().Abuse
		}
		return nil
	})
	return a
}

// quarantine is one in the answer to GET /abuse.
type quarantine struct {
	Reference string    `json:"reference"`
	Scope     string    `json:"scope"`
	Tenant    string    `json:"tenant,omitempty"`
	Key       string    `json:"key,omitempty"`
	Host      string    `json:"host,omitempty"`
	Signal    string    `json:"signal"`
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until"`
	Requests  int       `json:"requests"`
	Refusals  int       `json:"refusals"`
	Similar   int       `json:"similar"`
}

// Quarantines are those that last, the oldest first.
func (a *abuseAdmin) Quarantines() any {
	list := []quarantine{}
	for _, q := range a.watch.List() {
		list = append(list, quarantine{
			Reference: q.Reference, Scope: q.Actor.Scope.String(), Tenant: q.Actor.Tenant, Key: q.Actor.Key, Host: q.Actor.Host,
			Signal: q.Signal.String(), Since: q.Since.UTC(), Until: q.Until.UTC(),
			Requests: q.Requests, Refusals: q.Refusals, Similar: q.Similar,
		})
	}
	return map[string]any{"quarantines": list}
}

// Lift ends a quarantine. That is done only once it is in the audit log, where there is one.
func (a *abuseAdmin) Lift(reference string) error {
	for _, q := range a.watch.List() {
		if q.Reference != reference {
			continue
		}
		if a.audit != nil {
			e := serving.AbuseEvent("lift", q)
			e.Decision = "allowed" // by whom is in the admin listener's own line
			if err := a.audit.RecordSync(e); err != nil {
				return &admin.Refusal{Status: http.StatusServiceUnavailable,
					Err: errors.New("the audit log cannot be written: nothing was lifted")}
			}
		}
		if _, ok := a.watch.Lift(reference); ok {
			return nil
		}
	}
	return &admin.Refusal{Status: http.StatusNotFound, Err: errors.New("no quarantine has this reference")}
}
