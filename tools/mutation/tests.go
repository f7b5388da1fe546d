package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// binary is the tests of a package, which run in its folder; those of order 0 are tried first.
type binary struct {
	path, dir string
	order     int
}

// run is a test and how long it takes by itself.
type run struct {
	binary
	name string
	took time.Duration
}

// switches is the file that is added to the package: it says which change is made.
//
//go:embed switches.go.txt
var switches string

// at matches where the compiler finds something wrong.
var at = regexp.MustCompile(`(?m)^[^\n]*?([\w.-]+\.go):(\d+):`)

// build makes the test binary. Changes on lines that do not compile are left out of it.
func (r *runner) build(p *pkg, dir string, b binary) error {
	for {
		replace := map[string]string{}
		put := func(file, text string) error {
			from, err := filepath.Abs(filepath.Join(r.dir, file))
			replace[from] = filepath.Join(dir, file)
			return errors.Join(err, os.WriteFile(replace[from], []byte(text), 0o600))
		}
		err := put("mutant_switches.go", strings.Replace(switches, "package p", "package "+p.name, 1))
		for file := range p.sources {
			err = errors.Join(err, put(file, string(p.edited(file))))
		}
		content, err2 := json.Marshal(map[string]map[string]string{"Replace": replace})
		overlay := filepath.Join(dir, "overlay.json")
		if err := errors.Join(err, err2, os.WriteFile(overlay, content, 0o600)); err != nil {
			return err
		}
		out, err := exec.Command("go", "test", "-c", "-vet=off", "-gcflags=-e", "-overlay", overlay, "-o", b.path,
			"./"+filepath.ToSlash(b.dir)).CombinedOutput()
		if err == nil {
			return nil
		}
		if left := p.leaveOut(string(out)); left == 0 {
			return fmt.Errorf("go test -c: %w\n%s", err, out)
		}
	}
}

// leaveOut marks the changes on lines that the compiler complains of, and counts them.
func (p *pkg) leaveOut(complaints string) (left int) {
	for _, place := range at.FindAllStringSubmatch(complaints, -1) {
		line, _ := strconv.Atoi(place[2])
		for _, m := range p.mutants {
			if m.file == place[1] && m.line == line && !m.broken {
				m.broken = true
				left++
			}
		}
	}
	return left
}

// reach runs each test by itself to see which places it gets to.
func (r *runner) reach(dir string, b binary) error {
	out, err := b.command(context.Background(), "-test.list", cmp.Or(r.run, ".")).Output()
	if err != nil {
		return fmt.Errorf("listing the tests: %w", err)
	}
	leave := regexp.MustCompile(cmp.Or(r.leave, "^$"))
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		if strings.HasPrefix(name, "Benchmark") || leave.MatchString(name) {
			continue
		}
		t := run{b, name, 0}
		reached := filepath.Join(dir, "reached")
		out, err := t.reach(reached)
		if err != nil { // a busy machine may have been too slow for it
			out, err = t.reach(reached)
		}
		if err != nil {
			fmt.Printf("left out: %s fails as it is: %v\n%s\n", name, err, out)
			continue
		}
		data, err := os.ReadFile(reached)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			id, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || id < 1 || id > len(r.mutants) {
				return fmt.Errorf("%s: the places that %s gets to: %q", reached, name, line)
			}
			m := r.mutants[id-1]
			m.tests = append(m.tests, t)
		}
	}
	return nil
}

// reach runs a test, which writes the places that it gets to into a file.
func (t *run) reach(file string) (out []byte, err error) {
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return nil, err
	}
	began := time.Now()
	cmd := t.command(context.Background(), "-test.short", "-test.run", "^"+t.name+"$")
	cmd.Env = append(os.Environ(), "MUTANT_REACHED="+file)
	out, err = cmd.CombinedOutput()
	t.took = time.Since(began)
	return out, err
}

// cheap is how long the tests take that are tried first.
const cheap = time.Second

// killed says whether one of the tests that get to a place notices its change.
func (r *runner) killed(m *mutant) bool {
	slices.SortFunc(m.tests, func(a, b run) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.took, b.took))
	})
	var names []string
	var sum time.Duration
	for i, t := range m.tests {
		names, sum = append(names, t.name), sum+t.took
		if i < len(m.tests)-1 && m.tests[i+1].binary == t.binary && sum+m.tests[i+1].took < cheap {
			continue
		}
		limit := 10*time.Second + 8*sum
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		cmd := t.command(ctx, "-test.short", "-test.failfast", "-test.run", "^("+strings.Join(names, "|")+")$")
		cmd.Env = append(os.Environ(), "MUTANT="+strconv.Itoa(m.id))
		err := cmd.Run()
		cancel()
		if err != nil {
			return true
		}
		names, sum = nil, 0
	}
	return false
}

func (b binary) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.path, args...)
	cmd.Dir = b.dir
	return cmd
}
