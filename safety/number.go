package safety

import (
	"bytes"
	"regexp"
)

// numbers are the groups of digits in a zone that one separator each stands between.
type numbers struct {
	starts, ends []int // of groups, in bytes of the zone
}

// candidate is a number of one or several neighbouring groups.
type candidate struct {
	digits     string
	start, end int
	shape      []int // how many digits each group has
	separators string
}

// Bounds of candidates.
const (
	maxGroups = 12
	maxDigits = 22
)

// eachNumber calls do for each run of neighbouring groups of digits that stands by itself, the longest first of those
// that begin together. What do says yes to is not looked into any further.
func eachNumber(z *zone, least int, do func(candidate) bool) {
	var n numbers
	for i := 0; i < len(z.text); {
		if c := z.text[i]; c < '0' || c > '9' {
			i++
			continue
		}
		start := i
		for i < len(z.text) && z.text[i] >= '0' && z.text[i] <= '9' {
			i++
		}
		n.starts, n.ends = append(n.starts, start), append(n.ends, i)
	}
	for i := 0; i < len(n.starts); {
		if last := n.from(z, i, least, do); last >= 0 {
			i = last + 1
			continue
		}
		i++
	}
}

// from looks at the candidates that begin with group i, and gives the last group of the one that is taken; -1 for none.
func (n *numbers) from(z *zone, i, least int, do func(candidate) bool) int {
	if z.alnum(n.starts[i] - 1) {
		return -1
	}
	last, digits := i, n.ends[i]-n.starts[i]
	for last+1 < len(n.starts) && last-i < maxGroups && n.ends[last+1]-n.starts[last+1]+digits <= maxDigits &&
		n.starts[last+1]-n.ends[last] == 1 && bytes.IndexByte([]byte(" -./"), z.text[n.ends[last]]) >= 0 {
		last++
		digits += n.ends[last] - n.starts[last]
	}
	for ; last >= i; last-- {
		if z.alnum(n.ends[last]) {
			continue
		}
		c := candidate{start: n.starts[i], end: n.ends[last]}
		for g := i; g <= last; g++ {
			c.digits += string(z.text[n.starts[g]:n.ends[g]])
			c.shape = append(c.shape, n.ends[g]-n.starts[g])
			if g < last {
				c.separators += string(z.text[n.ends[g]])
			}
		}
		if len(c.digits) >= least && len(c.digits) <= maxDigits && do(c) {
			return last
		}
	}
	return -1
}

// findCards finds numbers of payment cards, by their issuers' ranges and Luhn's check digit (ISO/IEC 7812).
func findCards(p *personal, z *zone) {
	if !p.digits {
		return
	}
	eachNumber(z, 12, func(c candidate) bool {
		if !cardRange(c.digits) || !luhn(c.digits) || !cardShape(c) {
			return false
		}
		p.add("card", c.start, c.end, 0.95)
		return true
	})
}

// cardShape says whether a card's number is written as cards have it: in one, or in groups of four or as Amex does.
func cardShape(c candidate) bool {
	for _, n := range c.shape {
		if len(c.shape) > 1 && (n < 3 || n > 7) {
			return false
		}
	}
	return true
}

// cardRange says whether a number begins as those of a payment system do, and is as long.
func cardRange(d string) bool {
	two, four := number(d[:2]), number(d[:4])
	switch n := len(d); {
	case d[0] == '4':
		return n == 13 || n == 16 || n == 19 // Visa
	case two >= 51 && two <= 55, four >= 2221 && four <= 2720:
		return n == 16 // Mastercard
	case two == 34, two == 37:
		return n == 15 // American Express
	case four >= 3528 && four <= 3589, four == 6011, two == 65, two == 62, four >= 2200 && four <= 2204:
		return n >= 16 && n <= 19 // JCB, Discover, UnionPay, Mir
	case two == 36, two == 38, two == 30:
		return n == 14 // Diners Club
	case two == 50, two >= 56 && two <= 58, two == 60, two == 63, two == 67:
		return n >= 12 && n <= 19 // Maestro, RuPay, Elo
	}
	return false
}

func number(d string) (n int) {
	for i := range len(d) {
		n = 10*n + int(d[i]-'0')
	}
	return n
}

// luhn is the check of ISO/IEC 7812-1.
func luhn(d string) bool {
	sum := 0
	for i := range len(d) {
		v := int(d[len(d)-1-i] - '0')
		if i%2 == 1 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

// iban is an account's number as ISO 13616 has it, in one or in groups.
var iban = regexp.MustCompile(`(?i)[A-Z]{2}[0-9]{2}(?:[ \-]?[A-Z0-9]){11,30}`)

// ibanLengths are those of the countries of SWIFT's register.
var ibanLengths = map[string]int{
	"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
	"BY": 28,
	"CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24,
	"FI": 18,
	"FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21,
	"HU": 28,
	"IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21,
	"LT": 20,
	"LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30,
	"NI": 28,
	"NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33,
	"SA": 24,
	"SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24,
	"TR": 26,
	"UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}

// findIBANs finds account numbers, each as long as its country's are, by their check digits (ISO 7064, MOD 97-10).
func findIBANs(p *personal, z *zone) {
	if !p.digits || len(z.text) < 15 {
		return
	}
	for at := 0; at < len(z.text); {
		m := iban.FindIndex(z.text[at:])
		if m == nil {
			return
		}
		start := at + m[0]
		at = start + 1
		if z.alnum(start - 1) {
			continue
		}
		want := ibanLengths[string(bytes.ToUpper(z.text[start:start+2]))]
		end, digits := start, make([]byte, 0, 34)
		for ; end < len(z.text) && len(digits) < want; end++ {
			if c := z.text[end]; c != ' ' && c != '-' {
				digits = append(digits, c)
			}
		}
		if want > 0 && len(digits) == want && !z.alnum(end) && mod97(bytes.ToUpper(digits)) {
			p.add("iban", start, end, 0.95)
			at = end
		}
	}
}

// mod97 is the check of ISO 7064, MOD 97-10, of an IBAN in capitals.
func mod97(b []byte) bool {
	rest := 0
	for i := range b {
		switch c := b[(i+4)%len(b)]; {
		case c >= '0' && c <= '9':
			rest = (10*rest + int(c-'0')) % 97
		case c >= 'A' && c <= 'Z':
			rest = (100*rest + int(c-'A') + 10) % 97
		default:
			return false
		}
	}
	return rest == 1
}
