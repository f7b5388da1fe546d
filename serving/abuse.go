package serving

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/socket"
	"github.com/mmserve/mmserve/safety"
)

// QuarantineError is why a quarantined caller's request is refused; it is the cause of a PermissionDenied *Error.
type QuarantineError struct {
	// Reference is what an appeal names, Until when the quarantine ends without one.
	Reference string
	Until     time.Time
	message   string
}

func (e *QuarantineError) Error() string { return e.message }

// quarantined is the error of a request of a caller in quarantine; nil if it has none.
func quarantined(q *safety.Quarantine) error {
	if q == nil {
		return nil
	}
	e := &QuarantineError{Reference: q.Reference, Until: q.Until}
	e.message = fmt.Sprintf("this %v is quarantined until %s: %s. Reference: %s.", q.Actor.Scope,
		q.Until.UTC().Format(time.RFC3339), q.Signal.Reason(), q.Reference)
	if q.Appeal != "" {
		e.message += " " + strings.ToValidUTF8(q.Appeal, "\ufffd")
	}
	return &Error{Kind: PermissionDenied, Message: e.message, cause: e}
}

// watch counts signals of abuse; nil: nothing does.
func (s *Service) watch() *safety.Watch {
	if s.options.Policy == nil {
		return nil
	}
	return s.options.Policy.Watch
}

// actorsOf is whom a request counts as: its key and its tenant. A caller without a credential may name any tenant, so
// its host counts, too.
func actorsOf(ctx context.Context, tenant, peer string) (list []safety.Actor) {
	caller := CallerOf(ctx)
	if caller.Identity != nil {
		list = append(list, safety.Actor{Scope: safety.AbuseKey, Tenant: tenant, Key: caller.Identity.ID})
	}
	if tenant != "" {
		list = append(list, safety.Actor{Scope: safety.AbuseTenant, Tenant: tenant})
	}
	if caller.Identity == nil && caller.Tenant == "" {
		if peer == "" {
			peer = caller.Peer
		}
		list = append(list, safety.Actor{Scope: safety.AbuseHost, Host: socket.Host(peer)})
	}
	return list
}

// notQuarantined says whether a caller may have anything done.
func (s *Service) notQuarantined(ctx context.Context, tenant, peer string) error {
	if s.watch() == nil {
		return nil
	}
	return quarantined(s.watch().Check(actorsOf(ctx, tenant, peer)))
}

// watchRequest counts a request that begins, whatever becomes of it.
func (l *life) watchRequest(ctx context.Context, peer string) {
	if w := l.watch(); w != nil {
		l.rec.watch, l.rec.actors = w, actorsOf(ctx, l.rec.tenant, peer)
		l.quarantine = w.Request(l.rec.actors)
	}
}

// watchPrompt counts what the request asks, if that is nearly what its caller has asked before: the last message of a
// user, as the history of a conversation is the same each time, together with the images.
func (l *life) watchPrompt(req *checked) error {
	w := l.rec.watch
	if w == nil || !w.Prints() {
		return nil
	}
	var text strings.Builder
	parts := req.prompt.Raw
	for _, m := range req.prompt.Messages {
		if m.Role != "system" && m.Role != assistant {
			parts = m.Parts
		}
	}
	for _, p := range parts {
		text.WriteString(p.Text)
	}
	for _, ids := range req.prompt.Tokens {
		text.WriteString(l.textOf(ids))
	}
	images := make([][]byte, len(req.images))
	for i := range req.images {
		images[i] = req.images[i].data
	}
	print, ok := l.options.Policy.prints.Of(text.String(), images)
	if !ok {
		return nil
	}
	return quarantined(w.Prompt(l.rec.actors, print))
}

// refusedByPolicy says whether the content policy refused a request that ended with err, or cut one of its answers.
func (r *record) refusedByPolicy(err error) bool {
	if errors.Is(err, ErrPolicy) {
		return true
	}
	for _, a := range r.answers {
		if a.finish == FinishContentFilter {
			return true
		}
	}
	return false
}

// watchAbuse has quarantines counted, logged and kept in the audit log.
func (s *Service) watchAbuse() {
	w := s.watch()
	if w == nil {
		return
	}
	s.options.Policy.prints = safety.NewPrints()
	s.options.Telemetry.zeroAbuse()
	w.Tell(func(q safety.Quarantine) {
		action := "quarantine"
		if q.Flagged {
			action = "flag"
		}
		s.options.Telemetry.countAbuse(q, 1)
		s.options.Logger.LogAttrs(context.Background(), slog.LevelWarn, "abuse", slog.String("action", action),
			slog.String("of", q.Actor.String()), slog.String("signal", q.Signal.String()),
			slog.String("reference", q.Reference), slog.Time("until", q.Until))
		if s.options.Audit != nil {
			_ = s.options.Audit.Record(AbuseEvent(action, q)) // the log says what it lost
		}
	})
}

// AbuseEvent is the line in the audit log of what becomes of a quarantine: it begins, is only flagged, or is lifted.
func AbuseEvent(action string, q safety.Quarantine) *audit.Event {
	return &audit.Event{
		Kind: audit.KindAbuse, Action: action, Decision: q.Signal.String(),
		Tenant: q.Actor.Tenant, Credential: q.Actor.Key, Peer: q.Actor.Host, Object: q.Reference,
		Details: map[string]int64{
			"requests": int64(q.Requests), "refusals": int64(q.Refusals), "similar": int64(q.Similar),
			"seconds": int64(q.Until.Sub(q.Since).Seconds()),
		},
	}
}

// countAbuse counts quarantines that began, and those that were only flagged.
func (t *Telemetry) countAbuse(q safety.Quarantine, n int64) {
	action := "quarantine"
	if q.Flagged {
		action = "flag"
	}
	set := attribute.NewSet(keySignal.String(q.Signal.String()), keyScope.String(q.Actor.Scope.String()),
		keyAction.String(action))
	t.abuse.Add(context.Background(), n, metric.WithAttributeSet(set))
}

// zeroAbuse starts the counters: a rate sees no first event in a series that begins with it.
func (t *Telemetry) zeroAbuse() {
	for _, signal := range safety.AbuseSignals() {
		for _, scope := range safety.AbuseScopes() {
			for _, flagged := range []bool{false, true} {
				t.countAbuse(safety.Quarantine{Actor: safety.Actor{Scope: scope}, Signal: signal, Flagged: flagged}, 0)
			}
		}
	}
}
