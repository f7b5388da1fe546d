package main

import (
	"bytes"
	"encoding/base64"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// writeMasterKeys writes a file of master keys, each of bytes that are all the same.
func writeMasterKeys(t *testing.T, path string, numbers ...byte) {
	t.Helper()
	var text []byte
	for _, n := range numbers {
		text = append(base64.StdEncoding.AppendEncode(text, bytes.Repeat([]byte{n}, 32)), '\n')
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// talking is a server that keeps conversations in a folder, in a process of its own.
type talking struct {
	*served
	*client.Client
	conversations pb.ConversationServiceClient
}

func startTalking(t *testing.T, dir string) *talking {
	t.Helper()
	s := &talking{served: startServe(t, sockettest.FreeAddress(t), nil,
		"--conversations", "sqlite:"+filepath.Join(dir, "x.db"),
		"--conversation-master-key", "file:"+filepath.Join(dir, "master.key"))}
	s.logged("msg=serving")
	conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s.Client, s.conversations = client.New(conn), pb.NewConversationServiceClient(conn)
	return s
}

// TestConversationOutlivesServers has a conversation of four turns with two images, whose every word is CANARY to find,
// on one server, and on another that is killed in the middle, with its master key changed by SIGHUP before: the answers
// are the same, the turn before is found in the prefix cache, and no file has a word of it.
func TestConversationOutlivesServers(t *testing.T) {
	want := converse(t, t.TempDir(), func(s *talking) *talking { return s })
	dir := t.TempDir()
	keys := filepath.Join(dir, "master.key")
	got := converse(t, dir, func(s *talking) *talking {
		writeMasterKeys(t, keys, 2, 1)
		s.signal(syscall.SIGHUP)
		s.logged("wrapped by the newest master key")
		s.signal(syscall.SIGKILL)
		s.wait(10 * time.Second)
		writeMasterKeys(t, keys, 2)
		return startTalking(t, dir)
	})
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("answer %d is %q, without a restart %q", i, got[i], want[i])
		}
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, word := range []string{"CANARY", got[0], "JFIF"} {
			if bytes.Contains(data, []byte(word)) {
				t.Errorf("%s has %q", d.Name(), word)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// converse has four turns, and calls middle after the second. It gives the answers.
func converse(t *testing.T, dir string, middle func(*talking) *talking) (answers []string) {
	t.Helper()
	writeMasterKeys(t, filepath.Join(dir, "master.key"), 1)
	s := startTalking(t, dir)
	c, err := s.conversations.CreateConversation(t.Context(),
		&pb.CreateConversationRequest{Tenant: "acme", Subject: "CANARY", Title: "CANARY"})
	if err != nil {
		t.Fatal(err)
	}
	for i, parts := range [][]*pb.Part{
		{client.ImageBytes(sample(t, 0)), client.Text("Describe the CANARY image.")},
		{client.Text("Say it again, CANARY.")},
		{client.ImageBytes(sample(t, 1)), client.Text("And this CANARY?")},
		{client.Text("Thanks, CANARY.")},
	} {
		if i == 2 {
			s = middle(s)
		}
		in := client.Chat(client.User(parts...))
		in.Tenant, in.Subject, in.Conversation = "acme", "CANARY", c.GetConversation().GetId()
		in.MaxTokens = proto.Uint32(20)
		r, err := s.Generate(t.Context(), in)
		if err != nil {
			t.Fatalf("turn %d: %v\n%s", i, err, s.log)
		}
		u := r.GetUsage()
		if i%2 == 1 && u.GetCachedTokens() < u.GetPromptTokens()/2 {
			t.Errorf("turn %d: %d of %d tokens of the prompt were cached", i, u.GetCachedTokens(), u.GetPromptTokens())
		}
		answers = append(answers, r.GetText())
	}
	if strings.Contains(s.log.String(), "CANARY") {
		t.Errorf("the log has content: %s", s.log)
	}
	s.signal(syscall.SIGTERM)
	if code, _ := s.wait(10 * time.Second); code != 0 {
		t.Errorf("status %d:\n%s", code, s.log)
	}
	return answers
}

func TestConversationFlags(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.key")
	if err := os.WriteFile(bad, []byte("c2hvcnQ=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := "sqlite:" + filepath.Join(dir, "x.db")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--conversations", "x"}, "--conversation-master-key is missing"},
		{[]string{"--conversations", "mysql:x", "--conversation-master-key", "file:" + bad}, "want sqlite:PATH"},
		{[]string{"--conversations", store, "--conversation-keys", "postgres:x", "--conversation-master-key", "file:" + bad},
			"want sqlite:… as --conversations"},
		{[]string{"--store-responses"}, "--conversations is missing"},
		{[]string{"--conversations", store, "--conversation-master-key", "file:" + bad}, "line 1 is no master key"},
		{[]string{"--conversations", store, "--conversation-master-key", "env:MMSERVE_NO_SUCH"}, "0 master keys"},
		{[]string{"--conversations", store, "--conversation-master-key", "nokms://x"}, "base64key://"},
		{[]string{"--conversations", "postgres:postgres://u:SECRET@[", "--conversation-master-key", "base64key://"},
			"no URL of a PostgreSQL database"},
		{[]string{"--conversations", store, "--conversation-master-key", "file:" + bad, "--conversation-messages", "0"},
			"--conversation-messages 0"},
	} {
		code, _, errs := mmserve(t, append([]string{"serve", "--listen", "127.0.0.1:0", "--admin-address="}, c.args...)...)
		if code == 0 || !strings.Contains(errs, c.want) || strings.Contains(errs, "SECRET") {
			t.Errorf("%v: status %d, %s; want %q", c.args, code, errs, c.want)
		}
	}
}
