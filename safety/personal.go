package safety

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// personal finds personal data in a text that comes rune by rune.
type personal struct {
	zones
	rules *Rules
	found func(Finding)
	hits  []hit
}

// hit is something in bytes [start, end) of a zone.
type hit struct {
	kind       string
	start, end int
	score      float64
	open       bool // it goes on where the zone was cut
}

func newPersonal(r *Rules, found func(Finding)) *personal {
	p := &personal{rules: r, found: found}
	p.look = p.lookAt
	return p
}

func (p *personal) flush() { p.end() }

// lookAt implements zones.look.
func (p *personal) lookAt(z *zone, ended bool) (done int) {
	p.hits = p.hits[:0]
	for _, d := range detectors {
		if p.isWord() {
			break
		}
		if slices.Contains(p.rules.kinds, d.kind) {
			d.find(p, z)
		}
	}
	done = len(z.text)
	if !ended {
		done = p.border(z)
	}
	for _, h := range p.hits {
		if h.start < done {
			p.found(Finding{
				Category: PersonalData, Kind: h.kind, Start: z.at[h.start], End: z.at[h.end], Score: h.score,
			})
		}
	}
	return done
}

// isWord says whether the zone is a word as languages have them, which is nobody's data by itself.
func (p *personal) isWord() bool {
	if p.digits {
		return false
	}
	signs := 0
	for _, c := range p.text {
		switch {
		case c == '@' || c == ':':
			return false
		case c < 'A' || c > 'Z' && c < 'a' || c > 'z' && c < 0x80:
			signs++
		}
	}
	return signs < 2
}

// border is where a zone that is too long can be cut: in the middle, at a space if it has any, and in nothing that was
// found.
func (p *personal) border(z *zone) int {
	done := len(z.text) / 2
	if i := bytes.LastIndexByte(z.text[:done], ' '); i >= 0 {
		done = i + 1
	}
	for _, h := range p.hits {
		if h.open && h.end == len(z.text) {
			return h.start
		}
	}
	for range p.hits { // in any order
		for _, h := range p.hits {
			if h.start < done && h.end > done {
				done = h.end
			}
		}
	}
	return done
}

// add notes a hit.
func (p *personal) add(kind string, start, end int, score float64) {
	p.hits = append(p.hits, hit{kind: kind, start: start, end: end, score: score})
}

// detectors look at a zone, each for one kind.
var detectors = []struct {
	kind string
	find func(p *personal, z *zone)
}{
	{"secret", findSecrets}, {"iban", findIBANs}, {"card", findCards}, {"national_id", findIDs}, {"email", findEmails},
	{"ip", findIPs}, {"phone", findPhones},
}

// alnum says whether the byte at i of a zone is a letter or a digit. Before and after it there is none, unless the zone
// was cut there.
func (z *zone) alnum(i int) bool {
	if i < 0 {
		return z.joined
	}
	if i >= len(z.text) {
		return false
	}
	c := z.text[i]
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= 0x80
}

// context is what stands in the line before the byte at i of a zone, in lower case.
func (z *zone) context(i int) string {
	b := slices.Concat(z.before, bytes.ToLower(z.text[:i]))
	return string(b[max(0, len(b)-maxContext):])
}

// after says whether one of the words stands before the byte at i of a zone.
func (z *zone) after(i int, words []string) bool {
	text := z.context(i)
	for _, w := range words {
		for rest := text; ; {
			at := strings.Index(rest, w)
			if at < 0 {
				break
			}
			if at == 0 || !letter(rest[at-1]) {
				return true
			}
			rest = rest[at+1:]
		}
	}
	return false
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 0x80 }

// email is an address as mailboxes have them; RFC 5321 bounds its parts by 64 and 255 bytes.
var email = regexp.MustCompile(`[\pL0-9!#$&'*+\-/=?^_{|}~%]+(?:\.[\pL0-9!#$&'*+\-/=?^_{|}~%]+)*@` +
	`(?:[\pL0-9](?:[\pL0-9\-]{0,61}[\pL0-9])?\.)+(?:\pL{2,24}|xn--[a-z0-9\-]{2,20})`)

// obfuscated is an address whose signs are spelled out.
var obfuscated = regexp.MustCompile(`(?i)[\pL0-9._%+\-]+[\[({](?:at|@)[\])}]` +
	`(?:[\pL0-9\-]+(?:\.|[\[({](?:dot|punkt|point|\.)[\])}]))+\pL{2,24}`)

func findEmails(p *personal, z *zone) {
	if bytes.IndexByte(z.text, '@') >= 0 {
		for _, m := range email.FindAllIndex(z.text, -1) {
			for m[0] < m[1] && bytes.IndexByte([]byte("'/=|{}*"), z.text[m[0]]) >= 0 { // of what stands around it
				m[0]++
			}
			if i := bytes.LastIndexByte(z.text[m[0]:m[1]], '='); i >= 0 && i < bytes.IndexByte(z.text[m[0]:m[1]], '@') {
				m[0] += i + 1 // a parameter's value
			}
			if at := bytes.IndexByte(z.text[m[0]:m[1]], '@'); at >= 1 {
				p.add("email", m[0], m[1], 0.95)
			}
		}
	}
	if bytes.ContainsAny(z.text, "[({") {
		for _, m := range obfuscated.FindAllIndex(z.text, -1) {
			p.add("email", m[0], m[1], 0.8)
		}
	}
}

var ipv4 = regexp.MustCompile(`\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}`)

var ipv6 = regexp.MustCompile(`[0-9a-fA-F:]{2,}(?:\.\d{1,3}){0,3}`)

// version are the words before a number of four parts that is none of a machine.
var version = []string{"version", "v", "release", "build", "section", "chapter", "kapitel"}

// findIPs finds addresses of machines on the Internet: private ones tell of nobody.
func findIPs(p *personal, z *zone) {
	if bytes.Count(z.text, []byte(".")) >= 3 {
		for _, m := range ipv4.FindAllIndex(z.text, -1) {
			next := m[1] < len(z.text)-1 && z.text[m[1]] == '.' && z.alnum(m[1]+1)
			if z.alnum(m[0]-1) || z.alnum(m[1]) || next || m[0] > 0 && (z.text[m[0]-1] == '.' ||
				z.text[m[0]-1] == '-') {
				continue
			}
			if personalIP(z.text[m[0]:m[1]]) && !z.after(m[0], version) {
				p.add("ip", m[0], m[1], 0.8)
			}
		}
	}
	if bytes.Count(z.text, []byte(":")) >= 2 {
		for _, m := range ipv6.FindAllIndex(z.text, -1) {
			if end := m[1] - 1; z.text[end] == ':' && !bytes.HasSuffix(z.text[m[0]:m[1]], []byte("::")) {
				m[1] = end
			}
			text := z.text[m[0]:m[1]]
			if !z.alnum(m[0]-1) && !z.alnum(m[1]) && bytes.Count(text, []byte(":")) >= 2 && personalIP(text) {
				p.add("ip", m[0], m[1], 0.8)
			}
		}
	}
}

func personalIP(text []byte) bool {
	a, err := netip.ParseAddr(string(text))
	return err == nil && a.IsGlobalUnicast() && !a.IsPrivate() && len(text) > 4
}
