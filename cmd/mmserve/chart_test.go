package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// rendered is what a rendering of the chart has for serve.
type rendered struct {
	Kind string
	Data map[string]string
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Args []string
					Env  []struct{ Name, Value string }
				}
			}
		}
	}
}

// The variables and the file that the chart gives to a pod are what serve takes.
func TestServeTakesChart(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "deploy", "helm", "testdata", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".values.yaml") {
			continue
		}
		n++
		t.Run(filepath.Base(file), func(t *testing.T) { takesRendering(t, file) })
	}
	if n < 5 {
		t.Errorf("%d renderings", n)
	}
}

func takesRendering(t *testing.T, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	config := filepath.Join(t.TempDir(), "mmserve.yaml")
	var args []string
	for d := yaml.NewDecoder(f); ; {
		var r rendered
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch r.Kind {
		case "ConfigMap":
			if err := os.WriteFile(config, []byte(r.Data["mmserve.yaml"]), 0o600); err != nil {
				t.Fatal(err)
			}
		case "Deployment":
			c := r.Spec.Template.Spec.Containers[0]
			args = c.Args
			for _, e := range c.Env {
				if strings.HasPrefix(e.Name, "MMSERVE_") {
					t.Setenv(e.Name, e.Value)
				}
			}
		}
	}
	t.Setenv("MMSERVE_CONFIG", config)
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), append(args, "--print-config"), &stdout, &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, stderr.String())
	}
	for _, want := range []string{"listen: :8080", "drain-delay: 5s"} {
		if !strings.Contains(strings.NewReplacer(`"`, "", "'", "").Replace(stdout.String()), want) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}
