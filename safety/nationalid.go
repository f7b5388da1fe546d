package safety

import (
	"bytes"
	"regexp"
	"strings"
	"time"
)

// numericID is a country's number of a person, of digits only.
type numericID struct {
	country string
	digits  int
	valid   func(d string) bool
	// shape, with the separators between its groups, is how it is written by those who know it: that tells it from
	// other
	// numbers. Without one, or written otherwise, one of words stands before it, unless sure says that its digits are
	// enough.
	shape      []int
	separators string
	words      []string
	sure       bool
}

// letteredID is one with letters, whose form tells it from others.
type letteredID struct {
	country string
	form    *regexp.Regexp
	valid   func(s string) bool
	words   []string // one of them stands before it; nil for none
}

// numericIDs are from the countries' own descriptions of the numbers, as the check digits are.
var numericIDs = []numericID{
	{country: "FR", digits: 15, valid: validNIR, sure: true},
	{country: "CN", digits: 18, valid: validChinese, sure: true},
	{country: "DE", digits: 11, valid: validTaxDE, words: []string{"steuer-id", "steueridentifikationsnummer",
		"steuernummer", "idnr", "identifikationsnummer", "tax id", "tin"}},
	{country: "NL", digits: 9, valid: validBSN, words: []string{"bsn", "burgerservicenummer", "sofinummer"}},
	{country: "BE", digits: 11, valid: validBelgian, shape: []int{2, 2, 2, 3, 2}, separators: "..-.",
		words: []string{"rijksregister", "registre national", "nationaal nummer", "national number", "niss", "insz"}},
	{country: "PL", digits: 11, valid: validPESEL, words: []string{"pesel"}},
	{country: "SE", digits: 10, valid: validSwedish, shape: []int{6, 4}, separators: "-",
		words: []string{"personnummer", "personal number"}},
	{country: "SE", digits: 12, valid: func(d string) bool { return validSwedish(d[2:]) }, shape: []int{8, 4},
		separators: "-",
		words:      []string{"personnummer", "personal number"}},
	{country: "NO", digits: 11, valid: validNorwegian, shape: []int{6, 5}, separators: " ",
		words: []string{"fødselsnummer", "personnummer"}},
	{country: "PT", digits: 9, valid: validNIF, words: []string{"nif", "contribuinte"}},
	{country: "BR", digits: 11, valid: validCPF, shape: []int{3, 3, 3, 2}, separators: "..-", words: []string{"cpf"}},
	{country: "IN", digits: 12, valid: verhoeff, shape: []int{4, 4, 4}, separators: "  ", words: []string{"aadhaar",
		"aadhar", "आधार"}},
	{country: "CA", digits: 9, valid: luhn, words: []string{"sin", "social insurance", "nas"}},
	{country: "GB", digits: 10, valid: validNHS, words: []string{"nhs"}},
	{country: "AU", digits: 9, valid: validTFN, words: []string{"tfn", "tax file"}},
	{country: "CH", digits: 13, valid: validAHV, sure: true},
	{country: "TR", digits: 11, valid: validTurkish, words: []string{"tckn", "tc kimlik", "t.c. kimlik", "kimlik no",
		"kimlik"}},
	{country: "ZA", digits: 13, valid: func(d string) bool { return validDate(d[:6]) && luhn(d) },
		words: []string{"id number", "identity number", "said", "id no", "id"}},
	{country: "RO", digits: 13, valid: validCNP, words: []string{"cnp", "cod numeric"}},
	{country: "BG", digits: 10, valid: validEGN, words: []string{"егн", "egn"}},
	{country: "CZ", digits: 10, valid: validCzech, shape: []int{6, 4}, separators: "/", words: []string{"rodné číslo",
		"rodne cislo", "rodné"}},
	{country: "HR", digits: 11, valid: mod11x10, words: []string{"oib"}},
	{country: "EE", digits: 11, valid: validBaltic, words: []string{"isikukood", "asmens kodas"}},
	{country: "KR", digits: 13, valid: validKorean, shape: []int{6, 7}, separators: "-", words: []string{"주민등록번호"}},
	{country: "JP", digits: 12, valid: validMyNumber, words: []string{"マイナンバー", "個人番号", "my number"}},
	{country: "TH", digits: 13, valid: validThai, shape: []int{1, 4, 5, 2, 1}, separators: "----",
		words: []string{"บัตรประชาชน", "thai id"}},
	{country: "IL", digits: 9, valid: luhn, words: []string{"teudat zehut", "תעודת זהות", "ת.ז"}},
	{country: "RU", digits: 11, valid: validSNILS, shape: []int{3, 3, 3, 2}, separators: "-- ",
		words: []string{"снилс", "snils"}},
	{country: "RU", digits: 12, valid: validINN, words: []string{"инн", "inn"}},
	{country: "US", digits: 9, valid: validSSN, shape: []int{3, 2, 4}, separators: "--", words: []string{"ssn",
		"social security"}},
}

