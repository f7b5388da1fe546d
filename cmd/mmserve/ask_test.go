//go:build linux || darwin

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/racetest"
)

func TestAsk(t *testing.T) {
	racetest.Without(t)
	dir := t.TempDir()
	image := filepath.Join(dir, "star.png")
	schema := filepath.Join(dir, "schema.json")
	for name, data := range map[string][]byte{
		image: sample(t, 0), schema: []byte(`{"type":"object","properties":{"n":{"enum":[1,2]}},"required":["n"],"additionalProperties":false}`),
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := serveAt(t)
	for _, server := range [][]string{nil, {"--server", addr}} {
		ask := func(args ...string) (int, string, string) {
			return mmserve(t, append(append([]string{"ask"}, server...), args...)...)
		}
		code, out, errs := ask("Describe the image.", image)
		if code != 0 || out != "A large orange star in the center on a beige background.\n" || errs != "" {
			t.Errorf("%v: status %d: %q %q", server, code, out, errs)
		}
		code, out, _ = ask("Describe the image.", image, "--json")
		var answer struct {
			Text  string `json:"text"`
			Usage struct {
				ImageTokens int `json:"image_tokens"`
			}
		}
		if err := json.Unmarshal([]byte(out), &answer); code != 0 || err != nil || answer.Usage.ImageTokens != 16 ||
			strings.Count(out, "\n") != 1 {
			t.Errorf("%v: status %d: %v: %s", server, code, err, out)
		}
		if code, out, _ = ask("Which?", image, "--choices", "green,blue"); code != 0 || out != "green\n" && out != "blue\n" {
			t.Errorf("%v: choices: status %d: %q", server, code, out)
		}
		if code, out, _ = ask("Which?", image, "--schema", schema); code != 0 || !json.Valid([]byte(out)) {
			t.Errorf("%v: schema: status %d: %q", server, code, out)
		}
	}
}

// What stands on standard error, and where questions and images come from, as scripts have it.
func TestAskByPipe(t *testing.T) {
	racetest.Without(t)
	dir := star(t)
	data, err := os.ReadFile(filepath.Join(dir, "my star.png"))
	if err != nil {
		t.Fatal(err)
	}
	short := "cut after 2 tokens: --max-tokens allows more"
	for _, c := range []struct {
		in, errs string
		args     []string
	}{
		{"", short, []string{"Describe the image.", "my star.png", "--max-tokens", "2"}},
		{"", "", []string{"Describe the image.", "my star.png", "--max-tokens", "2", "--quiet"}},
		{"Describe the image.\n", "", []string{"-", "my star.png"}},
		{string(data), "", []string{"Describe the image.", "-"}},
	} {
		code, out, errs := commandBy(t, dir, c.in, append([]string{"ask"}, c.args...)...)
		if code != 0 || out == "" || strings.Contains(out, "\x1b") || c.errs == "" && errs != "" ||
			!strings.Contains(errs, c.errs) {
			t.Errorf("%v: status %d: %q %q", c.args, code, out, errs)
		}
	}
}
