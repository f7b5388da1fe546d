package conversation_test

import (
	"bytes"
	"crypto/rand"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
)

var alice = conversation.Scope{Tenant: "tenant-CANARY", Subject: "subject-CANARY"}

// fill gives a subject content in which every text and image has the word CANARY, and changes some of it.
func fill(t *testing.T, s conversation.Store) (id string) {
	t.Helper()
	ctx := t.Context()
	info := conversation.Info{Title: "title-CANARY", Metadata: map[string]string{"CANARY": "CANARY"}}
	c, err := s.Create(ctx, alice, conversation.New{Info: info})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		m := conversationtest.Show(strings.Repeat("text-CANARY ", 200), []byte("image-CANARY"+rand.Text()))
		answer := conversation.Message{Role: "assistant", ToolCalls: []byte(`["CANARY"]`)}
		tool := conversation.Message{Role: "tool", ToolName: "CANARY", ToolCallID: "CANARY"}
		a := conversation.Appended{Messages: []conversation.Message{m, answer, tool}, Key: "CANARY" + rand.Text()}
		if _, err := s.Append(ctx, alice, c.ID, a); err != nil {
			t.Fatal(err)
		}
	}
	m := conversationtest.Say("user", "corrected-CANARY")
	m.Seq = 1
	f, err := s.Fork(ctx, alice, c.ID, 0, conversation.New{Info: info})
	if err := errors.Join(err, s.Correct(ctx, alice, c.ID, m), s.Delete(ctx, alice, f.ID)); err != nil {
		t.Fatal(err)
	}
	return c.ID
}

// searchFiles holds that no file below a folder has any of the words, and that there are some to search.
func searchFiles(t *testing.T, dir string, words ...[]byte) {
	t.Helper()
	total := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		total += len(data)
		for _, w := range words {
			if at := bytes.Index(data, w); at >= 0 {
				t.Errorf("%s has %q at byte %d", filepath.Base(path), w, at)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if total < 100_000 {
		t.Errorf("searched %d bytes only", total)
	}
}

// TestSQLiteHasNoPlaintext searches the files as they are in use, with their logs, and after they were closed.
func TestSQLiteHasNoPlaintext(t *testing.T) {
	dir := t.TempDir()
	master := bytes.Repeat([]byte{7}, conversation.MasterKeyBytes)
	s := openIn(dir)(t, "x", conversation.Options{Master: conversationtest.Ring(t, 7)})
	fill(t, s)
	if wal, err := os.Stat(filepath.Join(dir, "x.db-wal")); err != nil || wal.Size() == 0 {
		t.Fatalf("there is no log to search: %v", err)
	}
	searchFiles(t, dir, []byte("CANARY"), []byte("canary"), []byte("Q0FOQVJZ"), master)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	searchFiles(t, dir, []byte("CANARY"), []byte("Q0FOQVJZ"), master)
	for _, name := range []string{"x.db", "x.db.keys"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want one that only the owner reads", name, st.Mode(), err)
		}
	}
}

// testPostgresHasNoPlaintext searches all that the server writes: tables, write-ahead log, its log, temporary files.
func testPostgresHasNoPlaintext(t *testing.T, p *postgres) {
	fill(t, p.opener()(t, "x", conversation.Options{Master: conversationtest.Ring(t, 7)}))
	p.run(t, "psql", "-h", p.dir, "-U", "mmserve", "-c", "CHECKPOINT", "x")
	searchFiles(t, p.dir, []byte("CANARY"), []byte("Q0FOQVJZ"), bytes.Repeat([]byte{7}, conversation.MasterKeyBytes))
}

// tamper changes a store's data behind its back.
func tamper(t *testing.T, dir, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // the statement has told
	r, err := db.Exec(statement)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		t.Fatalf("changed nothing: %s", statement)
	}
}

