package conversation_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
)

// postgres is a PostgreSQL server of a test's own, on a unix socket.
type postgres struct {
	dir  string
	bin  string
	user *syscall.Credential // it does not run as root
}

// startPostgres starts a server that ends with the test. The test is skipped where there is no PostgreSQL.
func startPostgres(t *testing.T) *postgres {
	t.Helper()
	p := &postgres{bin: postgresBin(t)}
	dir, err := os.MkdirTemp("", "mmserve-pg") // t.TempDir is closed to others, and its path too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is left is the system's to remove
	p.dir = dir
	if os.Getuid() == 0 {
		p.becomeUser(t)
	}
	p.run(t, "initdb", "-D", filepath.Join(dir, "data"), "-U", "mmserve", "-A", "trust", "-E", "UTF8", "--no-locale")
	p.start(t)
	t.Cleanup(func() { p.run(t, "pg_ctl", "-D", filepath.Join(dir, "data"), "-m", "immediate", "stop") })
	return p
}

// postgresBin is the folder of Debian's or another server's programs.
func postgresBin(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path)
		}
	}
	if list, _ := filepath.Glob("/usr/lib/postgresql/*/bin"); len(list) > 0 {
		return list[len(list)-1]
	}
	t.Skip("no PostgreSQL here: Debian's package postgresql has one")
	return ""
}

func (p *postgres) becomeUser(t *testing.T) {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(p.dir, uid, gid); err != nil {
			t.Skipf("PostgreSQL does not run as root, and its folder cannot be another's: %v", err)
		}
		p.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return
	}
	t.Skip("PostgreSQL does not run as root, and there is no other user")
}

// start starts it without fsync: the machine does not crash in tests.
func (p *postgres) start(t *testing.T) {
	t.Helper()
	p.run(t, "pg_ctl", "-D", filepath.Join(p.dir, "data"), "-l", filepath.Join(p.dir, "log"), "-w", "-t", "60",
		"-o", fmt.Sprintf("-c listen_addresses='' -k %s -c max_connections=60 -c shared_buffers=16MB -c fsync=off", p.dir),
		"start")
}

// run runs one of the server's programs. Its output goes to a file: the server keeps it open.
func (p *postgres) run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := os.CreateTemp(p.dir, name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }() // it is read by its name
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user}
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		t.Fatalf("%s: %v\n%s\n%s", name, err, text, log)
	}
}

// url names a database of the server.
func (p *postgres) url(database string) string {
	return fmt.Sprintf("host=%s user=mmserve dbname=%s sslmode=disable", p.dir, database)
}

// opener opens a store in a database of its own, by name.
func (p *postgres) opener() conversationtest.Opener {
	made := map[string]bool{}
	return func(t *testing.T, name string, o conversation.Options) conversation.Store {
		t.Helper()
		name = strings.ToLower(name)
		if !made[name] {
			p.run(t, "createdb", "-h", p.dir, "-U", "mmserve", name)
			made[name] = true
		}
		s, err := conversation.OpenPostgres(t.Context(), conversation.PostgresURLs{Data: p.url(name)}, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() }) // some tests have closed it
		return s
	}
}

func TestPostgres(t *testing.T) {
	p := startPostgres(t)
	t.Run("Store", func(t *testing.T) { conversationtest.TestStore(t, p.opener()) })
	t.Run("HasNoPlaintext", func(t *testing.T) { testPostgresHasNoPlaintext(t, p) })
	t.Run("Restarts", func(t *testing.T) { testPostgresRestarts(t, p) })
}

// testPostgresRestarts holds that restarts of the database, clean ones and crashes, lose and double nothing while many
// append: every append that was acknowledged is there once, and none fails.
func testPostgresRestarts(t *testing.T, p *postgres) {
	s := p.opener()(t, "restarts", conversation.Options{Master: conversationtest.Ring(t, 1)})
	const writers = 6
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var acked [writers]int
	var total atomic.Int64
	errs := make(chan error, writers)
	of := conversation.Scope{Tenant: "acme"}
	var ids [writers]string
	for w := range writers {
		of := of
		of.Subject = fmt.Sprint(w / 2) // two share a subject
		c, err := s.Create(ctx, of, conversation.New{})
		if err != nil {
			t.Fatal(err)
		}
		ids[w] = c.ID
		wg.Go(func() {
			for ctx.Err() == nil {
				m := []conversation.Message{conversationtest.Say("user", strconv.Itoa(acked[w]))}
				if _, err := s.Append(context.WithoutCancel(ctx), of, c.ID, conversation.Appended{Messages: m}); err != nil {
					errs <- err
					return
				}
				acked[w]++
				total.Add(1)
			}
		})
	}
	for i, mode := range []string{"fast", "immediate", "fast", "immediate"} {
		for before := total.Load(); total.Load() < before+50; {
			select {
			case err := <-errs:
				t.Fatalf("before restart %d: %v", i, err)
			case <-time.After(time.Millisecond):
			}
		}
		p.run(t, "pg_ctl", "-D", filepath.Join(p.dir, "data"), "-m", mode, "stop")
		p.start(t)
	}
	stop()
	wg.Wait()
	close(errs)
	if err := errors.Join(<-errs); err != nil {
		t.Fatal(err)
	}
	for w := range writers {
		of.Subject = fmt.Sprint(w / 2)
		checkCounted(t, s, of, ids[w], acked[w])
	}
	t.Logf("%d appends through 4 restarts", total.Load())
}

// checkCounted holds that a conversation has the messages 0, 1 … n-1, each once.
func checkCounted(t *testing.T, s conversation.Store, of conversation.Scope, id string, n int) {
	t.Helper()
	next := 0
	for {
		_, list, err := s.Get(t.Context(), of, id, uint64(next), 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, m := range list {
			if m.Parts[0].Text != strconv.Itoa(next) || m.Seq != uint64(next+1) {
				t.Fatalf("message %d is %q, want %d", m.Seq, m.Parts[0].Text, next)
			}
			next++
		}
	}
	if next != n {
		t.Errorf("%d messages are there, %d were acknowledged", next, n)
	}
}
