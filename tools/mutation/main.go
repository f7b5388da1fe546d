// Command mutation changes a package's code one place at a time and says which changes none of its tests notices.
//
// The changes: the border of a comparison, a condition's opposite, another arithmetic operator, a number one greater, a
// statement left out. A change that no test can see, because the code does the same with it, is listed with its reason
// in a file beside the tests, testdata/equivalent-mutants.txt: "FILE: FUNCTION: CHANGE — reason" a line.
//
// One test binary has all changes, and the environment says which of them is made. Each test runs once to see which
// places it gets to; a change is then tried with the tests that get there.
//
// It is our own because the maintained tools build every change in a copy of the whole repository, ONNX Runtime with
// it, run all tests for each, and can neither sample nor go on after a pause.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	root := flag.String("C", ".", "the repository's root")
	sample := flag.Int("n", 0, "how many changes to try, drawn at random; 0 for all")
	seed := flag.Uint64("seed", 1, "of the draw")
	budget := flag.Duration("budget", 0, "stop after this time; 0 for never")
	skip := flag.Int("skip", 0, "leave out the first of the draw, to go on where a run stopped")
	files := flag.String("files", "", "change only files whose names match this pattern of path.Match")
	run := flag.String("run", "", "use only tests that match this regular expression")
	leave := flag.String("leave", "", "leave out tests that match this regular expression: the slow ones")
	with := flag.String("with", "", "use the tests of this package, too: an edge's see what the package below it does")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: mutation [flags] PACKAGE")
		os.Exit(2)
	}
	err := os.Chdir(*root)
	if err == nil {
		r := &runner{
			dir: filepath.Clean(flag.Arg(0)), with: *with, files: *files, run: *run, leave: *leave, budget: *budget,
		}
		err = r.try(*sample, *skip, *seed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

type runner struct {
	dir, with, files, run, leave string
	budget                       time.Duration

	mutants []*mutant
}

// try makes the changes of a draw one after the other and prints what survives.
func (r *runner) try(sample, skip int, seed uint64) error {
	began := time.Now()
	p, err := parse(r.dir, r.files)
	if err != nil {
		return err
	}
	r.mutants = p.mutants
	equivalent, err := readEquivalent(filepath.Join(r.dir, "testdata", "equivalent-mutants.txt"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutation")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i, of := range slices.Compact([]string{r.dir, cmp.Or(r.with, r.dir)}) {
		b := binary{filepath.Join(dir, filepath.Base(of)+".test"), filepath.Clean(of), i}
		if err := r.build(p, dir, b); err != nil {
			return err
		}
		if err := r.reach(dir, b); err != nil {
			return err
		}
	}
	fmt.Printf("%s: built and reached after %s\n", r.dir, time.Since(began).Round(time.Second))
	rng := rand.New(rand.NewPCG(seed, 0))
	draw := slices.Clone(r.mutants)
	rng.Shuffle(len(draw), func(i, j int) { draw[i], draw[j] = draw[j], draw[i] })
	if sample > 0 {
		draw = draw[:min(sample, len(draw))]
	}
	tried, killed, same := 0, 0, 0
	for i, m := range draw[min(skip, len(draw)):] {
		if r.budget > 0 && time.Since(began) > r.budget {
			fmt.Printf("time is up: go on with -skip %d\n", skip+i)
			break
		}
		switch {
		case m.broken:
			continue // not a program
		case equivalent[m.String()]:
			same++
			continue
		}
		tried++
		if r.killed(m) {
			killed++
			continue
		}
		how := ""
		if len(m.tests) == 0 {
			how = ": no test gets there"
		}
		fmt.Printf("survives: %s (line %d)%s\n", m, m.line, how)
	}
	fmt.Printf("%s: %d changes, %d tried, %d killed, %d listed as equivalent\n",
		r.dir, len(r.mutants), tried, killed, same)
	return nil
}

// readEquivalent reads the list of changes that change nothing. Each has to have a reason.
func readEquivalent(name string) (map[string]bool, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		change, reason, ok := strings.Cut(line, " — ")
		if !ok || reason == "" || slices.Contains([]string{"", ":"}, change) {
			return nil, fmt.Errorf("%s: %q has no reason", name, line)
		}
		list[change] = true
	}
	return list, nil
}