var letteredIDs = []letteredID{
	{"ES", regexp.MustCompile(`(?i)[XYZ]?\d{7,8}[ .\-]?[A-Z]`), validSpanish, nil},
	{"IT", regexp.MustCompile(`(?i)[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]`), validItalian, nil},
	{"FI", regexp.MustCompile(`(?i)\d{6}[+\-A]\d{3}[0-9A-Y]`), validFinnish, nil},
	{"GB", regexp.MustCompile(`(?i)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]`), validNINO, nil},
	{"CN", regexp.MustCompile(`(?i)\d{17}X`), validChinese, nil},
	{"FR", regexp.MustCompile(`(?i)[12] ?\d{2} ?\d{2} ?2[AB] ?\d{3} ?\d{3} ?\d{2}`), validNIR, nil},
	{"MX", regexp.MustCompile(`(?i)[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d`), validCURP, nil},
	{"SG", regexp.MustCompile(`(?i)[STFG]\d{7}[A-Z]`), validNRIC, nil},
	{"TW", regexp.MustCompile(`(?i)[A-Z][1289]\d{8}`), validTaiwanese, nil},
	{"HK", regexp.MustCompile(`(?i)[A-Z]{1,2}\d{6}\([0-9A]\)`), validHKID, nil},
	{"CL", regexp.MustCompile(`(?i)\d{1,2}\.?\d{3}\.?\d{3}-[0-9K]`), validRUT, []string{"rut", "run"}},
}

// findIDs finds numbers that countries give to people.
func findIDs(p *personal, z *zone) {
	if !p.digits {
		return
	}
	eachNumber(z, 9, func(c candidate) bool {
		for i := range numericIDs {
			if n := &numericIDs[i]; len(c.digits) == n.digits && n.valid(c.digits) && n.meant(z, c) {
				p.add("national_id", c.start, c.end, 0.9)
				return true
			}
		}
		return false
	})
	for i := range letteredIDs {
		n := &letteredIDs[i]
		for _, m := range n.form.FindAllIndex(z.text, -1) {
			text := strings.NewReplacer(" ", "", ".", "", "-", "", "(", "", ")",
				"").Replace(string(bytes.ToUpper(z.text[m[0]:m[1]])))
			if n.country == "FI" {
				text = string(bytes.ToUpper(z.text[m[0]:m[1]]))
			}
			if !z.alnum(m[0]-1) && !z.alnum(m[1]) && n.valid(text) && (n.words == nil || z.after(m[0], n.words)) {
				p.add("national_id", m[0], m[1], 0.9)
			}
		}
	}
}

// meant says whether a number that could be n is likely one.
func (n *numericID) meant(z *zone, c candidate) bool {
	if n.sure || n.shape != nil && c.separators == n.separators && equalInts(c.shape, n.shape) {
		return true
	}
	return z.after(c.start, n.words)
}

