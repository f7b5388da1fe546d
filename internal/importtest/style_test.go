package importtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	mostLines        = 80  // of a function
	mostLinesCommand = 60  // of a function in cmd/
	mostColumns      = 120 // of a line, in characters
	literalColumns   = 20  // what a string literal counts at most: it cannot be broken everywhere
)

// longFunctions lists functions that are still above the limit. It may only shrink.
var longFunctions = map[string]bool{}

const self = "internal/importtest/style_test.go"

// picture matches the word that names nothing here: the field says image.
var picture = regexp.MustCompile(`(?i)\bpictures?\b|Picture|picture[A-Z]`)

// TestFunctionsAreShort holds the length of functions.
func TestFunctionsAreShort(t *testing.T) {
	seen := map[string]bool{}
	eachParsed(t, func(path string, src []byte, fset *token.FileSet, f *ast.File) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		most := mostLines
		if under(path, "cmd") {
			most = mostLinesCommand
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
			name := path + " " + fn.Name.Name
			switch {
			case lines > most && !longFunctions[name]:
				t.Errorf("%s: function %s has %d lines, at most %d", path, fn.Name.Name, lines, most)
			case lines > most:
				seen[name] = true
			}
		}
	})
	for name := range longFunctions {
		if !seen[name] {
			t.Logf("longFunctions lists %s, which is gone or short now: leave it out", name)
		}
	}
}

// TestLinesAreShort holds the length of lines. The inner lines of a raw string are what they are.
func TestLinesAreShort(t *testing.T) {
	eachParsed(t, func(path string, src []byte, _ *token.FileSet, _ *ast.File) {
		if long := longLinesOf(src); len(long) > 0 {
			t.Errorf("%s: lines %v are longer than %d characters", path, long, mostColumns)
		}
	})
}

// longLinesOf returns the numbers of the lines that are too long, from 1.
func longLinesOf(src []byte) (long []int) {
	lines := strings.Split(string(src), "\n")
	less := make([]int, len(lines)) // how many characters of a line do not count
	file := token.NewFileSet().AddFile("", -1, len(src))
	var s scanner.Scanner
	s.Init(file, src, nil, 0)
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			break
		}
		if tok != token.STRING {
			continue
		}
		first := file.Line(pos) - 1
		last := first + strings.Count(lit, "\n")
		if last == first {
			less[first] += max(0, utf8.RuneCountInString(lit)-literalColumns)
		}
		for at := first; at <= last && last > first; at++ {
			less[at] += mostColumns * mostColumns
		}
	}
	for i, line := range lines {
		if utf8.RuneCountInString(line)-less[i] > mostColumns {
			long = append(long, i+1)
		}
	}
	return long
}

// TestLongLinesAreFound tries the rule itself: what a literal counts, and what the inside of a raw string does.
func TestLongLinesAreFound(t *testing.T) {
	x, text := strings.Repeat("x", mostColumns), `"`+strings.Repeat("x", mostColumns)+`"`
	src := "package p\n\nvar a = 1 // " + x + "\nvar b = " + text + "\nvar c = " + text + " + f(" + x + ")\n" +
		"var d = `\n" + x + x + "\n`\nvar e" + x + " = 1\n"
	if got := longLinesOf([]byte(src)); !slices.Equal(got, []int{3, 5, 9}) {
		t.Errorf("long lines are %v of\n%s", got, src)
	}
}

// TestImageIsTheWord holds that no identifier and no comment has the other word. Text that a user or a model says may.
func TestImageIsTheWord(t *testing.T) {
	eachParsed(t, func(path string, _ []byte, fset *token.FileSet, f *ast.File) {
		for _, group := range f.Comments {
			for _, c := range group.List {
				if word := picture.FindString(c.Text); word != "" && path != self {
					t.Errorf("%s: a comment has %q: say image", fset.Position(c.Pos()), word)
				}
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && path != self && picture.MatchString(id.Name) {
				t.Errorf("%s: identifier %s: say image", fset.Position(id.Pos()), id.Name)
			}
			return true
		})
	})
}

// eachParsed calls do for each file of Go in the repository that is not generated, tests and tools included, with its
// path from the module's root.
func eachParsed(t *testing.T, do func(path string, src []byte, fset *token.FileSet, f *ast.File)) {
	t.Helper()
	files := 0
	err := eachSource(func(path, file string) error {
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(f) || bytes.HasPrefix(src, []byte("//go:build ignore")) {
			return nil
		}
		files++
		do(path, src, fset, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Errorf("looked at %d files only", files)
	}
}
