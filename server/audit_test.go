package server_test

import (
	"context"
	"encoding/json"
	"hash"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/audit"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// heard is an auditor that keeps events in memory.
type heard struct {
	keys   *audit.Keys
	mu     sync.Mutex
	events []audit.Event
	full   bool
}

// fill has nothing more be kept.
func (h *heard) fill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = true
}

func newHeard(t *testing.T) *heard {
	t.Helper()
	keys, err := audit.OpenKeys(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return &heard{keys: keys}
}

func (h *heard) Record(e *audit.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full {
		return audit.ErrNotWritten
	}
	h.events = append(h.events, *e)
	return nil
}

func (h *heard) RecordSync(e *audit.Event) error { return h.Record(e) }

func (h *heard) Keys() *audit.Keys { return h.keys }

// EachOf gives events as a log would give lines.
func (h *heard) EachOf(_ context.Context, subject string, do func([]byte) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Subject != subject {
			continue
		}
		line, err := json.Marshal(e)
		if err == nil {
			err = do(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *heard) Digest(id string) hash.Hash { return h.keys.Digest(id) }

func (h *heard) all() []audit.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]audit.Event(nil), h.events...)
}

// Callers that are refused for their credentials have a line each, those that are answered one of who they are.
func TestAuditOfCallers(t *testing.T) {
	keys, h := newKeyFile(t, entries...), newHeard(t)
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: keys.auth, Audit: h})
	for _, c := range []struct {
		name, secret, credential string
		code                     codes.Code
	}{
		{"nobody", "", "", codes.Unauthenticated},
		{"a wrong key", "mms_wrong", "", codes.Unauthenticated},
		{"a monitor", keys.key["monitor"], "monitor", codes.PermissionDenied},
		{"a user", keys.key["acme"], "acme", codes.OK},
	} {
		ctx := t.Context()
		if c.secret != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.secret)
		}
		before := len(h.all())
		_, err := f.Generate(ctx, client.Prompt(client.Text("red")))
		if status.Code(err) != c.code {
			t.Errorf("%s: %v", c.name, err)
		}
		events := h.all()[before:]
		if len(events) != 1 {
			t.Errorf("%s: %d events", c.name, len(events))
			continue
		}
		e := events[0]
		wantKind, wantPeer := audit.KindCredential, "bufconn"
		if c.code == codes.OK {
			wantKind, wantPeer = audit.KindRequest, ""
		}
		if e.Kind != wantKind || e.Credential != c.credential || e.Peer != wantPeer ||
			wantKind == audit.KindCredential && (e.Count != 1 || e.Action != pb.MMServe_Generate_FullMethodName) {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
}
