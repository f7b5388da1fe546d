package server_test

import (
	"testing"

	"github.com/mmserve/mmserve/server"
)

// TestHTTPKeepsConnections holds that a connection stays open after an answer, and after a refusal whose body was read.
func TestHTTPKeepsConnections(t *testing.T) {
	f, _ := tinyHTTP(t, server.Options{})
	for body, status := range map[string]int{chatBody(`,"max_tokens":2`): 200, chatBody(`,"max_tokens":-1`): 400} {
		resp := f.post(t, "/v1/chat/completions", body)
		read(t, resp)
		if resp.StatusCode != status || resp.Close {
			t.Errorf("%s: %d, the connection is closed: %t", body, resp.StatusCode, resp.Close)
		}
	}
}
