package constrain

import "fmt"

// appendQuoted appends s, which is UTF-8, as a JSON string, escaped as nfa.runes does.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, r := range s {
		dst = appendEscaped(dst, r)
	}
	return append(dst, '"')
}

// appendEscaped appends a character of a JSON string: escaped only if it must be, and then as short as possible.
func appendEscaped(dst []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(dst, '\\', byte(r))
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	if r < ' ' {
		return fmt.Appendf(dst, `\u%04x`, r)
	}
	return append(dst, string(r)...)
}
