package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// The byte-level alphabet of GPT-2 writes each byte as a printable rune: the printable
// Latin-1 characters as themselves, the other bytes as U+0100 and up, in order.
var (
	byteRunes [256]rune
	runeBytes = make(map[rune]byte, 256)
)

func init() {
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !('!' <= r && r <= '~' || 0xA1 <= r && r <= 0xAC || 0xAE <= r) {
			r = next
			next++
		}
		byteRunes[b] = r
		runeBytes[r] = byte(b)
	}
}

// toByteLevel returns the bytes of s in the byte-level alphabet.
func toByteLevel(s string) string {
	var b strings.Builder
	b.Grow(2 * len(s))
	for i := range len(s) {
		b.WriteRune(byteRunes[s[i]])
	}
	return b.String()
}

// appendByteLevel appends the bytes that a byte-level token stands for, or the token
// itself when it has a rune outside the alphabet.
func appendByteLevel(dst []byte, token string) []byte {
	from := len(dst)
	for _, r := range token {
		b, ok := runeBytes[r]
		if !ok {
			return append(dst[:from], token...)
		}
		dst = append(dst, b)
	}
	return dst
}

// nextText returns the length of the first rune in b. valid is false where the bytes
// are no rune: n is then the longest prefix of one (Unicode 16, section 3.9,
// "U+FFFD Substitution of Maximal Subparts"), at least one byte. short says that b
// ends within what could yet become a rune.
func nextText(b []byte) (n int, valid, short bool) {
	if r, size := utf8.DecodeRune(b); r != utf8.RuneError || size > 1 {
		return size, true, false
	}
	need, low, high := 0, byte(0x80), byte(0xBF) // continuation bytes, and the range of the first
	switch c := b[0]; {
	case 0xC2 <= c && c <= 0xDF:
		need = 1
	case 0xE0 <= c && c <= 0xEF:
		need = 2
		if c == 0xE0 {
			low = 0xA0
		} else if c == 0xED {
			high = 0x9F
		}
	case 0xF0 <= c && c <= 0xF4:
		need = 3
		if c == 0xF0 {
			low = 0x90
		} else if c == 0xF4 {
			high = 0x8F
		}
	}
	for n = 1; n <= need; n++ {
		if n == len(b) {
			return n, false, true
		}
		if b[n] < low || b[n] > high {
			break
		}
		low, high = 0x80, 0xBF
	}
	return n, false, false
}
