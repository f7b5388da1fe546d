package server_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/server/web"
)

func withPlayground(o server.Options) server.Options {
	o.HTTP.Playground = true
	return o
}

// The playground's files come with a policy that leaves scripts of others no way in, are kept by browsers for as long
// as they are the same, and come compressed to whom that suits.
func TestPlaygroundFiles(t *testing.T) {
	f, _ := tinyHTTP(t, withPlayground(server.Options{}))
	for path, file := range web.Files() {
		resp := f.do(t, http.MethodGet, path, nil, "Accept-Encoding", "br, gzip;q=0.5")
		zipped := read(t, resp)
		for name, want := range map[string]string{
			"Content-Security-Policy": web.Policy, "Content-Type": file.Type, "X-Content-Type-Options": "nosniff",
			"Content-Encoding": "gzip", "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer", "Etag": file.ETag,
			"X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := resp.Header.Get(name); resp.StatusCode != 200 || got != want {
				t.Errorf("%s: %d, %s: %q, want %q", path, resp.StatusCode, name, got, want)
			}
		}
		if !slices.Contains(resp.Header.Values("Vary"), "Accept-Encoding") {
			t.Errorf("%s: Vary %q", path, resp.Header.Values("Vary"))
		}
		r, err := gzip.NewReader(bytes.NewReader(zipped))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(r); err != nil || !bytes.Equal(body, file.Body) {
			t.Errorf("%s: another body, %v", path, err)
		}
		for _, encoding := range []string{"identity", "gzip;q=0", "gzip; q=0.000", "deflate, br", ""} {
			plain := f.do(t, http.MethodGet, path, nil, "Accept-Encoding", encoding)
			if body := read(t, plain); plain.Header.Get("Content-Encoding") != "" || !bytes.Equal(body, file.Body) {
				t.Errorf("%s: Accept-Encoding %q gets %q", path, encoding, plain.Header.Get("Content-Encoding"))
			}
		}
		again := f.do(t, http.MethodGet, path, nil, "If-None-Match", `"x", `+resp.Header.Get("Etag"))
		if body := read(t, again); again.StatusCode != http.StatusNotModified || len(body) != 0 {
			t.Errorf("%s again: %d with %d bytes", path, again.StatusCode, len(body))
		}
		changed := f.do(t, http.MethodGet, path, nil, "If-None-Match", `"x"`)
		if read(t, changed); changed.StatusCode != http.StatusOK {
			t.Errorf("%s changed: %d", path, changed.StatusCode)
		}
		head := f.do(t, http.MethodHead, path, nil)
		if body := read(t, head); head.StatusCode != 200 || len(body) != 0 {
			t.Errorf("HEAD %s: %d with %d bytes", path, head.StatusCode, len(body))
		}
		wantError(t, f.post(t, path, "{}"), http.StatusMethodNotAllowed, "")
	}
	for _, path := range []string{"/index.html", "/web/", "/web/index.html", "/web/x.js", "/web/../http.go", "/x"} {
		wantError(t, f.do(t, http.MethodGet, path, nil), http.StatusNotFound, "")
	}
}

// Without the playground there is nothing of it.
func TestNoPlayground(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for path := range web.Files() {
		wantError(t, f.do(t, http.MethodGet, path, nil), http.StatusNotFound, "")
	}
	for _, path := range []string{"/web/server.json", "/web/engine"} {
		wantError(t, f.do(t, http.MethodGet, path, nil), http.StatusNotFound, "")
	}
	wantError(t, f.post(t, "/v1/chat/completions", chatBody(""), "Origin", f.url), http.StatusForbidden, "")
}

// Scripts of the playground may ask, those of other sites may not, and a name that was made to resolve to this machine
// does not make a page the server's own.
func TestPlaygroundOrigin(t *testing.T) {
	f, _ := tinyHTTP(t, withPlayground(server.Options{}))
	_, port, _ := strings.Cut(f.addr, ":")
	for _, c := range []struct {
		origin, host string
		status       int
	}{
		{f.url, f.addr, 200}, {"http://localhost:" + port, "localhost:" + port, 200},
		{"http://localhost:" + port, f.addr, 403}, {"http://evil.example", f.addr, 403}, {"null", f.addr, 403},
		{"http://evil.example", "evil.example", 403}, {"http://127.0.0.1:1", f.addr, 403}, {f.addr, f.addr, 403},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/v1/chat/completions",
			strings.NewReader(chatBody("")))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Origin", c.origin)
		resp, err := f.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if body := read(t, resp); resp.StatusCode != c.status {
			t.Errorf("a page of %s asks %s: %d, want %d: %s", c.origin, c.host, resp.StatusCode, c.status, body)
		}
	}
}