// TestMovedRecordsDoNotOpen exchanges records in the data file, each kind with its like, and changes a bit.
func TestMovedRecordsDoNotOpen(t *testing.T) {
	for name, statement := range map[string]string{
		"two messages of a conversation": `UPDATE messages SET body = (SELECT body FROM messages m WHERE
			m.conversation = messages.conversation AND m.seq = 3 - messages.seq) WHERE seq IN (1, 2)`,
		"messages of two conversations": `UPDATE messages SET body = (SELECT body FROM messages m WHERE
			m.conversation <> messages.conversation AND m.seq = messages.seq ORDER BY 1 LIMIT 1)`,
		"a message's number": `UPDATE messages SET seq = seq + 10`,
		"infos": `UPDATE conversations SET info = (SELECT info FROM conversations c WHERE c.id <> conversations.id
			ORDER BY 1 LIMIT 1)`,
		"images":                   `UPDATE images SET body = (SELECT body FROM images i WHERE i.name <> images.name ORDER BY 1 LIMIT 1)`,
		"a conversation's subject": `UPDATE conversations SET subject = (SELECT id FROM subjects s WHERE s.id <> conversations.subject)`,
		"subjects' owners": `CREATE TEMP TABLE o AS SELECT id, owner FROM subjects; UPDATE subjects SET owner = randomblob(32);
			UPDATE subjects SET owner = (SELECT owner FROM o WHERE o.id <> subjects.id)`,
		"a bit of a message": `UPDATE messages SET body = substr(body, 1, 20) || x'00' || substr(body, 22)`,
		"the end of one":     `UPDATE messages SET body = substr(body, 1, length(body) - 1)`,
		"all of one":         `UPDATE messages SET body = x''`,
		"the format":         `UPDATE messages SET body = x'02' || substr(body, 2)`,
	} {
		t.Run(name, func(t *testing.T) { tryTampered(t, statement) })
	}
}

// owned is a conversation with whose it is and what was written there.
type owned struct {
	of   conversation.Scope
	id   string
	list []conversation.Message
}

func tryTampered(t *testing.T, statement string) {
	dir := t.TempDir()
	o := conversation.Options{Master: conversationtest.Ring(t, 7)}
	s := openIn(dir)(t, "x", o)
	var all []owned
	for _, name := range []string{"a", "b"} {
		w := owned{of: conversation.Scope{Tenant: "acme", Subject: name}}
		c, err := s.Create(t.Context(), w.of, conversation.New{Info: conversation.Info{Title: name}})
		if err != nil {
			t.Fatal(err)
		}
		w.id = c.ID
		w.list = []conversation.Message{conversationtest.Show("one"+name, []byte("image 1"+name)),
			conversationtest.Show("two"+name, []byte("image 2"+name))}
		if _, err := s.Append(t.Context(), w.of, c.ID, conversation.Appended{Messages: w.list}); err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	tamper(t, dir, statement)
	s = openIn(dir)(t, "x", o)
	refused := 0
	for _, w := range all {
		err := w.read(t, s)
		if err == nil {
			continue
		}
		if !errors.Is(err, conversation.ErrCorrupt) && !errors.Is(err, conversation.ErrNotFound) {
			t.Errorf("%s: %v", w.of.Subject, err)
		}
		refused++
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	for i, w := range all { // nobody gets at the other's
		w.of = all[1-i].of
		if c, list, err := s.Get(t.Context(), w.of, w.id, 0, 0); err == nil {
			t.Errorf("%s reads the other's conversation: %v, %d messages", w.of.Subject, c.Info, len(list))
		}
	}
}

// read reads all of a conversation. What opens has to be what was written there.
func (w *owned) read(t *testing.T, s conversation.Store) error {
	c, list, err := s.Get(t.Context(), w.of, w.id, 0, 0)
	if err != nil {
		return err
	}
	if c.Info.Title != w.of.Subject {
		t.Errorf("%s reads the title %q", w.of.Subject, c.Info.Title)
	}
	for _, m := range list {
		want := w.list[(m.Seq-1)%2]
		if m.Parts[0].Text != want.Parts[0].Text {
			t.Errorf("%s reads %q as message %d", w.of.Subject, m.Parts[0].Text, m.Seq)
		}
		data, err := s.Image(t.Context(), w.of, m.Parts[1].Image.Digest)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, want.Parts[1].Image.Data) {
			t.Errorf("%s reads the image %q", w.of.Subject, data)
		}
	}
	return nil
}
