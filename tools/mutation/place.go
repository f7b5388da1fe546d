package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/printer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mutant is a place that can be changed.
type mutant struct {
	id                     int // from 1
	file, function, change string
	line                   int
	broken                 bool  // it does not compile
	tests                  []run // that get there
	edits                  []edit
}

func (m *mutant) String() string { return m.file + ": " + m.function + ": " + m.change }

// edit puts text in the place of n bytes of a file. Of edits at one offset, what closes an expression comes first, then
// operators, then what opens one.
type edit struct {
	offset, n int
	text      string
	rank, seq int
}

const (
	closes = iota
	operator
	opens
)

// pkg is a package of which the places are known.
type pkg struct {
	dir, name string
	fset      *token.FileSet
	info      *types.Info
	types     *types.Package
	sources   map[string][]byte // by name
	mutants   []*mutant
	seq       int
}

// parse finds the places of a package's files, tests and generated ones left out.
func parse(dir, pattern string) (*pkg, error) {
	p := &pkg{dir: dir, fset: token.NewFileSet(), sources: map[string][]byte{}}
	names, exports, err := list(dir)
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, name := range names {
		src, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(p.fset, name, src, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		p.name, p.sources[name], files = f.Name.Name, src, append(files, f)
	}
	open := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	p.info = &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	c := types.Config{Importer: importer.ForCompiler(p.fset, "gc", open)}
	if p.types, err = c.Check(dir, p.fset, files, p.info); err != nil {
		return nil, err
	}
	for _, f := range files {
		name := p.fset.Position(f.Pos()).Filename
		if ok, err := path.Match(cmp.Or(pattern, "*"), name); err != nil || !ok || ast.IsGenerated(f) {
			if err != nil {
				return nil, err
			}
			continue
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				(&finder{pkg: p, file: f, name: name, function: fn.Name.Name}).find(fn.Body)
			}
		}
	}
	if len(p.mutants) == 0 {
		return nil, fmt.Errorf("%s: nothing to change", dir)
	}
	return p, nil
}

// list gives the names of a package's files, and where the compiler's export data of what it imports lies.
func list(dir string) (files []string, exports map[string]string, err error) {
	const fields = "-json=ImportPath,Export,GoFiles,DepOnly"
	cmd := exec.Command("go", "list", "-export", "-deps", fields, "./"+filepath.ToSlash(dir))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w", err)
	}
	exports = map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p struct {
			ImportPath, Export string
			GoFiles            []string
			DepOnly            bool
		}
		if err := d.Decode(&p); err != nil {
			return nil, nil, err
		}
		exports[p.ImportPath] = p.Export
		if !p.DepOnly {
			files = p.GoFiles
		}
	}
	return files, exports, nil
}

// finder lists the changes of a function.
type finder struct {
	*pkg
	file           *ast.File
	name, function string
	stack          []func() // what closes the nodes that are open
}

func (f *finder) find(body *ast.BlockStmt) {
	ast.Inspect(body, func(n ast.Node) bool {
		if n == nil {
			last := len(f.stack) - 1
			f.stack[last]()
			f.stack = f.stack[:last]
			return true
		}
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			return false
		}
		var closing []func()
		switch n := n.(type) {
		case *ast.BinaryExpr:
			closing = f.binary(n)
		case *ast.BasicLit:
			closing = f.number(n)
		case *ast.IfStmt:
			m := f.add(n, "not ("+f.text(n.Cond)+")")
			closing = append(closing, f.around(m, n.Cond, "(", fmt.Sprintf(") != mutantIs(%d)", m.id)))
		case *ast.BlockStmt:
			for i, s := range n.List {
				if removable(s, i == len(n.List)-1) {
					m := f.add(s, "without "+f.text(s))
					closing = append(closing, f.around(m, s, fmt.Sprintf("if !mutantIs(%d) { ", m.id), " }"))
				}
			}
		}
		f.stack = append(f.stack, func() {
			for _, c := range slices.Backward(closing) {
				c()
			}
		})
		return true
	})
}

// removable says whether a statement can be left out. A panic may be what ends a function that returns something.
func removable(s ast.Stmt, last bool) bool {
	switch s := s.(type) {
	case *ast.IncDecStmt, *ast.DeferStmt:
		return true
	case *ast.AssignStmt:
		return s.Tok != token.DEFINE
	case *ast.ExprStmt:
		if call, ok := s.X.(*ast.CallExpr); ok && last {
			fn, ok := call.Fun.(*ast.Ident)
			return !ok || fn.Name != "panic"
		}
		return true
	}
	return false
}

