package safety

import (
	"bytes"
	"regexp"

	"github.com/nyaruka/phonenumbers"
)

// maxRegions bounds the countries whose own way of writing numbers is known: each is tried.
const maxRegions = 32

// defaultRegions are those of policies that name none.
var defaultRegions = []string{"US", "GB", "DE", "FR", "ES", "IT", "NL", "BR", "IN", "CN"}

// dialled is what may be a phone's number.
var dialled = regexp.MustCompile(`(?:\+|\(\+?)?\d(?:[ ./\-]{0,2}[()]?[ ./\-]{0,2}\d){5,16}`)

// calendar are dates, which numbers of phones are not written as.
var calendar = regexp.MustCompile(`^(?:(?:19|20)\d\d([-./ ])[01]?\d[-./ ][0-3]?\d|` +
	`[0-3]?\d([-./ ])[0-3]?\d[-./ ](?:19|20)?\d\d)(?:\D|$)`)

// american is a number as North America writes it.
var american = regexp.MustCompile(`^(?:\+?1[-. ])?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-. ]\d{4}$`)

// dialling are words before a phone's number.
var dialling = []string{
	"tel", "phone", "mobile", "cell", "call", "text", "whatsapp", "fax", "dial", "sms", "ring", "handy", "mobil",
	"anruf", "rufen",
	"ruf", "nummer", "telefon", "téléphone", "appel", "portable", "numéro", "teléfono", "móvil", "celular", "llám",
	"número",
	"telefone", "ligue", "cellulare", "chiam", "numero", "bel ", "тел", "звон", "номер", "电话", "手机", "電話", "携帯", "전화",
	"هاتف",
	"फ़ोन", "फोन",
}

// findPhones finds numbers of phones: with a country's code of any country, and without one as the policy's countries
// write them.
func findPhones(p *personal, z *zone) {
	if !p.digits || len(z.text) < 7 {
		return
	}
	for _, m := range dialled.FindAllIndex(z.text, -1) {
		start, end := m[0], m[1]
		if z.alnum(start-1) || z.alnum(end) || start > 0 && bytes.IndexByte([]byte("._=-#$€£%"), z.text[start-1]) >= 0 {
			continue
		}
		if p.within(start, end) {
			continue
		}
		p.phone(z, start, end)
	}
}

// within says whether something else was found there.
func (p *personal) within(start, end int) bool {
	for _, h := range p.hits {
		if start < h.end && end > h.start {
			return true
		}
	}
	return false
}

// phone adds the longest beginning of the text that is a phone's number.
func (p *personal) phone(z *zone, start, end int) {
	for end-start >= 7 {
		text := string(z.text[start:end])
		if score := p.phoneScore(z, start, text); score > 0 {
			p.add("phone", start, end, score)
			return
		}
		cut := bytes.LastIndexByte(z.text[start:end], ' ')
		if cut < 0 {
			return
		}
		end = start + cut
	}
}

// phoneScore says how sure it is that text is a phone's number.
func (p *personal) phoneScore(z *zone, start int, text string) float64 {
	if text[0] == '+' || len(text) > 2 && text[:2] == "00" || text[:2] == "(+" {
		if text[0] == '0' {
			text = "+" + text[2:]
		}
		if n, err := phonenumbers.Parse(text, "ZZ"); err == nil && phonenumbers.IsValidNumber(n) {
			return 0.95
		}
		return 0
	}
	if calendar.MatchString(text) {
		return 0
	}
	written := american.MatchString(text) || text[0] == '0' && bytes.ContainsAny([]byte(text), " -/.()") ||
		text[0] == '('
	if !written && !z.after(start, dialling) {
		return 0
	}
	for _, region := range p.rules.regions {
		if n, err := phonenumbers.Parse(text, region); err == nil && phonenumbers.IsValidNumber(n) {
			return 0.75
		}
	}
	return 0
}
