package safety

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nyaruka/phonenumbers"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/texts.jsonl and testdata/quality.txt anew")

// sample is a text of the test set.
type sample struct {
	Text     string `json:"text"`
	Language string `json:"language"`
	// Category is "none" of texts that are to pass.
	Category string `json:"category"`
	// Origin is the line of testdata/templates.txt that it is made of.
	Origin int `json:"origin"`
}

const perTemplate = 9

// makeSamples makes the test set of its templates; the same each time.
func makeSamples(t *testing.T) (list []sample) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "templates.txt"))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(23, 4))
	seen := map[string]bool{}
	var at sample
	for i, line := range strings.Split(string(raw), "\n") {
		switch {
		case line == "" || line[0] == '#' && !strings.HasPrefix(line, "###"):
			continue
		case line[0] == '[':
			_, err = fmt.Sscanf(strings.Trim(line, "[]"), "%s %s", &at.Category, &at.Language)
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		at.Origin = i + 1
		for range perTemplate {
			at.Text = fill(pick(line, rng), rng)
			if !seen[at.Text] {
				seen[at.Text] = true
				list = append(list, at)
			}
		}
	}
	return list
}

// pick takes one of each of a line's alternatives.
func pick(line string, rng *rand.Rand) string {
	open := strings.IndexByte(line, '{')
	if open < 0 {
		return line
	}
	parts, rest, err := alternatives(line[open:])
	if err != nil {
		panic(err)
	}
	return line[:open] + pick(parts[rng.IntN(len(parts))], rng) + pick(rest, rng)
}

var variable = regexp.MustCompile(`\$[a-z$]+`)

// fill makes up what stands in the places of variables.
func fill(text string, rng *rand.Rand) string {
	return variable.ReplaceAllStringFunc(text, func(name string) string {
		switch name {
		case "$$":
			return "$"
		case "$email":
			first := []string{"bob", "anna.schmidt", "j_doe", "li-wei", "o.brien+news", "maria77"}[rng.IntN(6)]
			return first + "@" + []string{"example.com", "mail.example.de", "firma.example.org", "uni.example.fr"}[rng.IntN(4)]
		case "$host":
			return []string{"win.example.com", "best-deals.example.net", "go.example.org"}[rng.IntN(3)]
		case "$phone":
			region := []string{"DE", "FR", "ES", "US", "GB", "RU", "CN", "BR", "IN", "IT"}[rng.IntN(10)]
			n := phonenumbers.GetExampleNumberForType(region, phonenumbers.MOBILE)
			return phonenumbers.Format(n, phonenumbers.INTERNATIONAL)
		case "$ip":
			return fmt.Sprintf("%d.%d.%d.%d", 11+rng.IntN(89), rng.IntN(256), rng.IntN(256), 1+rng.IntN(254))
		case "$key":
			return []string{"sk-proj-", "ghp_", "hf_"}[rng.IntN(3)] + letters(rng, 40)
		case "$password":
			return letters(rng, 6) + digits(rng, 3) + "!"
		}
		return makeNumber(name, rng)
	})
}

// makeNumber makes up a number whose check digits are right.
func makeNumber(name string, rng *rand.Rand) string {
	try := func(form string, valid func(string) bool) string {
		for {
			b := []byte(form)
			for i, c := range b {
				if c == '#' {
					b[i] = byte('0' + rng.IntN(10))
				}
			}
			plain := strings.NewReplacer(" ", "", "-", "", ".", "").Replace(string(b))
			if valid(plain) {
				return string(b)
			}
		}
	}
	switch name {
	case "$card":
		return try([]string{"4### #### #### ####", "52##-####-####-####", "37#############"}[rng.IntN(3)], luhn)
	case "$iban":
		return try([]string{"DE## #### #### #### #### ##", "NL##ABNA##########", "FR## #### #### #### #### #### ###"}[rng.IntN(3)],
			func(s string) bool { return mod97([]byte(s)) })
	case "$ssn":
		return try("###-##-####", validSSN)
	case "$nhs":
		return try("### ### ####", validNHS)
	case "$steuerid":
		return try("###########", validTaxDE)
	case "$nir":
		return try("2 ## 0# ## ### ### ##", validNIR)
	case "$dni":
		return try("########"+string("TRWAGMYFPDXBNJZSQVHLCKE"[rng.IntN(23)]), validSpanish)
	case "$snils":
		return try("###-###-### ##", validSNILS)
	case "$cnid":
		return try("######19##0#1#####", validChinese)
	case "$cpf":
		return try("###.###.###-##", validCPF)
	case "$cf":
		for c := 'A'; ; c++ {
			if text := "RSSMR" + string('A'+rune(rng.IntN(3))) + "85T10A562" + string(c); validItalian(text) {
				return text
			} else if c == 'Z' {
				c = 'A' - 1
			}
		}
	case "$bsn":
		return try("#########", validBSN)
	case "$pesel":
		return try("###########", validPESEL)
	}
	panic(name)
}

