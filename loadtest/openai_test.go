package loadtest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	_ "image/jpeg"
	_ "image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// TestOpenAI talks to a server that answers as OpenAI's reference describes: chunks, one with the finish reason, one
// with the usage and no choices, [DONE]; with the comments and the first chunk without text that servers also send.
func TestOpenAI(t *testing.T) {
	images, err := loadtest.DrawImages(1, "32x16", 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Model    string
			Messages []struct {
				Role    string
				Content []struct {
					Type, Text string
					ImageURL   struct{ URL string } `json:"image_url"`
				}
			}
			MaxTokens     int `json:"max_tokens"`
			Stream        bool
			StreamOptions struct {
				IncludeUsage bool `json:"include_usage"`
			} `json:"stream_options"`
			User      string
			IgnoreEOS bool `json:"ignore_eos"`
		}
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &in); err != nil || r.URL.Path != "/v1/chat/completions" ||
			r.Method != http.MethodPost {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		c := in.Messages[0].Content
		if in.Model != "m" || in.MaxTokens != 8 || !in.Stream || !in.StreamOptions.IncludeUsage || in.User != "acme" ||
			!in.IgnoreEOS || r.Header.Get("Authorization") != "Bearer k" ||
			r.Header.Get("X-Request-Id") == "" || in.Messages[0].Role != "user" || len(c) != 2 || c[0].Type != "image_url" ||
			c[1].Type != "text" || len(strings.Fields(c[1].Text)) != 4 {
			t.Errorf("request %s", body)
		}
		data, found := strings.CutPrefix(c[0].ImageURL.URL, "data:image/png;base64,")
		raw, err := base64.StdEncoding.DecodeString(data)
		if img, _, bad := image.Decode(bytes.NewReader(raw)); !found || err != nil || bad != nil || img.Bounds().Dx() != 32 {
			t.Errorf("image: %v, %v", err, bad)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, ": ping\n\n", `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`, "\n\n")
		for range 3 {
			fmt.Fprint(w, `data:{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}`, "\r\n\r\n")
			w.(http.Flusher).Flush()
		}
		fmt.Fprint(w, `data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}`, "\n\n")
		fmt.Fprint(w, "event: x\n", `data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5,"image_tokens":16}}}`, "\n\ndata: [DONE]\n\n")
	}))
	defer srv.Close()
	target, err := loadtest.NewOpenAI(srv.URL+"/v1/", "m", http.Header{"Authorization": {"Bearer k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	mix := text(t)
	mix.ImageShare, mix.ImagesEach, mix.Images, mix.Fresh = 1, lengths(t, "1"), images, true
	mix.Tenants, mix.IgnoreEOS = []loadtest.Weighted{{Value: "acme", Weight: 1}}, true
	r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 100, 100*time.Millisecond),
		Mix: mix})
	if err != nil {
		t.Fatal(err)
	}
	s := loadtest.Summarize(r.Samples, 0, time.Minute, loadtest.SLO{})
	if s.OK != 10 || s.TTFT.Count != 10 || s.ITL.Count != 20 || s.TPOT.Count != 10 {
		t.Errorf("%+v", s)
	}
	if k := s.Tokens; k.Prompt != 200 || k.Image != 160 || k.Cached != 50 || k.Output != 30 || k.OutputReceived != 30 ||
		k.Mismatches != 0 {
		t.Errorf("tokens %+v", k)
	}
}

func TestOpenAIErrors(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		body, want string
	}{
		"refused":      {429, "slow down", "HTTP_429"},
		"broken off":   {200, "data: {}\n\n", "TRUNCATED"},
		"not JSON":     {200, "data: x\n\n", "TRANSPORT"},
		"late failure": {200, `data: {"error": {"message": "oom"}}` + "\n\n", "HTTP_500"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		target, err := loadtest.NewOpenAI(srv.URL, "m", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target,
			Schedule: loadtest.Schedule{Trace: []loadtest.Arrival{{Prompt: 3, Output: 1}}}, Mix: text(t)})
		if err != nil || len(r.Samples) != 1 || r.Samples[0].Code != c.want || r.Samples[0].Error == "" {
			t.Errorf("%s: %+v, %v; want %s", name, r.Samples, err, c.want)
		}
		target.Close()
		srv.Close()
	}
	for _, bad := range []string{"", "localhost:8080", "ftp://x", "http://"} {
		if _, err := loadtest.NewOpenAI(bad, "m", nil, nil); err == nil {
			t.Errorf("%q is an address", bad)
		}
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n"))
	f.Add([]byte(": c\r\ndata: {\"usage\":{\"prompt_tokens\":1}}\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		n := 0
		_, err := loadtest.ReadEvents(bytes.NewReader(stream), func(int) { n++ })
		if err == nil && !bytes.Contains(stream, []byte("[DONE]")) {
			t.Error("a stream without an end ended")
		}
	})
}
