package conversation_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
)

func export(t *testing.T, s conversation.Store, of conversation.Scope, ids ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	if err := errors.Join(conversation.Export(t.Context(), s, of, ids, w), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func load(t *testing.T, s conversation.Store, of conversation.Scope, archive []byte) ([]string, error) {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	return conversation.Import(t.Context(), s, of, r)
}

// TestTransfer holds that what is exported and imported elsewhere is equal: messages, times, images and what is said of
// the conversation.
func TestTransfer(t *testing.T) {
	clock := conversationtest.NewClock()
	o := conversation.Options{Master: conversationtest.Ring(t, 1), Now: clock.Now}
	from, to := openIn(t.TempDir())(t, "x", o), openIn(t.TempDir())(t, "x", o)
	id := fill(t, from)
	long, err := from.Create(t.Context(), alice, conversation.New{
		Info:      conversation.Info{Title: "long"},
		Retention: conversation.Retention{Class: conversation.KeepDays, For: 48 * time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		clock.Add(time.Second)
		list := make([]conversation.Message, 350)
		for i := range list {
			list[i] = conversationtest.Say("user", "<b>&\u2028")
		}
		if _, err := from.Append(t.Context(), alice, long.ID, conversation.Appended{Messages: list}); err != nil {
			t.Fatal(err)
		}
	}
	archive := export(t, from, alice)
	clock.Add(time.Hour)
	bob := conversation.Scope{Tenant: "other", Subject: "bob"}
	ids, err := load(t, to, bob, archive)
	if err != nil || len(ids) != 2 {
		t.Fatalf("imported %v, %v", ids, err)
	}
	sameConversation(t, from, alice, long.ID, to, bob, ids[0])
	sameConversation(t, from, alice, id, to, bob, ids[1])
	again, err := load(t, to, bob, archive)
	if err != nil || len(again) != 0 {
		t.Errorf("imported again: %v, %v", again, err)
	}
	one, err := load(t, to, alice, export(t, from, alice, id))
	if err != nil || len(one) != 1 {
		t.Errorf("imported one: %v, %v", one, err)
	}
}

func sameConversation(t *testing.T, a conversation.Store, ofA conversation.Scope, idA string,
	b conversation.Store, ofB conversation.Scope, idB string) {
	t.Helper()
	var lists [2][]conversation.Message
	var infos [2]conversation.Conversation
	for i, w := range []struct {
		s  conversation.Store
		of conversation.Scope
		id string
	}{{a, ofA, idA}, {b, ofB, idB}} {
		for {
			c, list, err := w.s.Get(t.Context(), w.of, w.id, uint64(len(lists[i])), 0)
			if err != nil {
				t.Fatal(err)
			}
			if infos[i] = *c; len(list) == 0 {
				break
			}
			lists[i] = append(lists[i], list...)
		}
		for _, m := range lists[i] {
			for _, p := range m.Parts {
				if p.Image == nil {
					continue
				}
				if data, err := w.s.Image(t.Context(), w.of, p.Image.Digest); err != nil || sha256.Sum256(data) != p.Image.Digest {
					t.Errorf("an image: %v", err)
				}
			}
		}
		infos[i].ID, infos[i].Updated, infos[i].Expires = "", time.Time{}, time.Time{}
	}
	if !reflect.DeepEqual(lists[0], lists[1]) {
		t.Error("the messages are not the same")
	}
	if !reflect.DeepEqual(infos[0], infos[1]) {
		t.Errorf("the conversations are %+v and %+v", infos[0], infos[1])
	}
}

// TestHostileArchives holds that archives that are none leave nothing behind and are refused as invalid.
func TestHostileArchives(t *testing.T) {
	s := openIn(t.TempDir())(t, "x", conversation.Options{Master: conversationtest.Ring(t, 1)})
	const manifest = `{"format":"mmserve-conversations","version":1}`
	const first = "{\"id\":\"a\"}\n"
	sum := sha256.Sum256([]byte("x"))
	digest := hex.EncodeToString(sum[:])
	image := func(digest string) string {
		return first + `{"role":"user","parts":[{"image":{"sha256":"` + digest + `","size":1}}]}`
	}
	for name, files := range map[string]map[string]string{
		"no manifest":       {"conversations/a.jsonl": first},
		"another format":    {"mmserve-conversations.json": `{"format":"x","version":1}`},
		"a later version":   {"mmserve-conversations.json": `{"format":"mmserve-conversations","version":2}`},
		"no JSON":           {"mmserve-conversations.json": manifest, "conversations/a.jsonl": "x"},
		"no message":        {"mmserve-conversations.json": manifest, "conversations/a.jsonl": first + "7"},
		"another role":      {"mmserve-conversations.json": manifest, "conversations/a.jsonl": first + `{"role":"root"}`},
		"no image":          {"mmserve-conversations.json": manifest, "conversations/a.jsonl": image(digest)},
		"a short digest":    {"mmserve-conversations.json": manifest, "conversations/a.jsonl": image("00"), "images/00": "x"},
		"another image":     {"mmserve-conversations.json": manifest, "conversations/a.jsonl": image(digest), "images/" + digest: "y"},
		"an endless line":   {"mmserve-conversations.json": manifest, "conversations/a.jsonl": first + strings.Repeat(" ", 17<<20)},
		"a wrong retention": {"mmserve-conversations.json": manifest, "conversations/a.jsonl": `{"retention_class":77,"retention_hours":9}`},
		"a long retention":  {"mmserve-conversations.json": manifest, "conversations/a.jsonl": `{"retention_hours":9223372036854775807}`},
		"a long name":       {"mmserve-conversations.json": manifest, "conversations/" + strings.Repeat("a", 300) + ".jsonl": first},
	} {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for name, text := range files {
			f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
			if err == nil {
				_, err = f.Write([]byte(text))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := load(t, s, alice, b.Bytes()); !errors.Is(err, conversation.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if list, _, err := s.List(t.Context(), alice, "", 0); err != nil || len(list) != 0 {
			t.Errorf("%s: %d conversations are left, %v", name, len(list), err)
		}
	}
}

// zipOf is an archive of deflated files. A file's text is repeated as often as said.
func zipOf(t *testing.T, files ...repeated) *zip.Reader {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, file := range files {
		f, err := w.Create(file.name)
		block := bytes.Repeat([]byte(file.text), min(file.times, 1<<13))
		for n := file.times; n > 0 && err == nil; n -= 1 << 13 {
			_, err = f.Write(block[:len(file.text)*min(n, 1<<13)])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type repeated struct {
	name, text string
	times      int
}

var manifestFile = repeated{"mmserve-conversations.json", `{"format":"mmserve-conversations","version":1}`, 1}

// A manifest is read up to its bound: lines that inflate without end are refused before most of them are inflated.
func TestManifestBomb(t *testing.T) {
	s := openIn(t.TempDir())(t, "x", conversation.Options{Master: conversationtest.Ring(t, 1)})
	r := zipOf(t, repeated{"mmserve-conversations.json", "{}\n", 1 << 22})
	_, err := conversation.ImportWithin(t.Context(), s, alice, r, 1<<20)
	if !errors.Is(err, conversation.ErrInvalid) || !strings.Contains(err.Error(), "65536") {
		t.Errorf("got %v", err)
	}
}

// All that an import inflates is bounded, however little of it the store would have kept.
func TestInflatedBytes(t *testing.T) {
	s := openIn(t.TempDir())(t, "x", conversation.Options{Master: conversationtest.Ring(t, 1)})
	const message = `{"role":"user","parts":[{"text":"a"}]}` + "\n"
	for name, file := range map[string]repeated{
		"messages": {"conversations/a.jsonl", message, 1 << 14},
		"one line": {"conversations/a.jsonl", " ", 1 << 19},
	} {
		r := zipOf(t, manifestFile, file)
		_, err := conversation.ImportWithin(t.Context(), s, alice, r, 1<<18)
		if !errors.Is(err, conversation.ErrInvalid) || !strings.Contains(err.Error(), "262144") {
			t.Errorf("%s: %v", name, err)
		}
		if list, _, err := s.List(t.Context(), alice, "", 0); err != nil || len(list) != 0 {
			t.Errorf("%s: %d conversations are left, %v", name, len(list), err)
		}
	}
}

// An import ends with its context, between two lines of one block too, and leaves nothing half done.
func TestImportEnds(t *testing.T) {
	s := openIn(t.TempDir())(t, "x", conversation.Options{Master: conversationtest.Ring(t, 1)})
	ctx, cancel := context.WithCancel(t.Context())
	store := &leaving{Store: s, leave: cancel}
	r := zipOf(t, manifestFile, repeated{"conversations/a.jsonl", `{"role":"user"}` + "\n", 50})
	if _, err := conversation.Import(ctx, store, alice, r); !errors.Is(err, context.Canceled) || store.appends != 0 {
		t.Errorf("%d appends, %v", store.appends, err)
	}
	if list, _, err := s.List(t.Context(), alice, "", 0); err != nil || len(list) != 0 {
		t.Errorf("%d conversations are left, %v", len(list), err)
	}
}

// leaving is a store whose caller leaves once a conversation is made.
type leaving struct {
	conversation.Store
	leave   func()
	appends int
}

func (s *leaving) Create(ctx context.Context, of conversation.Scope,
	n conversation.New) (*conversation.Conversation, error) {
	defer s.leave()
	return s.Store.Create(ctx, of, n)
}

func (s *leaving) Append(ctx context.Context, of conversation.Scope, id string,
	a conversation.Appended) (conversation.Place, error) {
	s.appends++
	return s.Store.Append(context.WithoutCancel(ctx), of, id, a)
}

// An image is inflated once, however many messages of however many conversations name it.
func TestImageInflatedOnce(t *testing.T) {
	s := openIn(t.TempDir())(t, "x", conversation.Options{Master: conversationtest.Ring(t, 1)})
	data := strings.Repeat("x", 1<<16)
	sum := sha256.Sum256([]byte(data))
	digest := hex.EncodeToString(sum[:])
	const first = "{}\n"
	named := `{"image":{"sha256":"` + digest + `","size":1}}`
	message := `{"role":"user","parts":[` + named + "," + named + "]}\n"
	r := zipOf(t, manifestFile,
		repeated{"conversations/a.jsonl", first + strings.Repeat(message, 20), 1},
		repeated{"conversations/b.jsonl", first + strings.Repeat(message, 20), 1},
		repeated{"images/" + digest, data, 1})
	ids, err := conversation.ImportWithin(t.Context(), s, alice, r, 1<<17)
	if err != nil || len(ids) != 2 {
		t.Fatalf("%d conversations, %v", len(ids), err)
	}
	for _, id := range ids {
		c, list, err := s.Get(t.Context(), alice, id, 19, 0)
		if err != nil || c.Messages != 20 || len(list) != 1 || list[0].Parts[1].Image.Size != 1<<16 {
			t.Errorf("%+v, %v", c, err)
		}
	}
	if got, err := s.Image(t.Context(), alice, sum); err != nil || string(got) != data {
		t.Errorf("the image has %d bytes, %v", len(got), err)
	}
}

func FuzzImport(f *testing.F) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, text := range map[string]string{
		"mmserve-conversations.json": `{"format":"mmserve-conversations","version":1}`,
		"conversations/a.jsonl":      "{}\n{\"role\":\"user\",\"parts\":[{\"text\":\"x\"}]}",
	} {
		file, err := w.Create(name)
		if err == nil {
			_, err = file.Write([]byte(text))
		}
		if err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	ring, err := conversation.NewRing(make([]byte, conversation.MasterKeyBytes))
	if err != nil {
		f.Fatal(err)
	}
	files := conversation.SQLiteFiles{Data: filepath.Join(f.TempDir(), "x")}
	s, err := conversation.OpenSQLite(f.Context(), files, conversation.Options{Master: ring})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		ids, _ := conversation.Import(t.Context(), s, alice, r)
		for _, id := range ids {
			if err := s.Delete(t.Context(), alice, id); err != nil {
				t.Error(err)
			}
		}
	})
}
