package constrain

import (
	"fmt"
	"math/big"
	"strings"
)

// maxDigits bounds the digits of a number before its decimal point, and those behind it. As many are exact in a
// float64.
const maxDigits = 15

// maxExact is the most digits of an upper bound of magnitudes that is held to the digit: numbers below a larger one
// have maxDigits.
const maxExact = 40

const (
	anyInteger  = `-?(?:0|[1-9][0-9]{0,14})`
	anyFraction = `(?:\.[0-9]{1,15})?`
	anyNumber   = anyInteger + anyFraction + `(?:[eE][+-]?[0-9]{1,2})?`
)

// bound is one end of a range of numbers.
type bound struct {
	value  *big.Rat
	strict bool // value itself is outside
}

// numberPatterns returns regular expressions that together match the decimal numbers, or integers, from lo to hi, each
// of which may be nil. Numbers between bounds are written without exponent.
func numberPatterns(integer bool, lo, hi *bound) ([]string, error) {
	if lo == nil && hi == nil {
		if integer {
			return []string{anyInteger}, nil
		}
		return []string{anyNumber}, nil
	}
	nonNegative, err := magnitudePattern(integer, nil, true)
	if err != nil {
		return nil, err
	}
	var patterns []string
	for _, end := range []struct {
		*bound
		least bool
	}{{lo, true}, {hi, false}} {
		if end.bound == nil {
			continue
		}
		// x ≥ v is, for v > 0, |x| ≥ v of a positive x, and otherwise any x ≥ 0 or |x| ≤ |v| of a negative x.
		// x ≤ v is the same with the signs changed.
		towards, away := "", "-"
		outside := end.value.Sign() > 0 || end.value.Sign() == 0 && end.strict
		if !end.least {
			towards, away = away, towards
			outside = end.value.Sign() < 0 || end.value.Sign() == 0 && end.strict
		}
		magnitude, err := magnitudePattern(integer, &bound{new(big.Rat).Abs(end.value), end.strict}, outside)
		if err != nil {
			return nil, err
		}
		if outside {
			patterns = append(patterns, towards+magnitude)
		} else {
			patterns = append(patterns, towards+nonNegative+"|"+away+magnitude)
		}
	}
	return patterns, nil
}

// magnitudePattern matches the numbers without sign that are at least, or at most, b, and all if b is nil.
func magnitudePattern(integer bool, b *bound, least bool) (string, error) {
	fraction := anyFraction
	if integer {
		fraction = ""
	}
	if b == nil {
		return `(?:0|[1-9][0-9]{0,14})` + fraction, nil
	}
	whole := new(big.Int).Quo(b.value.Num(), b.value.Denom())
	rest := new(big.Rat).Sub(b.value, new(big.Rat).SetInt(whole))
	digits := whole.String()
	if len(digits) > maxExact && !least {
		return magnitudePattern(integer, nil, true)
	}
	var alternatives []string
	if least {
		alternatives = above(digits, fraction)
	} else {
		alternatives = below(digits, fraction)
	}
	// The numbers whose whole part is that of the bound.
	switch {
	case integer && rest.Sign() == 0 && !b.strict, integer && rest.Sign() > 0 && !least:
		alternatives = append(alternatives, digits)
	case integer:
	default:
		text := strings.TrimRight(rest.FloatString(maxDigits), "0")[len("0."):]
		if exact, _ := new(big.Rat).SetString("0." + text + "0"); exact.Cmp(rest) != 0 {
			return "", fmt.Errorf("has more than %d digits behind the decimal point", maxDigits)
		}
		for _, f := range fractions(text, b.strict, least) {
			alternatives = append(alternatives, digits+f)
		}
	}
	if len(alternatives) == 0 {
		return "", errEmpty
	}
	return "(?:" + strings.Join(alternatives, "|") + ")", nil
}

// above returns patterns of the whole parts greater than digits, each with fraction.
func above(digits, fraction string) []string {
	var patterns []string
	for i, d := range digits {
		if d < '9' {
			patterns = append(patterns, fmt.Sprintf("%s[%c-9][0-9]{%d}%s", digits[:i], d+1, len(digits)-i-1, fraction))
		}
	}
	if n := len(digits); n < maxDigits {
		patterns = append(patterns, fmt.Sprintf("[1-9][0-9]{%d,%d}%s", n, maxDigits-1, fraction))
	} else {
		patterns = append(patterns, fmt.Sprintf("[1-9][0-9]{%d}%s", n, fraction))
	}
	return patterns
}

// below returns patterns of the whole parts less than digits, each with fraction.
func below(digits, fraction string) []string {
	var patterns []string
	for i, d := range digits {
		least := '0'
		if i == 0 && len(digits) > 1 {
			least = '1'
		}
		if d > least {
			patterns = append(patterns, fmt.Sprintf("%s[%c-%c][0-9]{%d}%s", digits[:i], least, d-1, len(digits)-i-1, fraction))
		}
	}
	if n := len(digits); n > 1 {
		patterns = append(patterns, fmt.Sprintf("(?:0|[1-9][0-9]{0,%d})%s", n-2, fraction))
	}
	return patterns
}

// fractions returns patterns of the fractions, with their point, that are at least, or at most, that of digits, which
// does not end with a zero.
func fractions(digits string, strict, least bool) []string {
	var patterns []string
	n := len(digits)
	if n == 0 {
		switch {
		case least && strict:
			return []string{fmt.Sprintf(`\.[0-9]{0,%d}[1-9][0-9]{0,%d}`, 7, 7)}
		case least:
			return []string{anyFraction}
		case strict:
			return nil
		default:
			return []string{fmt.Sprintf(`(?:\.0{1,%d})?`, maxDigits)}
		}
	}
	for i, d := range digits {
		rest := fmt.Sprintf("[0-9]{0,%d}", maxDigits-i-1)
		if least && d < '9' {
			patterns = append(patterns, fmt.Sprintf(`\.%s[%c-9]%s`, digits[:i], d+1, rest))
		}
		if !least && d > '0' {
			patterns = append(patterns, fmt.Sprintf(`\.%s[0-%c]%s`, digits[:i], d-1, rest))
		}
	}
	if !least {
		patterns = append(patterns, "") // the whole part alone, and the beginnings of digits
		for i := 1; i < n; i++ {
			patterns = append(patterns, `\.`+digits[:i])
		}
	}
	switch {
	case least && strict && n < maxDigits:
		patterns = append(patterns, fmt.Sprintf(`\.%s0{0,%d}[1-9][0-9]{0,%d}`, digits, (maxDigits-n-1)/2, (maxDigits-n)/2))
	case least && !strict:
		patterns = append(patterns, fmt.Sprintf(`\.%s[0-9]{0,%d}`, digits, maxDigits-n))
	case !least && !strict:
		patterns = append(patterns, fmt.Sprintf(`\.%s0{0,%d}`, digits, maxDigits-n))
	}
	return patterns
}
