package openai

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// A parser of JSON of its own: encoding/json reads each byte of an image several times and copies it twice, takes names
// in any case, and lets a name come twice.

// Bounds of a body.
const (
	maxDepth  = 64      // of lists and objects in each other
	maxValues = 1 << 17 // all together; each takes about 100 bytes while the body is read
)

// kind is what a JSON value is, by its first byte; all numbers have kindNumber.
type kind byte

const (
	kindObject kind = '{'
	kindList   kind = '['
	kindText   kind = '"'
	kindNumber kind = '0'
	kindTrue   kind = 't'
	kindFalse  kind = 'f'
	kindNull   kind = 'n'
)

// String is the kind in the words of errors.
func (k kind) String() string {
	switch k {
	case kindObject:
		return "an object"
	case kindList:
		return "a list"
	case kindText:
		return "a string"
	case kindNumber:
		return "a number"
	case kindNull:
		return "null"
	}
	return "a boolean"
}

// node is a JSON value. It shares the memory of the body.
type node struct {
	kind kind
	raw  []byte // the value as it stands there
	name string // of an object's member
	list []node // a list's values, or an object's members
}

// text is a string's value. raw without escapes is valid UTF-8.
func (n *node) text() string {
	inner := n.raw[1 : len(n.raw)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner)
	}
	var s string
	_ = json.Unmarshal(n.raw, &s) // scan has checked it
	return s
}

// bytes is text without a copy where there are no escapes.
func (n *node) bytes() []byte {
	inner := n.raw[1 : len(n.raw)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return inner
	}
	return []byte(n.text())
}

// member is an object's member of a name; nil where there is none, or null.
func (n *node) member(name string) *node {
	for i := range n.list {
		if m := &n.list[i]; m.name == name {
			if m.kind == kindNull {
				return nil
			}
			return m
		}
	}
	return nil
}

// scanner reads one JSON text (RFC 8259).
type scanner struct {
	in     []byte
	at     int
	values int
	due    int          // where it asks next whether to go on
	over   func() error // why not; nil for go on
	ended  error        // what over said
}

// pollBytes is how much is read between two looks at whether anybody still waits for it.
const pollBytes = 64 << 10

// poll fails once nobody waits any more.
func (s *scanner) poll() error {
	if s.at < s.due {
		return nil
	}
	s.due = s.at + pollBytes
	s.ended = s.over()
	return s.ended
}

// parse reads a body, which is one JSON object. Its error is an *Error that names no parameter, or says why ctx is
// done.
func parse(ctx context.Context, in []byte) (*node, error) {
	if !utf8.Valid(in) {
		return nil, NewError(InvalidRequest, "", CodeInvalidJSON, "the body is not UTF-8")
	}
	s := scanner{in: in, over: func() error { return context.Cause(ctx) }}
	var n node
	err := s.value(&n, 0)
	if s.ended != nil {
		return nil, s.ended
	}
	if s.space(); err == nil && s.at < len(in) {
		err = s.fault("more after the end of the value")
	}
	if err == nil && n.kind != kindObject {
		err = fmt.Errorf("it is %v", n.kind)
	}
	if err != nil {
		return nil, NewError(InvalidRequest, "", CodeInvalidJSON, "the body is not a JSON object: %v", err)
	}
	return &n, nil
}

func (s *scanner) fault(what string) error { return fmt.Errorf("byte %d: %s", s.at, what) }

