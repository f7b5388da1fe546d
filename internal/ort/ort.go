// Package ort is mmserve's view of ONNX Runtime: where the library is, sessions over graphs built in memory,
// and tensors in memory that Go's collector does not own. It stands on github.com/yalue/onnxruntime_go.
//
// An execution provider is one file, provider_<name>.go.
package ort

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

// Version is the release of ONNX Runtime that this build is made for.
const Version = "1.30.0"

// ErrNoLibrary says that no ONNX Runtime library was found. Its text tells what to run.
var ErrNoLibrary = errors.New("the ONNX Runtime library was not found: run `make ort` in the repository, or name the file with --ort-lib or MMSERVE_ORT_LIB")

// fileName is what upstream calls the shared library on this system, and platform the folder npm's package keeps it in.
func fileName() (name, platform string) {
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	switch runtime.GOOS {
	case "darwin":
		return "libonnxruntime." + Version + ".dylib", "darwin/" + arch
	case "windows":
		return "onnxruntime.dll", "win32/" + arch
	}
	return "libonnxruntime.so.1", "linux/" + arch
}

// FindLibrary looks for the shared library: the file named by the user (flag or environment, already merged),
// the one beside the executable, as releases have it, the copy fetched into the repository that the executable or the
// working folder lies in, the system's folders.
func FindLibrary(named string) (string, error) {
	if named != "" {
		if st, err := os.Stat(named); err != nil || st.IsDir() {
			return "", fmt.Errorf("no ONNX Runtime library at %s: --ort-lib and MMSERVE_ORT_LIB take the path of the shared library file", named)
		}
		return filepath.Abs(named)
	}
	name, platform := fileName()
	fetched := filepath.Join("node_modules", "onnxruntime-node", "bin", "napi-v6", filepath.FromSlash(platform), name)
	var starts []string
	if exe, err := os.Executable(); err == nil {
		if exe, err = filepath.EvalSymlinks(exe); err == nil {
			if p := filepath.Join(filepath.Dir(exe), name); isFile(p) {
				return p, nil
			}
			starts = append(starts, filepath.Dir(exe))
		}
	}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	for _, dir := range starts {
		for {
			if p := filepath.Join(dir, fetched); isFile(p) {
				return p, nil
			}
			up := filepath.Dir(dir)
			if up == dir {
				break
			}
			dir = up
		}
	}
	for _, dir := range append(filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")), systemDirs...) {
		for _, n := range []string{name, "libonnxruntime.so"} {
			if p := filepath.Join(dir, n); isFile(p) {
				return p, nil
			}
		}
	}
	return "", ErrNoLibrary
}

// machines are Go's architectures as Debian's library folders are named by them.
var machines = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

var systemDirs = []string{
	"/usr/local/lib", "/usr/lib/" + machines[runtime.GOARCH] + "-linux-gnu", "/usr/lib", "/opt/homebrew/lib",
	"/opt/onnxruntime/lib",
}

func isFile(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}

var start struct {
	sync.Mutex
	path string
}

// Start loads the library and creates the process's environment. Calling it again with the same path does
// nothing; a second library in one process is refused.
func Start(library string) error {
	start.Lock()
	defer start.Unlock()
	switch start.path {
	case library:
		return nil
	case "":
	default:
		return fmt.Errorf("ONNX Runtime is already loaded from %s", start.path)
	}
	// Upstream's builds otherwise keep a device id and an event database in the user's cache folder, and upload.
	// The variable is read when the environment is created; the call below stops what a build may start regardless.
	if err := os.Setenv("ORT_DISABLE_TELEMETRY", "1"); err != nil {
		return err
	}
	ort.SetSharedLibraryPath(library)
	if err := ort.InitializeEnvironment(ort.WithLogLevelError()); err != nil {
		return fmt.Errorf("load ONNX Runtime from %s: %w (mmserve needs version %s)", library, err, Version)
	}
	if err := ort.DisableTelemetry(); err != nil {
		return err
	}
	start.path = library
	return nil
}

// Loaded gives the version and path of the library in use.
func Loaded() (version, path string) {
	start.Lock()
	defer start.Unlock()
	if start.path == "" {
		return "", ""
	}
	return ort.GetVersion(), start.path
}
