// Package docker_test holds the Dockerfiles to what can be checked without Docker.
package docker_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/ort"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// step is an instruction: its name in capitals and the rest, on one line.
type step struct{ name, args string }

// steps are the instructions of a Dockerfile.
func steps(t *testing.T, path string) (list []step) {
	t.Helper()
	text := regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(read(t, path), "")
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		if name, args, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			list = append(list, step{strings.ToUpper(name), strings.Join(strings.Fields(args), " ")})
		}
	}
	if len(list) < 10 || list[0].name != "FROM" {
		t.Fatalf("%s: %v", path, list)
	}
	return list
}

func TestDockerfiles(t *testing.T) {
	files, err := filepath.Glob("Dockerfile*")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	known := flags(t)
	tag := regexp.MustCompile(`^[a-z0-9.-]+\.[a-z]+/[a-z0-9/._-]+:([a-z0-9._-]*[0-9][a-z0-9._-]*|nonroot)$`)
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			var stages []string
			last := map[string]step{}
			for _, s := range steps(t, file) {
				switch s.name {
				case "FROM":
					clear(last)
					image, as, _ := strings.Cut(strings.TrimPrefix(s.args, "--platform=$BUILDPLATFORM "), " AS ")
					if !tag.MatchString(image) {
						t.Errorf("FROM %s: want registry/name:version", image)
					}
					stages = append(stages, as)
				case "COPY":
					source := strings.Fields(s.args)
					for len(source) > 0 && strings.HasPrefix(source[0], "--") {
						if from, ok := strings.CutPrefix(source[0], "--from="); ok && !slices.Contains(stages, from) {
							t.Errorf("COPY %s: no such stage", s.args)
						} else if ok {
							source = nil
							break
						}
						source = source[1:]
					}
					for _, name := range source[:max(0, len(source)-1)] {
						if _, err := os.Stat(filepath.Join(root, name)); err != nil {
							t.Errorf("COPY %s: %v", s.args, err)
						}
					}
				case "ADD":
					t.Errorf("ADD %s: COPY what is here, fetch and check what is not", s.args)
				case "ENV", "ARG":
					if regexp.MustCompile(`(?i)(pass|secret|token|credential|_key)`).MatchString(s.args) {
						t.Errorf("%s %s: it stays in the image", s.name, s.args)
					}
					for _, m := range regexp.MustCompile(`\bMMSERVE_\w+`).FindAllString(s.args, -1) {
						if !slices.Contains(known, m) {
							t.Errorf("ENV %s: no flag reads it", m)
						}
					}
				}
				last[s.name] = s
			}
			// Of the stage that becomes the image:
			if last["USER"].args != "65532:65532" {
				t.Errorf("USER %q: want a number that is not 0, which Kubernetes can check", last["USER"].args)
			}
			for _, name := range []string{"ENTRYPOINT", "CMD"} {
				var argv []string
				if err := json.Unmarshal([]byte(last[name].args), &argv); err != nil || len(argv) != 1 {
					t.Errorf("%s %s: want one word, without a shell", name, last[name].args)
				}
			}
			if !strings.Contains(last["HEALTHCHECK"].args, `CMD ["/usr/local/bin/mmserve", "health"]`) {
				t.Errorf("HEALTHCHECK %s", last["HEALTHCHECK"].args)
			}
		})
	}
}

// flags lists the environment variables that the command reads.
func flags(t *testing.T) (list []string) {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(root, "cmd", "mmserve", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range sources {
		for _, m := range regexp.MustCompile(`env:"(MMSERVE_\w+)"`).FindAllStringSubmatch(read(t, f), -1) {
			list = append(list, m[1])
		}
	}
	if len(list) < 20 {
		t.Fatalf("found %d only", len(list))
	}
	return list
}

// The images hold the version of ONNX Runtime that mmserve is made for, and check what they fetch.
func TestRuntimeIsPinned(t *testing.T) {
	text := read(t, "Dockerfile.cuda")
	for _, want := range []string{
		"\nARG ORT_VERSION=" + ort.Version + "\n",
		"sha256sum -c",
		"onnxruntime-linux-x64-gpu_cuda13-",
		"cuda:13.", "-cudnn-runtime-",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if !regexp.MustCompile(`\nARG ORT_SHA256=[0-9a-f]{64}\n`).MatchString(text) {
		t.Error("no SHA-256")
	}
	if !strings.Contains(read(t, filepath.Join(root, "package.json")), `"onnxruntime-node": "`+ort.Version+`"`) {
		t.Error("package.json has another version")
	}
	if !strings.Contains(read(t, "Dockerfile"), "npm ci --ignore-scripts") {
		t.Error("the lock file is not held to")
	}
}
