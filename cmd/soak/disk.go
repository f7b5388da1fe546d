package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// fullDisk starts a server whose cache for int8 weights is on a full disk, a tmpfs of 256 KiB in a mount namespace of
// its own. It has to end by itself, saying what is wrong, and leave no half-written file. Where that cannot be mounted,
// a file stands where the folder should be.
func fullDisk(ctx context.Context, bin, addr, dir string) (text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err.Error(), err
	}
	small := filepath.Join(dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		return err.Error(), err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", `mount -t tmpfs -o size=256k soak "$1" || exit 99; "$2" serve --listen "$3" --precision int8 --cache-dir "$1"; status=$?; echo "left: $(ls -A "$1")"; exit $status`, "sh", small, bin, addr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	how := "a full tmpfs"
	if code := exitCode(err); code == 99 || code == -1 {
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err.Error(), err
		}
		how = "a folder that cannot be made"
		out, err = exec.CommandContext(ctx, bin, "serve", "--listen", addr, "--precision", "int8", "--cache-dir",
			filepath.Join(file, "x")).CombinedOutput()
		out = append(out, "left: \n"...)
	}
	text = string(out)
	said := lastLine(text, "mmserve: ")
	switch {
	case exitCode(err) != 1:
		return fmt.Sprintf("%s: %v: %s", how, err, text), errors.New("not refused")
	case !strings.Contains(text, "left: \n"):
		return fmt.Sprintf("%s: %s", how, lastLine(text, "left: ")), errors.New("files left")
	case !strings.Contains(said, "no space left") && !strings.Contains(said, "not a directory"):
		return fmt.Sprintf("%s: %s", how, said), errors.New("no reason")
	}
	return fmt.Sprintf("%s: the server does not start, leaves no file, and says %q", how, said), nil
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func lastLine(text, prefix string) (last string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			last = strings.TrimSpace(line)
		}
	}
	return last
}
