package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/auth"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// Every path of HTTP wants a role, but for health; errors are in OpenAI's shape.
func TestHTTPAuth(t *testing.T) {
	k := newKeyFile(t, entries...)
	f, _ := tinyHTTP(t, server.Options{Auth: k.auth})
	chat := func(h ...string) *http.Response { return f.post(t, "/v1/chat/completions", chatBody(""), h...) }
	respond := func(h ...string) *http.Response { return f.post(t, "/v1/responses", responseBody(""), h...) }
	get := func(path string) func(...string) *http.Response {
		return func(h ...string) *http.Response { return f.do(t, http.MethodGet, path, nil, h...) }
	}
	for name, c := range map[string]struct {
		ask    func(...string) *http.Response
		header []string
		status int
	}{
		"chat":                   {chat, []string{"Authorization", "Bearer " + k.key["acme"]}, 200},
		"chat, api-key":          {chat, []string{"Api-Key", k.key["acme"]}, 200},
		"chat, reader":           {chat, []string{"Authorization", "Bearer " + k.key["monitor"]}, 403},
		"chat, none":             {chat, nil, 401},
		"chat, another kind":     {chat, []string{"Authorization", "Basic " + k.key["acme"]}, 401},
		"chat, two":              {chat, []string{"Authorization", "Bearer " + k.key["acme"], "Api-Key", k.key["blue"]}, 401},
		"chat, of other models":  {chat, []string{"Authorization", "Bearer " + k.key["narrow"]}, 403},
		"response":               {respond, []string{"Authorization", "Bearer " + k.key["acme"]}, 200},
		"response, reader":       {respond, []string{"Authorization", "Bearer " + k.key["monitor"]}, 403},
		"response, none":         {respond, nil, 401},
		"models":                 {get("/v1/models"), []string{"Authorization", "Bearer " + k.key["monitor"]}, 200},
		"models, none":           {get("/v1/models"), nil, 401},
		"one model, none":        {get("/v1/models/x"), nil, 401},
		"beside models, reader":  {get("/v1/modelsx"), []string{"Authorization", "Bearer " + k.key["monitor"]}, 403},
		"health":                 {get("/health"), nil, 200},
		"beside health":          {get("/healthx"), nil, 401},
		"a way around by dots":   {get("/health/../v1/models"), nil, 401},
		"a way around by slash":  {get("//v1/models"), nil, 401},
		"no path, none":          {get("/none"), nil, 401},
		"no path, with a key":    {get("/none"), []string{"Authorization", "Bearer " + k.key["acme"]}, 404},
		"upper case":             {get("/HEALTH"), nil, 401},
		"encoded":                {get("/v1%2Fmodels"), nil, 401},
		"a longer way to health": {get("/health/x"), nil, 401},
	} {
		resp := c.ask(c.header...)
		if c.status == 200 {
			if body := read(t, resp); resp.StatusCode != 200 {
				t.Errorf("%s: %d %s", name, resp.StatusCode, body)
			}
			continue
		}
		param := ""
		if name == "chat, of other models" {
			param = "model"
		}
		message := wantError(t, resp, c.status, param)
		if challenge := resp.Header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(challenge, "Bearer") {
			t.Errorf("%s: WWW-Authenticate: %q", name, challenge)
		}
		if strings.Contains(message, "mms_") {
			t.Errorf("%s: the error quotes a key", name)
		}
	}
	if log := f.log.String(); strings.Contains(log, "mms_") || !strings.Contains(log, "tenant=acme credential=acme") {
		t.Errorf("the log has a key, or not whose it was:\n%s", log)
	}
}

// A browser asks before it sends a credential, and is told that it may.
func TestHTTPAuthPreflight(t *testing.T) {
	k := newKeyFile(t, entries...)
	f, _ := tinyHTTP(t, server.Options{
		Auth: k.auth, HTTP: server.HTTPOptions{AllowOrigins: []string{"https://a.example"}},
	})
	resp := f.do(t, http.MethodOptions, "/v1/chat/completions", nil,
		"Origin", "https://a.example", "Access-Control-Request-Method", "POST")
	read(t, resp)
	allowed := resp.Header.Get("Access-Control-Allow-Headers")
	if resp.StatusCode != 204 || !strings.Contains(allowed, "Authorization") {
		t.Errorf("%d, %q", resp.StatusCode, allowed)
	}
}

// Who has no credential is refused before the body has come.
func TestHTTPUnauthenticatedBeforeTheBody(t *testing.T) {
	k := newKeyFile(t, entries...)
	f, _ := tinyHTTP(t, server.Options{Auth: k.auth})
	began := time.Now()
	resp, err := f.raw(t, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+
		"Content-Length: 60000000\r\n\r\n{")
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 401 || !resp.Close || time.Since(began) > 10*time.Second {
		t.Errorf("%d after %v, closed: %t", resp.StatusCode, time.Since(began), resp.Close)
	}
}

