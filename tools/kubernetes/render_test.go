package kubernetes_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

var rewrite = flag.Bool("rewrite", false, "write renderings of the chart anew")

var definitionsOf = schema.GroupVersionResource{
	Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
}

// values is the file of a variant's values.
func values(name string) string {
	return filepath.Join(root, "deploy", "helm", "testdata", name+".values.yaml")
}

// Renderings of the chart are as they lie in deploy/, where the main module's tests read them without helm. That of the
// secure variant is the kustomize base.
func TestRenderings(t *testing.T) {
	files, err := filepath.Glob(values("*"))
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".values.yaml")
		out, err := exec.CommandContext(t.Context(), program(t, "helm"), "template", "mmserve", chart,
			"-n", "mmserve", "-f", file).Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden := strings.TrimSuffix(file, ".values.yaml") + ".yaml"
		compare(t, golden, out)
		if name == "secure" {
			compare(t, filepath.Join(root, "deploy", "kustomize", "base", "mmserve.yaml"), out)
		}
	}
}

func compare(t *testing.T, path string, want []byte) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the chart renders (%v): make manifests writes it anew", path, err)
	}
}

// build runs kustomize.
func build(t *testing.T, dir string) []byte {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// build1 has the objects of one kind.
func build1(t *testing.T, dir, kind string) (list []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range parse(t, build(t, dir)) {
		if o.GetKind() == kind {
			list = append(list, o)
		}
	}
	if len(list) == 0 {
		t.Fatalf("%s has no %s", dir, kind)
	}
	return list
}
