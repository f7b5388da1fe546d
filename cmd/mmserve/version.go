package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/mmserve/mmserve/internal/ort"
)

// version is set by the linker.
var version = "devel"

type versionCmd struct {
	JSON bool `name:"json" help:"As JSON, with the commit, the versions of Go and ONNX Runtime, and the platform."`
}

// build is what a program knows of how it was made.
type build struct {
	Version     string `json:"version"`
	Commit      string `json:"commit,omitempty"`
	CommitTime  string `json:"commit_time,omitempty"` // RFC 3339
	Modified    bool   `json:"modified"`              // files differed from the commit
	Go          string `json:"go"`
	ONNXRuntime string `json:"onnxruntime"` // the version that it is made for
	OS          string `json:"os"`
	Arch        string `json:"arch"`
}

// Run prints the version.
func (v versionCmd) Run(out io.Writer) error {
	if !v.JSON {
		_, err := fmt.Fprintln(out, "mmserve", programVersion())
		return err
	}
	b := build{
		Version: programVersion(), Go: runtime.Version(), ONNXRuntime: ort.Version, OS: runtime.GOOS, Arch: runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.read(info.Settings)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(b)
}

// read takes what the Go command noted of the repository.
func (b *build) read(settings []debug.BuildSetting) {
	for _, s := range settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.CommitTime = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
}

// programVersion is what the linker was told, or what Go knows of the module.
func programVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok && version == "devel" && b.Main.Version != "" {
		return b.Main.Version
	}
	return version
}