// What one tenant uploaded, another neither uses nor finds, whatever tenant it names.
func TestMediaOfCredential(t *testing.T) {
	k := newKeyFile(t, entries...)
	f, c, _ := withMedia(t, server.Options{Auth: k.auth})
	data := pngFile(64)
	as := func(id string) metadata.MD { return metadata.Pairs("authorization", "Bearer "+k.key[id]) }
	upload := func(id, tenant string) error {
		stream, err := c.UploadMedia(metadata.NewOutgoingContext(t.Context(), as(id)))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range pieces(&pb.UploadMediaHeader{Tenant: tenant}, data, 50) {
			if stream.Send(m) != nil {
				break
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	wantCode(t, "a reader uploads", upload("monitor", ""), codes.PermissionDenied)
	wantCode(t, "nobody uploads", upload("", ""), codes.Unauthenticated)
	checkViolation(t, upload("acme", "blue"), "header.tenant", "want none, or the credential's own")
	if err := upload("acme", ""); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"acme": true, "blue": false, "narrow": true} {
		ctx := metadata.NewOutgoingContext(t.Context(), as(id))
		list, err := c.HasMedia(ctx, &pb.HasMediaRequest{Digests: []string{digestOf(data)}})
		if err != nil || list.GetMedia()[0].GetPresent() != want {
			t.Errorf("%s finds %v, %v; want it: %t", id, list, err, want)
		}
	}
	blue := metadata.NewOutgoingContext(t.Context(), as("blue"))
	_, err := c.HasMedia(blue, &pb.HasMediaRequest{Tenant: "acme", Digests: []string{digestOf(data)}})
	checkViolation(t, err, "tenant", "want none, or the credential's own")
	in := showing(&pb.Image{Digest: digestOf(data)})
	for id, want := range map[string]codes.Code{
		"": codes.Unauthenticated, "monitor": codes.PermissionDenied, "blue": codes.OK,
	} {
		ctx := metadata.NewOutgoingContext(t.Context(), as(id))
		out, err := c.DeleteMedia(ctx, &pb.DeleteMediaRequest{Digest: digestOf(data)})
		wantCode(t, id+" deletes", err, want)
		if out.GetExisted() {
			t.Errorf("%q deletes another tenant's", id)
		}
	}
	_, err = c.DeleteMedia(blue, &pb.DeleteMediaRequest{Tenant: "acme", Digest: digestOf(data)})
	checkViolation(t, err, "tenant", "want none, or the credential's own")
	_, err = f.Generate(blue, in)
	wantCode(t, "another tenant's digest", err, codes.NotFound)
	_, err = f.Generate(metadata.NewOutgoingContext(t.Context(), as("acme")), in)
	wantCode(t, "its own", err, codes.OK)
}

// The rate of a tenant is that of its credential, over all its keys.
func TestQuotaOfCredential(t *testing.T) {
	two := auth.Entry{ID: "acme-2", Tenant: "acme", Role: auth.User}
	k := newKeyFile(t, append([]auth.Entry{two}, entries...)...)
	one, rate := serving.Count(1), 0.01
	quotas := newQuotas(t, serving.QuotaConfig{Default: serving.Quota{RequestsPerSecond: &rate, Burst: &one}})
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: k.auth, Quotas: quotas})
	for i, id := range []string{"acme", "acme-2", "blue"} {
		_, err := f.Generate(bearer(t.Context(), k.key[id]), client.Prompt(client.Text("red")))
		want := codes.OK
		if i == 1 {
			want = codes.ResourceExhausted
		}
		wantCode(t, id, err, want)
	}
}

// A key with models sees these alone, and the first of them is its default.
func TestModelsOfCredential(t *testing.T) {
	r := serving.NewRegistry(serving.RegistryOptions{
		Config: serving.Config{Pace: "0s,0s", Logger: slog.New(slog.DiscardHandler)},
	})
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	for _, name := range []string{"a", "b", "c"} {
		if _, err := r.Load(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	const body = `{"messages":[{"role":"user","content":"Hello"}],"max_tokens":2%s}`
	key := func(id string, models ...string) auth.Entry {
		return auth.Entry{ID: id, Tenant: "t", Role: auth.User, Models: models}
	}
	k := newKeyFile(t, key("all"), key("two", "c", "b"), key("none", "d"))
	f := startHTTP(t, nil, nil, server.Options{Auth: k.auth})
	f.server.Attach(r)
	for id, want := range map[string]string{"all": "a b c", "two": "b c", "none": ""} {
		header, ctx := []string{"Authorization", "Bearer " + k.key[id]}, bearer(t.Context(), k.key[id])
		first, _, _ := strings.Cut(want, " ")
		var list struct{ Data []struct{ ID string } }
		var tags struct{ Models []struct{ Name string } }
		var got [3][]string
		if err := json.Unmarshal(read(t, f.do(t, "GET", "/v1/models", nil, header...)), &list); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(read(t, f.do(t, "GET", "/api/tags", nil, header...)), &tags); err != nil {
			t.Fatal(err)
		}
		models, err := f.grpc.Models(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Data {
			got[0] = append(got[0], m.ID)
		}
		for _, m := range tags.Models {
			got[1] = append(got[1], strings.TrimSuffix(m.Name, ":latest"))
		}
		for _, m := range models {
			got[2] = append(got[2], m.GetName())
		}
		for _, names := range got {
			if strings.Join(names, " ") != want {
				t.Errorf("%s sees %v, want %s", id, got, want)
			}
		}
		resp := f.post(t, "/v1/chat/completions", fmt.Sprintf(body, ""), header...)
		var answer struct{ Model string }
		if first == "" {
			wantError(t, resp, 403, "model")
		} else if err := json.Unmarshal(read(t, resp), &answer); err != nil || answer.Model != first {
			t.Errorf("%s: a request without model: %d from %q, %v; want %s", id, resp.StatusCode, answer.Model, err, first)
		}
	}
	header := []string{"Authorization", "Bearer " + k.key["two"]}
	wantError(t, f.do(t, "GET", "/v1/models/a", nil, header...), 404, "")
	wantError(t, f.post(t, "/v1/chat/completions", fmt.Sprintf(body, `,"model":"a"`), header...), 403, "model")
	_, err := f.grpc.ServerInfo(bearer(t.Context(), k.key["none"]))
	wantCode(t, "a server without a model for the key", err, codes.PermissionDenied)
}
