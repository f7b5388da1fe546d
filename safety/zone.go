package safety

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// zone is a run of text that personal data may be in: words that belong together, such as the groups of a number, in
// plain characters. Nothing that is looked for reaches across its ends.
type zone struct {
	text   []byte // ASCII, and letters of scripts that have small words
	at     []int  // where each byte of text comes from, and where the last ends
	before []byte // what stands before it, in lower case
	joined bool   // it goes on with what stands before, which was cut off
}

// Bounds of zones. The longest that is looked for, an e-mail address, has 254 characters; keys may have any length.
const (
	maxZone    = 512
	maxSpaced  = 192
	maxContext = 64
	maxPEM     = 32 << 10
)

// zones cuts a text that comes rune by rune into zones, and has found look at each. It remembers what stands before.
type zones struct {
	zone
	// look reports what is in the zone, and gives how many bytes of it can be let go of: all of it if it has ended. 0
	// says
	// that it is one thing that goes on.
	look   func(z *zone, ended bool) (done int)
	next   int  // bytes of the text so far
	field  int  // where in zone.text the word begins that goes on
	spaced bool // the zone ends with a space after a word that numbers may follow
	digits bool // the zone has a digit
	pem    bool // the zone is a private key in lines of its own
	whole  bool // the zone is one thing that goes on, however long it is
}

// hold is where the text begins that may still be part of something.
func (z *zones) hold() int {
	if len(z.text) == 0 {
		return z.next
	}
	return z.at[0]
}

// push takes the next rune, of n bytes.
func (z *zones) push(r rune, n int) {
	from := z.next
	z.next += n
	plain, class := plainRune(r)
	if z.pem {
		z.addPEM(plain, class, from)
		return
	}
	switch class {
	case runeHidden:
		if len(z.text) > 0 { // part of what it stands in
			z.at[len(z.at)-1] = z.next
		}
	case runeWord:
		if z.spaced && !z.follows(plain) {
			z.end()
		}
		z.spaced = false
		z.add(plain, from)
		if len(z.text) >= maxZone {
			z.cut()
		}
	case runeSpace:
		z.space(from)
	default:
		z.end()
		z.remember(plain)
	}
}

// add appends a character that comes from the offset from.
func (z *zones) add(plain rune, from int) {
	if len(z.text) == 0 {
		z.at = append(z.at[:0], from)
	}
	before := len(z.text)
	z.text = utf8.AppendRune(z.text, plain)
	z.at[len(z.at)-1] = from
	for range len(z.text) - before - 1 {
		z.at = append(z.at, from)
	}
	z.at = append(z.at, z.next)
	z.digits = z.digits || plain >= '0' && plain <= '9'
}

// space ends a word. The zone goes on where the word may be a group of a number.
func (z *zones) space(from int) {
	switch {
	case len(z.text) == 0 || z.spaced:
		z.end()
		z.remember(' ')
	case pemBegins(z.text):
		z.add(' ', from)
		z.pem = true
	case !z.linksOn():
		z.end()
		z.remember(' ')
	default:
		z.add(' ', from)
		z.field, z.spaced = len(z.text), true
		if len(z.text) >= maxSpaced {
			z.cut()
		}
	}
}

// linksOn says whether the word that ends may be a group of a number that goes on after a space.
func (z *zones) linksOn() bool {
	word := z.text[z.field:]
	if len(word) > 24 {
		return false
	}
	letters, digits := 0, false
	for _, c := range word {
		switch {
		case c >= '0' && c <= '9':
			digits = true
		case c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z':
			letters++
			if c >= 'a' && !digits {
				letters = 99 // a word, unless it has a digit
			}
		case c == '-' || c == '.' || c == '/' || c == '(' || c == ')' || c == '+':
		default:
			return false
		}
	}
	switch {
	case digits:
		return true
	case z.digits:
		return letters <= 4
	}
	return letters <= 2
}

// follows says whether a word that begins with c may be the next group of a number.
func (z *zones) follows(c rune) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c == '+' || c == '(' || z.digits && (c == '-' ||
		c == '/' || c == '.')
}