// The page is for everybody; what it asks for needs a key, and the engine's view an admin's.
func TestPlaygroundRoles(t *testing.T) {
	k := newKeyFile(t, entries...)
	keys := map[auth.Role]string{
		0: "", auth.ReadOnly: k.key["monitor"], auth.User: k.key["acme"], auth.Admin: k.key["root"],
	}
	f, _ := tinyHTTP(t, withPlayground(server.Options{Auth: k.auth}))
	for path, least := range map[string]auth.Role{
		"/": 0, "/web/app.js": 0, "/web/server.json": auth.ReadOnly, "/v1/models": auth.ReadOnly, "/web/engine": auth.Admin,
	} {
		for role, key := range keys {
			want := http.StatusOK
			if role < least {
				want = http.StatusForbidden
				if role == 0 {
					want = http.StatusUnauthorized
				}
			}
			headers := []string{}
			if key != "" {
				headers = []string{"Authorization", "Bearer " + key}
			}
			resp := f.do(t, http.MethodHead, path, nil, headers...)
			if read(t, resp); resp.StatusCode != want {
				t.Errorf("%s for role %v: %d, want %d", path, role, resp.StatusCode, want)
			}
		}
	}
}

// The engine's view is a stream of snapshots, which ends when the server stops.
func TestPlaygroundEngine(t *testing.T) {
	f, _ := tinyHTTP(t, withPlayground(server.Options{}))
	read(t, f.post(t, "/v1/chat/completions", chatBody(`,"max_tokens":4`)))
	resp := f.do(t, http.MethodGet, "/web/engine", nil)
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("type %q", got)
	}
	for i := range 2 {
		var v struct {
			Engines []struct {
				Model           string
				Slots           int
				Waiting         []int
				GeneratedTokens int `json:"generated_tokens"`
			}
		}
		data := nextEvent(t, resp.Body)
		if err := json.Unmarshal([]byte(data), &v); err != nil || len(v.Engines) != 1 || v.Engines[0].Slots == 0 ||
			len(v.Engines[0].Waiting) != 3 || v.Engines[0].GeneratedTokens != 4 {
			t.Errorf("snapshot %d: %s, %v", i, data, err)
		}
	}
	f.stop()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("at the end: %v", err)
	}
}

// nextEvent is the data of the next server-sent event.
func nextEvent(t *testing.T, r io.Reader) string {
	t.Helper()
	var text []byte
	for b := make([]byte, 1); !bytes.HasSuffix(text, []byte("\n\n")); text = append(text, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("after %q: %v", text, err)
		}
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(text), "data: "), "\n\n")
}

// Timings come to whom asks, whole and streamed, and scores with choices that ask for them.
func TestHTTPExtras(t *testing.T) {
	f := startHash(t, server.Options{})
	for more, want := range map[string]struct {
		timings bool
		scores  int
	}{
		``: {}, `,"timings":false`: {}, `,"timings":true`: {timings: true},
		`,"structured_outputs":{"choice":["red","blue"],"choice_scores":true}`:      {scores: 2},
		`,"guided_choice":["a","b","c"],"guided_choice_scores":true,"timings":true`: {true, 3},
		`,"structured_outputs":{"choice":["red","blue"]}`:                           {},
	} {
		check := func(how string, e openai.Extras) {
			t.Helper()
			sum := float32(0)
			for _, s := range e.ChoiceScores {
				sum += s
			}
			if (e.Timings != nil) != want.timings || len(e.ChoiceScores) != want.scores ||
				want.scores > 0 && (sum < 0.99 || sum > 1.01) {
				t.Errorf("%s, %s: %+v, %v", more, how, e.Timings, e.ChoiceScores)
			}
			if l := e.Timings; l != nil && !(l.FirstToken > 0 && l.FirstToken <= l.Total) {
				t.Errorf("%s, %s: %+v", more, how, e.Timings)
			}
		}
		var whole openai.ChatCompletion
		if err := json.Unmarshal(read(t, f.post(t, "/v1/chat/completions", chatBody(more))), &whole); err != nil {
			t.Fatal(err)
		}
		check("whole", whole.Extras)
		list := events(t, f.post(t, "/v1/chat/completions", chatBody(more+`,"stream":true`)))
		var last openai.ChatCompletion
		if err := json.Unmarshal([]byte(list[len(list)-2]), &last); err != nil {
			t.Fatal(err)
		}
		check("streamed", last.Extras)
		if want.scores == 0 {
			var text openai.TextCompletion
			if err := json.Unmarshal(read(t, f.post(t, "/v1/completions", `{"prompt":"a"`+more+`}`)), &text); err != nil {
				t.Fatal(err)
			}
			check("text", text.Extras)
		}
	}
	wantError(t, f.post(t, "/v1/chat/completions", chatBody(`,"structured_outputs":{"regex":"a","choice_scores":true}`)),
		400, "structured_outputs.choice_scores")
	wantError(t, f.post(t, "/v1/chat/completions", chatBody(`,"timings":1`)), 400, "timings")
}
