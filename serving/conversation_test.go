package serving_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/serving"
)

// watched is a store that notes how long reading and importing may take.
type watched struct {
	conversation.Store
	mu    sync.Mutex
	until map[string]time.Time
}

func (w *watched) note(ctx context.Context, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until[what], _ = ctx.Deadline()
}

func (w *watched) List(ctx context.Context, of conversation.Scope, from string,
	limit int) ([]conversation.Conversation, string, error) {
	w.note(ctx, "list")
	return w.Store.List(ctx, of, from, limit)
}

func (w *watched) Locate(ctx context.Context, of conversation.Scope, key string) (conversation.Place, error) {
	w.note(ctx, "locate")
	return w.Store.Locate(ctx, of, key)
}

// conversing is a service that keeps conversations, with an auditor.
func conversing(t *testing.T, o serving.ServiceOptions) (*serving.Service, *heard, *watched) {
	t.Helper()
	store, err := conversation.OpenSQLite(t.Context(),
		conversation.SQLiteFiles{Data: filepath.Join(t.TempDir(), "x")},
		conversation.Options{Master: conversationtest.Ring(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	files := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	w := &watched{Store: store, until: map[string]time.Time{}}
	o.Conversations, o.Media = w, files
	s, h := audited(t, o)
	t.Cleanup(func() {
		files.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, h, w
}

// calls are all that can be asked of a conversation that shows an image, by their names in the audit log.
func calls(ctx context.Context, s *serving.Service, who serving.Whose, png []byte) map[string]func() error {
	none := serving.Whose{Tenant: who.Tenant, Subject: who.Subject}
	return map[string]func() error{
		"conversation_create": func() error {
			_, err := s.CreateConversation(ctx, none, conversation.New{Info: conversation.Info{Title: secret}})
			return err
		},
		"conversation_append": func() error {
			list := []conversation.Message{conversationtest.Show(secret, png)}
			_, err := s.AppendMessages(ctx, who, conversation.Appended{Messages: list})
			return err
		},
		"conversation_get":  func() error { _, _, err := s.GetConversation(ctx, who, 0, 0); return err },
		"conversation_list": func() error { _, _, err := s.ListConversations(ctx, none, "", 0); return err },
		"conversation_image": func() error {
			return s.ConversationImage(ctx, none, sha256.Sum256(png), func([]byte) error { return nil })
		},
		"conversation_fork": func() error {
			_, err := s.ForkConversation(ctx, who, 1, conversation.New{})
			return err
		},
		"conversation_export": func() error { return s.ExportConversations(ctx, none, nil, io.Discard) },
		"conversation_delete": func() error { return s.DeleteConversation(ctx, who) },
	}
}

var callNames = []string{
	"conversation_create", "conversation_append", "conversation_get", "conversation_list", "conversation_image",
	"conversation_fork", "conversation_export", "conversation_delete",
}

// Every call about conversations has a line in the audit log, whatever its end, and none has content or the person.
func TestConversationAudit(t *testing.T) {
	s, h, w := conversing(t, serving.ServiceOptions{})
	png := pngFile(t, 8)
	who := serving.Whose{Tenant: "acme", Subject: "alice"}
	c, err := s.CreateConversation(t.Context(), who, conversation.New{})
	if err != nil {
		t.Fatal(err)
	}
	who.ID = c.ID
	pseudonym := w.Pseudonym(conversation.Scope{Tenant: "acme", Subject: "alice"})
	sum := sha256.Sum256(png)
	objects := map[string]string{
		"conversation_append": c.ID, "conversation_get": c.ID, "conversation_fork": c.ID, "conversation_delete": c.ID,
		"conversation_image": hex.EncodeToString(sum[:]), "conversation_list": "", "conversation_export": "",
	}
	all := calls(t.Context(), s, who, png)
	for _, name := range callNames {
		before := len(h.events)
		if err := all[name](); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e := h.last(t)
		if len(h.events) != before+1 || e.Kind != "request" || e.Action != name || e.Decision != "OK" ||
			e.Tenant != "acme" || e.Subject != pseudonym {
			t.Errorf("%s: %d lines, %+v", name, len(h.events)-before, e)
		}
		if want, fixed := objects[name]; fixed && e.Object != want || !fixed && e.Object == "" {
			t.Errorf("%s of %q", name, e.Object)
		}
	}
	who.ID = secret
	if err := all["conversation_get"](); !errors.As(err, new(*serving.Error)) || h.last(t).Decision != "NOT_FOUND" {
		t.Errorf("%v: %+v", err, h.last(t))
	}
	if _, _, err := s.GetConversation(t.Context(), who, 0, 0); err == nil || h.last(t).Decision != "NOT_FOUND" {
		t.Errorf("%v: %+v", err, h.last(t))
	}
	who.Subject, who.Tenant = "ali ce", secret+" "
	if _, _, err := s.GetConversation(t.Context(), who, 0, 0); err == nil || h.last(t).Decision != "INVALID_ARGUMENT" {
		t.Errorf("%v: %+v", err, h.last(t))
	}
	text, err := json.Marshal(h.events)
	if err != nil || strings.Contains(string(text), secret) || strings.Contains(string(text), "ali") {
		t.Errorf("the log has content or a person: %s, %v", text, err)
	}
}

// Where the audit log is required, nothing is done or read that it cannot keep.
func TestConversationAuditRequired(t *testing.T) {
	s, h, w := conversing(t, serving.ServiceOptions{AuditRequired: true})
	who := serving.Whose{Tenant: "acme", Subject: "alice"}
	c, err := s.CreateConversation(t.Context(), who, conversation.New{})
	if err != nil {
		t.Fatal(err)
	}
	if len(h.events) != 2 || h.events[0].Kind != "begin" || h.events[0].Subject == "" {
		t.Errorf("events %+v", h.events)
	}
	h.full, who.ID = true, c.ID
	for name, call := range calls(t.Context(), s, who, pngFile(t, 8)) {
		if err := call(); serving.KindOf(err) != serving.Unavailable || !strings.Contains(err.Error(), "audit log") {
			t.Errorf("%s: %v", name, err)
		}
	}
	list, _, err := w.Store.List(t.Context(), conversation.Scope{Tenant: "acme", Subject: "alice"}, "", 0)
	if err != nil || len(list) != 1 || list[0].Messages != 0 {
		t.Errorf("%+v are kept, %v", list, err)
	}
}

// stuck takes nothing until it is let go.
type stuck struct{ begun, free chan struct{} }

func (w stuck) Write(p []byte) (int, error) {
	select {
	case w.begun <- struct{}{}:
	default:
	}
	<-w.free
	return len(p), nil
}

// Archives of a person's data have places and a time as those of conversations do, and imports have the time.
func TestArchivePlaces(t *testing.T) {
	s, _, w := conversing(t, serving.ServiceOptions{})
	of, who := serving.Person{Tenant: "acme", Subject: "alice"}, serving.Whose{Tenant: "acme", Subject: "alice"}
	if _, err := s.CreateConversation(t.Context(), who, conversation.New{}); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if _, err := s.AccessSubject(t.Context(), of, &archive); err != nil {
		t.Fatal(err)
	}
	if _, ids, err := s.ImportSubject(t.Context(), of, slices.Clone(archive.Bytes())); err != nil || len(ids) != 1 {
		t.Fatalf("imported %v, %v", ids, err)
	}
	for _, what := range []string{"list", "locate"} {
		if left := time.Until(w.until[what]); left <= 0 || left > 10*time.Minute {
			t.Errorf("%s may take %v", what, left)
		}
	}
	to, ended := stuck{make(chan struct{}, 1), make(chan struct{})}, make(chan error, 4)
	for range 4 {
		go func() { _, err := s.AccessSubject(t.Context(), of, to); ended <- err }()
		<-to.begun
	}
	_, err := s.AccessSubject(t.Context(), of, io.Discard)
	if serving.KindOf(err) != serving.Exhausted {
		t.Errorf("a fifth: %v", err)
	}
	close(to.free)
	for range 4 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if _, err := s.AccessSubject(t.Context(), of, io.Discard); err != nil {
		t.Errorf("after them: %v", err)
	}
}

// A bomb in an archive is the caller's fault, and the error says which.
func TestImportBomb(t *testing.T) {
	s, _, _ := conversing(t, serving.ServiceOptions{})
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("mmserve-conversations.json")
	if err == nil {
		_, err = w.Write(bytes.Repeat([]byte("{}\n"), 1<<20))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.ImportSubject(t.Context(), serving.Person{Tenant: "acme", Subject: "alice"}, b.Bytes())
	if serving.KindOf(err) != serving.Invalid || !strings.Contains(fmt.Sprint(err), "archive") {
		t.Errorf("got %v", err)
	}
}