// operators gives for each the one in its place, and the function that is either.
var operators = map[token.Token]struct{ other, function string }{
	token.LSS: {"<=", "mutantLSS"}, token.LEQ: {"<", "mutantLEQ"}, token.GTR: {">=", "mutantGTR"},
	token.GEQ: {">", "mutantGEQ"}, token.EQL: {"!=", ""}, token.NEQ: {"==", ""},
	token.LAND: {"||", "mutantAnd"}, token.LOR: {"&&", "mutantOr"},
	token.ADD: {"-", "mutantAdd"}, token.SUB: {"+", "mutantSub"}, token.MUL: {"/", "mutantMul"},
	token.QUO: {"*", "mutantQuo"}, token.REM: {"*", "mutantRem"},
}

func (f *finder) binary(n *ast.BinaryExpr) []func() {
	op, ok := operators[n.Op]
	if !ok {
		return nil
	}
	of := ""
	switch n.Op {
	case token.ADD, token.SUB, token.MUL, token.QUO, token.REM:
		t := f.info.Types[n].Type
		if b, ok := t.Underlying().(*types.Basic); !ok || b.Info()&types.IsNumeric == 0 {
			return nil
		}
		of = f.typeName(t)
	}
	m := f.add(n, f.text(n)+" with "+op.other)
	switch n.Op {
	case token.EQL, token.NEQ:
		return []func(){f.around(m, n, "((", fmt.Sprintf(") != mutantIs(%d))", m.id))}
	case token.LAND, token.LOR:
		f.edit(m, n.OpPos, len(n.Op.String()), ", func() bool { return (", operator)
		return []func(){f.around(m, n, fmt.Sprintf("%s(%d, ", op.function, m.id), ") })")}
	}
	f.edit(m, n.OpPos, len(n.Op.String()), ",", operator)
	return []func(){f.around(m, n, fmt.Sprintf("%s%s(%d, ", op.function, of, m.id), ")")}
}

func (f *finder) number(n *ast.BasicLit) []func() {
	v, err := strconv.Atoi(n.Value)
	if err != nil || n.Kind != token.INT {
		return nil
	}
	of := f.typeName(f.info.Types[n].Type)
	if of == "" {
		return nil
	}
	m := f.add(n, n.Value+" is one more")
	f.edit(m, n.Pos(), len(n.Value), fmt.Sprintf("mutantInt%s(%d, %d)", of, m.id, v), opens)
	return nil
}

// typeName writes a type as an argument; empty if the file cannot name it.
func (f *finder) typeName(t types.Type) string {
	if t == nil {
		return ""
	}
	ok := true
	name := types.TypeString(types.Default(t), func(p *types.Package) string {
		if p == f.types {
			return ""
		}
		for _, i := range f.file.Imports {
			if at, _ := strconv.Unquote(i.Path.Value); at != p.Path() {
				continue
			}
			if i.Name != nil {
				return i.Name.Name
			}
			return p.Name()
		}
		ok = false
		return ""
	})
	if !ok {
		return ""
	}
	return "[" + name + "]"
}

func (f *finder) add(at ast.Node, change string) *mutant {
	m := &mutant{
		id: len(f.mutants) + 1, file: f.name, function: f.function, change: change,
		line: f.fset.Position(at.Pos()).Line,
	}
	f.mutants = append(f.mutants, m)
	return m
}

// around puts text before a node, and gives what puts text after it once all in it is done.
func (f *finder) around(m *mutant, n ast.Node, before, after string) func() {
	f.edit(m, n.Pos(), 0, before, opens)
	return func() { f.edit(m, n.End(), 0, after, closes) }
}

func (f *finder) edit(m *mutant, at token.Pos, n int, text string, rank int) {
	f.seq++
	m.edits = append(m.edits, edit{f.fset.Position(at).Offset, n, text, rank, f.seq})
}

// text is a node on one line.
func (p *pkg) text(n ast.Node) string {
	var b bytes.Buffer
	if err := printer.Fprint(&b, p.fset, n); err != nil {
		return err.Error()
	}
	s := strings.Join(strings.Fields(b.String()), " ")
	if runes := []rune(s); len(runes) > 80 {
		s = string(runes[:80]) + "…"
	}
	return s
}

// edited is a file with all changes that compile, each made when its mutantIs.
func (p *pkg) edited(file string) []byte {
	var edits []edit
	for _, m := range p.mutants {
		if m.file == file && !m.broken {
			edits = append(edits, m.edits...)
		}
	}
	slices.SortFunc(edits, func(a, b edit) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.rank, b.rank), cmp.Compare(a.seq, b.seq))
	})
	var b bytes.Buffer
	src, at := p.sources[file], 0
	for _, e := range edits {
		b.Write(src[at:e.offset])
		b.WriteString(e.text)
		at = e.offset + e.n
	}
	b.Write(src[at:])
	return b.Bytes()
}
