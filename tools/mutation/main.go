// Command mutation changes a package's code one place at a time and says which changes none of its tests notices.
//
// The changes: the border of a comparison, a condition's opposite, another arithmetic operator, a number one greater, a
// statement left out. A change that no test can see, because the code does the same with it, is listed with its reason
// in a file beside the tests, testdata/equivalent-mutants.txt: "FILE: FUNCTION: CHANGE — reason" a line.
//
// It is our own because the maintained tools try every change in a copy of the whole repository, ONNX Runtime with it,
// and can neither sample nor go on after a pause: here the compiler reads the one changed file in place of the real
// one.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mutant is a changed place: do changes the syntax tree and undo puts it back.
type mutant struct {
	file, function, change string
	line                   int
	do, undo               func()
}

func (m mutant) String() string { return m.file + ": " + m.function + ": " + m.change }

func main() {
	root := flag.String("C", ".", "the repository's root")
	sample := flag.Int("n", 0, "how many changes to try, drawn at random; 0 for all")
	seed := flag.Uint64("seed", 1, "of the draw")
	budget := flag.Duration("budget", 0, "stop after this time; 0 for never")
	skip := flag.Int("skip", 0, "leave out the first of the draw, to go on where a run stopped")
	args := flag.String("args", "-short -failfast", "of go test")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: mutation [flags] PACKAGE")
		os.Exit(2)
	}
	if err := os.Chdir(*root); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
	r := &runner{dir: filepath.Clean(flag.Arg(0)), args: strings.Fields(*args), budget: *budget}
	if err := r.run(*sample, *skip, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

type runner struct {
	dir    string
	args   []string
	budget time.Duration

	fset    *token.FileSet
	files   map[string]*ast.File
	mutants []mutant
	limit   time.Duration // for one run of the tests
}

func (r *runner) run(sample, skip int, seed uint64) error {
	if err := r.parse(); err != nil {
		return err
	}
	equivalent, err := readEquivalent(filepath.Join(r.dir, "testdata", "equivalent-mutants.txt"))
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(r.mutants), func(i, j int) { r.mutants[i], r.mutants[j] = r.mutants[j], r.mutants[i] })
	all := len(r.mutants)
	if sample > 0 {
		r.mutants = r.mutants[:min(sample, all)]
	}
	began := time.Now()
	if err := r.setLimit(); err != nil {
		return err
	}
	tried, killed, same := 0, 0, 0
	for i, m := range r.mutants {
		if i < skip {
			continue
		}
		if r.budget > 0 && time.Since(began) > r.budget {
			fmt.Printf("time is up: go on with -skip %d\n", i)
			break
		}
		if equivalent[m.String()] {
			same++
			continue
		}
		text, err := r.mutated(m)
		if err != nil {
			return err
		}
		noticed, why := r.test(m.file, text, r.limit)
		if noticed && strings.Contains(why, "[build failed]") {
			continue // not a program
		}
		if tried++; noticed {
			killed++
			continue
		}
		fmt.Printf("survives: %s (line %d)\n", m, m.line)
	}
	fmt.Printf("%s: %d changes, %d tried, %d killed, %d listed as equivalent\n", r.dir, all, tried, killed, same)
	return nil
}

// setLimit runs the tests as they are, and once more to see how long they take when what they need is built.
func (r *runner) setLimit() error {
	if noticed, why := r.test("", nil, 10*time.Minute); noticed {
		return errors.New("the tests fail as it is: " + why)
	}
	began := time.Now()
	warm := &runner{dir: r.dir, args: append(slices.Clone(r.args), "-count=1")}
	if noticed, why := warm.test("", nil, 10*time.Minute); noticed {
		return errors.New("the tests fail the second time: " + why)
	}
	r.limit = 10*time.Second + 8*time.Since(began)
	return nil
}