func letters(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[rng.IntN(62)]
	}
	return string(b)
}

func digits(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('0' + rng.IntN(10))
	}
	return string(b)
}

// readSamples reads the test set.
func readSamples(t *testing.T) (list []sample) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "texts.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
		var at sample
		if err := json.Unmarshal(s.Bytes(), &at); err != nil {
			t.Fatal(err)
		}
		list = append(list, at)
	}
	return list
}

// wilson is the interval of 95 % of a share of k in n (E. B. Wilson, 1927).
func wilson(k, n int) (low, high float64) {
	const z = 1.959964
	p, m := float64(k)/float64(n), float64(n)
	mid, half := p+z*z/(2*m), z*math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return (mid - half) / (1 + z*z/m), (mid + half) / (1 + z*z/m)
}

func percent(k, n int) string {
	if n == 0 {
		return "none"
	}
	low, high := wilson(k, n)
	return fmt.Sprintf("%.1f %% (%.1f to %.1f)", 100*float64(k)/float64(n), 100*low, 100*high)
}

// quality is how well each category is told from all other texts, as a table.
func quality(list []sample, found func(sample) []Category) (table string, missed []string) {
	var right, wrong, all [numCategories]int
	for _, s := range list {
		want, ok := ParseCategory(s.Category)
		if ok {
			all[want]++
		}
		got := found(s)
		for _, c := range got {
			if ok && c == want {
				right[c]++
			} else {
				wrong[c]++
				missed = append(missed, fmt.Sprintf("%v found in %s: %s", c, s.Category, s.Text))
			}
		}
		if ok && !slices.Contains(got, want) {
			missed = append(missed, fmt.Sprintf("%v missed: %s", want, s.Text))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| category | texts | found | found elsewhere | recall | precision |\n|---|---|---|---|---|---|\n")
	for _, c := range Categories() {
		fmt.Fprintf(&b, "| %v | %d | %d | %d | %s | %s |\n", c, all[c], right[c], wrong[c],
			percent(right[c], all[c]), percent(right[c], right[c]+wrong[c]))
	}
	return b.String(), missed
}

// everything flags all categories, so that findings tell what detectors say.
const everything = `default:
  hate: {input: flag}
  sexual: {input: flag}
  violence: {input: flag}
  self_harm: {input: flag}
  personal_data: {input: flag}
  spam: {input: flag}
  prompt_injection: {input: flag}
  health: {input: flag}
`

// The test set is what its templates make, is as large as docs/safety.md says, and is told apart as well as the numbers
// there, which may only be changed on purpose (go test ./safety -run TestQuality -rewrite).
func TestQuality(t *testing.T) {
	made := makeSamples(t)
	var text bytes.Buffer
	for _, s := range made {
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		if err := e.Encode(s); err != nil {
			t.Fatal(err)
		}
	}
	update(t, "texts.jsonl", text.String())
	list := readSamples(t)
	languages := map[string]bool{}
	for _, s := range list {
		languages[s.Language] = true
	}
	if len(list) < 1500 || len(languages) < 5 {
		t.Errorf("%d texts in %d languages, want 1500 in 5", len(list), len(languages))
	}
	p, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	table, missed := quality(list, func(s sample) (found []Category) {
		for _, f := range p.Of("").Check(Input, s.Text).Findings {
			if !slices.Contains(found, f.Category) {
				found = append(found, f.Category)
			}
		}
		return found
	})
	table = fmt.Sprintf("%d texts in %d languages; shares with 95 %% intervals.\n\n%s", len(list), len(languages), table)
	update(t, "quality.txt", table)
	if testing.Verbose() {
		t.Logf("%s\n%s", table, strings.Join(missed, "\n"))
	}
	doc, err := os.ReadFile(filepath.Join("..", "docs", "safety.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), table) {
		t.Error("docs/safety.md has other numbers than testdata/quality.txt")
	}
}

// update holds that a file of testdata is text, or writes it.
func update(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != text {
		t.Errorf("%s is not what the test makes; -rewrite writes it:\n%.2000s", path, text)
	}
}
