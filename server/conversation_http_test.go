package server_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/server"
)

// startResponses is a server that keeps responses, with what its runner was given.
func startResponses(t *testing.T, o server.Options) (*webFixture, *chain) {
	t.Helper()
	o.Conversations = openStore(t, filepath.Join(t.TempDir(), "x.db"), conversation.Limits{})
	o.Media = media.New(media.Options{Bytes: 8 << 20, TTL: time.Hour})
	m, c := tinyVLM(t), newChain(2, 430, 431, 4)
	return startHTTP(t, &m, c, o), c
}

func inputText(text string) string { return fmt.Sprintf(`{"role":"user","content":%q}`, text) }

// respond asks for a response of the subject u, which has to be whole.
func respond(t *testing.T, f *webFixture, input, more string) openai.Response {
	t.Helper()
	resp := f.post(t, "/v1/responses", fmt.Sprintf(`{"input":[%s],"safety_identifier":"u"%s}`, input, more))
	b := read(t, resp)
	if resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	return parseResponse(t, b)
}

// TestHTTPPreviousResponse holds that a response goes on with another one as if the whole was sent: with its image,
// without its instructions, from any of them as often as is asked.
func TestHTTPPreviousResponse(t *testing.T) {
	f, c := startResponses(t, server.Options{})
	image := fmt.Sprintf(`{"role":"user","content":[{"type":"input_image","image_url":%q},`+
		`{"type":"input_text","text":"What is it?"}]}`, dataURL(pngFile(64)))
	first := respond(t, f, image, `,"store":true,"instructions":"Be brief."`)
	if !first.Store || first.PreviousResponse != nil {
		t.Errorf("the first response says store %v, previous %v", first.Store, first.PreviousResponse)
	}
	answer := `{"role":"assistant","content":` + fmt.Sprintf("%q}", first.Output[0].Content[0].Text)
	second := respond(t, f, inputText("And now?"), fmt.Sprintf(`,"store":true,"previous_response_id":%q`, first.ID))
	got := c.lastPrompt()
	respond(t, f, strings.Join([]string{image, answer, inputText("And now?")}, ","), "")
	if !slices.Equal(got, c.lastPrompt()) || *second.PreviousResponse != first.ID {
		t.Errorf("the second prompt is %v, want %v", got, c.lastPrompt())
	}
	// Another one from the first: the conversation forks.
	other := respond(t, f, inputText("Or else?"), fmt.Sprintf(`,"store":true,"previous_response_id":%q,"stream":false`, first.ID))
	third := respond(t, f, inputText("Why?"), fmt.Sprintf(`,"previous_response_id":%q,"instructions":"Shout."`, other.ID))
	got = c.lastPrompt()
	respond(t, f, strings.Join([]string{image, answer, inputText("Or else?"), answer, inputText("Why?")}, ","),
		`,"instructions":"Shout."`)
	if !slices.Equal(got, c.lastPrompt()) || third.Store {
		t.Errorf("the prompt after a fork is %v, want %v", got, c.lastPrompt())
	}
	again := respond(t, f, inputText("Again"), fmt.Sprintf(`,"store":true,"previous_response_id":%q`, second.ID))
	if again.Usage.InputTokens <= second.Usage.InputTokens {
		t.Errorf("the second conversation did not go on: %d tokens after %d", again.Usage.InputTokens, second.Usage.InputTokens)
	}
	for _, id := range []string{third.ID, "resp_never"} { // one that was not kept, one that never was
		body := fmt.Sprintf(`{"input":"x","safety_identifier":"u","previous_response_id":%q}`, id)
		wantError(t, f.post(t, "/v1/responses", body), 404, "previous_response_id")
	}
	body := fmt.Sprintf(`{"input":"x","safety_identifier":"other","previous_response_id":%q}`, first.ID)
	wantError(t, f.post(t, "/v1/responses", body), 404, "previous_response_id")
	wantError(t, f.post(t, "/v1/responses", `{"input":"x","previous_response_id":"chatcmpl-1"}`), 400, "previous_response_id")
	wantError(t, f.post(t, "/v1/responses", `{"input":"x","store":true,"safety_identifier":"a b"}`), 400, "safety_identifier")
}

// TestHTTPStoreResponses holds what is kept of requests that do not say store.
func TestHTTPStoreResponses(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		f, _ := startResponses(t, server.Options{StoreResponses: keeps})
		if r := respond(t, f, inputText("Hi"), ""); r.Store != keeps {
			t.Errorf("a response says store %v, want %v", r.Store, keeps)
		}
		if r := respond(t, f, inputText("Hi"), `,"store":false`); r.Store {
			t.Error("a response that is not to be kept says that it is")
		}
	}
	f, _ := tinyHTTP(t, server.Options{})
	wantError(t, f.post(t, "/v1/responses", `{"input":"x","store":true}`), 400, "store")
}