// test says whether the tests notice text in place of a file, and the end of what they print.
func (r *runner) test(file string, text []byte, limit time.Duration) (noticed bool, why string) {
	args := append([]string{"test"}, r.args...)
	if file != "" {
		dir, err := os.MkdirTemp("", "mutation")
		if err != nil {
			return false, err.Error()
		}
		defer os.RemoveAll(dir)
		from, err := filepath.Abs(filepath.Join(r.dir, file))
		if err != nil {
			return false, err.Error()
		}
		to, overlay := filepath.Join(dir, file), filepath.Join(dir, "overlay.json")
		content, err := json.Marshal(map[string]map[string]string{"Replace": {from: to}})
		if err := errors.Join(err, os.WriteFile(to, text, 0o600), os.WriteFile(overlay, content, 0o600)); err != nil {
			return false, err.Error()
		}
		args = append(args, "-overlay", overlay)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args = append(args, "-vet=off", "-timeout", limit.String(), "./"+filepath.ToSlash(r.dir))
	out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	return err != nil, string(out[max(0, len(out)-2000):])
}

func (r *runner) mutated(m mutant) ([]byte, error) {
	m.do()
	defer m.undo()
	var b bytes.Buffer
	err := (&printer.Config{Mode: printer.UseSpaces | printer.TabIndent, Tabwidth: 8}).Fprint(&b, r.fset, r.files[m.file])
	return b.Bytes(), err
}

// parse finds the places of the package's files, tests and generated ones left out.
func (r *runner) parse() error {
	names, err := filepath.Glob(filepath.Join(r.dir, "*.go"))
	if err != nil {
		return err
	}
	r.fset, r.files = token.NewFileSet(), map[string]*ast.File{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(r.fset, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(f) {
			continue
		}
		file := filepath.Base(name)
		r.files[file] = f
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				r.find(file, fn)
			}
		}
	}
	if len(r.mutants) == 0 {
		return fmt.Errorf("%s: nothing to change", r.dir)
	}
	return nil
}

var operators = map[token.Token][]token.Token{
	token.LSS: {token.LEQ}, token.LEQ: {token.LSS}, token.GTR: {token.GEQ}, token.GEQ: {token.GTR},
	token.EQL: {token.NEQ}, token.NEQ: {token.EQL}, token.LAND: {token.LOR}, token.LOR: {token.LAND},
	token.ADD: {token.SUB}, token.SUB: {token.ADD}, token.MUL: {token.QUO}, token.QUO: {token.MUL},
	token.REM: {token.MUL},
}

// find lists the changes of a function.
func (r *runner) find(file string, fn *ast.FuncDecl) {
	add := func(at ast.Node, change string, do, undo func()) {
		r.mutants = append(r.mutants, mutant{file, fn.Name.Name, change, r.fset.Position(at.Pos()).Line, do, undo})
	}
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			for _, op := range operators[n.Op] {
				was := n.Op
				add(n, r.text(n)+" with "+op.String(), func() { n.Op = op }, func() { n.Op = was })
			}
		case *ast.BasicLit:
			if v, err := strconv.Atoi(n.Value); err == nil && n.Kind == token.INT {
				was := n.Value
				add(n, was+" is one more", func() { n.Value = strconv.Itoa(v + 1) }, func() { n.Value = was })
			}
		case *ast.IfStmt:
			was := n.Cond
			add(n, "not ("+r.text(was)+")", func() { n.Cond = &ast.UnaryExpr{Op: token.NOT, X: &ast.ParenExpr{X: was}} },
				func() { n.Cond = was })
		case *ast.BlockStmt:
			r.findStatements(n, add)
		}
		return true
	})
}

// findStatements lists the statements of a block that can be left out.
func (r *runner) findStatements(b *ast.BlockStmt, add func(at ast.Node, change string, do, undo func())) {
	for i, s := range b.List {
		switch s := s.(type) {
		case *ast.ExprStmt, *ast.IncDecStmt, *ast.DeferStmt:
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				continue
			}
		default:
			continue
		}
		add(s, "without "+r.text(s), func() { b.List[i] = &ast.EmptyStmt{Semicolon: s.Pos()} }, func() { b.List[i] = s })
	}
}

// text is a node on one line.
func (r *runner) text(n ast.Node) string {
	var b bytes.Buffer
	if err := printer.Fprint(&b, r.fset, n); err != nil {
		return err.Error()
	}
	s := strings.Join(strings.Fields(b.String()), " ")
	if runes := []rune(s); len(runes) > 80 {
		s = string(runes[:80]) + "…"
	}
	return s
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
