package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/internal/socket/sockettest"
)

// OpenAI's own SDKs, unchanged, have what they ask for: chats with images, streams, schemas, errors, retries, aborts.
func TestOpenAISDK(t *testing.T) {
	image, err := filepath.Abs(filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	base, busy := sockettest.FreeAddress(t), sockettest.FreeAddress(t)
	for _, p := range []*served{
		startServe(t, sockettest.FreeAddress(t), nil, "--http-listen", base),
		startServe(t, sockettest.FreeAddress(t), nil, "--http-listen", busy, "--slots=1", "--max-waiting=0",
			"--pace=1ms,10ms"),
	} {
		p.logged("msg=serving")
	}
	for _, sdk := range []struct{ name, folder, needs string }{
		{"node", "node", filepath.Join("node", "node_modules", "openai", "package.json")},
		{"go", "go", filepath.Join("go", "go.mod")},
	} {
		t.Run(sdk.name, func(t *testing.T) {
			root := filepath.Join("..", "..", "clients", "openai")
			command := map[string][]string{
				"node": {"node", "--test", "sdk.test.mjs"}, "go": {"go", "test", "-count=1", "-vet=off", "./..."},
			}[sdk.name]
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			if sdk.name == "go" && os.Getenv("MMSERVE_TEST_SDKS") == "" {
				t.Skip("it takes minutes to build; make test-sdks has it")
			}
			if _, err := os.Stat(filepath.Join(root, sdk.needs)); err != nil {
				t.Skipf("%v; make sdks installs it", err)
			}
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Dir = filepath.Join(root, sdk.folder)
			cmd.Env = append(os.Environ(), "BASE_URL=http://"+base+"/v1", "BUSY_URL=http://"+busy+"/v1", "IMAGE="+image)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
