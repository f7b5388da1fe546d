package main

import (
	"bytes"
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/ort"
)

func TestVersion(t *testing.T) {
	var out, stderr bytes.Buffer
	if status := run(t.Context(), []string{"version"}, &out, &stderr); status != 0 ||
		out.String() != "mmserve "+programVersion()+"\n" {
		t.Errorf("status %d, %q, %q", status, out.String(), stderr.String())
	}
	out.Reset()
	if status := run(t.Context(), []string{"version", "--json"}, &out, &stderr); status != 0 {
		t.Fatalf("status %d, %q", status, stderr.String())
	}
	d := json.NewDecoder(&out)
	d.DisallowUnknownFields()
	var b build
	if err := d.Decode(&b); err != nil {
		t.Fatal(err)
	}
	if b.Version != programVersion() || b.Go != runtime.Version() || b.ONNXRuntime != ort.Version ||
		b.OS+"/"+b.Arch != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("%+v", b)
	}
}

func TestBuildReadsRepository(t *testing.T) {
	var b build
	b.read([]debug.BuildSetting{
		{Key: "vcs.revision", Value: strings.Repeat("a", 40)}, {Key: "vcs.time", Value: "2026-11-30T20:00:00Z"},
		{Key: "vcs.modified", Value: "true"}, {Key: "CGO_ENABLED", Value: "1"},
	})
	if b.Commit != strings.Repeat("a", 40) || b.CommitTime != "2026-11-30T20:00:00Z" || !b.Modified {
		t.Errorf("%+v", b)
	}
}
