package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/client"
)

var clients = filepath.Join("..", "..", "clients")

// TestClientPython runs the tests of the client for Python, and its example, against real servers.
func TestClientPython(t *testing.T) {
	python := python()
	if out, err := exec.Command(python, "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		t.Skipf("no Python with grpc (Debian: python3-grpcio): %v: %s", err, lastLine(string(out)))
	}
	c := newForeign(t, "python")
	c.env = append(c.env, "PYTHONDONTWRITEBYTECODE=1")
	c.run(t, python, "-W", "error::SyntaxWarning", "-m", "unittest", "-v")
	c.wantExample(t, python, "example.py")
}

// TestClientNode does the same for Node.
func TestClientNode(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("no node: ", err)
	}
	if _, err := os.Stat(filepath.Join(clients, "node", "node_modules")); err != nil {
		t.Skip("the packages of clients/node are not installed (make sdks): ", err)
	}
	c := newForeign(t, "node")
	c.run(t, "node", "--test")
	c.wantExample(t, "node", "example.mjs")
}

// python is the Python that has grpc, or else the usual one: another may stand before that of the system.
func python() string {
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(name, "-c", "import grpc, google.protobuf").Run() == nil {
			return name
		}
	}
	return "python3"
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// foreign is a client in another language, with its servers.
type foreign struct {
	dir, target, image, want string
	env                      []string
}

// newForeign starts a server with a model, one that has TLS and keys too, and one that has a single place and takes
// 10 ms for a token.
func newForeign(t *testing.T, dir string) *foreign {
	t.Helper()
	image, err := filepath.Abs(filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	c := &foreign{dir: filepath.Join(clients, dir), target: serveAt(t), image: image}
	busy := serveAt(t, "--pace=1ms,10ms", "--slots=1", "--max-waiting=0")
	own, err := client.Dial(c.target)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	out, err := own.Generate(t.Context(),
		client.Chat(client.User(client.ImageBytes(data), client.Text("Describe the image."))))
	if err != nil {
		t.Fatal(err)
	}
	c.want = out.GetText()
	secure, key := startRotating(t)
	c.env = []string{
		"TARGET=" + c.target, "BUSY=" + busy, "IMAGE=" + image, "WANT=" + c.want,
		"SECURE=" + secure.addr, "ROOTS=" + secure.root, "KEY=" + key,
	}
	return c
}

func (c *foreign) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out.String(), errs.String())
	}
	t.Logf("%s", errs.String())
	return out.String()
}

// wantExample runs the example, which prints the answer twice.
func (c *foreign) wantExample(t *testing.T, name, file string) {
	t.Helper()
	if got := c.run(t, name, file, c.target, c.image); got != c.want+"\n"+c.want+"\n" {
		t.Errorf("%s prints %q, want %q twice", file, got, c.want)
	}
}

// The clients have the server's contract: the one for Node a copy, that for Python stubs, which are compared where the
// protoc is that made them.
func TestClientStubs(t *testing.T) {
	read := func(name ...string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(name...))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const contract, own = "mmserve/v1/mmserve.proto", "mmserve/retry.proto"
	node := filepath.Join(clients, "node", "proto")
	if read(node, contract) != read("..", "..", "proto", contract) || read(node, own) != read(clients, "proto", own) {
		t.Errorf("%s is not the contract: make proto copies it", node)
	}
	version, err := exec.Command("protoc", "--version").Output()
	plugin, err2 := exec.LookPath("grpc_python_plugin")
	if err != nil || err2 != nil || !strings.Contains(string(version), " 3.21.") {
		t.Skipf("Python's stubs are made by protoc 3.21 and grpc_python_plugin (Debian: protobuf-compiler-grpc); here: %s %v %v",
			version, err, err2)
	}
	dir := t.TempDir()
	cmd := exec.Command("protoc", "-I", filepath.Join("..", "..", "proto"), "-I", filepath.Join(clients, "proto"),
		"--python_out="+dir, "--grpc_python_out="+dir, "--plugin=protoc-gen-grpc_python="+plugin, contract, own)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"v1/mmserve_pb2.py", "v1/mmserve_pb2_grpc.py", "retry_pb2.py"} {
		if read(clients, "python", "mmserve", name) != read(dir, "mmserve", name) {
			t.Errorf("clients/python/mmserve/%s is not made from the contract: make clients makes it anew", name)
		}
	}
}