func (s *scanner) space() {
	for s.at < len(s.in) {
		switch s.in[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// next skips space, and c if it is next.
func (s *scanner) next(c byte) bool {
	s.space()
	if s.at < len(s.in) && s.in[s.at] == c {
		s.at++
		return true
	}
	return false
}

func (s *scanner) value(n *node, depth int) (err error) {
	if err := s.poll(); err != nil {
		return err
	}
	s.space()
	if s.values++; s.values > maxValues {
		return s.fault(fmt.Sprintf("more than %d values", maxValues))
	}
	if s.at == len(s.in) {
		return s.fault("it ends early")
	}
	begin := s.at
	switch c := s.in[s.at]; {
	case c == '{' || c == '[':
		if depth == maxDepth {
			return s.fault(fmt.Sprintf("more than %d levels", maxDepth))
		}
		s.at++
		n.kind = kind(c)
		if c == '{' {
			err = s.members(n, depth+1)
		} else {
			err = s.elements(n, depth+1)
		}
	case c == '"':
		n.kind = kindText
		err = s.str()
	case c == '-' || c >= '0' && c <= '9':
		n.kind = kindNumber
		err = s.number()
	default:
		err = s.literal(n)
	}
	n.raw = s.in[begin:s.at]
	return err
}

func (s *scanner) literal(n *node) error {
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.in[s.at:], []byte(word)) {
			n.kind = kind(word[0])
			s.at += len(word)
			return nil
		}
	}
	return s.fault("want a value")
}

func (s *scanner) elements(n *node, depth int) error {
	if s.next(']') {
		return nil
	}
	for {
		n.list = append(n.list, node{})
		if err := s.value(&n.list[len(n.list)-1], depth); err != nil {
			return err
		}
		if s.next(']') {
			return nil
		}
		if !s.next(',') {
			return s.fault("want , or ]")
		}
	}
}

func (s *scanner) members(n *node, depth int) error {
	if s.next('}') {
		return nil
	}
	seen := map[string]struct{}{}
	for {
		s.space()
		begin := s.at
		if s.at == len(s.in) || s.in[s.at] != '"' {
			return s.fault("want a name in quotes")
		}
		if err := s.str(); err != nil {
			return err
		}
		name := (&node{raw: s.in[begin:s.at]}).text()
		if _, twice := seen[name]; twice {
			return fmt.Errorf("byte %d: an object has the same name twice", begin)
		}
		seen[name] = struct{}{}
		if !s.next(':') {
			return s.fault("want :")
		}
		n.list = append(n.list, node{})
		m := &n.list[len(n.list)-1]
		if err := s.value(m, depth); err != nil {
			return err
		}
		m.name = name
		if s.next('}') {
			return nil
		}
		if !s.next(',') {
			return s.fault("want , or }")
		}
	}
}

// str goes past a string. It looks at each byte nine times at most, however many escapes there are.
func (s *scanner) str() error {
	for s.at++; s.at < len(s.in); {
		if err := s.poll(); err != nil {
			return err
		}
		if s.plain(); s.at == len(s.in) {
			break
		}
		switch c := s.in[s.at]; {
		case c == '"':
			s.at++
			return nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return err
			}
		case c < ' ':
			return s.fault("a control character in a string; want it escaped")
		default: // where it looks whether to go on, or near the end
			s.at++
		}
	}
	return s.fault("a string has no end")
}

// plain goes past bytes of a string that mean themselves, eight at a time, up to where poll is due at most. It may stop
// before one of them.
func (s *scanner) plain() {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for end := min(len(s.in)-8, s.due); s.at <= end; s.at += 8 {
		x := binary.LittleEndian.Uint64(s.in[s.at:])
		quote, slash := x^'"'*ones, x^'\\'*ones
		// The top bit of a byte is set where that byte is below ' ', or is 0 once the letter is taken out. A borrow may
		// set it above such a byte, never where there is none.
		if ((x-' '*ones)&^x|(quote-ones)&^quote|(slash-ones)&^slash)&tops != 0 {
			return
		}
	}
}

// escape goes past what a backslash begins.
func (s *scanner) escape() error {
	rest := s.in[s.at+1:]
	switch {
	case len(rest) > 0 && bytes.IndexByte([]byte(`"\/bfnrt`), rest[0]) >= 0:
		s.at += 2
		return nil
	case len(rest) >= 5 && rest[0] == 'u':
		if _, err := strconv.ParseUint(string(rest[1:5]), 16, 16); err == nil {
			s.at += 6
			return nil
		}
	}
	return s.fault("no such escape")
}

// number goes past a number.
func (s *scanner) number() error {
	if s.in[s.at] == '-' {
		s.at++
	}
	zero := s.at < len(s.in) && s.in[s.at] == '0'
	if n := s.digits(); n == 0 || zero && n > 1 {
		return s.fault("not a number")
	}
	if s.at < len(s.in) && s.in[s.at] == '.' {
		s.at++
		if s.digits() == 0 {
			return s.fault("not a number")
		}
	}
	if s.at < len(s.in) && s.in[s.at]|0x20 == 'e' {
		s.at++
		if s.at < len(s.in) && (s.in[s.at] == '+' || s.in[s.at] == '-') {
			s.at++
		}
		if s.digits() == 0 {
			return s.fault("not a number")
		}
	}
	return nil
}

func (s *scanner) digits() (n int) {
	for s.at < len(s.in) && s.in[s.at] >= '0' && s.in[s.at] <= '9' {
		s.at++
		n++
	}
	return n
}
