package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// An operator sees who is quarantined and lifts it through the admin listener, which needs its key; both are in the
// audit log.
func TestQuarantineIsLifted(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log, key := filepath.Join(dir, "audit.jsonl"), "0123456789abcdef0123"
	policy := write("policy.yaml", "default: {hate: {input: block}}\nabuse: {appeal: Write to us., host: {refusals: 1}}\n")
	address := sockettest.FreeAddress(t)
	c := startServer(t, "--policy-file", policy, "--audit-log", log, "--admin-address", address,
		"--admin-key-file", write("admin.key", key))
	ask := func(text string) codes.Code {
		_, err := c.Generate(t.Context(), client.Chat(client.User(client.Text(text))))
		return status.Code(err)
	}
	for range 2 {
		if code := ask("We should kill all the jews"); code != codes.InvalidArgument {
			t.Fatalf("a blocked prompt ends with %v", code)
		}
	}
	if code := ask("What is this?"); code != codes.PermissionDenied {
		t.Fatalf("a quarantined caller gets %v", code)
	}
	operator := func(method, path, key string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	code, body := operator("GET", "/abuse", key)
	m := regexp.MustCompile(`"reference":"(\w+)","scope":"host","host":"127.0.0.1","signal":"refusals"`).
		FindStringSubmatch(body)
	if code != 200 || m == nil {
		t.Fatalf("GET /abuse: %d: %s", code, body)
	}
	code, _ = operator("DELETE", "/abuse/"+m[1], "another key, which is wrong")
	if code != 401 || ask("What is this?") != codes.PermissionDenied {
		t.Errorf("without the key %d", code)
	}
	if code, body := operator("DELETE", "/abuse/"+m[1], key); code != 200 || !strings.Contains(body, `"quarantines":[]`) {
		t.Errorf("DELETE /abuse: %d: %s", code, body)
	}
	if code, _ := operator("DELETE", "/abuse/"+m[1], key); code != 404 {
		t.Errorf("a second DELETE /abuse: %d", code)
	}
	if code := ask("What is this?"); code != codes.OK {
		t.Errorf("after that %v", code)
	}
	lines, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"kind":"abuse","action":"quarantine","decision":"refusals"`, `"kind":"abuse","action":"lift","decision":"allowed"`,
		`"kind":"admin","action":"DELETE /abuse","decision":"OK","credential":"admin-key"`, `"object":"` + m[1] + `"`,
		`"stage":"policy/input","category":"hate","action":"block"`,
	} {
		if !strings.Contains(string(lines), want) {
			t.Errorf("the audit log has no %s:\n%s", want, lines)
		}
	}
}
