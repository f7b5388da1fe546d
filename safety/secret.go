package safety

import (
	"bytes"
	"regexp"
	"strings"
)

// keys are the forms of keys and tokens, by what their makers begin them with.
var keys = regexp.MustCompile(`(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}` + // Amazon
	`|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,}` +
	`|glpat-[A-Za-z0-9_\-]{20,}` +
	`|sk-(?:proj-|ant-|or-|svcacct-)?[A-Za-z0-9_\-]{20,}` + // OpenAI, Anthropic, OpenRouter
	`|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}` + // Stripe
	`|xox[abeoprs]-[A-Za-z0-9\-]{10,}|xapp-[A-Za-z0-9\-]{20,}` + // Slack
	`|AIza[A-Za-z0-9_\-]{35}|ya29\.[A-Za-z0-9_\-]{20,}|GOCSPX-[A-Za-z0-9_\-]{20,}` + // Google
	`|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{50,}|dckr_pat_[A-Za-z0-9_\-]{20,}` +
	`|SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}` +
	`|dop_v1_[a-f0-9]{64}|hv[sb]\.[A-Za-z0-9_\-]{24,}|(?:AC|SK)[a-f0-9]{32}|key-[a-f0-9]{32}` +
	`|\d{8,10}:AA[A-Za-z0-9_\-]{32,}` + // Telegram
	`|eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?` + // JSON Web Tokens
	`|AGE-SECRET-KEY-1[A-Z0-9]{20,}`)

// begun is a key whose end was not seen yet.
var begun = regexp.MustCompile(`(?:github_pat_|glpat-|sk-|[srp]k_(?:live|test)_|xox[abeoprs]-|xapp-|ya29\.|` +
	`GOCSPX-|pypi-|dckr_pat_|SG\.|hv[sb]\.|eyJ)` +
	`[A-Za-z0-9_.\-]{20,}$`)

// assigned is a password or key as files and people give it.
var assigned = regexp.MustCompile(`(?i)(?:password|passwd|passwort|kennwort|contraseña|mot de passe|senha|пароль|` +
	`secret|api[_\-]?key|access[_\-]?key|auth[_\-]?token|private[_\-]?key|client[_\-]?secret|pwd)["']?` +
	`(?:\s{0,2}(?:[:=]|=>|is|ist|es|est|é)\s{0,2})["'` + "`" + `]?$`)

// assigning is the same with its value, in one word.
var assigning = regexp.MustCompile(`(?i)(?:password|passwd|passwort|contraseña|senha|secret|api[_\-]?key|` +
	`access[_\-]?key|auth[_\-]?token|token|private[_\-]?key|client[_\-]?secret|pwd)["']?(?::|=|:=)["'` + "`" + `]?`)

// inURL is a password of a user in a URL.
var inURL = regexp.MustCompile(`[a-z][a-z0-9+.\-]*://[^\s/:@]{1,64}:([^\s/@]{3,128})@`)

// findSecrets finds keys, tokens and passwords.
func findSecrets(p *personal, z *zone) {
	if pem := bytes.Index(z.text, []byte("-----BEGIN ")); pem >= 0 && bytes.Contains(z.text,
		[]byte("PRIVATE KEY-----")) {
		p.add("secret", pem, len(z.text), 0.99)
		return
	}
	if len(z.text) >= 16 {
		for _, m := range keys.FindAllIndex(z.text, -1) {
			if !z.alnum(m[0] - 1) {
				p.add("secret", m[0], m[1], 0.95)
				p.hits[len(p.hits)-1].open = begun.Match(z.text[m[0]:m[1]])
			}
		}
		if m := begun.FindIndex(z.text); m != nil && len(z.text) >= maxZone && !z.alnum(m[0]-1) && !p.within(m[0],
			m[1]) {
			p.hits = append(p.hits, hit{kind: "secret", start: m[0], end: m[1], score: 0.6, open: true})
		}
	}
	if bytes.Contains(z.text, []byte("://")) {
		for _, m := range inURL.FindAllSubmatchIndex(z.text, -1) {
			p.add("secret", m[2], m[3], 0.9)
		}
	}
	if m := assigning.FindIndex(z.text); m != nil {
		p.secretValue(z, m[1], " \"'`,;)}>&")
	} else if assigned.MatchString(z.context(0)) {
		p.secretValue(z, 0, " \"'`,;)}>")
	}
}

// secretValue adds the value that begins at start, up to one of the characters after, if it looks like none of a
// language's words.
func (p *personal) secretValue(z *zone, start int, after string) {
	end := start
	for end < len(z.text) && strings.IndexByte(after, z.text[end]) < 0 {
		end++
	}
	for end > start && bytes.IndexByte([]byte(".!?:"), z.text[end-1]) >= 0 && end == len(z.text) {
		end--
	}
	digits, letters, signs := 0, 0, 0
	for _, c := range z.text[start:end] {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= 0x80:
			letters++
		default:
			signs++
		}
	}
	if n := end - start; n >= 6 && n <= 256 && (digits > 0 && letters > 0 || signs > 1 && letters > 0) &&
		!p.within(start, end) {
		p.add("secret", start, end, 0.7)
	}
}