func equalInts(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// weighted sums digits, each with its weight.
func weighted(d string, weights ...int) (sum int) {
	for i, w := range weights {
		sum += w * int(d[i]-'0')
	}
	return sum
}

func digit(d string, i int) int { return int(d[i] - '0') }

// validDate says whether six digits are a date, YYMMDD.
func validDate(d string) bool {
	_, err := time.Parse("060102", d)
	return err == nil
}

func validNIR(d string) bool {
	d = strings.Replace(d, "2A", "19", 1)
	d = strings.Replace(d, "2B", "18", 1)
	if len(d) != 15 || d[0] != '1' && d[0] != '2' {
		return false
	}
	month := number(d[3:5])
	return (month >= 1 && month <= 12 || month >= 20) && 97-number(d[:13])%97 == number(d[13:])
}

// validTaxDE is the check of ISO 7064, MOD 11,10; one digit of the first ten comes twice or thrice.
func validTaxDE(d string) bool {
	var seen [10]int
	repeated := 0
	for i := range 10 {
		if seen[d[i]-'0']++; seen[d[i]-'0'] == 2 {
			repeated++
		}
	}
	return d[0] != '0' && repeated == 1 && mod11x10(d)
}

func mod11x10(d string) bool {
	p := 10
	for i := range len(d) - 1 {
		if p = (p + digit(d, i)) % 10; p == 0 {
			p = 10
		}
		p = 2 * p % 11
	}
	return (11-p)%10 == digit(d, len(d)-1)
}

func validBSN(d string) bool {
	return d != "000000000" && weighted(d, 9, 8, 7, 6, 5, 4, 3, 2, -1)%11 == 0
}

func validBelgian(d string) bool {
	check := number(d[9:])
	return 97-number(d[:9])%97 == check || 97-number("2"+d[:9])%97 == check
}

func validPESEL(d string) bool {
	month, day := number(d[2:4])%20, number(d[4:6])
	return month >= 1 && month <= 12 && day >= 1 && day <= 31 &&
		weighted(d, 1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)%10 == 0
}

func validSwedish(d string) bool {
	day := number(d[4:6])
	if day > 60 { // of those who have no number yet
		day -= 60
	}
	month := number(d[2:4])
	return month >= 1 && month <= 12 && day >= 1 && day <= 31 && luhn(d)
}

func validNorwegian(d string) bool {
	day, month := number(d[:2]), number(d[2:4])
	return day%40 >= 1 && day%40 <= 31 && month%40 >= 1 && month%40 <= 12 &&
		weighted(d, 3, 7, 6, 1, 8, 9, 4, 5, 2, 1)%11 == 0 && weighted(d, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)%11 == 0
}

func validNIF(d string) bool {
	check := 11 - weighted(d, 9, 8, 7, 6, 5, 4, 3, 2)%11
	if check > 9 {
		check = 0
	}
	return strings.ContainsRune("12356789", rune(d[0])) && check == digit(d, 8)
}

func validCPF(d string) bool {
	if strings.Count(d, d[:1]) == len(d) {
		return false
	}
	check := func(sum int) int { return 10 * sum % 11 % 10 }
	return check(weighted(d, 10, 9, 8, 7, 6, 5, 4, 3, 2)) == digit(d, 9) &&
		check(weighted(d, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)) == digit(d, 10)
}

func validNHS(d string) bool {
	return weighted(d, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)%11 == 0 && strings.Trim(d, "0") != ""
}

func validTFN(d string) bool { return weighted(d, 1, 4, 3, 7, 5, 8, 6, 9, 10)%11 == 0 }

// validAHV is an EAN-13 of Switzerland's own prefix.
func validAHV(d string) bool {
	return strings.HasPrefix(d, "756") && weighted(d, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1)%10 == 0
}

func validTurkish(d string) bool {
	odd := weighted(d, 1, 0, 1, 0, 1, 0, 1, 0, 1)
	even := weighted(d, 0, 1, 0, 1, 0, 1, 0, 1)
	return d[0] != '0' && ((7*odd-even)%10+10)%10 == digit(d, 9) && (odd+even+digit(d, 9))%10 == digit(d, 10)
}

func validCNP(d string) bool {
	return d[0] != '0' && validDate(d[1:7]) && weighted(d, 2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)%11%10 == digit(d, 12)
}

func validEGN(d string) bool {
	month, day := number(d[2:4])%20, number(d[4:6])
	return month >= 1 && month <= 12 && day >= 1 && day <= 31 &&
		weighted(d, 2, 4, 8, 5, 10, 9, 7, 3, 6)%11%10 == digit(d, 9)
}

func validCzech(d string) bool {
	month, day := number(d[2:4])%50%20, number(d[4:6])
	return month >= 1 && month <= 12 && day >= 1 && day <= 31 && number(d)%11 == 0
}

// validBaltic is the check of Estonia's and Lithuania's numbers.
func validBaltic(d string) bool {
	if d[0] < '1' || d[0] > '8' || !validDate(d[1:7]) {
		return false
	}
	check := weighted(d, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1) % 11
	if check == 10 {
		check = weighted(d, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3) % 11 % 10
	}
	return check == digit(d, 10)
}

func validKorean(d string) bool {
	return validDate(d[:6]) && (11-weighted(d, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)%11)%10 == digit(d, 12)
}

func validMyNumber(d string) bool {
	rest := weighted(d, 6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2) % 11
	if rest <= 1 {
		return digit(d, 11) == 0
	}
	return 11-rest == digit(d, 11)
}

func validThai(d string) bool {
	return d[0] != '0' && (11-weighted(d, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)%11)%10 == digit(d, 12)
}

func validSNILS(d string) bool {
	return weighted(d, 9, 8, 7, 6, 5, 4, 3, 2, 1)%101%100 == number(d[9:]) && strings.Trim(d, "0") != ""
}

func validINN(d string) bool {
	return weighted(d, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)%11%10 == digit(d, 10) &&
		weighted(d, 3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)%11%10 == digit(d, 11)
}

// validSSN has no check digit: the areas, groups and serials that are never given.
func validSSN(d string) bool {
	return d[:3] != "000" && d[:3] != "666" && d[0] != '9' && d[3:5] != "00" && d[5:] != "0000"
}

func validChinese(d string) bool {
	if len(d) != 18 || !validDate(d[8:14]) || d[6:8] != "19" && d[6:8] != "20" {
		return false
	}
	sum := weighted(d, 7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
	return d[17] == "10X98765432"[sum%11]
}

func validSpanish(s string) bool {
	if i := strings.IndexByte("XYZ", s[0]); i >= 0 {
		s = string(rune('0'+i)) + s[1:]
	}
	return len(s) == 9 && s[8] == "TRWAGMYFPDXBNJZSQVHLCKE"[number(s[:8])%23]
}

// italianOdd are the values of digits and letters in odd places of a codice fiscale.
var italianOdd = [...]int{1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23}

func validItalian(s string) bool {
	sum := 0
	for i := range 15 {
		v := int(s[i] - 'A')
		if s[i] <= '9' {
			v = int(s[i] - '0')
		}
		if i%2 == 0 {
			v = italianOdd[v]
		}
		sum += v
	}
	return s[15] == byte('A'+sum%26)
}

func validFinnish(s string) bool {
	return validDate(s[4:6]+s[2:4]+s[:2]) && s[10] == "0123456789ABCDEFHJKLMNPRSTUVWXY"[number(s[:6]+s[7:10])%31]
}

// validNINO has no check digit: the prefixes that are never given.
func validNINO(s string) bool {
	return !strings.Contains("BG GB KN NK NT TN ZZ", s[:2])
}

func validCURP(s string) bool {
	const order = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
	sum := 0
	for i := range 17 {
		v := strings.IndexByte(order, s[i])
		if s[i] > 'N' { // behind Ñ, which has two bytes
			v--
		}
		sum += v * (18 - i)
	}
	return validDate(s[4:10]) && (10-sum%10)%10 == digit(s, 17)
}

func validNRIC(s string) bool {
	sum := weighted(s[1:], 2, 7, 6, 5, 4, 3, 2)
	if s[0] == 'T' || s[0] == 'G' {
		sum += 4
	}
	letters := "JZIHGFEDCBA"
	if s[0] == 'F' || s[0] == 'G' {
		letters = "XWUTRQPNMLK"
	}
	return s[8] == letters[sum%11]
}

func validTaiwanese(s string) bool {
	v := strings.IndexByte("ABCDEFGHJKLMNPQRSTUVXYWZIO", s[0]) + 10
	return (v/10+9*(v%10)+weighted(s[1:], 8, 7, 6, 5, 4, 3, 2, 1, 1))%10 == 0
}

func validHKID(s string) bool {
	if len(s) == 8 {
		s = "\x00" + s
	}
	sum, weights := 0, []int{9, 8, 7, 6, 5, 4, 3, 2, 1}
	for i := range 9 {
		v := 36 // of the letter that is not there
		switch c := s[i]; {
		case c >= 'A' && i == 8:
			v = 10
		case c >= 'A':
			v = int(c-'A') + 10
		case c >= '0':
			v = int(c - '0')
		}
		sum += weights[i] * v
	}
	return sum%11 == 0
}

func validRUT(s string) bool {
	sum, n := 0, len(s)-1
	for i := range n {
		sum += digit(s, n-1-i) * (2 + i%6)
	}
	return s[n] == "0K987654321"[sum%11]
}

// verhoeff is the check of J. Verhoeff's Error Detecting Decimal Codes (1969), as Aadhaar numbers have it.
func verhoeff(d string) bool {
	if d[0] < '2' {
		return false
	}
	c := 0
	for i := range len(d) {
		v := digit(d, len(d)-1-i)
		for range i % 8 {
			v = int("1576283094"[v] - '0')
		}
		c = dihedral(c, v)
	}
	return c == 0
}

// dihedral multiplies in the dihedral group of order 10.
func dihedral(a, b int) int {
	switch {
	case a < 5 && b < 5:
		return (a + b) % 5
	case a < 5:
		return 5 + (a+b)%5
	case b < 5:
		return 5 + (a-b)%5
	}
	return (a - b + 5) % 5
}
