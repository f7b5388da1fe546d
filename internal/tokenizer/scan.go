package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The expressions that most models cut words with. They have scanners here, which are
// several times as fast as the general matcher; every rune is in a match.
const (
	gpt2Pattern   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

var scanners = map[string]scanner{
	gpt2Pattern:   scanGPT2,
	llama3Pattern: func(s string, i int) int { return scanLlama3(s, i, 3) },
	qwen2Pattern:  func(s string, i int) int { return scanLlama3(s, i, 1) },
}

// class is what the patterns tell apart.
type class uint8

const (
	other class = iota
	letter
	number
	space
)

var asciiClass = func() (table [utf8.RuneSelf]class) {
	for r := range rune(utf8.RuneSelf) {
		table[r] = classOf(r)
	}
	return table
}()

func classOf(r rune) class {
	switch {
	case unicode.IsLetter(r):
		return letter
	case unicode.IsNumber(r):
		return number
	case unicode.IsSpace(r):
		return space
	}
	return other
}

// classAt returns the class and the length of the rune at s[i]; length 0 at the end.
func classAt(s string, i int) (class, int) {
	if i >= len(s) {
		return other, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return asciiClass[c], 1
	}
	r, size := utf8.DecodeRuneInString(s[i:])
	return classOf(r), size
}

// run returns where the run of class c at s[i] ends.
func run(s string, i int, c class) int {
	for {
		d, size := classAt(s, i)
		if size == 0 || d != c {
			return i
		}
		i += size
	}
}

func scanGPT2(s string, i int) int {
	if s[i] == '\'' {
		if n := contraction(s[i+1:]); n > 0 {
			return i + 1 + n
		}
	}
	c, size := classAt(s, i)
	if s[i] == ' ' {
		if next, n := classAt(s, i+1); n > 0 && next != space {
			return run(s, i+1, next)
		}
	}
	if c == space {
		return spaces(s, i)
	}
	return run(s, i+size, c)
}

// contraction returns the length of the s, t, re, ve, m, ll or d that s starts with.
func contraction(s string) int {
	if s == "" {
		return 0
	}
	switch s[0] {
	case 's', 't', 'm', 'd':
		return 1
	case 'r', 'v':
		if len(s) > 1 && s[1] == 'e' {
			return 2
		}
	case 'l':
		if len(s) > 1 && s[1] == 'l' {
			return 2
		}
	}
	return 0
}

// spaces is \s+(?!\S)|\s+ : the last space of a run is left to the word after it, unless
// it is the only one.
func spaces(s string, i int) int {
	end := run(s, i, space)
	if end == len(s) {
		return end
	}
	_, last := utf8.DecodeLastRuneInString(s[i:end])
	if i < end-last {
		return end - last
	}
	return end
}

func scanLlama3(s string, i, digits int) int {
	if s[i] == '\'' {
		if n := foldedContraction(s[i+1:]); n > 0 {
			return i + 1 + n
		}
	}
	c, size := classAt(s, i)
	switch c {
	case letter:
		return run(s, i, letter)
	case number:
		end := i
		for range digits {
			c, size := classAt(s, end)
			if size == 0 || c != number {
				break
			}
			end += size
		}
		return end
	}
	next, n := classAt(s, i+size)
	if n > 0 && next == letter && s[i] != '\r' && s[i] != '\n' {
		return run(s, i+size, letter)
	}
	if c == other || s[i] == ' ' && n > 0 && next == other {
		end := run(s, i+size, other)
		for end < len(s) && (s[end] == '\r' || s[end] == '\n') {
			end++
		}
		return end
	}
	if n := strings.LastIndexAny(s[i:run(s, i, space)], "\r\n"); n >= 0 {
		return i + n + 1
	}
	return spaces(s, i)
}

// foldedContraction is contraction whatever the case; ſ is an s.
func foldedContraction(s string) int {
	if strings.HasPrefix(s, "ſ") {
		return len("ſ")
	}
	if len(s) > 2 {
		s = s[:2]
	}
	var low [2]byte
	for i := range len(s) {
		low[i] = s[i]
		if 'A' <= s[i] && s[i] <= 'Z' {
			low[i] += 'a' - 'A'
		}
	}
	return contraction(string(low[:len(s)]))
}
