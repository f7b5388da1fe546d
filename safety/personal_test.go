package safety_test

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/safety"
)

func rules(t testing.TB, text string) *safety.Rules {
	t.Helper()
	p, err := safety.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p.Of("")
}

const redacting = "default: {personal_data: {input: redact, output: redact}}"

// Personal data is found with exactly its own bytes, whatever stands around it. The numbers with check digits are made
// up, or the countries' own examples.
func TestPersonalData(t *testing.T) {
	r := rules(t, redacting)
	for _, c := range []struct{ text, want string }{
		{"Write to bob.o'neil+x@mail.example.co.uk.", "Write to [email]."},
		{"<bob@example.com>,(al@b.de)", "<[email]>,([email])"},
		{"我的邮箱是zhang@example.com谢谢", "我的邮箱是[email]谢谢"},
		{"josé@correo.es", "[email]"},
		{"b\u200bob@exam\u00adple.com!", "[email]!"},
		{"ｂｏｂ＠ｅｘａｍｐｌｅ．ｃｏｍ", "[email]"},
		{"bob[at]example[dot]com", "[email]"},
		{"mailto:bob@example.com?x=1", "mailto:[email]?x=1"},
		{"a@b, 5 @ 3, @name, x@y", "a@b, 5 @ 3, @name, x@y"},
		{"Call +49 (0)170 1234567 today", "Call [phone] today"},
		{"+1-212-555-0123 or (212) 555-0123", "[phone] or [phone]"},
		{"Tel. 030 901820", "Tel. [phone]"},
		{"اتصل \u200e+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "اتصل \u200e[phone]"},
		{"On 2026-11-30, from 10.12.2025 to 1/2/2026, 12345678 times",
			"On 2026-11-30, from 10.12.2025 to 1/2/2026, 12345678 times"},
		{"card 4111-1111-1111-1111, exp 12/30", "card [card], exp 12/30"},
		{"4111 1111 1111 1112", "4111 1111 1111 1112"},
		{"3782 822463 10005", "[card]"},
		{"IBAN: de89 3704 0044 0532 0130 00", "IBAN: [iban]"},
		{"GB29NWBK60161331926819 and GB29 NWBK 6016 1331 9268 19", "[iban] and [iban]"},
		{"DE89 3704 0044 0532 0130 01", "DE89 3704 0044 0532 0130 01"},
		{"DNI 12345678Z, NIE X1234567L", "DNI [national_id], NIE [national_id]"},
		{"RSSMRA85T10A562S", "[national_id]"},
		{"HETU 131052-308T", "HETU [national_id]"},
		{"NIR 2 55 08 14 168 025 38", "NIR [national_id]"},
		{"11010519491231002X", "[national_id]"},
		{"PESEL 44051401359", "PESEL [national_id]"},
		{"811228-9874", "[national_id]"},
		{"CPF 529.982.247-25", "CPF [national_id]"},
		{"BSN 111222333", "BSN [national_id]"},
		{"756.9217.0769.85", "[national_id]"},
		{"Steuer-ID 86095742719", "Steuer-ID [national_id]"},
		{"Aadhaar 2345 6789 0124", "Aadhaar [national_id]"},
		{"SSN 078-05-1120, NHS 943 476 5919", "SSN [national_id], NHS [national_id]"},
		{"AB 12 34 56 C", "[national_id]"},
		{"order 111222333 of 44051401359", "order 111222333 of 44051401359"},
		{"from 8.8.8.8 to [2001:4860:4860::8888]:443", "from [ip] to [[ip]]:443"},
		{"127.0.0.1, 192.168.0.1, version 1.2.3.4, 12:30:45", "127.0.0.1, 192.168.0.1, version 1.2.3.4, 12:30:45"},
		{"AKIAIOSFODNN7EXAMPLE", "[secret]"},
		{"ghp_abcdefghijklmnopqrstuvwxyz0123456789 x", "[secret] x"},
		{"postgres://bob:hunter2x@db/x", "postgres://bob:[secret]@db/x"},
		{"my password is Tr0ub4dor&3.", "my password is [secret]."},
		{"PASSWORD=abc123xyz", "PASSWORD=[secret]"},
		{"the password is required", "the password is required"},
		{"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + strings.Repeat("a1B2", 500) + " end", "[secret] end"},
		{"-----BEGIN EC PRIVATE KEY-----\nMHcC AQ\n\nEE\n-----END EC PRIVATE KEY-----\nok", "[secret]\nok"},
		{"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
			"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"},
	} {
		if got := r.Check(safety.Input, c.text); got.Text() != c.want {
			t.Errorf("%.80q became %.80q, want %.80q: %+v", c.text, got.Text(), c.want, got.Findings)
		}
	}
}

// A long word, or a long row of numbers, is let go of bit by bit, and nothing in it is missed.
func TestLongWords(t *testing.T) {
	r := rules(t, redacting)
	for _, unit := range []string{"a", "ab1", "9", "9 ", "A1 ", "x.", "/", "=", "ü", "-----BEGIN "} {
		for _, n := range []int{100, 300, 511, 512, 513, 2000, 20000} {
			text := strings.Repeat(unit, n/len(unit)) + "\n"
			got := r.Check(safety.Input, text+"bob@example.com 4111 1111 1111 1111").Text()
			if !strings.HasSuffix(got, "[email] [card]") {
				t.Errorf("%d of %q: %.60q", n, unit, got[max(0, len(got)-60):])
			}
		}
	}
	held := r.NewStream(safety.Output)
	out := 0
	held.Push(strings.Repeat("abc1/", 4000), func(p safety.Piece) { out += p.Covers })
	if out < 19000 {
		t.Errorf("of 20,000 bytes of one word %d have left", out)
	}
}
