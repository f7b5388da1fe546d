package safety

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// folding writes a text that comes rune by rune as block-lists compare it: small letters without accents, look-alikes
// of other scripts and digits for letters as the letters, no letter twice in a row, one space between words. It calls
// out for each byte, with where in the text it comes from.
type folding struct {
	// second reads 1, ! and | as the other of the letters they stand for, and @ and ! at the ends of words as letters.
	second bool
	out    func(b byte, from, to int)
	more   func(to int) // the last byte stands for what is left out, too

	last    rune // written
	letters int  // of the word so far; a single one may be spelled out: k.i.l.l
	script  int  // of last
}

// Scripts as far as words are concerned.
const (
	noScript = iota
	spacedScript
	unspacedScript // words are not told apart
)

// breakByte stands for what no term reaches across.
const breakByte = 1

// lookalikes are letters that look like Latin ones, or that Unicode does not take apart; all are small.
var lookalikes = map[rune]string{
	'а': "a", 'в': "b", 'е': "e", 'ё': "e", 'к': "k", 'м': "m", 'н': "h", 'о': "o", 'р': "p", 'с': "c", 'т': "t",
	'у': "y", 'х': "x",
	'і': "i", 'ї': "i", 'ѕ': "s", 'ј': "j", 'ԁ': "d", 'ԛ': "q", 'ԝ': "w", 'һ': "h", 'ӏ': "l",
	'α': "a", 'β': "b", 'ε': "e", 'ι': "i", 'κ': "k", 'ν': "v", 'ο': "o", 'ρ': "p", 'τ': "t", 'υ': "u", 'χ': "x",
	'γ': "y", 'η': "n",
	'ı': "i", 'ł': "l", 'ø': "o", 'đ': "d", 'ð': "d", 'ħ': "h", 'æ': "ae", 'œ': "oe", 'ß': "ss", 'þ': "th", 'ɡ': "g",
	'ɑ': "a", 'ɩ': "i",
	'ո': "n", 'օ': "o", 'ս': "u", 'ա': "w",
}

// leet are digits and signs that stand for letters.
var leet = [128]byte{
	'0': 'o', '1': 'i', '3': 'e', '4': 'a', '5': 's', '7': 't', '8': 'b', '9': 'g', '$': 's', '|': 'l',
}

// push takes the rune that stands in [from, to) of the text.
func (f *folding) push(r rune, from, to int) {
	switch {
	case r >= 'a' && r <= 'z':
		f.letter(r, from, to)
	case r >= 'A' && r <= 'Z':
		f.letter(r+'a'-'A', from, to)
	case r < utf8.RuneSelf:
		f.sign(r, from, to)
	case unicode.Is(unicode.Mn, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r), r == '’',
		r == '‘':
		f.also(to)
	case unicode.IsLetter(r), unicode.IsDigit(r), unicode.Is(unicode.So, r), unicode.Is(unicode.Mc, r),
		unicode.Is(unicode.No, r):
		f.foreign(r, from, to)
	default:
		f.space(from, to)
	}
}

// foreign takes a letter that is none of ASCII.
func (f *folding) foreign(r rune, from, to int) {
	for _, c := range norm.NFKD.String(string(r)) {
		c = unicode.ToLower(c)
		like, ok := lookalikes[c]
		switch {
		case ok:
			for _, c := range like {
				f.letter(c, from, to)
			}
		case unicode.Is(unicode.Mn, c):
			f.also(to)
		case c < utf8.RuneSelf && (c < 'a' || c > 'z'):
			f.sign(c, from, to)
		case unicode.IsLetter(c), unicode.Is(unicode.Mc, c), unicode.IsDigit(c):
			f.letter(c, from, to)
		default:
			f.space(from, to)
		}
	}
}

// sign takes an ASCII character that is no letter.
func (f *folding) sign(r rune, from, to int) {
	switch {
	case r == '\'' || r == '`':
		f.also(to)
	case r == '<' || r == '>':
		f.last, f.letters, f.script = 0, 0, noScript
		f.out(breakByte, from, to)
	case f.second && r == '1', f.second && r == '|':
		f.letter(map[rune]rune{'1': 'l', '|': 'i'}[r], from, to)
	case f.second && r == '!':
		f.letter('i', from, to)
	case r == '@' && (f.second || f.letters > 0):
		f.letter('a', from, to)
	case leet[r] != 0:
		f.letter(rune(leet[r]), from, to)
	case r >= '0' && r <= '9':
		f.letter(r, from, to)
	case f.letters == 1 && (r == '.' || r == '-' || r == '_' || r == '*'):
		f.letters = 0 // spelled out
	default:
		f.space(from, to)
	}
}

// also has what was written last stand for more, unless that is a space.
func (f *folding) also(to int) {
	if f.more != nil && f.letters > 0 {
		f.more(to)
	}
}

func (f *folding) letter(r rune, from, to int) {
	script := spacedScript
	if isUnspaced(r) {
		script = unspacedScript
	}
	if f.script != noScript && f.script != script {
		f.space(from, from)
	}
	f.letters++
	if r == f.last && script == spacedScript {
		f.also(to)
		return
	}
	f.last, f.script = r, script
	if r < utf8.RuneSelf {
		f.out(byte(r), from, to)
		return
	}
	var b [utf8.UTFMax]byte
	for _, c := range b[:utf8.EncodeRune(b[:], r)] {
		f.out(c, from, to)
	}
}

func (f *folding) space(from, to int) {
	if f.last == ' ' {
		return
	}
	f.last, f.letters, f.script = ' ', 0, noScript
	f.out(' ', from, to)
}

// foldedPart is a part of a text as folding writes it.
func foldedPart(text string) string {
	var b []byte
	f := folding{out: func(c byte, _, _ int) { b = append(b, c) }}
	for i, r := range text {
		f.push(r, i, i)
	}
	return string(b)
}

// folded is a whole text as folding writes it, with the space after its last word in scripts that have them.
func folded(text string) string {
	b := strings.Trim(foldedPart(text), " ")
	if r, _ := utf8.DecodeLastRuneInString(b); b == "" || isUnspaced(r) {
		return b
	}
	return b + " "
}

// isUnspaced says whether a letter is of a script that does not tell words apart.
func isUnspaced(r rune) bool {
	return r >= 0x0E00 && unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao,
		unicode.Khmer, unicode.Myanmar)
}

// hasUnspaced says whether a text has letters of such a script.
func hasUnspaced(text string) bool { return strings.IndexFunc(text, isUnspaced) >= 0 }

// foldable says whether anything is left of a term.
func foldable(text string) bool { return strings.Trim(folded(text), " \x01") != "" }