// end ends the zone.
func (z *zones) end() {
	if len(z.text) > 0 {
		z.look(&z.zone, true)
		z.let(len(z.text))
	}
	z.spaced, z.digits, z.pem, z.whole, z.joined = false, false, false, false, false
}

// cut looks at a zone that is too long, and lets what is certain of it go.
func (z *zones) cut() {
	if z.whole {
		return
	}
	done := z.look(&z.zone, false)
	for done > 0 && done < len(z.text) && z.text[done]&0xC0 == 0x80 {
		done++
	}
	if done == 0 {
		z.whole = true
		return
	}
	z.let(done)
	z.joined = true
}

// let lets the first n bytes of the zone go.
func (z *zones) let(n int) {
	for _, c := range string(z.text[max(0, n-2*maxContext):n]) {
		z.remember(c)
	}
	z.text = append(z.text[:0], z.text[n:]...)
	z.at = append(z.at[:0], z.at[min(n, len(z.at)-1):]...)
	z.field = max(0, z.field-n)
}

// addPEM takes a rune of a private key, in whose lines breaks stand too. It ends with the line of its end, or where it
// turns out to be none.
func (z *zones) addPEM(plain rune, class, from int) {
	if class == runeHidden {
		z.at[len(z.at)-1] = z.next
		return
	}
	z.add(plain, from)
	switch {
	case plain == '\n' && !bytes.Contains(z.text, []byte("PRIVATE KEY-----")) && !z.sealed(), len(z.text) > maxPEM:
		z.end()
	case plain == '-' && bytes.HasSuffix(z.text, []byte("KEY-----")) && z.sealed():
		z.end()
	}
}

// sealed says whether the line with the key's end has begun.
func (z *zones) sealed() bool {
	tail := z.text[max(0, len(z.text)-maxContext):]
	return bytes.Contains(tail, []byte("-----END"))
}

// pemBegins says whether a text ends as the first line of a private key begins.
func pemBegins(text []byte) bool { return bytes.HasSuffix(text, []byte("-----BEGIN")) }

// remember notes what stands before the next zone.
func (z *zones) remember(c rune) {
	if len(z.before) >= 4*maxContext {
		z.before = append(z.before[:0], z.before[len(z.before)-maxContext:]...)
	}
	z.before = utf8.AppendRune(z.before, unicode.ToLower(c))
}

// Classes of runes.
const (
	runeBreak = iota
	runeWord
	runeSpace
	runeHidden
)

// plainRune is a rune as detectors know it: digits of all scripts, full-width letters and the many dashes as ASCII.
func plainRune(r rune) (rune, int) {
	switch {
	case r > ' ' && r < 0x7F:
		return r, runeWord
	case r == ' ', r == '\t', r == 0xA0, r == 0x202F, r == 0x2007, r == 0x3000, r >= 0x2000 && r <= 0x200A:
		return ' ', runeSpace
	case r < ' ', r == 0x7F:
		return r, runeBreak
	case r >= 0xFF01 && r <= 0xFF5E:
		return r - 0xFEE0, runeWord
	case r >= 0x2010 && r <= 0x2015, r == 0x2212, r == 0xFE63:
		return '-', runeWord
	case unicode.Is(unicode.Nd, r):
		return digitOf(r), runeWord
	case r == 0xAD, unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r):
		return r, runeHidden
	case unicode.In(r, unicode.Latin, unicode.Cyrillic, unicode.Greek, unicode.Arabic, unicode.Hebrew):
		return r, runeWord
	}
	return r, runeBreak
}

// digitOf is a decimal digit as ASCII: those of a script stand together, each ten of them from nought on.
func digitOf(r rune) rune {
	for _, run := range unicode.Nd.R16 {
		if rune(run.Lo) <= r && r <= rune(run.Hi) {
			return '0' + (r-rune(run.Lo))%10
		}
	}
	for _, run := range unicode.Nd.R32 {
		if rune(run.Lo) <= r && r <= rune(run.Hi) {
			return '0' + (r-rune(run.Lo))%10
		}
	}
	return r
}
