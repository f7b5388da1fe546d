package chat

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
)

// vocabulary is what a template's author wrote: the words that errors may quote.
type vocabulary struct {
	words    map[string]bool // names and strings
	literals []string        // strings that can stand for part of a reason
}

// Bounds on what is looked at to show a reason of raise_exception, in bytes and strings.
const (
	maxReason   = 512
	maxLiterals = 1024
	// minLiteral is shorter than any phrase. Shorter strings could be put together to what a user wrote.
	minLiteral = 4
)

func newVocabulary(source string) (vocabulary, error) {
	toks, err := lex(source)
	v := vocabulary{words: make(map[string]bool)}
	for _, t := range toks {
		if (t.kind != 's' && t.kind != 'n') || v.words[t.text] {
			continue
		}
		v.words[t.text] = true
		if t.kind == 's' && len(t.text) >= minLiteral && len(v.literals) < maxLiterals {
			v.literals = append(v.literals, t.text)
		}
	}
	return v, err
}

// reason is the message of raise_exception if the template's strings and the names of roles make it up: whatever
// else is in it comes from the conversation, whole or in parts.
func (v vocabulary) reason(raised string, messages []Message) string {
	if len(raised) <= maxReason && v.covers(raised, messages) {
		return raised
	}
	return fmt.Sprintf("the template refuses it; the reason of %d bytes is not the template's words alone and is left out",
		len(raised))
}

func (v vocabulary) covers(text string, messages []Message) bool {
	pieces := []string{"system", "user", "assistant"}
	for _, l := range v.literals {
		if strings.Contains(text, l) {
			pieces = append(pieces, l)
		}
	}
	reached := make([]bool, len(text)+1)
	reached[0] = true
	for i := range text {
		if !reached[i] {
			continue
		}
		if strings.IndexByte(" .,:;!?'\"`()", text[i]) >= 0 {
			reached[i+1] = true
		}
		for _, p := range pieces {
			if strings.HasPrefix(text[i:], p) {
				reached[i+len(p)] = true
			}
		}
	}
	return reached[len(text)] && !quotes(text, messages)
}

// quotes reports whether text holds a whole text of the conversation.
func quotes(text string, messages []Message) bool {
	for _, m := range messages {
		for _, p := range m.Parts {
			if t := strings.TrimSpace(p.Text); len(t) >= minLiteral && strings.Contains(text, t) {
				return true
			}
		}
	}
	return false
}

// quietError is an error whose text quotes the template at most.
type quietError struct {
	text string
	error
}

func (e quietError) Error() string { return e.text }
func (e quietError) Unwrap() error { return e.error }

// quiet replaces what err quotes by its length, unless the template has it.
func (v vocabulary) quiet(err error) error {
	var b strings.Builder
	rest := err.Error()
	for {
		i := strings.IndexByte(rest, '"')
		if i < 0 {
			break
		}
		b.WriteString(rest[:i])
		rest = rest[i:]
		quoted, bad := strconv.QuotedPrefix(rest)
		if bad != nil { // it is no quotation of %q, so its end is not known
			fmt.Fprintf(&b, "(%d bytes)", len(rest))
			rest = ""
			break
		}
		if word, _ := strconv.Unquote(quoted); v.words[word] {
			b.WriteString(quoted)
		} else {
			fmt.Fprintf(&b, "a name of %d bytes", len(word))
		}
		rest = rest[len(quoted):]
	}
	b.WriteString(rest)
	return quietError{b.String(), err}
}

// recoverTo makes an error of a panic in the template engine, which runs what a model's publisher wrote. A panic's
// value may hold the conversation; Go's own do not.
func recoverTo(err *error) {
	p := recover()
	if p == nil {
		return
	}
	if own, ok := p.(runtime.Error); ok {
		*err = fmt.Errorf("chat template: the engine failed: %w", own)
		return
	}
	*err = fmt.Errorf("chat template: the engine failed with a %T", p)
}
